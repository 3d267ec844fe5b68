package observe

import (
	"encoding/pem"
	"strings"
	"testing"

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
