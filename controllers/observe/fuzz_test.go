package observe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Whatever a Secret of the type kubernetes.io/tls has: it is a certificate that Envoy
// takes, or there is a sentence and nothing of it, and never a part of its key.
func FuzzCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte(nil), []byte(nil))
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"shop.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		f.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		f.Fatal(err)
	}
	chain, key := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	f.Add(chain, key)
	f.Add(slices.Concat(key, chain), slices.Concat(chain, key))
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		c := certificate(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "edge", Name: "cert"}, Data: map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: key}})
		if (c.Invalid == "") != (len(c.Chain) > 0 && len(c.Key) > 0) {
			t.Fatalf("%q, and a chain of %d bytes", c.Invalid, len(c.Chain))
		}
		for line := range strings.Lines(string(key)) {
			if line = strings.TrimSpace(line); len(line) > 30 && !strings.HasPrefix(line, "-----") && strings.Contains(c.Invalid, line) {
				t.Errorf("the sentence has a part of the key: %s", c.Invalid)
			}
		}
		if _, _, err := usable(c.Chain, c.Key); c.Invalid == "" && err != nil {
			t.Error("it cannot be used another time")
		}
		// A ConfigMap for BackendTLSPolicies, which proxies anywhere can have.
		b := bundle(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "edge", Name: "ca"}, Data: map[string]string{bundleKey: string(chain) + string(key)}})
		if strings.Contains(string(b.PEM), "PRIVATE KEY") || (b.Invalid == "") != (len(b.PEM) > 0) {
			t.Errorf("%q, and %q", b.Invalid, b.PEM)
		}
		if b.Invalid == "" {
			if again, err := certificates(b.PEM); err != nil || string(again) != string(b.PEM) {
				t.Errorf("another time it is %q (%v)", again, err)
			}
		}
	})
}

// Whatever an object of the Gateway API says, also past its CRD: it is converted, the same
// each time, and expressions that proxies would refuse, with all that comes with them, are
// in none that is said to be valid.
func FuzzGatewayObjects(f *testing.F) {
	for kind, text := range []string{
		`{"spec":{"hostnames":["*.Example.org"],"parentRefs":[{"name":"edge","port":80}],"rules":[{"matches":[{"path":{"type":"RegularExpression","value":"/a("},"headers":[{"type":"RegularExpression","name":"X","value":"[a-z]{1000}"}]}],"filters":[{"type":"URLRewrite","urlRewrite":{"path":{"type":"ReplacePrefixMatch","replacePrefixMatch":"/b"}}},{"type":"CORS","cors":{"allowOrigins":["https://*.a"]}}],"timeouts":{"request":"10s"},"backendRefs":[{"name":"a","port":80,"weight":-1}]}]}}`,
		`{"spec":{"rules":[{"matches":[{"method":{"type":"RegularExpression","service":".*","method":"\\Q"}}],"backendRefs":[{"name":"a"}]}]}}`,
		`{"spec":{"gatewayClassName":"tulle","listeners":[{"name":"a","port":70000,"protocol":"HTTPS","hostname":"A.b","tls":{"mode":"Terminate","certificateRefs":[{"name":"c","namespace":"d","kind":"K","group":"g"}]},"allowedRoutes":{"namespaces":{"from":"Selector","selector":{"matchExpressions":[{"key":"a","operator":"Odd"}]}},"kinds":[{"kind":"X"}]}}]}}`,
		`{"spec":{"from":[{"group":"g","kind":"HTTPRoute","namespace":"a"}],"to":[{"group":"","kind":"Service","name":"b"}]}}`,
		`{"spec":{"hostnames":["a"],"rules":[{"backendRefs":[{"name":"a","port":1}]}]}}`, `{"spec":{"rules":[{}]}}`,
		`{"spec":{"targetRefs":[{"kind":"Service","name":"a","sectionName":"b"}],"validation":{"hostname":"*.a","subjectAltNames":[{"type":"URI","uri":"spiffe://x"}],"caCertificateRefs":[{"kind":"ConfigMap","name":"c"}]}}}`,
	} {
		f.Add(uint8(kind), []byte(text))
	}
	convert := []func([]byte) any{
		converted(httpRoute), converted(grpcRoute), converted(gateway), converted(func(g *gatewayv1beta1.ReferenceGrant) *mesh.Grant { return grant(g) }),
		converted(tlsRoute), converted(tcpRoute), converted(backendTLS), converted(func(c *gatewayv1.GatewayClass) *mesh.Class { out, _ := class(c); return out }),
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		out := steadily(t, convert[int(kind)%len(convert)], raw)
		route, ok := out.(*mesh.Route)
		if !ok || route == nil || route.Invalid != "" {
			return
		}
		for _, rule := range route.Rules {
			expressionsHold(t, rule.Matches)
		}
	})
}

// steadily converts what was made up, and complains unless it is the same another time.
func steadily(t *testing.T, how func([]byte) any, raw []byte) any {
	t.Helper()
	out := how(raw)
	if again := how(raw); !reflect.DeepEqual(out, again) {
		t.Errorf("%+v is %+v another time", out, again)
	}
	return out
}

// expressionsHold complains of an expression that proxies would refuse, in matches that are
// in force.
func expressionsHold(t *testing.T, matches []mesh.RequestMatch) {
	t.Helper()
	for _, m := range matches {
		texts := []string{}
		if m.Path != nil && m.Path.Type == mesh.Regex {
			texts = append(texts, m.Path.Value)
		}
		for _, h := range slices.Concat(m.Headers, m.Query) {
			if h.Type == mesh.Regex {
				texts = append(texts, h.Value)
			}
		}
		for _, text := range texts {
			if problem := mesh.ExpressionProblem(text); problem != "" {
				t.Errorf("the expression %q is in force: %s", text, problem)
			}
		}
	}
}

// converted reads JSON and converts it; nil where it cannot be read.
func converted[In, Out any](how func(*In) Out) func([]byte) any {
	return func(raw []byte) any {
		var in In
		if json.Unmarshal(raw, &in) != nil {
			return nil
		}
		return how(&in)
	}
}
