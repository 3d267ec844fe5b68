// Command tulle-init runs as a meshed pod's first init container, for a moment.
//
// Without a subcommand it redirects the pod's TCP traffic through its sidecar:
// it has the capability NET_ADMIN, replaces one nftables table and ends. As
// "tulle-init check" it has no capability, and waits until the CNI plugin of the
// node has done the same.
//
// It ends with status 1, saying why on standard error, when it could not, which
// keeps the pod from starting unmeshed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/check"
	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

// patience is how long a pod that is not redirected waits for the node to make
// up for it. It is waited for here, because a pod that is never restarted, as
// many a Job's, has only this one try.
const patience = time.Minute

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "tulle-init:", err)
		os.Exit(1)
	}
}

// run is main without the process around it.
func run(args []string, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "check" {
		return runCheck(args[1:], stderr)
	}
	config, err := redirect.Parse(args, stderr)
	if err != nil {
		return err
	}
	if err := redirect.Apply(config); err != nil {
		return err
	}
	say(stderr, config)
	return nil
}

func runCheck(args []string, stderr io.Writer) error {
	config, err := redirect.Parse(args, stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = check.Wait(ctx, config, func(err error) {
		fmt.Fprintln(stderr, "tulle-init: waiting for the node to redirect this pod's traffic:", err)
	})
	if err != nil {
		return fmt.Errorf("this pod does not start, for its traffic would pass by its sidecar: %w. "+
			"Tulle's CNI plugin has not redirected it: see that a pod of the DaemonSet tulle-cni runs on this node and is ready, and it makes up for that; "+
			"or give the namespace the label mesh.tulle.dev/redirection=init to do without the plugin", err)
	}
	say(stderr, config)
	return nil
}

func say(stderr io.Writer, config redirect.Config) {
	fmt.Fprintf(stderr, "tulle-init: TCP to services %v and pods %v goes to the sidecar's port %d, to elsewhere to %d, to this pod to %d\n",
		config.Services, config.Pods, redirect.PortOutbound, redirect.PortEgress, redirect.PortInbound)
}
