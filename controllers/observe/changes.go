package observe

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// DefaultRootNamespace is Tulle's own namespace, where policies for the whole
// mesh live.
const DefaultRootNamespace = "tulle-system"

// Changes are what a cluster that holds these objects, and no others, makes of
// an empty mesh: the configuration first, then the entities in the objects'
// order. Objects of kinds that the mesh has no place for are ignored. The
// objects must not be modified afterwards, since entities share their maps.
//
// The API's defaults are filled in, so the objects may come straight from a
// file. It is what the informers do, without informers.
func Changes(objs ...runtime.Object) []mesh.Change {
	var from sources
	out := make([]mesh.Change, 1, len(objs)+1)
	for _, obj := range objs {
		from.put(obj)
		if c, ok := change(obj); ok {
			out = append(out, c)
		}
	}
	out[0] = mesh.Put(from.mesh(DefaultRootNamespace))
	return out
}

// change is what the object says about the entity of its own: its state, or
// that it has no place in the mesh (any more). ok is false for an object of
// another kind.
func change(obj any) (c mesh.Change, ok bool) {
	switch o := obj.(type) {
	case *corev1.Service:
		if s, ok := service(o); ok {
			return mesh.Put(s), true
		}
		return mesh.Delete(mesh.KindService, mesh.Name{Namespace: o.Namespace, Name: o.Name}), true
	case *discoveryv1.EndpointSlice:
		if s, ok := endpointSlice(o); ok {
			return mesh.Put(s), true
		}
		return mesh.Delete(mesh.KindSlice, mesh.Name{Namespace: o.Namespace, Name: o.Name}), true
	case *corev1.Pod:
		return mesh.Put(workload(o)), true
	case *corev1.Node:
		if n, ok := node(o); ok {
			return mesh.Put(n), true
		}
		return mesh.Delete(mesh.KindNode, mesh.Name{Name: o.Name}), true
	case *v1alpha1.MeshPolicy:
		return mesh.Put(policy(o)), true
	case *v1alpha1.TrafficSplit:
		return mesh.Put(split(o)), true
	case *gatewayv1.HTTPRoute:
		return mesh.Put(httpRoute(o)), true
	case *gatewayv1.GRPCRoute:
		return mesh.Put(grpcRoute(o)), true
	case *gatewayv1.Gateway:
		return mesh.Put(gateway(o)), true
	case *gatewayv1.GatewayClass:
		if c, ok := class(o); ok {
			return mesh.Put(c), true
		}
		return mesh.Delete(mesh.KindClass, mesh.Name{Name: o.Name}), true
	case *corev1.Namespace:
		return mesh.Put(&mesh.Namespace{Name: o.Name, Labels: o.Labels}), true
	case *corev1.Secret:
		if o.Type == corev1.SecretTypeTLS {
			return mesh.Put(certificate(o)), true
		}
		return mesh.Delete(mesh.KindCertificate, mesh.Name{Namespace: o.Namespace, Name: o.Name}), true
	case *corev1.ConfigMap:
		if o.Name == mesh.JWKSConfigMap {
			return mesh.Put(keys(o)), true
		}
	case *gatewayv1beta1.ReferenceGrant:
		return mesh.Put(grant(o)), true
	}
	return mesh.Change{}, false
}
