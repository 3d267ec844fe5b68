// Command demo is what "make demo" runs: it installs Tulle in the cluster that
// KUBECONFIG names, deploys a small shop, tells the mesh about it, sends
// traffic, and ends with a table of what was expected and what was seen. It
// exits with 1 if any row differs. It may be run again on the same cluster.
//
// What comes in: a cluster, and deploy/ and e2e/shop as they are in the source
// tree. What goes out: progress and the table on standard output. The shop is
// left running to be played with.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// options are the flags of the demo.
type options struct {
	deploy   string
	shop     string
	lifetime string
	rate     int
	requests int
}

func main() {
	var o options
	flag.StringVar(&o.deploy, "deploy", "../deploy/overlays/default", "kustomization that installs Tulle; empty: it is installed")
	flag.StringVar(&o.shop, "shop", "shop", "kustomization of the shop; its mesh/ is what the mesh is told")
	flag.StringVar(&o.lifetime, "lifetime", "1m", "life of a certificate during the demo")
	flag.IntVar(&o.rate, "rate", 100, "requests per second")
	flag.IntVar(&o.requests, "requests", 2000, "requests to send through the split")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 6*time.Minute)
	defer cancel()

	kube.Quiet()
	screen := newScreen(os.Stdout)
	ok, err := run(ctx, o, screen)
	if err != nil {
		fmt.Fprintf(os.Stderr, "\nThe demo stopped: %v\n", err)
	}
	if err != nil || !ok {
		cancel()
		stop()
		os.Exit(1)
	}
}

// run is the demo from beginning to end; it reports whether every row of its
// table is as expected.
func run(ctx context.Context, o options, screen *screen) (bool, error) {
	c, err := kube.Connect(ctx)
	if err != nil {
		return false, err
	}
	d := &demo{cluster: c, options: o, screen: screen}
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Installing Tulle", d.install},
		{"Deploying the shop", d.deployShop},
		{"Telling the mesh: mutual TLS only, reviews for the frontend only, nine calls in ten to version 1", d.tellMesh},
		{fmt.Sprintf("Sending %d requests from the frontend to reviews, and calling where one may not", o.requests), d.observe},
	} {
		screen.title(step.title)
		if err := step.do(ctx); err != nil {
			return false, fmt.Errorf("%s: %w", step.title, err)
		}
	}
	if err := c.SetLifetime(ctx, ""); err != nil {
		return false, fmt.Errorf("giving certificates their usual life again: %w", err)
	}
	ok := screen.table(d.rows)
	screen.next(ok)
	return ok, nil
}
