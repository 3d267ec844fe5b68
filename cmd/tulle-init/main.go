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
	"strings"

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
	config, err := parse(args, stderr)
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

// parse reads the arguments into a configuration.
func parse(args []string, stderr io.Writer) (redirect.Config, error) {
	var c redirect.Config
	flags := flag.NewFlagSet("tulle-init", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var (
		services        = list(flags, "service", "address range of the cluster's Services (CIDR; repeat for more)")
		pods            = list(flags, "pod", "address range of the cluster's pods (CIDR; repeat for more)")
		excludeInbound  = list(flags, "exclude-inbound-port", "port of this pod that callers reach directly (repeat for more)")
		excludeOutbound = list(flags, "exclude-outbound-port", "port that this pod reaches directly, wherever it is (repeat for more)")
		excludeRanges   = list(flags, "exclude-outbound-cidr", "address range that this pod reaches directly (CIDR; repeat for more)")
		uid             = flags.Uint("proxy-uid", redirect.ProxyUID, "uid of the sidecar, whose own connections are left alone")
		resolvConf      = flags.String("resolv-conf", "/etc/resolv.conf", "file with the resolvers that DNS over TCP goes to directly; empty: none")
	)
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q: everything is a flag", flags.Arg(0))
	}
	if *uid > maxUID {
		return c, fmt.Errorf("--proxy-uid: %d is not a uid", *uid)
	}
	c.ProxyUID = uint32(*uid)
	var err error
	c.Resolvers, err = resolvers(*resolvConf)
	return c, errors.Join(err,
		each(services, &c.Services, parseRange),
		each(pods, &c.Pods, parseRange),
		each(excludeInbound, &c.ExcludeInbound, parsePort),
		each(excludeOutbound, &c.ExcludeOutbound, parsePort),
		each(excludeRanges, &c.ExcludeRanges, parseRange),
	)
}

// values are what a repeated flag was given. They are read when all flags are
// known, so that one run reports all mistakes.
type values struct {
	flag  string
	given []string
}

func (v *values) String() string { return strings.Join(v.given, ",") }

// Set adds one value, or several with commas between them.
func (v *values) Set(s string) error {
	v.given = append(v.given, strings.Split(s, ",")...)
	return nil
}

func list(flags *flag.FlagSet, name, usage string) *values {
	v := &values{flag: name}
	flags.Var(v, name, usage)
	return v
}

// each reads every value of a flag.
func each[T any](v *values, into *[]T, read func(string) (T, error)) error {
	var problems []error
	for _, s := range v.given {
		t, err := read(strings.TrimSpace(s))
		if err != nil {
			problems = append(problems, fmt.Errorf("--%s: %w", v.flag, err))
			continue
		}
		*into = append(*into, t)
	}
	return errors.Join(problems...)
}
