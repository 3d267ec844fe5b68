package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

const (
	// arrival is how long a connection may take to where it is led, which is
	// within the pod.
	arrival = time.Second
	// again is the time between two tries.
	again = 250 * time.Millisecond
)

// Wait tries until the pod is redirected as the configuration says, or the
// context ends; the error is then why the last try failed. Reasons are also
// reported as they come up, each once in a row.
func Wait(ctx context.Context, c redirect.Config, report func(error)) error {
	var last error
	for tick := time.NewTicker(again); ; {
		err := Redirected(ctx, c)
		if err == nil {
			return nil
		}
		if last == nil || last.Error() != err.Error() {
			report(err)
		}
		last = err
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}

// Redirected tries once. It needs the sidecar's ports to be free.
func Redirected(ctx context.Context, c redirect.Config) error {
	attempts, err := plan(c)
	if err != nil {
		return err
	}
	sidecar, err := listen(redirect.PortOutbound, redirect.PortEgress)
	defer sidecar.close()
	if err != nil {
		return err
	}
	for _, a := range attempts {
		if err := sidecar.sees(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// sees connects to where nobody is, and waits for that connection to arrive at
// the port where it belongs.
func (s *sidecar) sees(ctx context.Context, a attempt) error {
	dialer := net.Dialer{Timeout: arrival}
	conn, err := dialer.DialContext(ctx, "tcp", a.to.String())
	if err != nil {
		return fmt.Errorf("a connection to %v is not redirected to the sidecar's port %d: %w", a.to, a.port, err)
	}
	defer conn.Close()
	from := conn.LocalAddr().String()
	for timeout := time.After(arrival); ; {
		select {
		case got := <-s.arrived:
			switch {
			case got.from != from: // of an earlier attempt
				continue
			case got.port != a.port:
				return fmt.Errorf("a connection to %v is redirected to port %d, not to %d", a.to, got.port, a.port)
			case got.to != a.to:
				return fmt.Errorf("a connection to %v arrives as one to %v", a.to, got.to)
			}
			return nil
		case <-timeout:
			return fmt.Errorf("a connection to %v is not redirected to the sidecar's port %d: it arrived at %v", a.to, a.port, conn.RemoteAddr())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// attempt is a connection to try, and the port that it is to be led to.
type attempt struct {
	to   netip.AddrPort
	port uint16
}

// elsewhere are addresses that nobody has: they are for documentation (RFC 5737
// and RFC 3849).
func elsewhere() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"),
		netip.MustParsePrefix("2001:db8::/32"),
	}
}

// plan chooses what to try: each range of the cluster, and elsewhere once in
// each family. What is excluded goes directly, and where the pod has no route
// nothing goes at all.
func plan(c redirect.Config) ([]attempt, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	own, err := ownAddresses()
	if err != nil {
		return nil, err
	}
	var attempts []attempt
	ways := 0
	try := func(within netip.Prefix, not []netip.Prefix, port uint16) bool {
		to, ok := unused(within, slices.Concat(not, c.ExcludeRanges, own), c.ExcludeOutbound)
		if !reachable(within.Addr().Next()) {
			return false
		}
		ways++
		if ok {
			attempts = append(attempts, attempt{to, port})
		}
		return ok
	}
	cluster := slices.Concat(c.Services, c.Pods)
	for _, r := range cluster {
		try(r.Masked(), nil, redirect.PortOutbound)
	}
	for family, done := range map[int]bool{32: false, 128: false} {
		for _, r := range elsewhere() {
			if r.Addr().BitLen() == family && !done {
				done = try(r, cluster, redirect.PortEgress)
			}
		}
	}
	if ways == 0 {
		return nil, errors.New("the pod has no route to anywhere: its network is not there yet")
	}
	return attempts, nil
}

// unused is an address of a range that is in none of the others, with a port
// that is not among the given ones; false where there is none within reach.
func unused(within netip.Prefix, not []netip.Prefix, ports []uint16) (netip.AddrPort, bool) {
	const discard = 9 // RFC 863
	port := uint16(discard)
	for slices.Contains(ports, port) {
		if port++; port == 0 {
			return netip.AddrPort{}, false
		}
	}
	// One address lies in each of the other ranges at most before the search
	// leaves it, so this is a bound, not a guess.
	a := within.Addr()
	if within.Bits() < a.BitLen() {
		a = a.Next() // the first is the network's
	}
	for range len(not) + 1 {
		if !within.Contains(a) {
			return netip.AddrPort{}, false
		}
		i := slices.IndexFunc(not, func(p netip.Prefix) bool { return p.Contains(a) })
		if i < 0 {
			return netip.AddrPortFrom(a, port), true
		}
		a = last(not[i]).Next()
	}
	return netip.AddrPort{}, false
}

// last is the highest address of a range.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func ownAddresses() ([]netip.Prefix, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the pod's addresses: %w", err)
	}
	var own []netip.Prefix
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
			}
		}
	}
	return own, nil
}

// reachable asks the kernel for a route, by a UDP socket, which sends nothing
// when it is connected.
func reachable(a netip.Addr) bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		return !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, syscall.EHOSTUNREACH)
	}
	conn.Close()
	return true
}
