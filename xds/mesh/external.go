package mesh

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// External is an ExternalService: something outside of the cluster. It holds for the
// workloads of its namespace, and one in the root namespace for all of the mesh.
type External struct {
	Meta
	// Hosts are names in lower case; "*.x" is any name below x.
	Hosts []string
	Ports []ExternalPort
	// Addresses are what clients call; none: hosts decide.
	Addresses  []netip.Prefix
	Resolution Resolution
	Endpoints  []ExternalEndpoint
	TLS        *Origination // nil: connections are as the application made them
	Callers    []Caller     // who may call; none: everybody
	Gateway    *Name        // the Gateway by which calls leave; nil: from where they are made
	// Invalid is set when the object cannot be understood, and says why. What it names is
	// refused then: it may have been there to let in some, or to encrypt.
	Invalid string
}

// Resolution says where calls to an external service go.
type Resolution uint8

// The resolutions.
const (
	ResolveNone   Resolution = iota // where the application sends them
	ResolveStatic                   // to the endpoints
	ResolveDNS                      // where names lead
)

// ExternalPort is a port of an external service. Its protocol is HTTP, GRPC, TLS or TCP.
type ExternalPort struct {
	Name     string
	Number   uint16
	Protocol Protocol
	Target   uint16 // the servers' own; 0: Number
}

// ExternalEndpoint is a server: an IP address or a name.
type ExternalEndpoint struct {
	Address string
	Ports   map[string]uint16 // by the name of the external service's port
}

// Origination is the TLS that a sidecar speaks to an external service.
type Origination struct {
	SNI             string   // empty: the host that was called
	SubjectAltNames []string // empty: SNI
	CA              string   // in PEM; empty: what the proxy's image trusts
}

// Caller matches a workload when each field that is not empty has a value that matches.
type Caller struct {
	Namespaces      []string
	ServiceAccounts []Name
}

// Admits reports whether the service account's workloads may call.
func (e *External) Admits(account Name) bool {
	return len(e.Callers) == 0 || slices.ContainsFunc(e.Callers, func(c Caller) bool {
		return (len(c.Namespaces) == 0 || slices.Contains(c.Namespaces, account.Namespace)) &&
			(len(c.ServiceAccounts) == 0 || slices.Contains(c.ServiceAccounts, account))
	})
}

// Nearby says what of a gateway's own, or of its node's, the object would lead it to, which
// no gateway may be sent to; empty: nothing. Where names lead only DNS can say.
func (e *External) Nearby() string {
	ports := map[uint16]bool{}
	for _, p := range e.Ports {
		ports[cmp.Or(p.Target, p.Number)] = true
		for _, h := range e.Hosts {
			if strings.HasPrefix(h, "*.") {
				ports[p.Number] = true // at which names below a wildcard are called
			}
		}
	}
	for _, h := range e.Hosts {
		if len(e.Endpoints) == 0 && within(h) {
			return fmt.Sprintf("spec.hosts: %s is no host that a gateway may be sent to: write that of a server outside", h)
		}
	}
	for _, s := range e.Endpoints {
		if within(s.Address) {
			return fmt.Sprintf("spec.endpoints: %s is no address that a gateway may be sent to: write that of a server outside", s.Address)
		}
		for _, p := range s.Ports {
			ports[p] = true
		}
	}
	for _, p := range slices.Sorted(maps.Keys(ports)) {
		if p >= 15000 && p <= 15021 || p == 15090 {
			return fmt.Sprintf("spec.ports: %d is a port of a gateway's own proxy, to which a name might lead: write another", p)
		}
	}
	return ""
}

// within reports whether an address, or a name that resolvers know without asking (RFC 6761,
// section 6.3), is of a loopback or a link.
func within(address string) bool {
	if a, err := netip.ParseAddr(address); err == nil {
		return !a.Unmap().IsGlobalUnicast()
	}
	return address == "localhost" || strings.HasSuffix(address, ".localhost")
}

// Port returns the port with the number.
func (e *External) Port(number uint16) (ExternalPort, bool) {
	i := slices.IndexFunc(e.Ports, func(p ExternalPort) bool { return p.Number == number })
	if i < 0 {
		return ExternalPort{}, false
	}
	return e.Ports[i], true
}

// At are the addresses by which calls to the port are known; none where hosts are. A TCP
// connection says no name: without addresses of their own, those of the servers are.
func (e *External) At(p ExternalPort) []netip.Prefix {
	if len(e.Addresses) > 0 || p.Protocol != TCP {
		return e.Addresses
	}
	var out []netip.Prefix
	for _, s := range e.Endpoints {
		if a, err := netip.ParseAddr(s.Address); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

func (s *Snapshot) setExternal(f facts, c Change) {
	old, had := s.externals.get(c.name.key())
	if !set(&s.externals, c) {
		return
	}
	f.add(FactExternal, c.name.key())
	f.add(FactExternals, c.name.Namespace)
	now, has := s.externals.get(c.name.key())
	if had && old.Gateway != nil {
		f.add(FactEgress, old.Gateway.key())
		s.byGateway.delete(old.Gateway.key() + "/" + c.name.key())
	}
	if has && now.Gateway != nil {
		f.add(FactEgress, now.Gateway.key())
		s.byGateway.put(now.Gateway.key()+"/"+c.name.key(), now)
	}
	if has {
		s.stand(Ref{KindExternal, c.name}, now.Generation)
	} else {
		s.fall(Ref{KindExternal, c.name})
	}
}

// Externals are all external services, sorted by namespace and name.
func (s *Snapshot) Externals() iter.Seq[*External] { return s.externals.all() }

// External returns the external service with the name.
func (v *View) External(n Name) (*External, bool) {
	v.read(FactExternal, n.key())
	e, ok := v.s.externals.get(n.key())
	if ok {
		v.use(KindExternal, n)
	}
	return e, ok
}

// ExternalsThrough are the external services whose calls leave by the gateway, as they say
// themselves, and that apply, sorted by namespace and name.
func (v *View) ExternalsThrough(gateway Name, applies func(*External) bool) []*External {
	v.read(FactEgress, gateway.key())
	var out []*External
	for _, e := range v.s.byGateway.prefix(gateway.key() + "/") {
		if applies(e) {
			v.use(KindExternal, e.Meta.Name)
			out = append(out, e)
		}
	}
	return out
}

// Externals are the namespace's external services that apply, the oldest first and then by
// name: the order in which equals win.
func (v *View) Externals(namespace string, applies func(*External) bool) []*External {
	v.read(FactExternals, namespace)
	return oldestFirst(v, v.s.externals, KindExternal, namespace, applies)
}
