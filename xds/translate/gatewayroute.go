package translate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Reasons of conditions that are the Gateway API's own.
const (
	reasonNoMatchingParent = "NoMatchingParent"
	reasonUnsupportedValue = "UnsupportedValue"
	reasonBackendNotFound  = "BackendNotFound"
	reasonRefNotPermitted  = "RefNotPermitted"
	reasonInvalidKind      = "InvalidKind"
)

const gatewayGroup = "gateway.networking.k8s.io"

// routesFor are the routes that hold for a service's port and the clients of a
// namespace. Those of the clients' own namespace hold instead of those of the
// service's, which hold for all, and a GRPCRoute instead of HTTPRoutes (GEP-1294).
func routesFor(svc *mesh.Service, port mesh.ServicePort, client string, v *mesh.View) []*mesh.Route {
	attached := func(namespace string) []*mesh.Route {
		rs := v.Routes(mesh.KindService, svc.Name, func(r *mesh.Route) bool {
			return r.OfRequests() && r.Invalid == "" && r.Meta.Namespace == namespace && attaches(r, svc.Name, port)
		})
		if of := mostSpecific(rs); of != 0 {
			rs = slices.DeleteFunc(rs, func(r *mesh.Route) bool { return r.Of != of })
		}
		return rs
	}
	if client != svc.Namespace {
		if own := attached(client); len(own) > 0 {
			return own
		}
	}
	return attached(svc.Namespace)
}

func attaches(r *mesh.Route, service mesh.Name, port mesh.ServicePort) bool {
	return slices.ContainsFunc(r.Parents, func(p mesh.Parent) bool {
		return p.Kind == mesh.KindService && p.Name == service && isAbout(p, port)
	})
}

// isAbout reports whether a parent that is a Service means the port: sectionName is a
// port's name.
func isAbout(p mesh.Parent, port mesh.ServicePort) bool {
	return (p.Port == 0 || p.Port == port.Port) && (p.Section == "" || p.Section == port.Name)
}

// mostSpecific is the kind of route that wins over the others; 0: there are none.
func mostSpecific(rs []*mesh.Route) mesh.Kind {
	var out mesh.Kind
	for _, r := range rs {
		out = max(out, r.Of)
	}
	return out
}

// routeRules are the rules of routes, the most specific match first. Between equals
// the older route wins, then the one that is first by name, then the first rule.
func routeRules(called mesh.Name, routes []*mesh.Route, v *mesh.View) []rule {
	out := rulesOf(called, routes, v)
	slices.SortStableFunc(out, func(a, b rule) int { return bySpecificity(a.match, b.match) })
	return out
}

// rulesOf are the rules of routes for calls to a service, or to a gateway (no name).
func rulesOf(called mesh.Name, routes []*mesh.Route, v *mesh.View) []rule {
	var out []rule
	for _, r := range routes {
		policies := routeTraffic(r, v)
		for i := range r.Rules {
			matches := r.Rules[i].Matches
			if len(matches) == 0 {
				matches = []mesh.RequestMatch{{}}
				if r.Of == mesh.KindGRPCRoute {
					matches[0].GRPC = &mesh.MethodMatch{}
				}
			}
			one := routeRule(called, r, &r.Rules[i], v)
			one.policies = policies
			for j, m := range matches {
				one.of, one.source = r.Ref(), &r.Rules[i]
				one.name, one.match = fmt.Sprintf("%s#%d.%d", cmp.Or(r.Rules[i].Name, r.Meta.Name.String()), i, j), m
				out = append(out, one)
			}
		}
	}
	return out
}

