package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// gateway applies a Gateway of class tulle with the listeners, and waits until it is
// programmed.
func (s *space) gateway(name, listeners string) {
	s.t.Helper()
	must(s.t, s.c.GatewayAPI(s.t.Context()))
	must(s.t, s.c.ApplyKustomization(s.t.Context(), "../deploy/gateways"))
	must(s.t, s.c.Apply(s.t.Context(), fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s, namespace: %s, annotations: {mesh.tulle.dev/service-type: ClusterIP}}
spec:
  gatewayClassName: tulle
  listeners:
%s`, name, s.name, listeners)))
	eventually(s.t, time.Minute, "Gateway "+name, func(ctx context.Context) error {
		return s.c.Condition(ctx, schema.GroupVersionKind{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "Gateway"}, s.name, name, "Programmed", "True")
	})
}

// certificate puts a new self-signed certificate with the common name into a Secret.
func (s *space) certificate(secret, commonName string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(s.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: commonName},
		DNSNames: []string{"front.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(s.t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(s.t, err)
	want := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secret, Namespace: s.name}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}}
	secrets := s.c.Client.CoreV1().Secrets(s.name)
	_, err = secrets.Create(s.t.Context(), want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = secrets.Update(s.t.Context(), want, metav1.UpdateOptions{})
	}
	must(s.t, err)
}

// Clients outside of the mesh come in by a gateway, which is a workload with an identity
// of its own; its certificate is renewed, and its pods are replaced, under load.
func TestAGatewayLetsTrafficIn(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "gateway", true)
	outside := newSpace(t, "internet", false)
	s.deploy(app{name: "server"})
	outside.deploy(app{name: "client"})
	s.strict()
	s.apply("MeshPolicy", "only-the-gateway", "selector: {matchLabels: {app: server}}\nauthorization: {default: Deny, rules: [{action: Allow, from: [{serviceAccounts: [front-tulle]}]}]}")
	s.certificate("front", "first")
	s.gateway("front", `
  - {name: http, port: 80, protocol: HTTP}
  - {name: https, port: 443, protocol: HTTPS, hostname: front.example, tls: {certificateRefs: [{name: front}]}}`)
	s.route("HTTPRoute", "server", `
parentRefs: [{name: front}]
rules:
- backendRefs: [{name: server, port: 80}]
- matches: [{path: {value: /v2}}]
  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
  backendRefs: [{name: server, port: 80}]`)
	from := outside.in("client")
	url := s.url("front-tulle")
	r := outside.callUntil(from, answered(200), "http", url+"/v2/cart", "--header", "X-Forwarded-Client-Cert: By=nobody;URI=spiffe://cluster.local/ns/x/sa/admin")
	xfcc := strings.Join(r.Reply.Headers["X-Forwarded-Client-Cert"], ",")
	if r.Reply.Path != "/cart" || !strings.Contains(xfcc, "/sa/front-tulle") || strings.Contains(xfcc, "admin") || len(r.Reply.Headers["X-Forwarded-For"]) != 1 {
		t.Errorf("the server saw %s, called by %s for %v", r.Reply.Path, xfcc, r.Reply.Headers["X-Forwarded-For"])
	}
	if works(outside.call(from, "http", s.url("server"))) == nil {
		t.Error("the server can be called without the gateway")
	}
	served := func(name string) func(context.Context) error {
		return func(context.Context) error {
			r := outside.call(from, "tls", s.host("front-tulle")+":443", "--host", "front.example")
			if err := works(r); err != nil {
				return err
			}
			if r.Peer != name {
				return fmt.Errorf("the certificate is %q's", r.Peer)
			}
			return nil
		}
	}
	eventually(t, 20*time.Second, "HTTPS", served("first"))

	load := outside.startLoad(from, "http", url, "--rate", "100", "--connections", "10", "--new-connection-share", "0.3")
	s.certificate("front", "second")
	eventually(t, 20*time.Second, "the renewed certificate", served("second"))
	s.rolls("front-tulle")
	s.ended(s.name)
	result := load.stop()
	figure(t, "a gateway whose certificate is renewed and whose pods are replaced: %d requests, %d failed", result.Requests, result.Failed)
	noFailure(outside, result)
}
