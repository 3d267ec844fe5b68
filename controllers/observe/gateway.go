package observe

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// class converts a GatewayClass; ok is false for one of another controller, and for one
// that is not accepted (controllers/gateway).
func class(c *gatewayv1.GatewayClass) (*mesh.Class, bool) {
	return &mesh.Class{Name: c.Name}, c.Spec.ControllerName == v1alpha1.ControllerName && c.Spec.ParametersRef == nil
}

// gateway converts a Gateway.
func gateway(g *gatewayv1.Gateway) *mesh.Gateway {
	out := &mesh.Gateway{Meta: meta(g.ObjectMeta), Class: string(g.Spec.GatewayClassName)}
	for i := range g.Spec.Listeners {
		out.Listeners = append(out.Listeners, listener(g.Namespace, &g.Spec.Listeners[i]))
	}
	return out
}

func listener(namespace string, in *gatewayv1.Listener) mesh.Listener {
	out := mesh.Listener{
		Name: string(in.Name), Port: uint16(in.Port), Protocol: mesh.ListenerProtocol(in.Protocol),
		Hostname: strings.ToLower(string(deref(in.Hostname))),
	}
	if out.Protocol == mesh.ListenerTCP || out.Protocol == mesh.ListenerEgress {
		out.Hostname = "" // which no client can ask for
	}
	if out.Protocol == mesh.ListenerEgress && in.TLS != nil {
		out.Unsupported = "tls is the mesh's own at a listener of this protocol: leave it out"
	}
	if t := in.TLS; t != nil && out.Encrypted() {
		out.Passthrough = in.Protocol == gatewayv1.TLSProtocolType && deref(t.Mode) == gatewayv1.TLSModePassthrough
		if in.Protocol == gatewayv1.HTTPSProtocolType && deref(t.Mode) == gatewayv1.TLSModePassthrough {
			out.Unsupported = "tls.mode: Passthrough is not for the protocol HTTPS: write Terminate"
		}
		if len(t.Options) > 0 {
			out.Unsupported = "tls.options are not supported: take them out"
		}
		for _, r := range t.CertificateRefs {
			kind := cmp.Or(string(deref(r.Kind)), "Secret")
			if group := string(deref(r.Group)); group != "" {
				kind = group + "/" + kind
			}
			out.Certificates = append(out.Certificates, mesh.Backend{
				Kind: kind, Name: mesh.Name{Namespace: cmp.Or(string(deref(r.Namespace)), namespace), Name: string(r.Name)},
			})
		}
	}
	a := in.AllowedRoutes
	if a == nil {
		return out
	}
	if n := a.Namespaces; n != nil {
		switch deref(n.From) {
		case gatewayv1.NamespacesFromAll:
			out.Namespaces.All = true
		case gatewayv1.NamespacesFromSelector:
			out.Namespaces.Requirements = requirements(n.Selector)
			out.Namespaces.None = n.Selector == nil
		case "", gatewayv1.NamespacesFromSame:
		default: // None, and what is not known
			out.Namespaces.None = true
		}
	}
	for _, k := range a.Kinds {
		kind := map[string]mesh.Kind{
			"HTTPRoute": mesh.KindHTTPRoute, "GRPCRoute": mesh.KindGRPCRoute, "TLSRoute": mesh.KindTLSRoute, "TCPRoute": mesh.KindTCPRoute,
		}[string(k.Kind)]
		if k.Group != nil && *k.Group != gatewayv1.GroupName {
			kind = 0
		}
		out.Kinds = append(out.Kinds, kind)
	}
	return out
}

// requirements are those of a label selector. An empty one is met by everything, which
// one that asks that a label which every namespace has exists says as well.
func requirements(s *metav1.LabelSelector) []mesh.Requirement {
	if s == nil {
		return nil
	}
	var out []mesh.Requirement
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		out = append(out, mesh.Requirement{Key: k, Operator: "In", Values: []string{s.MatchLabels[k]}})
	}
	for _, e := range s.MatchExpressions {
		out = append(out, mesh.Requirement{Key: e.Key, Operator: string(e.Operator), Values: e.Values})
	}
	if len(out) == 0 {
		out = append(out, mesh.Requirement{Key: corev1.LabelMetadataName, Operator: "Exists"})
	}
	return out
}

// certificate converts a Secret of the type kubernetes.io/tls.
func certificate(s *corev1.Secret) *mesh.Certificate {
	out := &mesh.Certificate{
		Name:  mesh.Name{Namespace: s.Namespace, Name: s.Name},
		Chain: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey],
	}
	if err := usable(out.Chain, out.Key); err != nil {
		// The message has nothing of the key in it.
		out.Chain, out.Key, out.Invalid = nil, nil, fmt.Sprintf("Secret %s has no certificate with its key: %v", out.Name, err)
	}
	return out
}

// minRSA is the shortest RSA key that Envoy takes, in bits.
const minRSA = 2048

// usable reports, as an error, why Envoy would refuse the certificate or its key.
func usable(chain, key []byte) error {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return err
	}
	switch k := pair.Leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA {
			return fmt.Errorf("its RSA key has %d bits, and %d are the least", n, minRSA)
		}
	case *ecdsa.PublicKey:
	default:
		return fmt.Errorf("its key is of the kind %T: use RSA or ECDSA", k)
	}
	return nil
}
