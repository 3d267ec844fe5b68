package redirect

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// maxUID is the largest uid; the one above it means "no change" to the kernel.
const maxUID = math.MaxUint32 - 1

// Parse reads a configuration as the webhook writes it: the arguments of
// cmd/tulle-init. Usage goes to output; with -h the error is flag.ErrHelp.
func Parse(args []string, output io.Writer) (Config, error) {
	var c Config
	flags := flag.NewFlagSet("tulle-init", flag.ContinueOnError)
	flags.SetOutput(output)
	var (
		services        = list(flags, "service", "address range of the cluster's Services (CIDR; repeat for more)")
		pods            = list(flags, "pod", "address range of the cluster's pods (CIDR; repeat for more)")
		excludeInbound  = list(flags, "exclude-inbound-port", "port of this pod that callers reach directly (repeat for more)")
		excludeOutbound = list(flags, "exclude-outbound-port", "port that this pod reaches directly, wherever it is (repeat for more)")
		excludeRanges   = list(flags, "exclude-outbound-cidr", "address range that this pod reaches directly (CIDR; repeat for more)")
		excludeUIDs     = list(flags, "exclude-outbound-uid", "user whose connections are direct (number; repeat for more)")
		excludeGIDs     = list(flags, "exclude-outbound-gid", "group whose connections are direct (number; repeat for more)")
		uid             = flags.Uint("proxy-uid", ProxyUID, "uid and gid of the sidecar, whose own connections are left alone")
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
		each(excludeUIDs, &c.ExcludeUIDs, parseOwner),
		each(excludeGIDs, &c.ExcludeGIDs, parseOwner),
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

func parseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address range such as 10.96.0.0/12", s)
	}
	return p.Masked(), nil
}

func parsePort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", s)
	}
	return uint16(p), nil
}

func parseOwner(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id > maxUID {
		return 0, fmt.Errorf("%q is not the number of a user or group", s)
	}
	return uint32(id), nil
}

// resolvers reads the nameservers of a resolv.conf (resolv.conf(5)). A pod
// without the file has no resolvers.
func resolvers(file string) ([]netip.Addr, error) {
	if file == "" {
		return nil, nil
	}
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the pod's resolvers: %w", err)
	}
	var found []netip.Addr
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		// What the C library ignores, we ignore.
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			found = append(found, a.WithZone("").Unmap())
		}
	}
	return found, nil
}
