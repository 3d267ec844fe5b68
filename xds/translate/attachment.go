package translate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Conditions and reasons of Gateways and their listeners, which are the Gateway API's.
const (
	conditionConflicted = "Conflicted"
	conditionProgrammed = "Programmed"
	attachedCount       = "AttachedRoutes" // a number, not a condition

	reasonProgrammed          = "Programmed"
	reasonListenersNotValid   = "ListenersNotValid"
	reasonUnsupportedProtocol = "UnsupportedProtocol"
	reasonPortUnavailable     = "PortUnavailable"
	reasonNoConflicts         = "NoConflicts"
	reasonProtocolConflict    = "ProtocolConflict"
	reasonHostnameConflict    = "HostnameConflict"
	reasonInvalidCertificate  = "InvalidCertificateRef"
	reasonInvalidRouteKinds   = "InvalidRouteKinds"
	reasonNotAllowed          = "NotAllowedByListeners"
	reasonNoMatchingHostname  = "NoMatchingListenerHostname"
)

// listenerState is what keeps a listener from being served; nil is nothing.
type listenerState struct {
	accepted, conflicted, refs *fault
	authorities                []*fault // of its clients
	unvouched                  *fault   // there is none that can be had
	served                     bool
}

// holds reports whether the listener has its port and hostname, also while it lacks its
// certificate, or those by which to know its clients.
func (s listenerState) holds() bool { return s.accepted == nil && s.conflicted == nil }

// listenerStates judges a gateway's listeners, in their order. Of those that are in one
// another's way the first is served.
func listenerStates(g *mesh.Gateway, v *mesh.View) []listenerState {
	out := make([]listenerState, len(g.Listeners))
	for i, l := range g.Listeners {
		s := &out[i]
		switch {
		case len(routeKinds(l)) == 0 && l.Protocol != mesh.ListenerEgress:
			s.accepted = &fault{conditionAccepted, reasonUnsupportedProtocol, fmt.Sprintf("the protocol %s is not supported: write HTTP, HTTPS, TLS, TCP or %s", l.Protocol, mesh.ListenerEgress)}
		case l.Port >= PortAdmin && l.Port <= PortReady || l.Port == PortStats:
			s.accepted = &fault{conditionAccepted, reasonPortUnavailable, fmt.Sprintf("port %d is the proxy's own: choose another", l.Port)}
		case l.Unsupported != "":
			s.accepted = &fault{conditionAccepted, reasonUnsupportedValue, l.Unsupported}
		}
		s.refs = listenerRefs(g, l, v)
		if s.accepted == nil {
			s.conflicted = conflict(l, g.Listeners[:i], out[:i])
		}
		var pem []byte
		pem, s.authorities = clientAuthorities(g, l, v)
		if l.Clients != nil && len(pem) == 0 {
			s.unvouched = nobodyVouches()
		}
		s.served = s.holds() && s.unvouched == nil && !(l.Terminates() && s.refs != nil && s.refs.reason != reasonInvalidRouteKinds)
	}
	return out
}

// conflict finds an earlier listener that has the port for something else.
func conflict(l mesh.Listener, before []mesh.Listener, states []listenerState) *fault {
	for i, o := range before {
		if o.Port != l.Port || states[i].accepted != nil {
			continue
		}
		if o.Protocol != l.Protocol && !(o.Encrypted() && l.Encrypted()) {
			return &fault{conditionConflicted, reasonProtocolConflict, fmt.Sprintf("listener %s has port %d for %s; choose another port", o.Name, o.Port, o.Protocol)}
		}
		if o.Protocol == mesh.ListenerTCP || o.Protocol == mesh.ListenerEgress {
			return &fault{conditionConflicted, reasonProtocolConflict, fmt.Sprintf("listener %s has port %d already, and nothing tells its connections from this one's; choose another port", o.Name, o.Port)}
		}
		if o.Hostname == l.Hostname {
			return &fault{conditionConflicted, reasonHostnameConflict, fmt.Sprintf("listener %s has the same hostname at port %d; choose another, or merge the two", o.Name, o.Port)}
		}
	}
	return nil
}

// listenerRefs looks for what keeps a listener from what it refers to.
func listenerRefs(g *mesh.Gateway, l mesh.Listener, v *mesh.View) *fault {
	bad := func(reason, format string, args ...any) *fault {
		return &fault{conditionResolvedRefs, reason, fmt.Sprintf(format, args...)}
	}
	if l.Terminates() && len(l.Certificates) == 0 {
		return bad(reasonInvalidCertificate, "TLS that ends at the gateway needs a certificate: name a Secret of the type kubernetes.io/tls in tls.certificateRefs")
	}
	for _, c := range l.Certificates {
		if _, f := certificateFor(g, c, reasonInvalidCertificate, "tls.certificateRefs", v); f != nil {
			return f
		}
	}
	can := routeKinds(l)
	if l.Protocol == mesh.ListenerEgress && len(l.Kinds) > 0 {
		return bad(reasonInvalidRouteKinds, "no route attaches to a listener of %s, to which ExternalServices lead: leave allowedRoutes.kinds out", l.Protocol)
	}
	if len(can) > 0 && slices.ContainsFunc(l.Kinds, func(k mesh.Kind) bool { return !slices.Contains(can, k) }) {
		names := make([]string, 0, len(can))
		for _, k := range can {
			names = append(names, kindName(k))
		}
		return bad(reasonInvalidRouteKinds, "allowedRoutes.kinds names a kind that a listener of %s cannot have: write %s", l.Protocol, strings.Join(names, " or "))
	}
	return nil
}

