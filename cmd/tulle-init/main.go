// Command tulle-init redirects a pod's TCP traffic through its sidecar. It runs
// as the pod's first init container, with the capability NET_ADMIN, for a
// moment: it replaces one nftables table and ends.
//
// It ends with status 1, saying why on standard error, when it could not, which
// keeps the pod from starting unmeshed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

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
	config, err := redirect.Parse(args, stderr)
	if err != nil {
		return err
	}
	if err := redirect.Apply(config); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "tulle-init: TCP to services %v and pods %v goes to the sidecar's port %d, to elsewhere to %d, to this pod to %d\n",
		config.Services, config.Pods, redirect.PortOutbound, redirect.PortEgress, redirect.PortInbound)
	return nil
}
