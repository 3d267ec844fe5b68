package observe

import (
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// CacheOptions is how the manager's cache keeps objects: managedFields are
// dropped from all of them, and of Services, EndpointSlices, Pods, Nodes and
// ServiceCIDRs only the fields that the mesh is made of are left. Whoever else
// reads those kinds from the cache sees them cut down. Of the kinds of
// config/v1alpha1 nothing is missing but what kubectl noted down for itself.
//
// Names of zones and nodes, which very many objects have, are held once.
//
// The caller may add to the options; a transform of its own for one kind
// replaces this one for that kind.
func CacheOptions() cache.Options {
	return cache.Options{
		DefaultTransform: (&cutter{}).transform,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Secret{}:    {Field: fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS))},
			&corev1.ConfigMap{}: {Field: fields.OneTermEqualSelector(metav1.ObjectNameField, mesh.JWKSConfigMap)},
		},
	}
}

// cutter cuts objects down before they are kept.
type cutter struct{ places names }

func (c *cutter) transform(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Secret:
		return &corev1.Secret{ObjectMeta: cutMeta(&o.ObjectMeta), Type: o.Type, Data: map[string][]byte{
			corev1.TLSCertKey: o.Data[corev1.TLSCertKey], corev1.TLSPrivateKeyKey: o.Data[corev1.TLSPrivateKeyKey],
		}}, nil
	case *corev1.Namespace:
		out := &corev1.Namespace{ObjectMeta: cutMeta(&o.ObjectMeta)}
		out.Labels = o.Labels
		return out, nil
	case *corev1.Service:
		return cutService(o), nil
	case *discoveryv1.EndpointSlice:
		return c.slice(o), nil
	case *corev1.Pod:
		return c.pod(o), nil
	case *corev1.Node:
		return cutNode(o), nil
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

			TrafficDistribution: s.Spec.TrafficDistribution,
		},
	}
}

func (c *cutter) slice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
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
			Zone:       c.places.same(e.Zone),
			NodeName:   c.places.same(e.NodeName),
		}
		if r := e.TargetRef; r != nil {
			out.Endpoints[i].TargetRef = &corev1.ObjectReference{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
		}
	}
	return out
}

func (c *cutter) pod(p *corev1.Pod) *corev1.Pod {
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
	out.Spec.NodeName = *c.places.same(&p.Spec.NodeName)
	out.Labels, out.DeletionGracePeriodSeconds = p.Labels, p.DeletionGracePeriodSeconds
	if s, ok := p.Annotations[statusAnnotation]; ok {
		out.Annotations = map[string]string{statusAnnotation: s}
	}
	return out
}

func cutNode(n *corev1.Node) *corev1.Node {
	out := &corev1.Node{
		ObjectMeta: cutMeta(&n.ObjectMeta),
		Spec:       corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
	}
	for _, l := range [...]string{corev1.LabelTopologyRegion, corev1.LabelTopologyZone} {
		if v, ok := n.Labels[l]; ok {
			if out.Labels == nil {
				out.Labels = map[string]string{}
			}
			out.Labels[l] = v
		}
	}
	return out
}

// maxNames bounds the names that are remembered: nodes come and go.
const maxNames = 16384

// names has equal strings share their memory.
type names struct {
	lock sync.Mutex
	held map[string]*string
}

// same is one pointer for all that point to equal strings; nil stays nil.
func (n *names) same(s *string) *string {
	if s == nil {
		return nil
	}
	n.lock.Lock()
	defer n.lock.Unlock()
	if held, ok := n.held[*s]; ok {
		return held
	}
	if n.held == nil || len(n.held) >= maxNames {
		n.held = map[string]*string{}
	}
	own := strings.Clone(*s) // what it points to may be a part of something large
	n.held[own] = &own
	return &own
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
