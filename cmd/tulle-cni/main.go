// Command tulle-cni is a chained CNI plugin that redirects meshed pods' traffic
// to their sidecars, so that these pods need no privilege for it, and as
// "tulle-cni agent" the program that keeps the plugin on a node.
//
// Without arguments it is the plugin: a container runtime runs it for each pod
// (see package plugin). The agent runs as a DaemonSet; see package agent.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"

	"github.com/tulle-mesh/tulle/cmd/tulle-cni/agent"
	"github.com/tulle-mesh/tulle/cmd/tulle-cni/plugin"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "dev"

func main() {
	if len(os.Args) < 2 || os.Args[1] != "agent" {
		plugin.Main(version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := runAgent(ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "tulle-cni:", err)
		os.Exit(1)
	}
}

func runAgent(ctx context.Context, args []string) error {
	var o agent.Options
	f := flag.NewFlagSet("tulle-cni agent", flag.ContinueOnError)
	f.StringVar(&o.NodeName, "node", os.Getenv("NODE_NAME"), "name of the node that this runs on")
	f.StringVar(&o.Namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of the agent's DaemonSet")
	f.StringVar(&o.DaemonSet, "daemonset", "tulle-cni", "name of the agent's DaemonSet: when that is deleted, the plugin is taken out of the node")
	f.StringVar(&o.Configurations, "configurations", "/host/etc/cni/net.d", "the node's folder of network configurations")
	f.StringVar(&o.Plugins, "plugins", "/host/opt/cni/bin", "the node's folder of CNI plugins")
	f.StringVar(&o.Results, "results", "/host/var/lib/cni/results", "the node's folder of what CNI plugins have made")
	f.StringVar(&o.Health, "health-address", ":8083", "address to serve /readyz on")
	if err := f.Parse(args); err != nil {
		return err
	}
	c := zap.NewProductionConfig()
	c.DisableStacktrace = true
	z, err := c.Build()
	if err != nil {
		return fmt.Errorf("making the logger: %w", err)
	}
	o.Log, o.Version = zapr.NewLogger(z), version
	return agent.Run(ctx, o)
}
