package observe

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// service converts a Service. One of type ExternalName has no place in the mesh
// (ok is false): it is an alias in DNS, and clients call what it resolves to.
func service(s *corev1.Service) (out *mesh.Service, ok bool) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, false
	}
	out = &mesh.Service{
		Name:      mesh.Name{Namespace: s.Namespace, Name: s.Name},
		Addresses: clusterIPs(&s.Spec),
		Selector:  s.Spec.Selector,

		Distribution: distribution(s.Spec.TrafficDistribution),
	}
	for _, p := range s.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		out.Ports = append(out.Ports, servicePort(p))
	}
	return out, true
}

// distribution is what Kubernetes means by the words: endpoints of the same zone or
// node as the client, else others. A word that this version does not know is none.
// See https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-distribution.
func distribution(word *string) mesh.Near {
	switch deref(word) {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return mesh.SameZone
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return mesh.SameNode
	}
	return mesh.Anywhere
}

func servicePort(p corev1.ServicePort) mesh.ServicePort {
	out := mesh.ServicePort{
		Name:     p.Name,
		Port:     uint16(p.Port), // the API server checks that it is 1 to 65535
		Protocol: protocolOf(p.AppProtocol, p.Name),
	}
	switch {
	case p.TargetPort.Type == intstr.String:
		out.TargetName = p.TargetPort.StrVal
	case p.TargetPort.IntVal != 0:
		out.Target = uint16(p.TargetPort.IntVal)
	default: // the API server's default, for objects that did not pass it
		out.Target = out.Port
	}
	return out
}

// clusterIPs are the addresses of all families; none for a headless service.
func clusterIPs(spec *corev1.ServiceSpec) []netip.Addr {
	texts := spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{spec.ClusterIP}
	}
	return addresses(texts)
}

// addresses parses IP addresses and leaves out what is none ("", "None").
func addresses(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil && a.Zone() == "" {
			out = append(out, a.Unmap())
		}
	}
	return out
}
