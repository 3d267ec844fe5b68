package observe

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// bundleKey is the key of a ConfigMap under which the API wants certificates.
const bundleKey = "ca.crt"

// backendTLS converts a BackendTLSPolicy.
func backendTLS(p *gatewayv1.BackendTLSPolicy) *mesh.BackendTLS {
	var bad problems
	in := &p.Spec.Validation
	out := &mesh.BackendTLS{Meta: meta(p.ObjectMeta), Hostname: strings.ToLower(string(in.Hostname))}
	for i, t := range p.Spec.TargetRefs {
		if t.Group != "" || t.Kind != mesh.BackendService {
			bad.add("spec.targetRefs[%d]: a %s is no Service: name one", i, t.Kind)
			continue
		}
		out.Targets = append(out.Targets, mesh.BackendTLSTarget{Service: string(t.Name), Port: string(deref(t.SectionName))})
	}
	for _, a := range in.SubjectAltNames {
		switch a.Type {
		case gatewayv1.HostnameSubjectAltNameType:
			out.Names = append(out.Names, strings.ToLower(string(a.Hostname)))
		case gatewayv1.URISubjectAltNameType:
			out.URIs = append(out.URIs, string(a.URI))
		default:
			bad.add("spec.validation.subjectAltNames: the type %q is not known", a.Type)
		}
	}
	for _, r := range in.CACertificateRefs {
		out.Authorities = append(out.Authorities, mesh.Backend{Kind: groupKind(string(r.Group), string(r.Kind)), Name: mesh.Name{Namespace: p.Namespace, Name: string(r.Name)}})
	}
	if w := deref(in.WellKnownCACertificates); len(out.Authorities) == 0 && w != gatewayv1.WellKnownCACertificatesSystem {
		bad.add("spec.validation: wellKnownCACertificates %q is not known: write System, or name ConfigMaps in caCertificateRefs", w)
	}
	if len(p.Spec.Options) > 0 {
		bad.add("spec.options are not supported: take them out")
	}
	out.Invalid = bad.sentence()
	return out
}

// bundle converts a ConfigMap that may have certificates of authorities.
func bundle(c *corev1.ConfigMap) *mesh.Bundle {
	out := &mesh.Bundle{Name: mesh.Name{Namespace: c.Namespace, Name: c.Name}}
	var err error
	if out.PEM, err = certificates([]byte(c.Data[bundleKey])); err != nil {
		out.Invalid = fmt.Sprintf("ConfigMap %s has no certificates under the key %s: %v", out.Name, bundleKey, err)
	}
	return out
}

// certificates are those of a text in PEM, and nothing else that may be there: proxies
// anywhere can have them. An error says why Envoy would not read them.
func certificates(in []byte) (out []byte, err error) {
	for {
		var block *pem.Block
		block, in = pem.Decode(in)
		switch {
		case block == nil && out == nil:
			return nil, errors.New("there is nothing in PEM")
		case block == nil:
			return out, nil
		case block.Type != "CERTIFICATE":
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, err
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
}
