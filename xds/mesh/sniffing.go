package mesh

import (
	"net/netip"
	"slices"
)

// Sniffing says where proxies look at a connection's first bytes to tell HTTP
// from the rest, and where they must not, because the server may speak first.
// Envoy can leave that out by port only, so ports are what it is made of, and
// addresses are exceptions.
type Sniffing struct {
	// Off are the ports on which nothing is looked at, sorted.
	Off []uint16
	// HTTP are the services' addresses that are declared HTTP on a port of Off.
	HTTP []netip.AddrPort
	// Opaque are the addresses that are declared not to be HTTP on a port where
	// proxies look, since another service on it has declared nothing.
	Opaque []netip.AddrPort
	// decides are the ports on which somebody may not be looked at: nobody
	// else's services matter.
	decides map[uint16]bool
}

// serverFirst are ports of protocols in which the server speaks first (FTP, SSH,
// SMTP, POP3, IMAP, submission, MySQL; IANA's service names). Nothing is looked
// at on them whoever declares what: each change of the ports drains every
// proxy's outbound listener, so that the usual ones should not make any.
var serverFirst = [...]uint16{21, 22, 25, 110, 143, 587, 3306}

// portUse is who declares what on one port number.
type portUse struct {
	opaque, http []netip.AddrPort
	opaqueAny    bool // a headless service counts too
	detect       bool
}

// sniffs reports whether the service has a say in Sniffing, which is worked out
// anew from all services only then.
func (s *Snapshot) sniffs(svc *Service) bool {
	return svc != nil && slices.ContainsFunc(svc.Ports, func(p ServicePort) bool {
		return p.Protocol == TCP || s.sniffing.decides[p.Port]
	})
}

// updateSniffing works out Sniffing anew.
func (s *Snapshot) updateSniffing(f facts) {
	old := s.sniffing
	s.sniffing = s.sniff()
	if !slices.Equal(old.Off, s.sniffing.Off) || !slices.Equal(old.HTTP, s.sniffing.HTTP) || !slices.Equal(old.Opaque, s.sniffing.Opaque) {
		f.add(FactSniffing, "")
	}
}

func (s *Snapshot) sniff() *Sniffing {
	uses := map[uint16]*portUse{}
	s.services.t.Root().Walk(func(_ []byte, svc *Service) bool {
		for _, p := range svc.Ports {
			use(uses, svc, p)
		}
		return false
	})
	out := &Sniffing{decides: map[uint16]bool{}}
	for _, port := range serverFirst {
		if uses[port] == nil {
			uses[port] = &portUse{}
		}
		uses[port].opaqueAny, uses[port].detect = true, false
	}
	for port, u := range uses {
		if !u.opaqueAny {
			continue
		}
		out.decides[port] = true
		switch {
		case u.detect:
			out.Opaque = append(out.Opaque, u.opaque...)
		default:
			out.Off = append(out.Off, port)
			out.HTTP = append(out.HTTP, u.http...)
		}
	}
	slices.Sort(out.Off)
	slices.SortFunc(out.HTTP, netip.AddrPort.Compare)
	slices.SortFunc(out.Opaque, netip.AddrPort.Compare)
	return out
}

func use(uses map[uint16]*portUse, svc *Service, p ServicePort) {
	u := uses[p.Port]
	if u == nil {
		u = &portUse{}
		uses[p.Port] = u
	}
	switch {
	case p.Protocol == TLS: // its client speaks first, and what it says is not HTTP
	case p.Protocol.Opaque():
		u.opaqueAny = true
	case p.Protocol.IsHTTP() && !svc.Headless():
	default:
		// Undeclared, or HTTP on pods' own addresses, which cannot be listed.
		u.detect = true
	}
	for _, a := range svc.Addresses {
		vip := netip.AddrPortFrom(a, p.Port)
		if p.Protocol == TCP {
			u.opaque = append(u.opaque, vip)
		} else if p.Protocol.IsHTTP() {
			u.http = append(u.http, vip)
		}
	}
}
