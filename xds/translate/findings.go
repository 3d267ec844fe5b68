package translate

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Kinds of objects that have findings, as they stand in a key's name:
// "MeshPolicy/namespace/name".
const (
	KindPolicy = "MeshPolicy"
	KindSplit  = "TrafficSplit"

	KindHTTPRoute = "HTTPRoute"
	KindGRPCRoute = "GRPCRoute"
	KindTLSRoute  = "TLSRoute"
	KindTCPRoute  = "TCPRoute"
	KindGateway   = "Gateway"
	KindExternal  = "ExternalService"
)

// RouteKinds are the kinds of routes by their names.
func RouteKinds() map[string]mesh.Kind {
	return map[string]mesh.Kind{
		KindHTTPRoute: mesh.KindHTTPRoute, KindGRPCRoute: mesh.KindGRPCRoute,
		KindTLSRoute: mesh.KindTLSRoute, KindTCPRoute: mesh.KindTCPRoute,
	}
}

// The types and reasons of conditions, which are the API's (config/v1alpha1).
const (
	conditionAccepted     = "Accepted"
	conditionResolvedRefs = "ResolvedRefs"

	reasonAccepted        = "Accepted"
	reasonResolvedRefs    = "ResolvedRefs"
	reasonInvalid         = "Invalid"
	reasonConflicted      = "Conflicted"
	reasonServiceNotFound = "ServiceNotFound"
	reasonPortNotFound    = "PortNotFound"
	reasonTargetNotFound  = "TargetNotFound"

	reasonAuthorizerNotFound = "AuthorizerNotFound"
	reasonKeysNotFound       = "KeysNotFound"
	reasonKeysIncomplete     = "KeysIncomplete"
	reasonTokensUnknown      = "TokensUnknown"
	reasonClientUnknown      = "ClientUnknown"
	reasonNotHTTP            = "NotHTTP"
)

// FindingsKey is the target that says what the status of an object is.
func FindingsKey(kind string, n mesh.Name) Key {
	return Key{Type: Findings, Name: kind + "/" + n.String()}
}

// findingKinds are the kinds of the mesh that have findings.
var findingKinds = map[mesh.Kind]string{
	mesh.KindPolicy: KindPolicy, mesh.KindSplit: KindSplit,
	mesh.KindHTTPRoute: KindHTTPRoute, mesh.KindGRPCRoute: KindGRPCRoute,
	mesh.KindTLSRoute: KindTLSRoute, mesh.KindTCPRoute: KindTCPRoute,
	mesh.KindGateway: KindGateway, mesh.KindBackendTLS: KindBackendTLS, mesh.KindExternal: KindExternal,
}

// FindingsFor is the [FindingsKey] of an object; ok is false for a kind of which
// nothing is found.
func FindingsFor(r mesh.Ref) (k Key, ok bool) {
	kind, ok := findingKinds[r.Kind]
	return FindingsKey(kind, r.Name), ok
}

// FindingsOf is the inverse of [FindingsKey]; ok is false for other keys.
func FindingsOf(k Key) (kind string, n mesh.Name, ok bool) {
	kind, rest, _ := strings.Cut(k.Name, "/")
	n, ok = objectName(rest)
	return kind, n, ok && k.Type == Findings
}

func findings(k Key, v *mesh.View) []mesh.Finding {
	kind, n, ok := FindingsOf(k)
	if !ok {
		return nil
	}
	switch kind {
	case KindPolicy:
		if p, ok := v.Policy(n); ok {
			return policyFindings(p, v)
		}
	case KindSplit:
		if s, ok := v.Split(n); ok {
			return splitFindings(s, v)
		}
	case KindExternal:
		if e, ok := v.External(n); ok {
			return externalFindings(e, v)
		}
	case KindBackendTLS:
		if p, ok := v.BackendTLSPolicy(n); ok {
			return backendTLSFindings(p, v)
		}
	case KindGateway:
		return gatewayFindings(n, v)
	}
	if of, ok := RouteKinds()[kind]; ok {
		if r, ok := v.Route(mesh.Ref{Kind: of, Name: n}); ok {
			return routeFindings(r, v)
		}
	}
	return nil
}

