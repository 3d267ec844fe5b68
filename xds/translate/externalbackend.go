package translate

import (
	"fmt"
	"slices"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// A route at a Gateway may send what comes in on to an external service. It names the
// object itself, so that its cluster does, too: it is one by which an egress gateway would
// leave (outCluster), and what the object says of a gateway holds.

// backendOf is what a route's backend stands for. The fault is why nothing is sent there.
func backendOf(called mesh.Name, r *mesh.Route, b mesh.Backend, v *mesh.View) (endpointsOf, *fault) {
	if b.Kind == mesh.BackendExternal && called == (mesh.Name{}) {
		return externalBackend(r, b, v)
	}
	if f := backendFault(called, r, b, v); f != nil {
		return endpointsOf{}, f
	}
	return endpointsOf{service: b.Name, port: b.Port}, nil
}

func externalBackend(r *mesh.Route, b mesh.Backend, v *mesh.View) (endpointsOf, *fault) {
	bad := func(reason, format string, args ...any) (endpointsOf, *fault) {
		return endpointsOf{}, &fault{conditionResolvedRefs, reason, fmt.Sprintf(format, args...)}
	}
	if b.Name.Namespace != r.Meta.Namespace && !v.Granted(
		mesh.GrantFrom{Group: gatewayGroup, Kind: kindName(r.Of), Namespace: r.Meta.Namespace},
		mesh.GrantTo{Group: meshGroup, Kind: KindExternal, Name: b.Name.Name}, b.Name.Namespace,
	) {
		return bad(reasonRefNotPermitted, "no ReferenceGrant in namespace %s lets a %s of namespace %s refer to ExternalService %s; ask for one there", b.Name.Namespace, kindName(r.Of), r.Meta.Namespace, b.Name)
	}
	e, ok := v.External(b.Name)
	if !ok {
		return bad(reasonBackendNotFound, "there is no ExternalService %s; create it, or correct backendRefs", b.Name)
	}
	if e.Invalid != "" {
		return bad(reasonBackendNotFound, "ExternalService %s cannot be understood: see its status", b.Name)
	}
	if near := e.Nearby(); near != "" {
		return bad(reasonRefNotPermitted, "ExternalService %s would lead the gateway to itself: %s", b.Name, near)
	}
	p, ok := e.Port(b.Port)
	if !ok {
		return bad(reasonBackendNotFound, "ExternalService %s has no port %d; name one of its ports", b.Name, b.Port)
	}
	if r.OfRequests() != p.Protocol.IsHTTP() {
		return bad(reasonUnsupportedProtocol, "port %d of ExternalService %s is not of a protocol that a %s sends: requests go to HTTP and GRPC, with tls for a server that speaks TLS, and connections to TLS and TCP", b.Port, b.Name, kindName(r.Of))
	}
	ways := waysTo(e, p)
	i := slices.IndexFunc(ways, func(w external) bool { return !wildHost(w.host) && (w.host != "" || e.Resolution != mesh.ResolveNone) })
	if i < 0 {
		return bad(reasonBackendNotFound, "ExternalService %s has no server at port %d that a gateway could know: name a host that is no wildcard, or write resolution: Static or DNS", b.Name, b.Port)
	}
	return endpointsOf{service: b.Name, port: b.Port, labels: outID(ways[i]), external: true}, nil
}

// clusterOut is the name of the cluster of an external service's port, or of one where nobody
// is if the object does not admit the gateway. The cluster could not say so itself: where the
// object names this gateway, it is also that of the callers whom it does admit.
func (o *outbound) clusterOut(to endpointsOf) string {
	if e, ok := o.view.External(to.service); !ok || !e.Admits(o.account) {
		return ClusterBlackhole
	}
	c := to.name(PrefixOut)
	o.clusters = append(o.clusters, c)
	return c
}

// traffic is how what the endpoints stand for is called.
func (o *outbound) trafficTo(to endpointsOf) traffic {
	if to.external {
		return externalTraffic(o.client, external{&mesh.External{Meta: mesh.Meta{Name: to.service}}, mesh.ExternalPort{Number: to.port}, ""}, o.view)
	}
	return trafficFor(o.client, to.service, to.port, o.view)
}
