package observe

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
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
		l := listener(g.Namespace, &g.Spec.Listeners[i])
		if l.Terminates() {
			l.Clients = clients(g, l.Port)
		}
		out.Listeners = append(out.Listeners, l)
	}
	if t := g.Spec.TLS; t != nil && t.Backend != nil && t.Backend.ClientCertificateRef != nil {
		out.Certificate = new(secretRef(g.Namespace, t.Backend.ClientCertificateRef))
	}
	return out
}

// clients is what the Gateway asks of the clients of a port: what it says of the port, even
// if that is nothing, or else of all.
func clients(g *gatewayv1.Gateway, port uint16) *mesh.ClientValidation {
	if g.Spec.TLS == nil || g.Spec.TLS.Frontend == nil {
		return nil
	}
	f := g.Spec.TLS.Frontend
	in := f.Default.Validation
	for i := range f.PerPort {
		if uint16(f.PerPort[i].Port) == port {
			in = f.PerPort[i].TLS.Validation
		}
	}
	if in == nil {
		return nil
	}
	out := &mesh.ClientValidation{Insecure: in.Mode == gatewayv1.AllowInsecureFallback}
	for _, r := range in.CACertificateRefs {
		out.Authorities = append(out.Authorities, mesh.Backend{
			Kind: groupKind(string(r.Group), string(r.Kind)), Name: mesh.Name{Namespace: cmp.Or(string(deref(r.Namespace)), g.Namespace), Name: string(r.Name)},
		})
	}
	return out
}

// secretRef is what a reference of an object of the namespace names.
func secretRef(namespace string, r *gatewayv1.SecretObjectReference) mesh.Backend {
	return mesh.Backend{
		Kind: groupKind(string(deref(r.Group)), cmp.Or(string(deref(r.Kind)), "Secret")),
		Name: mesh.Name{Namespace: cmp.Or(string(deref(r.Namespace)), namespace), Name: string(r.Name)},
	}
}

// groupKind is a kind, with its group before it where that is not the core's.
func groupKind(group, kind string) string {
	if group == "" {
		return kind
	}
	return group + "/" + kind
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
		for i := range t.CertificateRefs {
			out.Certificates = append(out.Certificates, secretRef(namespace, &t.CertificateRefs[i]))
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
	out := &mesh.Certificate{Name: mesh.Name{Namespace: s.Namespace, Name: s.Name}}
	var err error
	if out.Chain, out.Key, err = usable(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]); err != nil {
		// The message has nothing of the key in it.
		out.Invalid = fmt.Sprintf("Secret %s has no certificate with its key: %v", out.Name, err)
	}
	return out
}

// minRSA is the shortest RSA key that Envoy takes, in bits.
const minRSA = 2048

// usable is a certificate with its chain, and its key, in the one form of PEM that Envoy is
// sure to read: of others it says no more than that it failed. An error says why Envoy would
// refuse them.
func usable(chain, key []byte) (_, _ []byte, err error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, nil, err
	}
	switch k := pair.Leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA {
			return nil, nil, fmt.Errorf("its RSA key has %d bits, and %d are the least", n, minRSA)
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P224() {
			return nil, nil, errors.New("its key is of the curve P-224: use P-256, P-384 or P-521")
		}
	default:
		return nil, nil, fmt.Errorf("its key is of the kind %T: use RSA or ECDSA", k)
	}
	if mustStaple(pair.Leaf) {
		return nil, nil, errors.New("it says that the server staples an answer of OCSP to it (TLS feature, RFC 7633), of which there is none: have it issued without that")
	}
	if chain, err = certificates(chain); err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// mustStaple reports whether clients are to refuse the certificate without an answer of OCSP.
func mustStaple(c *x509.Certificate) bool {
	const statusRequest = 5 // RFC 6066, section 8
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool {
		var features []int
		_, err := asn1.Unmarshal(e.Value, &features)
		return e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}) && (err != nil || slices.Contains(features, statusRequest))
	})
}
