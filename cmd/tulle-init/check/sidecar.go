package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// sidecar stands in for Envoy: it listens where the rules lead to.
type sidecar struct {
	listeners []net.Listener
	arrived   chan seen
}

// seen is a connection as the sidecar sees it.
type seen struct {
	from string // the client's own address and port
	port uint16 // that it arrived at
	to   netip.AddrPort
}

// listen listens on loopback of each family that there is: that is where the
// kernel redirects what starts in the pod.
func listen(ports ...uint16) (*sidecar, error) {
	s := &sidecar{arrived: make(chan seen, 16)}
	for _, port := range ports {
		for _, host := range []string{"127.0.0.1", "::1"} {
			l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if host == "::1" && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
				continue
			}
			if err != nil {
				return s, fmt.Errorf("listening in place of the sidecar: %w", err)
			}
			s.listeners = append(s.listeners, l)
			go s.accept(l, port)
		}
	}
	return s, nil
}

func (s *sidecar) close() {
	for _, l := range s.listeners {
		l.Close()
	}
}

// accept notes connections until the listener is closed.
func (s *sidecar) accept(l net.Listener, port uint16) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		a := seen{from: conn.RemoteAddr().String(), port: port, to: originalDestination(conn.(*net.TCPConn))}
		conn.Close()
		select {
		case s.arrived <- a:
		default: // nobody waits any more
		}
	}
}

// originalDst is SO_ORIGINAL_DST, and IP6T_SO_ORIGINAL_DST too
// (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
const originalDst = 80

// originalDestination is where a connection was meant to go, as Envoy's filter
// original_dst asks for it; zero if the kernel knows nothing of it.
func originalDestination(conn *net.TCPConn) netip.AddrPort {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}
	}
	var to netip.AddrPort
	v4 := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()
	err = raw.Control(func(fd uintptr) {
		if v4 {
			// The structure that is wanted, sockaddr_in, has 16 bytes, as has the
			// first field of this one.
			if a, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, originalDst); err == nil {
				b := a.Multiaddr
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
			}
			return
		}
		// This one begins with a sockaddr_in6.
		if a, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, originalDst); err == nil {
			port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, a.Addr.Port))
			to = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), port)
		}
	})
	if err != nil {
		return netip.AddrPort{}
	}
	return to
}