// report makes an object's two conditions from what is wrong with it.
func report(kind mesh.Kind, m mesh.Meta, refs bool, fs ...*fault) []mesh.Finding {
	base := mesh.Finding{Kind: kind, Object: m.Name, Generation: m.Generation, OK: true}
	accepted, resolved := base, base
	accepted.Type, accepted.Reason, accepted.Message = conditionAccepted, reasonAccepted, "the object holds"
	resolved.Type, resolved.Reason, resolved.Message = conditionResolvedRefs, reasonResolvedRefs, "everything it refers to exists"
	for _, f := range fs {
		if f == nil {
			continue
		}
		to := &accepted
		if f.condition == conditionResolvedRefs {
			to = &resolved
		}
		switch {
		case f.reason == reasonNotHTTP && to.OK: // it holds, though hardly as it is meant
			to.Reason, to.Message = f.reason, f.message
		case f.reason != reasonNotHTTP && to.OK:
			to.OK, to.Reason, to.Message = false, f.reason, f.message
		}
	}
	if !refs {
		return []mesh.Finding{accepted}
	}
	if accepted.OK && !resolved.OK {
		accepted.Message = "the object is understood; ResolvedRefs says what keeps it from holding"
	}
	return []mesh.Finding{accepted, resolved}
}

func splitFindings(s *mesh.Split, v *mesh.View) []mesh.Finding {
	root := mesh.Name{Namespace: s.Meta.Namespace, Name: s.Service}
	svc, ok := v.Service(root)
	if !ok {
		return report(mesh.KindSplit, s.Meta, true, invalid(s.Invalid), &fault{
			conditionResolvedRefs, reasonServiceNotFound,
			fmt.Sprintf("there is no Service %s to split; create it, or correct spec.service", root),
		})
	}
	var fs []*fault
	held := false
	for _, p := range svc.Ports {
		if s.Port != 0 && s.Port != p.Port || p.Protocol == mesh.UDP {
			continue
		}
		f := splitFault(s, p.Port, v)
		if f != nil && f.reason == reasonPortNotFound && s.Port == 0 && p.Protocol.Opaque() {
			continue // the backends are not about this port
		}
		held = true
		if rs := routesFor(svc, p, root.Namespace, v); f == nil && len(rs) > 0 {
			f = &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("%s %s is for port %d of %s, and wins over a TrafficSplit; delete one of the two", kindName(rs[0].Of), rs[0].Meta.Name, p.Port, root)}
		}
		fs = append(fs, f)
		if f == nil {
			if winner := splitFor(svc, p, v); winner != nil && winner.Meta.Name != s.Meta.Name {
				fs = append(fs, &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("TrafficSplit %s is older and splits port %d of %s; merge the two, or delete one", winner.Meta.Name, p.Port, root)})
			}
		}
	}
	if !held {
		fs = append(fs, &fault{conditionResolvedRefs, reasonPortNotFound, fmt.Sprintf("Service %s has no port%s to split", root, ofNumber(s.Port))})
	}
	if svc.Headless() {
		fs = append(fs, &fault{conditionAccepted, reasonInvalid, fmt.Sprintf("Service %s is headless: its clients call pods by their own addresses; split a Service with a cluster IP", root)})
	}
	return report(mesh.KindSplit, s.Meta, true, fs...)
}

func ofNumber(port uint16) string {
	if port == 0 {
		return ""
	}
	return fmt.Sprintf(" %d", port)
}

func invalid(why string) *fault {
	if why == "" {
		return nil
	}
	return &fault{conditionAccepted, reasonInvalid, why}
}

