package translate

import (
	"net/netip"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Leaving is what ExternalServices say to the sidecars of a service account's pods about
// calls that leave the cluster, for those who explain it.
type Leaving struct {
	account mesh.Name
	es      []*mesh.External
	v       *mesh.View
}

// LeavingOf is that of the service account.
func LeavingOf(account mesh.Name, v *mesh.View) Leaving {
	return Leaving{account, externals(account.Namespace, v, every), v}
}

// Objects are all that hold for the account, whomever they admit; of several that name the
// same the first wins.
func (l Leaving) Objects() []*mesh.External { return l.es }

// At is what the address is named as, at the port: by the narrowest range that has it.
func (l Leaving) At(at netip.AddrPort) (out Outer, ok bool) {
	narrowest := -1
	for _, e := range l.es {
		p, has := e.Port(at.Port())
		if !has {
			continue
		}
		for _, a := range e.At(p) {
			if a.Contains(at.Addr()) && a.Bits() > narrowest {
				narrowest, out, ok = a.Bits(), Outer{external{e, p, ""}, at.Addr().String()}, true
			}
		}
	}
	return out, ok
}

// Named is what the host, in lower case, means at a port whose protocol is as given.
func (l Leaving) Named(port uint16, host string, is func(mesh.Protocol) bool) (Outer, bool) {
	e, ok := named(l.es, is).find(port, host)
	return Outer{e, host}, ok
}

// Looks reports whether requests of HTTP at the port are looked at for their host.
func (l Leaving) Looks(port uint16) bool { return len(named(l.es, mesh.Protocol.IsHTTP)[port]) > 0 }

// Outer is a host or an address of an ExternalService, at one of its ports.
type Outer struct {
	e      external
	called string // a host, or an address
}

// OuterOf is what the share is of, which is an ExternalService.
func OuterOf(s Share, v *mesh.View) (Outer, bool) {
	e, ok := v.External(s.Service)
	if !ok {
		return Outer{}, false
	}
	p, ok := e.Port(s.Port)
	return Outer{external{e, p, s.Host}, s.Host}, ok
}

// Object is the ExternalService.
func (o Outer) Object() *mesh.External { return o.e.External }

// Port is the ExternalService's that is called.
func (o Outer) Port() mesh.ExternalPort { return o.e.port }

// Host is which of the ExternalService's hosts is called, a wildcard as it stands; empty: an
// address is.
func (o Outer) Host() string { return o.e.host }

// Wild reports whether the host stands for any name below another.
func (o Outer) Wild() bool { return wildHost(o.e.host) }

// Refusal is why the service account's calls are refused before they are sent anywhere, and
// the status of the answer to requests of HTTP; 0: they are not.
func (o Outer) Refusal(account mesh.Name, v *mesh.View) (status uint32, why string) {
	return o.e.refusal(account, v)
}

// MayLeave reports whether the object may name the gateway that it names.
func (o Outer) MayLeave(v *mesh.View) bool { return mayLeave(o.e.External, v) }

// Servers are where it leads, each an address or a name with a port; none: where the
// application sends it, or where the name leads that is below a wildcard. Own says that the
// application's own sidecar lets it out, and no gateway.
func (o Outer) Servers(own bool, v *mesh.View) []string {
	asSent := o.e.host == "" || own && v.Config().Egress == mesh.AllowAny
	if wildHost(o.e.host) || o.e.Resolution == mesh.ResolveNone && asSent {
		return nil
	}
	var out []string
	for _, l := range o.e.servers() {
		for _, s := range l.LbEndpoints {
			out = append(out, addressText(s.GetEndpoint().GetAddress()))
		}
	}
	return out
}

func addressText(a *core.Address) string {
	at := a.GetSocketAddress()
	return at.GetAddress() + ":" + strconv.Itoa(int(at.GetPortValue()))
}

// Originated are the server name with which the mesh speaks TLS to the servers, and the names
// that their certificates must have one of; none where it does not.
func (o Outer) Originated() (sni string, names []string) {
	if o.e.TLS == nil {
		return "", nil
	}
	return origination(o.e)
}

// Exit is the egress gateway by which calls leave.
type Exit struct {
	Gateway  mesh.Name
	Listener string
	// Share are its proxies, by the port that sidecars call.
	Share Share
	// Policies, and Tokens of requests, are those of the listener.
	Policies []*mesh.Policy
	Tokens   Tokens
	// NormalizesPaths says that those of requests are normalised.
	NormalizesPaths bool
	// Admitted are the SPIFFE IDs of those whom the object admits and for whom it holds, under
	// each of the trust domain's names. What ends with "*" is a prefix.
	Admitted []string
}

// Exit is the gateway that the object names, if it names one. Problem is why nothing leaves
// there.
func (o Outer) Exit(v *mesh.View) (exit Exit, problem string, named bool) {
	if o.e.Gateway == nil {
		return exit, "", false
	}
	to, f := wayOut(o.e.External, v)
	if f != nil {
		return exit, f.message, true
	}
	g, _ := gatewayOf(*o.e.Gateway, v)
	held, _ := holdingListeners(g, v)
	at := held[slices.IndexFunc(held, func(l mesh.Listener) bool { return l.Protocol == mesh.ListenerEgress })]
	c := v.Config()
	return Exit{
		Gateway: g.Meta.Name, Listener: at.Name, Share: shownShare(to, 1, v),
		Policies:        slices.Concat(attached(g, at.Name, mesh.SectionAuthorization, v)...),
		Tokens:          Tokens{tokensAt(attached(g, at.Name, mesh.SectionJWT, v), v)},
		NormalizesPaths: outMatchesPaths(g, at, v),
		Admitted:        admitted(o.e.External, c.RootNamespace, c.TrustDomains()),
	}, "", true
}

// hostOfOut is the host that the endpoints of an external service stand for.
func hostOfOut(to endpointsOf, v *mesh.View) string {
	e, ok := v.External(to.service)
	if !ok {
		return ""
	}
	p, _ := e.Port(to.port)
	for _, w := range waysTo(e, p) {
		if outID(w) == to.labels {
			return w.host
		}
	}
	return ""
}
