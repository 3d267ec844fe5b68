package translate

import (
	"net/netip"
	"slices"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Decisions on the model that proxies are told of, for those who explain them: what
// stands here is what resources are made of.

// Inbound is what a workload's sidecar is told to do with what comes in, before any
// rule of authorization is looked at.
type Inbound struct{ in inbound }

// InboundOf is that of the workload, which is meshed.
func InboundOf(w *mesh.Workload, v *mesh.View) Inbound {
	return Inbound{inboundOf(mesh.ProfileOf(w), v)}
}

// Mode is which callers the port takes.
func (i Inbound) Mode(port uint16) mesh.MTLSMode { return i.in.modes.at(port) }

// Declared is what Services declare the port to speak.
func (i Inbound) Declared(port uint16) mesh.Protocol { return i.in.declared[port] }

// SeesTLS reports whether it is seen what name an application's own TLS asks for.
func (i Inbound) SeesTLS(port uint16) bool { return !slices.Contains(i.in.unencrypted(), port) }

// EndsTLS reports whether TLS of clients ends at the port, and whether they are let in.
func (i Inbound) EndsTLS(port uint16) (ends, served bool) {
	_, ends = i.in.ended[port]
	return ends, i.in.served[port]
}

// NormalizesPaths reports whether requests' paths are normalised.
func (i Inbound) NormalizesPaths() bool { return i.in.matchesPaths() }

// Tokens is whose tokens a workload's sidecar believes. The zero value looks at none.
type Tokens struct{ t believed }

// TokensOf are those of the workload.
func TokensOf(w *mesh.Workload, v *mesh.View) Tokens {
	p := mesh.ProfileOf(w)
	return Tokens{tokensAt(selected(p.Namespace, p.Labels, mesh.SectionJWT, v), v)}
}

// Held reports whether tokens are looked at.
func (t Tokens) Held() bool { return t.t.held() }

// Invalid is the policy that has every request refused, since it cannot be understood;
// nil: there is none.
func (t Tokens) Invalid() *mesh.Policy {
	if t.t.held() && t.t.policy.Invalid != "" {
		return t.t.policy
	}
	return nil
}

// Issuers are who makes the tokens that are believed.
func (t Tokens) Issuers() []mesh.Issuer {
	return each(t.t.issuers, func(i tokenIssuer) mesh.Issuer { return i.Issuer })
}

// HasKeys reports whether there are keys to verify the issuer's tokens by.
func (t Tokens) HasKeys(issuer string) bool {
	return slices.ContainsFunc(t.t.issuers, func(i tokenIssuer) bool { return i.Issuer.Issuer == issuer && i.jwks != noKeys })
}

// Rule is what a client's sidecar does with the calls to a Service's port that match.
type Rule struct {
	Of    mesh.Ref // the object that says so: a route, a TrafficSplit, or the Service itself
	Name  string   // as in access logs
	Match mesh.RequestMatch
	// Route is the rule of a route; nil of other objects.
	Route    *mesh.RouteRule
	Backends []Share // in the order of the route's
}

// Share is a backend, and how much it takes of what its rule matches.
type Share struct {
	Service mesh.Name // none: it does not exist, or may not be referred to
	// External says that it is an ExternalService, and Host which of its hosts is called;
	// empty: its servers are.
	External bool
	Host     string
	Port     uint16
	Labels   map[string]string // of the pods that are meant; none: all
	Weight   uint32
}

// Calls are the rules for calls of a namespace's clients to the port, in the order in
// which they are tried. Those of connections that are not HTTP match nothing in
// particular, and there is one.
func Calls(svc *mesh.Service, port mesh.ServicePort, client string, http bool, v *mesh.View) []Rule {
	own := rule{of: mesh.Ref{Kind: mesh.KindService, Name: svc.Name}, name: svc.Name.String(), backends: []share{{to: endpointsOf{service: svc.Name, port: port.Port}, weight: 1}}}
	rules := []rule{own}
	switch {
	case svc.Headless(): // its clients call pods
	case http && !port.Protocol.Opaque():
		rules = rulesFor(svc, port, client, v)
	default:
		if s := connectionSplit(destination{service: svc, port: port}, v); s != nil {
			all := splitRules(s, port.Port)
			rules = all[len(all)-1:] // that of what no other matches
		}
	}
	return shownRules(rules, v)
}

func shownRules(rules []rule, v *mesh.View) []Rule {
	return each(rules, func(r rule) Rule {
		return Rule{Of: r.of, Name: r.name, Match: r.match, Route: r.source, Backends: each(r.backends, func(s share) Share { return shownShare(s.to, s.weight, v) })}
	})
}

func shownShare(to endpointsOf, weight uint32, v *mesh.View) Share {
	out := Share{Service: to.service, Port: to.port, Weight: weight, External: to.external}
	switch {
	case to.external:
		out.Host = hostOfOut(to, v)
	case to.labels != "":
		out.Labels = labelsFrom(to.labels)
	}
	return out
}

// Sent is as what a proxy sends on what it was sent.
type Sent uint8

const (
	// SentHTTP are requests.
	SentHTTP Sent = iota
	// SentBytes are those of a connection, whatever is in it.
	SentBytes
	// SentDecoded are those of one whose TLS ended at a gateway.
	SentDecoded
)

// Endpoint is where calls to a Service may go.
type Endpoint struct {
	At   netip.AddrPort
	MTLS bool // the mesh's sidecars speak mesh mTLS to it
}

// Ready are the endpoints that calls to the backend are shared out among, sorted by zone
// and address.
func Ready(s Share, as Sent, v *mesh.View) []Endpoint {
	svc, ok := v.Service(s.Service)
	if !ok || s.External {
		return nil
	}
	port, _ := svc.Port(s.Port)
	d := destination{http: as == SentHTTP}
	if as == SentDecoded {
		d.prefix = prefixDecoded
	}
	return each(d.ready(s.Service, port.Name, s.Labels, false, v), func(f found) Endpoint { return Endpoint{f.at, f.mtls} })
}