func policyFindings(p *mesh.Policy, v *mesh.View) []mesh.Finding {
	fs := []*fault{invalid(p.Invalid)}
	for _, t := range p.Targets {
		if t.Kind == 0 {
			continue // Invalid says so
		}
		if t.Kind == mesh.KindExternal {
			fs = append(fs, externalTarget(t, v))
			continue
		}
		if t.Kind != mesh.KindService {
			fs = append(fs, targetFault(t, v))
			continue
		}
		svc, ok := v.Service(t.Name)
		switch {
		case !ok:
			fs = append(fs, &fault{conditionResolvedRefs, reasonServiceNotFound, fmt.Sprintf("there is no Service %s; create it, or correct targetRefs", t.Name)})
		case t.Port != 0:
			if _, ok := svc.Port(t.Port); !ok {
				fs = append(fs, &fault{conditionResolvedRefs, reasonPortNotFound, fmt.Sprintf("Service %s has no port %d; name one of its Service ports in targetRefs", t.Name, t.Port)})
			}
		}
	}
	if p.RateLimit != nil && p.Invalid == "" {
		fs = append(fs, globalFault(p, v), tooLong(p, v))
	}
	if p.MTLS != nil && p.Invalid == "" {
		fs = append(fs, mtlsConflict(p, v))
	}
	if p.Traffic != nil && p.Invalid == "" {
		fs = append(fs, trafficConflict(p, v))
	}
	refs := len(p.Targets) > 0 || hasGlobal(p) || p.TLS != nil
	if p.TLS != nil && p.Invalid == "" {
		fs = append(fs, endedFaults(p, v)...)
	}
	if p.JWT != nil && p.Invalid == "" {
		fs = append(fs, jwtFaults(p, v)...)
		refs = true
	}
	if p.Authorization != nil && p.Invalid == "" {
		fs = append(fs, authorizationFaults(p, v)...)
		refs = refs || slices.ContainsFunc(p.Authorization.Rules, func(r mesh.Rule) bool { return r.Action == mesh.Custom })
	}
	out := report(mesh.KindPolicy, p.Meta, refs, fs...)
	if note := unmatched(p, v); note != "" && out[0].OK {
		out[0].Message += ", but " + note
	}
	return out
}

// mtlsConflict finds a policy with the same selector that is stricter about
// something that both set, and so wins over this one. One that cannot be
// understood is as strict as can be.
func mtlsConflict(p *mesh.Policy, v *mesh.View) *fault {
	for _, q := range v.Policies(p.Meta.Namespace, mesh.SectionMTLS, all) {
		if q.Meta.Name == p.Meta.Name || !sameSelector(p.Selector, q.Selector) {
			continue
		}
		if q.Invalid != "" {
			return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s selects the same workloads and cannot be understood, so that Strict holds for them; correct it, or delete it", q.Meta.Name)}
		}
		if p.MTLS.Mode != mesh.MTLSUnset && q.MTLS.Mode > p.MTLS.Mode {
			return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s selects the same workloads with a stricter mtls.mode, which wins; delete one of the two", q.Meta.Name)}
		}
		for _, port := range slices.Sorted(maps.Keys(p.MTLS.Ports)) {
			if q.MTLS.Ports[port] > p.MTLS.Ports[port] {
				return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s selects the same workloads with a stricter mode for port %d, which wins; take the port out of one of the two", q.Meta.Name, port)}
			}
		}
	}
	return nil
}

func all(*mesh.Policy) bool { return true }

func sameSelector(a, b *mesh.Selector) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Matches(b.MatchLabels) && b.Matches(a.MatchLabels)
}

// trafficConflict finds an older policy for the same targets that sets the
// same thing otherwise.
func trafficConflict(p *mesh.Policy, v *mesh.View) *fault {
	for _, q := range v.Policies(p.Meta.Namespace, mesh.SectionTraffic, all) {
		if q.Meta.Name == p.Meta.Name {
			return nil // those that follow are younger
		}
		if q.Invalid != "" || !overlap(p.Targets, q.Targets) {
			continue
		}
		if differ(p.Traffic, q.Traffic) {
			return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s is older and sets the same for the same target, and wins; merge the two, or delete one", q.Meta.Name)}
		}
	}
	return nil
}

// differ reports whether both say something about the same, and not the same.
func differ(a, b *mesh.Traffic) bool {
	return other(a.Timeout, b.Timeout) || other(a.IdleTimeout, b.IdleTimeout) || other(a.Retries, b.Retries) ||
		other(a.Connections, b.Connections) || other(a.CircuitBreaker, b.CircuitBreaker) ||
		other(a.OutlierDetection, b.OutlierDetection) || other(a.LoadBalancer, b.LoadBalancer) || other(a.Fault, b.Fault) ||
		other(a.Locality, b.Locality)
}

func other[T any](a, b *T) bool { return a != nil && b != nil && !reflect.DeepEqual(a, b) }

func overlap(a, b []mesh.Target) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	return slices.ContainsFunc(a, func(t mesh.Target) bool { return slices.Contains(b, t) })
}