// certificateFor is what a field of the gateway names, or why it cannot be had.
func certificateFor(g *mesh.Gateway, c mesh.Backend, reason, field string, v *mesh.View) (*mesh.Certificate, *fault) {
	bad := func(format string, args ...any) (*mesh.Certificate, *fault) {
		return nil, &fault{conditionResolvedRefs, reason, fmt.Sprintf(format, args...)}
	}
	if c.Kind != kindSecret {
		return bad("%s %s is no Secret: name one of the type kubernetes.io/tls", c.Kind, c.Name)
	}
	if f := grantFault(mesh.GrantFrom{Group: gatewayGroup, Kind: KindGateway, Namespace: g.Meta.Namespace}, c.Kind, c.Name, v); f != nil {
		return nil, f
	}
	switch has, ok := v.Certificate(c.Name); {
	case !ok:
		return bad("there is no Secret %s of the type kubernetes.io/tls; create it, or correct %s", c.Name, field)
	case has.Invalid != "":
		return bad("%s", has.Invalid)
	default:
		return has, nil
	}
}

// routeKinds are the kinds of routes that a listener can have; none: it is for egress, or
// its protocol is not supported.
func routeKinds(l mesh.Listener) []mesh.Kind {
	switch l.Protocol {
	case mesh.ListenerHTTP, mesh.ListenerHTTPS:
		return []mesh.Kind{mesh.KindHTTPRoute, mesh.KindGRPCRoute}
	case mesh.ListenerTLS:
		return []mesh.Kind{mesh.KindTLSRoute}
	case mesh.ListenerTCP:
		return []mesh.Kind{mesh.KindTCPRoute}
	case mesh.ListenerEgress:
	}
	return nil
}

// holdingListeners are those that have their ports and hostnames, and whether each is
// served.
func holdingListeners(g *mesh.Gateway, v *mesh.View) (out []mesh.Listener, served []bool) {
	for i, s := range listenerStates(g, v) {
		if s.holds() {
			out, served = append(out, g.Listeners[i]), append(served, s.served)
		}
	}
	return out, served
}

// attachedRoutes are the routes that hold for a listener, the oldest first. Where an
// HTTPRoute and a GRPCRoute are about the same host, the older of the two alone does, as
// the Gateway API has it.
func attachedRoutes(g *mesh.Gateway, l mesh.Listener, v *mesh.View) []*mesh.Route {
	var out []*mesh.Route
	for _, r := range meetingRoutes(g, l, v) {
		if rivalOf(r, l, out) == nil {
			out = append(out, r)
		}
	}
	return out
}

// rivalOf is a route of another kind that is about one of the route's hosts.
func rivalOf(r *mesh.Route, l mesh.Listener, among []*mesh.Route) *mesh.Route {
	for _, o := range among {
		if o.Of == r.Of {
			continue
		}
		for _, host := range hostsOf(l, o) {
			if slices.ContainsFunc(hostsOf(l, r), func(h string) bool { return covers(h, host) || covers(host, h) }) {
				return o
			}
		}
	}
	return nil
}

// meetingRoutes are the routes that a listener would have if there were none of other
// kinds.
func meetingRoutes(g *mesh.Gateway, l mesh.Listener, v *mesh.View) []*mesh.Route {
	return v.Routes(mesh.KindGateway, g.Meta.Name, func(r *mesh.Route) bool {
		return r.Invalid == "" && slices.ContainsFunc(r.Parents, func(p mesh.Parent) bool {
			return p.Kind == mesh.KindGateway && p.Name == g.Meta.Name && meets(p, l) && allows(g, l, r, v)
		}) && len(hostsOf(l, r)) > 0
	})
}

// meets reports whether a parentRef is to the listener.
func meets(p mesh.Parent, l mesh.Listener) bool {
	return (p.Section == "" || p.Section == l.Name) && (p.Port == 0 || p.Port == l.Port)
}

// allows reports whether a route may attach to the listener, by its namespace and kind.
func allows(g *mesh.Gateway, l mesh.Listener, r *mesh.Route, v *mesh.View) bool {
	if !slices.Contains(routeKinds(l), r.Of) || l.Kinds != nil && !slices.Contains(l.Kinds, r.Of) {
		return false
	}
	switch n := l.Namespaces; {
	case n.All:
		return true
	case n.None:
		return false
	case len(n.Requirements) == 0:
		return r.Meta.Namespace == g.Meta.Namespace
	default:
		labels, known := v.NamespaceLabels(r.Meta.Namespace)
		return known && !slices.ContainsFunc(n.Requirements, func(q mesh.Requirement) bool { return !q.Matches(labels) })
	}
}

