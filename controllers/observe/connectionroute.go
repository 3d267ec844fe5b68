package observe

import (
	"fmt"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// tlsRoute converts a TLSRoute.
func tlsRoute(r *gatewayv1.TLSRoute) *mesh.Route {
	var backends [][]gatewayv1.BackendRef
	for _, rule := range r.Spec.Rules {
		backends = append(backends, rule.BackendRefs)
	}
	out := connectionRoute(mesh.KindTLSRoute, meta(r.ObjectMeta), r.Spec.ParentRefs, backends)
	out.Hostnames = hostnames(r.Spec.Hostnames)
	return out
}

// tcpRoute converts a TCPRoute.
func tcpRoute(r *gatewayv1.TCPRoute) *mesh.Route {
	var backends [][]gatewayv1.BackendRef
	for _, rule := range r.Spec.Rules {
		backends = append(backends, rule.BackendRefs)
	}
	return connectionRoute(mesh.KindTCPRoute, meta(r.ObjectMeta), r.Spec.ParentRefs, backends)
}

// connectionRoute converts a route about connections, which has one rule: with several,
// as versions of the API before v1 let pass, nothing says which connections are whose.
func connectionRoute(of mesh.Kind, m mesh.Meta, refs []gatewayv1.ParentReference, rules [][]gatewayv1.BackendRef) *mesh.Route {
	var bad problems
	out := &mesh.Route{Meta: m, Of: of, Parents: parents(m.Namespace, refs)}
	c := routing{namespace: m.Namespace, bad: &bad}
	for i, backends := range rules {
		var rule mesh.RouteRule
		for j, b := range backends {
			rule.Backends = append(rule.Backends, c.backend(fmt.Sprintf("spec.rules[%d].backendRefs[%d]", i, j), b, nil, &rule))
		}
		out.Rules = append(out.Rules, rule)
	}
	if len(rules) != 1 {
		bad.add("spec.rules: write one rule, with all backendRefs")
	}
	out.Invalid = bad.sentence()
	return out
}
