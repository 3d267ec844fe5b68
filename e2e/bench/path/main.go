// Command path measures the data path: what a request costs that goes from a
// client through its Envoy and the server's to the server, over mutual TLS, with
// the configuration that Tulle sends, against one written by hand that does no more
// than that.
//
// What comes in: a cluster of this machine with Tulle's images and that of fortio,
// which makes the load (make bench-path). Each variant is a pair of pods. They are
// loaded one after the other, round after round, each round in another order, so
// that what the machine does meanwhile meets all of them. What goes out: a table,
// and the same as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// options are the flags.
type options struct {
	deploy      string
	rounds      int
	rate        int
	connections int
	size        int
	lasts       time.Duration
	only        string
	out         string
}

func main() {
	var o options
	flag.StringVar(&o.deploy, "deploy", "../deploy/overlays/default", "kustomization that installs Tulle; empty: it is installed")
	flag.IntVar(&o.rounds, "rounds", 10, "times that each variant is loaded")
	flag.IntVar(&o.rate, "rate", 1500, "requests per second")
	flag.IntVar(&o.connections, "connections", 16, "connections of the client")
	flag.IntVar(&o.size, "size", 1024, "bytes of a response's body")
	flag.DurationVar(&o.lasts, "lasts", 6*time.Second, "time of one load")
	flag.StringVar(&o.only, "only", "", "variants to measure (all): "+strings.Join(names(variants()), ", "))
	flag.StringVar(&o.out, "out", "", "file to write the results to, as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	kube.Quiet()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "path:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	all, err := chosen(o.only)
	if err != nil {
		return err
	}
	c, err := kube.Connect(ctx)
	if err != nil {
		return err
	}
	if o.deploy != "" {
		if err := c.Install(ctx, o.deploy); err != nil {
			return err
		}
	}
	b := &bench{c: c, o: o}
	defer func() { err = errors.Join(err, b.clean()) }()
	if err := b.prepare(ctx, all); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // an order
	for round := range o.rounds {
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, v := range all {
			s, err := b.load(ctx, v)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			v.samples = append(v.samples, s)
			fmt.Fprintf(os.Stderr, "round %d: %s: %.1f + %.1f µs, p50 %.2f, p99 %.2f ms\n", round+1, v.name, s.Client, s.Server, s.P50, s.P99)
		}
	}
	found := compare(all)
	if err := table(os.Stdout, found); err != nil || o.out == "" {
		return err
	}
	raw, err := json.MarshalIndent(found, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, append(raw, '\n'), 0o644) //nolint:gosec // figures
}

// chosen are the variants with these names; all where there are none. The one that
// the others are compared with is always among them.
func chosen(only string) ([]*variant, error) {
	all := variants()
	if only == "" {
		return all, nil
	}
	wanted := map[string]bool{byHand: true}
	for name := range strings.SplitSeq(only, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(names(all), name) {
			return nil, fmt.Errorf("there is no variant %q: there are %s", name, strings.Join(names(all), ", "))
		}
		wanted[name] = true
	}
	return slices.DeleteFunc(all, func(v *variant) bool { return !wanted[v.name] }), nil
}
