package observe

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// external converts an ExternalService. One that cannot be understood keeps its hosts,
// ports and addresses, which are refused then.
func external(s *v1alpha1.ExternalService) *mesh.External {
	var bad problems
	out := &mesh.External{Meta: meta(s.ObjectMeta), Hosts: s.Spec.Hosts}
	switch s.Spec.Resolution {
	case "", v1alpha1.ExternalNone:
	case v1alpha1.ExternalStatic:
		out.Resolution = mesh.ResolveStatic
	case v1alpha1.ExternalDNS:
		out.Resolution = mesh.ResolveDNS
	default:
		bad.add("spec.resolution: %q is no resolution: write None, Static or DNS", s.Spec.Resolution)
	}
	for i, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, externalPort(fmt.Sprintf("spec.ports[%d]", i), p, &bad))
	}
	for i, a := range s.Spec.Addresses {
		p, ok := addressOrRange(a)
		if !ok {
			bad.add("spec.addresses[%d]: %q is neither an IP address nor a range: write 192.0.2.7 or 192.0.2.0/24", i, a)
			continue
		}
		out.Addresses = append(out.Addresses, p)
	}
	for _, e := range s.Spec.Endpoints {
		to := mesh.ExternalEndpoint{Address: e.Address}
		for _, p := range e.Ports {
			if to.Ports == nil {
				to.Ports = make(map[string]uint16, len(e.Ports))
			}
			to.Ports[p.Name] = bad.port("spec.endpoints.ports", p.Number)
		}
		out.Endpoints = append(out.Endpoints, to)
	}
	if t := s.Spec.TLS; t != nil {
		out.TLS = &mesh.Origination{SNI: t.SNI, SubjectAltNames: t.SubjectAltNames, CA: t.CABundle}
		if t.Mode != "" && t.Mode != v1alpha1.ExternalTLSSimple {
			bad.add("spec.tls.mode: %q is no mode: write Simple", t.Mode)
		}
		if t.CABundle != "" {
			pem, err := certificates([]byte(t.CABundle))
			if err != nil {
				bad.add("spec.tls.caBundle: there are no certificates in it, or not these alone (%v): write those of the authorities, in PEM (-----BEGIN CERTIFICATE-----)", err)
			}
			out.TLS.CA = string(pem)
		}
	}
	if g := s.Spec.Gateway; g != nil {
		out.Gateway = &mesh.Name{Namespace: cmp.Or(g.Namespace, s.Namespace), Name: g.Name}
	}
	for i, c := range s.Spec.From {
		from := source(fmt.Sprintf("spec.from[%d]", i), v1alpha1.Source{Namespaces: c.Namespaces, ServiceAccounts: c.ServiceAccounts}, &bad)
		for j := range from.ServiceAccounts {
			if a := &from.ServiceAccounts[j]; a.Namespace == "" {
				a.Namespace = s.Namespace
			}
		}
		out.Callers = append(out.Callers, mesh.Caller{Namespaces: from.Namespaces, ServiceAccounts: from.ServiceAccounts})
	}
	contradictions(out, &bad)
	if out.Gateway != nil {
		beyondGateway(out, &bad)
	}
	out.Invalid = bad.sentence()
	return out
}

// beyondGateway is what a gateway cannot be sent to, and what it must not.
func beyondGateway(e *mesh.External, bad *problems) {
	if e.Resolution == mesh.ResolveNone && len(e.Addresses) > 0 {
		bad.add("spec.addresses: a gateway has no way on to an address that was called: write resolution: DNS or Static")
	}
	if near := e.Nearby(); near != "" {
		bad.add("%s", near)
	}
}

// contradictions are what the CRD's rules refuse, too.
func contradictions(e *mesh.External, bad *problems) {
	wild := slices.ContainsFunc(e.Hosts, func(h string) bool { return strings.Contains(h, "*") })
	tcp := slices.ContainsFunc(e.Ports, func(p mesh.ExternalPort) bool { return p.Protocol == mesh.TCP && len(e.At(p)) == 0 })
	tls := slices.ContainsFunc(e.Ports, func(p mesh.ExternalPort) bool { return p.Protocol == mesh.TLS })
	ranges := slices.ContainsFunc(e.Addresses, func(p netip.Prefix) bool { return !p.IsSingleIP() })
	static := e.Resolution == mesh.ResolveStatic
	switch {
	case len(e.Hosts) == 0:
		bad.add("spec.hosts: it has no host: write one")
	case wild && e.Resolution != mesh.ResolveNone:
		bad.add("spec.hosts: a wildcard is for resolution None alone: name each host")
	case static && len(e.Endpoints) == 0:
		bad.add("spec.endpoints: resolution Static needs the servers' addresses")
	case static && slices.ContainsFunc(e.Endpoints, func(s mesh.ExternalEndpoint) bool { _, err := netip.ParseAddr(s.Address); return err != nil }):
		bad.add("spec.endpoints: with resolution Static addresses are IP addresses: write resolution: DNS for names")
	case ranges && e.Resolution != mesh.ResolveNone:
		bad.add("spec.addresses: a range is for resolution None alone: write single addresses")
	case tcp:
		bad.add("spec.addresses: a TCP connection says no name: write the addresses that are called")
	case e.TLS != nil && (tls || e.Resolution == mesh.ResolveNone):
		bad.add("spec.tls: it is for ports of HTTP, GRPC and TCP, with resolution DNS or Static")
	}
}

func externalPort(field string, p v1alpha1.ExternalPort, bad *problems) mesh.ExternalPort {
	out := mesh.ExternalPort{Name: p.Name, Number: bad.port(field+".number", p.Number)}
	if p.TargetPort != 0 {
		out.Target = bad.port(field+".targetPort", p.TargetPort)
	}
	switch p.Protocol {
	case v1alpha1.ExternalHTTP:
		out.Protocol = mesh.HTTP
	case v1alpha1.ExternalGRPC:
		out.Protocol = mesh.GRPC
	case v1alpha1.ExternalHTTPS, v1alpha1.ExternalTLSProtocol:
		out.Protocol = mesh.TLS
	case v1alpha1.ExternalTCP:
		out.Protocol = mesh.TCP
	default:
		bad.add("%s.protocol: %q is no protocol: write HTTP, GRPC, HTTPS, TLS or TCP", field, p.Protocol)
		out.Protocol = mesh.TLS
	}
	return out
}

func addressOrRange(text string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err == nil && !p.Addr().Is4In6()
}
