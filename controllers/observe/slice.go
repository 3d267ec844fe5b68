package observe

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// endpointSlice converts an EndpointSlice. One that belongs to no Service, or
// whose addresses are host names, has no place in the mesh (ok is false).
func endpointSlice(s *discoveryv1.EndpointSlice) (out *mesh.Slice, ok bool) {
	owner := s.Labels[discoveryv1.LabelServiceName]
	if owner == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, false
	}
	out = &mesh.Slice{
		Name:    mesh.Name{Namespace: s.Namespace, Name: s.Name},
		Service: owner,
	}
	for _, p := range s.Ports {
		if p.Port == nil || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			continue // no port means any, which no Service can ask for
		}
		out.Ports = append(out.Ports, mesh.SlicePort{Name: deref(p.Name), Port: uint16(*p.Port)})
	}
	for i := range s.Endpoints {
		if e, ok := endpoint(&s.Endpoints[i], s.Namespace); ok {
			out.Endpoints = append(out.Endpoints, e)
		}
	}
	// Kubernetes writes both lists in any order, and order means nothing.
	slices.SortFunc(out.Ports, func(a, b mesh.SlicePort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port))
	})
	slices.SortStableFunc(out.Endpoints, func(a, b mesh.Endpoint) int { return a.Address.Compare(b.Address) })
	return out, true
}

// endpoint converts one endpoint. Only the first address counts, as for
// kube-proxy: the API gives the others no meaning.
func endpoint(e *discoveryv1.Endpoint, namespace string) (mesh.Endpoint, bool) {
	if len(e.Addresses) == 0 {
		return mesh.Endpoint{}, false
	}
	as := addresses(e.Addresses[:1])
	if len(as) == 0 {
		return mesh.Endpoint{}, false
	}
	out := mesh.Endpoint{
		Address: as[0],
		Ready:   e.Conditions.Ready == nil || *e.Conditions.Ready,
		Zone:    deref(e.Zone),
		Node:    deref(e.NodeName),
	}
	if r := e.TargetRef; r != nil && r.Kind == "Pod" && (r.Namespace == "" || r.Namespace == namespace) {
		out.Workload = r.Name
	}
	return out, true
}
