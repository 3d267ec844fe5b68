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

// A key that somebody put beside the certificate must not go to proxies.
func TestBundlesHaveCertificatesAlone(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	other := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
	got := bundle(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "ca"}, Data: map[string]string{bundleKey: "# ours\n" + other + certificate + other + certificate}})
	if string(got.PEM) != certificate+certificate || got.Invalid != "" {
		t.Errorf("the bundle is %s (%s), want two certificates", got.PEM, got.Invalid)
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
