package observe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

func TestPolicyOfABackendThatCannotBeUnderstood(t *testing.T) {
	for _, c := range []struct{ spec, want string }{
		{`{targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a, wellKnownCACertificates: System}}`, ""},
		{`{targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a, wellKnownCACertificates: x.org/y}}`, "write System"},
		{`{targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a}}`, "write System"},
		{`{targetRefs: [{group: x.org, kind: Service, name: web}], validation: {hostname: a, wellKnownCACertificates: System}}`, "is no Service"},
		{`{targetRefs: [{group: '', kind: Service, name: web}], options: {x.org/y: z}, validation: {hostname: a, wellKnownCACertificates: System}}`, "take them out"},
		{`{targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a, wellKnownCACertificates: System, subjectAltNames: [{type: Odd}]}}`, "is not known"},
	} {
		got := backendTLS(parse[gatewayv1.BackendTLSPolicy](t, "metadata: {name: p, namespace: shop}\nspec: "+c.spec)).Invalid
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.spec, got, c.want)
		}
	}
}

// certificatePEM is a certificate of an authority.
func certificatePEM(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// A key that somebody put beside the certificate must not go to proxies.
func TestBundlesHaveCertificatesAlone(t *testing.T) {
	certificate := certificatePEM(t)
	other := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
	got := bundle(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "ca"}, Data: map[string]string{bundleKey: "# ours\n" + other + certificate + other + certificate}})
	if string(got.PEM) != certificate+certificate || got.Invalid != "" {
		t.Errorf("the bundle is %s (%s), want two certificates", got.PEM, got.Invalid)
	}
}

// Envoy refuses a bundle in which one certificate is none.
func TestAuthoritiesOfAnExternalServiceAreCertificatesAlone(t *testing.T) {
	certificate := certificatePEM(t)
	odd := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	other := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
	for bundle, want := range map[string]string{"# ours\n" + other + certificate: certificate, certificate + odd: "", "none": ""} {
		got := external(&v1alpha1.ExternalService{Spec: v1alpha1.ExternalServiceSpec{
			Hosts: []string{"a.example"}, Ports: []v1alpha1.ExternalPort{{Number: 80, Protocol: v1alpha1.ExternalHTTP}},
			Resolution: v1alpha1.ExternalDNS, TLS: &v1alpha1.ExternalTLS{CABundle: bundle},
		}})
		if (got.Invalid == "") != (want != "") || got.TLS.CA != want {
			t.Errorf("of %q is trusted %q (%s), want %q", bundle, got.TLS.CA, got.Invalid, want)
		}
	}
}

func TestBundlesOfCertificatesThatAreNone(t *testing.T) {
	odd := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	other := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}))
	for what, data := range map[string]map[string]string{
		"nothing": nil, "another key": {"ca.pem": "x"}, "no PEM": {bundleKey: "x"}, "no certificate": {bundleKey: odd}, "something else": {bundleKey: other},
	} {
		got := bundle(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "ca"}, Data: data})
		if got.Invalid == "" || got.PEM != nil {
			t.Errorf("%s counts as certificates", what)
		}
	}
}
