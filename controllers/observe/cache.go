package observe

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

// CacheOptions is how the manager's cache keeps objects: managedFields are
// dropped from all of them, and of Services, EndpointSlices, Pods, Nodes and
// ServiceCIDRs only the fields that the mesh is made of are left. Whoever else
// reads those kinds from the cache sees them cut down. Of the kinds of
// config/v1alpha1 nothing is missing but what kubectl noted down for itself.
//
// The caller may add to the options; a transform of its own for one kind
// replaces this one for that kind.
func CacheOptions() cache.Options {
	return cache.Options{DefaultTransform: transform}
}

// transform cuts an object down before it is kept.
func transform(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Service:
		return cutService(o), nil
	case *discoveryv1.EndpointSlice:
		return cutSlice(o), nil
	case *corev1.Pod:
		return cutPod(o), nil
	case *corev1.Node:
		return &corev1.Node{
			ObjectMeta: cutMeta(&o.ObjectMeta),
			Spec:       corev1.NodeSpec{PodCIDR: o.Spec.PodCIDR, PodCIDRs: o.Spec.PodCIDRs},
		}, nil
	case *networkingv1.ServiceCIDR:
		return &networkingv1.ServiceCIDR{ObjectMeta: cutMeta(&o.ObjectMeta), Spec: o.Spec}, nil
	case *v1alpha1.MeshPolicy, *v1alpha1.TrafficSplit, *v1alpha1.MeshConfig:
		// Their status is all that Tulle writes, so the annotation cannot be
		// lost from the API server by this.
		o.(client.Object).SetManagedFields(nil)
		delete(o.(client.Object).GetAnnotations(), corev1.LastAppliedConfigAnnotation)
	case client.Object:
		o.SetManagedFields(nil)
	}
	return obj, nil // a tombstone, too
}

// cutMeta keeps the resource version: informers take an update with an equal
// one for a resync, and do not pass it on.
func cutMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:              m.Name,
		Namespace:         m.Namespace,
		UID:               m.UID,
		ResourceVersion:   m.ResourceVersion,
		DeletionTimestamp: m.DeletionTimestamp,
	}
}

func cutService(s *corev1.Service) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: cutMeta(&s.ObjectMeta),
		Spec: corev1.ServiceSpec{
			Type:       s.Spec.Type,
			ClusterIP:  s.Spec.ClusterIP,
			ClusterIPs: s.Spec.ClusterIPs,
			Ports:      s.Spec.Ports,
			Selector:   s.Spec.Selector,
		},
	}
}

func cutSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  cutMeta(&s.ObjectMeta),
		AddressType: s.AddressType,
		Ports:       s.Ports,
		Endpoints:   make([]discoveryv1.Endpoint, len(s.Endpoints)),
	}
	if owner, ok := s.Labels[discoveryv1.LabelServiceName]; ok {
		out.Labels = map[string]string{discoveryv1.LabelServiceName: owner}
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		out.Endpoints[i] = discoveryv1.Endpoint{
			Addresses:  e.Addresses,
			Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready},
			Zone:       e.Zone,
		}
		if r := e.TargetRef; r != nil {
			out.Endpoints[i].TargetRef = &corev1.ObjectReference{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
		}
	}
	return out
}

func cutPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: cutMeta(&p.ObjectMeta),
		Spec: corev1.PodSpec{
			ServiceAccountName: p.Spec.ServiceAccountName,
			HostNetwork:        p.Spec.HostNetwork,
			InitContainers:     cutContainers(p.Spec.InitContainers),
			Containers:         cutContainers(p.Spec.Containers),
		},
		Status: corev1.PodStatus{
			Phase:  p.Status.Phase,
			PodIP:  p.Status.PodIP,
			PodIPs: p.Status.PodIPs,
		},
	}
	for i := range p.Status.InitContainerStatuses {
		if s := &p.Status.InitContainerStatuses[i]; s.Name == proxyContainer {
			out.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: s.Name, Started: s.Started}}
		}
	}
	out.Labels, out.DeletionGracePeriodSeconds = p.Labels, p.DeletionGracePeriodSeconds
	if s, ok := p.Annotations[statusAnnotation]; ok {
		out.Annotations = map[string]string{statusAnnotation: s}
	}
	return out
}

// cutContainers keeps those that declare a port, and our own sidecar.
func cutContainers(in []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range in {
		if c := &in[i]; len(c.Ports) > 0 || c.Name == proxyContainer {
			out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return out
}