// bySpecificity orders matches as the Gateway API does: by path (an exact one, then
// expressions, then the longest prefix), method, number of headers, and of query
// parameters; those of GRPCRoutes by service, method and number of headers.
func bySpecificity(a, b mesh.RequestMatch) int {
	rank := func(m mesh.RequestMatch) (kind, length int) {
		switch {
		case m.Path == nil:
			return 0, 1 // as the prefix "/"
		case m.Path.Type == mesh.Exact:
			return 2, len(m.Path.Value)
		case m.Path.Type == mesh.Regex:
			return 1, len(m.Path.Value)
		default:
			return 0, len(m.Path.Value)
		}
	}
	ak, al := rank(a)
	bk, bl := rank(b)
	method := func(m mesh.RequestMatch) int { return min(len(m.Method), 1) }
	if a.GRPC != nil && b.GRPC != nil {
		return cmp.Or(
			cmp.Compare(b.GRPC.Service, a.GRPC.Service), cmp.Compare(b.GRPC.Method, a.GRPC.Method),
			cmp.Compare(len(b.Headers), len(a.Headers)),
		)
	}
	return cmp.Or(
		cmp.Compare(bk, ak), cmp.Compare(bl, al), cmp.Compare(method(b), method(a)),
		cmp.Compare(len(b.Headers), len(a.Headers)), cmp.Compare(len(b.Query), len(a.Query)),
	)
}

func routeRule(called mesh.Name, r *mesh.Route, in *mesh.RouteRule, v *mesh.View) rule {
	if in.Unsupported != "" {
		return rule{} // answered with 500
	}
	out := rule{
		request: headersOf(in.Filters.Request), response: headersOf(in.Filters.Response),
		redirect: in.Filters.Redirect, rewrite: in.Filters.Rewrite, cors: in.Filters.CORS,
		timeout: in.Timeout, tryTimeout: in.TryTimeout, retries: routeRetries(in.Retries),
	}
	for _, b := range in.Backends {
		s := share{weight: b.Weight, request: headersOf(b.Request), response: headersOf(b.Response)}
		s.to, _ = backendOf(called, r, b.Backend, v)
		out.backends = append(out.backends, s)
	}
	for _, m := range in.Filters.Mirrors {
		if to, f := backendOf(called, r, m.Backend, v); f == nil {
			out.mirrors = append(out.mirrors, mirror{to, m.Numerator, m.Denominator})
		}
	}
	return out
}

// routeRetries adds to the statuses that a rule names what no server has seen, and what
// the API would have tried again wherever there is a retry stanza: connections that are
// lost, and attempts whose time is over. To Envoy neither is a response with a status.
func routeRetries(r *mesh.Retries) *mesh.Retries {
	if r == nil {
		return nil
	}
	out := *r
	out.On = append(slices.Clone(defaultRetries.On), "reset")
	return &out
}

// backendFault looks for what keeps a route from sending requests to a backend. The
// service that was called needs no grant: its clients call it without the route as well.
func backendFault(called mesh.Name, r *mesh.Route, b mesh.Backend, v *mesh.View) *fault {
	if b.Kind != mesh.BackendService {
		return &fault{conditionResolvedRefs, reasonInvalidKind, fmt.Sprintf("%s %s is no Service: name one as the backend, or at a Gateway an ExternalService", b.Kind, b.Name)}
	}
	if b.Name != called {
		if f := grantFault(mesh.GrantFrom{Group: gatewayGroup, Kind: kindName(r.Of), Namespace: r.Meta.Namespace}, mesh.BackendService, b.Name, v); f != nil {
			return f
		}
	}
	svc, ok := v.Service(b.Name)
	if !ok {
		return &fault{conditionResolvedRefs, reasonBackendNotFound, fmt.Sprintf("there is no Service %s; create it, or correct backendRefs", b.Name)}
	}
	if _, ok := svc.Port(b.Port); !ok {
		return &fault{conditionResolvedRefs, reasonBackendNotFound, fmt.Sprintf("Service %s has no port %d; name one of its ports", b.Name, b.Port)}
	}
	return nil
}

