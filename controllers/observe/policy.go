package observe

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// problems collects what cannot be understood about an object. Admission
// refuses all of it; an object may have come by another way, or from a newer
// version of the API.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

// sentence is empty where there is nothing to say.
func (p problems) sentence() string { return strings.Join(p, "; ") }

// port converts a port number from an object.
func (p *problems) port(field string, number int32) uint16 {
	if number < 1 || number > 65535 {
		p.add("%s: %d is no port: write 1 to 65535", field, number)
		return 0
	}
	return uint16(number)
}

// duration converts a duration; nil stays nil.
func (p *problems) duration(field string, d *metav1.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	if d.Duration < 0 {
		p.add("%s: %s is negative: write a duration such as 2s", field, d.Duration)
	}
	out := d.Duration
	return &out
}

func meta(o metav1.ObjectMeta) mesh.Meta {
	return mesh.Meta{
		Name:       mesh.Name{Namespace: o.Namespace, Name: o.Name},
		Generation: o.Generation,
		Created:    o.CreationTimestamp.UTC(),
	}
}

// policy converts a MeshPolicy. One that cannot be understood keeps its
// sections, so that it fails closed where it would have held.
func policy(p *v1alpha1.MeshPolicy) *mesh.Policy {
	var bad problems
	out := &mesh.Policy{
		Meta:          meta(p.ObjectMeta),
		Selector:      selector(p.Spec.Selector, &bad),
		Targets:       targets(&p.Spec, p.Namespace, &bad),
		MTLS:          mtls(p.Spec.MTLS, &bad),
		TLS:           endedTLS(p.Spec.TLS, p.Namespace, &bad),
		JWT:           jwt(p.Spec.JWT, &bad),
		Authorization: authorization(p.Spec.Authorization, &bad),
		RateLimit:     rateLimit(p.Spec.RateLimit, &bad),
		Traffic:       traffic(p.Spec.Traffic, &bad),
	}
	out.Invalid = bad.sentence()
	return out
}

// selector leaves out a label that no selector may use, so that the invalid
// policy fails closed for more workloads rather than for none.
func selector(s *v1alpha1.WorkloadSelector, bad *problems) *mesh.Selector {
	if s == nil {
		return nil
	}
	return &mesh.Selector{MatchLabels: bad.labels("spec.selector.matchLabels", s.Labels())}
}

func (p *problems) labels(field string, labels map[string]string) map[string]string {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if mesh.RevisionLabel(key) {
			p.add("%s: %s differs from one rollout to the next and cannot be selected by: "+
				"name a label of the workload, such as app", field, key)
			delete(labels, key)
		}
	}
	return labels
}

// targets leaves a target that the section cannot have where it is: the invalid policy
// fails closed at Gateways that it names.
func targets(s *v1alpha1.MeshPolicySpec, namespace string, bad *problems) []mesh.Target {
	var out []mesh.Target
	for i, r := range s.TargetRefs {
		field := fmt.Sprintf("spec.targetRefs[%d]", i)
		kind := cmp.Or(r.Kind, "Service")
		t := mesh.Target{
			Kind: targetKind(r.Group, kind), Section: r.SectionName,
			Name: mesh.Name{Namespace: cmp.Or(r.Namespace, namespace), Name: r.Name},
		}
		switch {
		case t.Kind == 0:
			bad.add("%s: a %s of group %q cannot be a target: write a Service and leave group out, an ExternalService of group %s, or a Gateway, HTTPRoute or GRPCRoute of group %s", field, kind, r.Group, v1alpha1.Group, v1alpha1.GatewayGroup)
		case t.Kind != mesh.KindService && t.Kind != mesh.KindExternal && t.Namespace != namespace:
			bad.add("%s: a policy stands in the namespace of the %s that it is about: leave namespace out", field, kind)
		case (s.Traffic == nil) != (t.Kind == mesh.KindGateway):
			bad.add("%s: a %s has no such section: traffic is about a Service or route, authorization and rateLimit about a Gateway", field, kind)
		case s.MTLS != nil:
			bad.add("%s: mtls is about workloads, whom selector picks: put it in a policy without targetRefs", field)
		case s.TLS != nil:
			bad.add("%s: tls is about workloads, whom selector picks: at a Gateway TLS ends by tls of its listener", field)
		case s.Selector != nil:
			bad.add("%s: selector picks workloads: write one of the two", field)
		}
		if r.Port != 0 {
			t.Port = bad.port(field+".port", r.Port)
		}
		out = append(out, t)
	}
	return out
}

// targetKind is 0 for a kind that cannot be a target.
func targetKind(group, kind string) mesh.Kind {
	switch group + "/" + kind {
	case "/Service":
		return mesh.KindService
	case v1alpha1.Group + "/ExternalService":
		return mesh.KindExternal
	case v1alpha1.GatewayGroup + "/Gateway":
		return mesh.KindGateway
	case v1alpha1.GatewayGroup + "/HTTPRoute":
		return mesh.KindHTTPRoute
	case v1alpha1.GatewayGroup + "/GRPCRoute":
		return mesh.KindGRPCRoute
	}
	return 0
}

func mtlsMode(m v1alpha1.MTLSMode) (mesh.MTLSMode, bool) {
	switch m {
	case v1alpha1.MTLSStrict:
		return mesh.MTLSStrict, true
	case v1alpha1.MTLSPermissive:
		return mesh.MTLSPermissive, true
	case v1alpha1.MTLSDisabled:
		return mesh.MTLSDisabled, true
	default:
		return mesh.MTLSUnset, false
	}
}

func mtls(m *v1alpha1.MTLS, bad *problems) *mesh.MTLS {
	if m == nil {
		return nil
	}
	mode := func(field string, m v1alpha1.MTLSMode) mesh.MTLSMode {
		out, ok := mtlsMode(m)
		if !ok {
			bad.add("%s: %q is no mode: write Strict, Permissive or Disabled", field, m)
			return mesh.MTLSStrict
		}
		return out
	}
	out := &mesh.MTLS{}
	if m.Mode != "" {
		out.Mode = mode("spec.mtls.mode", m.Mode)
	}
	for i, p := range m.Ports {
		field := fmt.Sprintf("spec.mtls.ports[%d]", i)
		if out.Ports == nil {
			out.Ports = make(map[uint16]mesh.MTLSMode, len(m.Ports))
		}
		port := bad.port(field+".port", p.Port)
		out.Ports[port] = max(out.Ports[port], mode(field+".mode", p.Mode))
	}
	return out
}

// endedTLS leaves a port that cannot be understood: TLS of clients is refused there.
func endedTLS(t *v1alpha1.TLS, namespace string, bad *problems) *mesh.EndedTLS {
	if t == nil {
		return nil
	}
	out := &mesh.EndedTLS{}
	for i, p := range t.Ports {
		field := fmt.Sprintf("spec.tls.ports[%d]", i)
		at := mesh.PortTLS{Port: bad.port(field+".port", p.Port), Certificate: mesh.Name{Namespace: namespace, Name: p.CertificateRef.Name}}
		at.Target = at.Port
		if p.TargetPort != 0 {
			at.Target = bad.port(field+".targetPort", p.TargetPort)
		}
		if slices.ContainsFunc(out.Ports, func(o mesh.PortTLS) bool { return o.Port == at.Port }) {
			bad.add("%s: port %d is there twice: take one of the two out", field, p.Port)
			continue
		}
		if p.CertificateRef.Name == "" {
			bad.add("%s.certificateRef: write the name of a Secret of the type kubernetes.io/tls", field)
		}
		out.Ports = append(out.Ports, at)
	}
	return out
}
