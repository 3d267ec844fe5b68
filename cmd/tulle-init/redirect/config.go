package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Ports of the sidecar.
const (
	PortAdmin    = 15000
	PortOutbound = 15001
	PortEgress   = 15002
	PortInbound  = 15006
	PortProbes   = 15020
	PortReady    = 15021
	PortStats    = 15090
)

const (
	// ProxyUID is the user, and the group, of a sidecar that is told no other.
	ProxyUID = 1337

	// Hairpin is the socket priority (SO_PRIORITY, socket(7)) by which a
	// sidecar marks a connection that must enter the inbound listener when it
	// ends in the same pod. Priorities up to 6 need no privilege; 4 shares a
	// band with the default 0 in the kernel's queueing disciplines, so that
	// the mark changes nothing else (tc-prio(8)).
	Hairpin = 4

	dnsPort = 53
)

// Config says what is redirected.
type Config struct {
	// Services and Pods are the cluster's address ranges, of both families.
	// At least one service range is needed.
	Services []netip.Prefix
	Pods     []netip.Prefix

	// Resolvers are the pod's DNS servers.
	Resolvers []netip.Addr

	// ProxyUID is the sidecar's user, and its group: what has both is never
	// redirected. An image that has this user, but another group, is.
	ProxyUID uint32

	// ExcludeInbound are ports of the pod that callers reach directly.
	// ExcludeOutbound are ports, ExcludeRanges addresses, that the application
	// reaches directly. ExcludeUIDs and ExcludeGIDs are users and groups of the
	// application whose connections are all direct.
	ExcludeInbound  []uint16
	ExcludeOutbound []uint16
	ExcludeRanges   []netip.Prefix
	ExcludeUIDs     []uint32
	ExcludeGIDs     []uint32
}

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	var problems []error
	if len(c.Services) == 0 {
		problems = append(problems, errors.New("no service range: without one no traffic would be in the mesh"))
	}
	if c.ProxyUID == 0 {
		problems = append(problems, errors.New("the proxy's uid is 0: whatever runs as root would pass by the proxy"))
	}
	for _, ports := range [][]uint16{c.ExcludeInbound, c.ExcludeOutbound} {
		if slices.Contains(ports, 0) {
			problems = append(problems, errors.New("there is no port 0 to exclude"))
		}
	}
	for _, ranges := range [][]netip.Prefix{c.Services, c.Pods, c.ExcludeRanges} {
		for _, r := range ranges {
			if !r.IsValid() {
				problems = append(problems, fmt.Errorf("%v is not an address range", r))
			}
		}
	}
	return errors.Join(problems...)
}