// grantFault looks for a ReferenceGrant by which objects may refer to a Service or Secret,
// if it is of another namespace.
func grantFault(from mesh.GrantFrom, kind string, to mesh.Name, v *mesh.View) *fault {
	if to.Namespace == from.Namespace || v.Granted(from, mesh.GrantTo{Kind: kind, Name: to.Name}, to.Namespace) {
		return nil
	}
	return &fault{conditionResolvedRefs, reasonRefNotPermitted, fmt.Sprintf(
		"no ReferenceGrant in namespace %s lets a %s of namespace %s refer to %s %s; ask for one there", to.Namespace, from.Kind, from.Namespace, kind, to,
	)}
}

func kindName(k mesh.Kind) string { return findingKinds[k] }

// routeFindings are two conditions for each parent.
func routeFindings(r *mesh.Route, v *mesh.View) []mesh.Finding {
	var unsupported *fault
	for i := range r.Rules {
		if u := r.Rules[i].Unsupported; u != "" && unsupported == nil {
			unsupported = &fault{conditionAccepted, reasonUnsupportedValue, u}
		}
	}
	if r.Invalid != "" {
		unsupported = &fault{conditionAccepted, reasonUnsupportedValue, r.Invalid}
	}
	// Whatever the parents are, it was looked at in this generation.
	out := []mesh.Finding{{Kind: r.Of, Object: r.Meta.Name, Generation: r.Generation, Parent: -1}}
	for _, p := range r.Parents {
		var f *fault
		var called mesh.Name
		if p.Kind == mesh.KindGateway {
			g, ok := gatewayOf(p.Name, v)
			if !ok {
				continue // not ours to speak of
			}
			f = attachmentFault(g, r, p, v)
		} else {
			f, called = parentFault(r, p, v), p.Name
		}
		fs := append(refFaults(called, r, v), f, unsupported)
		for _, f := range report(r.Of, r.Meta, true, fs...) {
			f.Parent = p.Index
			out = append(out, f)
		}
	}
	return out
}

// refFaults are what keeps a route from its backends.
func refFaults(called mesh.Name, r *mesh.Route, v *mesh.View) []*fault {
	var out []*fault
	for i := range r.Rules {
		for _, b := range r.Rules[i].Backends {
			_, f := backendOf(called, r, b.Backend, v)
			out = append(out, f)
		}
		for _, m := range r.Rules[i].Filters.Mirrors {
			_, f := backendOf(called, r, m.Backend, v)
			out = append(out, f)
		}
	}
	return out
}

// parentFault looks for what keeps a route from holding for a parent.
func parentFault(r *mesh.Route, p mesh.Parent, v *mesh.View) *fault {
	none := func(format string, args ...any) *fault {
		return &fault{conditionAccepted, reasonNoMatchingParent, fmt.Sprintf(format, args...)}
	}
	if !r.OfRequests() {
		return &fault{conditionAccepted, reasonUnsupportedValue, fmt.Sprintf("a %s is for a Gateway's connections; those to a Service are shared out by a TrafficSplit", kindName(r.Of))}
	}
	svc, ok := v.Service(p.Name)
	switch {
	case !ok:
		return none("there is no Service %s; create it, or correct parentRefs", p.Name)
	case svc.Headless():
		return none("Service %s is headless: its clients call pods by their own addresses; name a Service with a cluster IP", p.Name)
	}
	held := false
	for _, port := range svc.Ports {
		if !isAbout(p, port) || port.Protocol.Opaque() {
			continue
		}
		held = true
		rivals := v.Routes(mesh.KindService, svc.Name, func(o *mesh.Route) bool {
			return o.OfRequests() && o.Of > r.Of && o.Invalid == "" && o.Meta.Namespace == r.Meta.Namespace && attaches(o, svc.Name, port)
		})
		if len(rivals) > 0 {
			return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("%s %s is for port %d of %s too, and of the more specific kind, which wins; give them different ports", kindName(rivals[0].Of), rivals[0].Meta.Name, port.Port, p.Name)}
		}
	}
	if !held {
		named := ""
		if p.Section != "" {
			named = " named " + p.Section
		}
		return none("Service %s has no HTTP port%s%s; a port that is declared TCP or TLS has no requests to route", p.Name, ofNumber(p.Port), named)
	}
	return nil
}
