package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// vouch puts the certificate of a Secret, which is its own authority, into a ConfigMap.
func (s *space) vouch(name, secret string) {
	s.t.Helper()
	of, err := s.c.Client.CoreV1().Secrets(s.name).Get(s.t.Context(), secret, metav1.GetOptions{})
	must(s.t, err)
	want := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.name}, Data: map[string]string{"ca.crt": string(of.Data[corev1.TLSCertKey])}}
	bundles := s.c.Client.CoreV1().ConfigMaps(s.name)
	_, err = bundles.Create(s.t.Context(), want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = bundles.Update(s.t.Context(), want, metav1.UpdateOptions{})
	}
	must(s.t, err)
}

// A gateway asks those who come in by one of its ports for a certificate, and another shows
// it its own: what comes in by that one, in the clear, gets in, and nobody else does.
func TestGatewaysAskForCertificatesAndShowTheirOwn(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "gatewaytls", true)
	outside := newSpace(t, "internet", false)
	s.deploy(app{name: "server"})
	outside.deploy(app{name: "client"})
	s.strict()
	s.certificate("front", "front")
	s.certificate("client", "back")
	s.vouch("partners", "client")
	s.gateway("front", `
  - {name: asks, port: 443, protocol: HTTPS, hostname: front.example, tls: {certificateRefs: [{name: front}]}}
  - {name: asks-not, port: 444, protocol: HTTPS, hostname: front.example, tls: {certificateRefs: [{name: front}]}}
  tls:
    frontend:
      default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: partners}]}}
      perPort: [{port: 444, tls: {}}]`)
	s.gateway("back", `
  - {name: http, port: 80, protocol: HTTP}
  tls: {backend: {clientCertificateRef: {name: client}}}`)
	s.vouch("front-authority", "front")
	must(t, s.c.Apply(t.Context(), fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: front, namespace: %s}
spec:
  targetRefs: [{group: '', kind: Service, name: front-tulle}]
  validation: {hostname: front.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: front-authority}]}`, s.name)))
	s.route("HTTPRoute", "server", "parentRefs: [{name: front}]\nrules: [{backendRefs: [{name: server, port: 80}]}]")
	s.route("HTTPRoute", "through", `
parentRefs: [{name: back}]
rules:
- filters: [{type: URLRewrite, urlRewrite: {hostname: front.example}}]
  backendRefs: [{name: front-tulle, port: 443}]`)

	from, host := outside.in("client"), s.host("front-tulle")
	outside.callUntil(from, peer("front"), "tls", host+":444", "--host", "front.example")
	r := outside.callUntil(from, answered(200), "http", s.url("back-tulle"))
	if xfcc := strings.Join(r.Reply.Headers["X-Forwarded-Client-Cert"], ","); !strings.Contains(xfcc, "/sa/front-tulle") || strings.Contains(xfcc, "CN=back") {
		t.Errorf("the server's sidecar says that %s calls, want the gateway alone", xfcc)
	}
	if works(outside.call(from, "tls", host+":443", "--host", "front.example")) == nil {
		t.Error("a client without a certificate is let in")
	}

	// Another certificate, of another authority: refused until that is trusted.
	s.certificate("client", "back")
	outside.callUntil(from, answered(503), "http", s.url("back-tulle"))
	s.vouch("partners", "client")
	outside.callUntil(from, answered(200), "http", s.url("back-tulle"))
}