// attachmentFault looks for what keeps a route from a gateway.
func attachmentFault(g *mesh.Gateway, r *mesh.Route, p mesh.Parent, v *mesh.View) *fault {
	worst := &fault{conditionAccepted, reasonNoMatchingParent, fmt.Sprintf("Gateway %s has no listener that parentRefs means; correct sectionName or port", g.Meta.Name)}
	for _, l := range g.Listeners {
		switch {
		case !meets(p, l):
		case !allows(g, l, r, v):
			if worst.reason == reasonNoMatchingParent {
				worst = &fault{conditionAccepted, reasonNotAllowed, fmt.Sprintf("listener %s of Gateway %s does not take routes of this kind or of namespace %s (allowedRoutes)", l.Name, g.Meta.Name, r.Meta.Namespace)}
			}
		case len(hostsOf(l, r)) == 0:
			worst = &fault{conditionAccepted, reasonNoMatchingHostname, fmt.Sprintf("no hostname of the route is one of listener %s of Gateway %s, which is for %s", l.Name, g.Meta.Name, l.Hostname)}
		default:
			rival := rivalOf(r, l, attachedRoutes(g, l, v))
			if rival == nil {
				return nil
			}
			worst = &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("%s %s is older, and for the same host at listener %s of Gateway %s, where a host is of one kind of routes; give them different hostnames", kindName(rival.Of), rival.Meta.Name, l.Name, g.Meta.Name)}
		}
	}
	return worst
}

// gatewayFindings are the conditions of a gateway (Parent -1) and of each of its
// listeners, with the number of routes that are attached to it.
func gatewayFindings(n mesh.Name, v *mesh.View) []mesh.Finding {
	g, ok := gatewayOf(n, v)
	if !ok {
		return nil
	}
	base := mesh.Finding{Kind: mesh.KindGateway, Object: n, Generation: g.Generation}
	var out []mesh.Finding
	say := func(at int, condition string, ok bool, reason, message string) {
		f := base
		f.Parent, f.Type, f.OK, f.Reason, f.Message = at, condition, ok, reason, message
		out = append(out, f)
	}
	bad, unresolved := 0, 0
	for i, s := range listenerStates(g, v) {
		l := g.Listeners[i]
		if !s.holds() || s.unvouched != nil {
			bad++
		}
		switch {
		case s.accepted != nil:
			say(i, conditionAccepted, false, s.accepted.reason, s.accepted.message)
		case s.conflicted != nil:
			say(i, conditionAccepted, false, s.conflicted.reason, s.conflicted.message)
		case s.unvouched != nil:
			say(i, conditionAccepted, false, s.unvouched.reason, s.unvouched.message)
		default:
			say(i, conditionAccepted, true, reasonAccepted, "the listener holds")
		}
		if s.conflicted != nil {
			say(i, conditionConflicted, true, s.conflicted.reason, s.conflicted.message)
		} else {
			say(i, conditionConflicted, false, reasonNoConflicts, "no other listener is in its way")
		}
		refs := s.authorities
		if s.refs != nil {
			refs = append([]*fault{s.refs}, refs...)
		}
		for _, f := range refs {
			say(i, conditionResolvedRefs, false, f.reason, f.message)
		}
		if len(refs) > 0 {
			unresolved++
		} else {
			say(i, conditionResolvedRefs, true, reasonResolvedRefs, "everything it refers to exists")
		}
		if s.served {
			say(i, conditionProgrammed, true, reasonProgrammed, "the gateway's proxies are told of it")
		} else {
			say(i, conditionProgrammed, false, reasonInvalid, "it is not served: see the other conditions")
		}
		count := base
		count.Parent, count.Type, count.Count = i, attachedCount, len(attachedRoutes(g, l, v))
		out = append(out, count)
	}
	switch bad {
	case 0:
		say(-1, conditionAccepted, true, reasonAccepted, "the gateway holds")
	case len(g.Listeners):
		say(-1, conditionAccepted, false, reasonListenersNotValid, "no listener is served: see their conditions")
	default:
		say(-1, conditionAccepted, true, reasonListenersNotValid, "some listeners are not served: see their conditions")
	}
	if insecure(g) {
		say(-1, conditionInsecure, true, reasonConfigurationChanged, "clients are let in with any certificate or none, where the mode is AllowInsecureFallback: write AllowValidOnly as soon as all have one")
	}
	if g.Certificate == nil && !slices.ContainsFunc(g.Listeners, func(l mesh.Listener) bool { return l.Clients != nil }) {
		return out // nothing is referred to but what listeners speak of
	}
	switch _, f := clientCertificate(g, v); {
	case f != nil:
		say(-1, conditionResolvedRefs, false, f.reason, f.message)
	case unresolved > 0:
		say(-1, conditionResolvedRefs, false, reasonListenersNotResolved, "some listeners lack what they refer to: see their conditions")
	default:
		say(-1, conditionResolvedRefs, true, reasonResolvedRefs, "everything it refers to exists")
	}
	return out
}
