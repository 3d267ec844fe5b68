package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/controllers/trust"
	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/server"
)

// What is written about: an object of each kind that has a status, and Gateways.
const (
	meshObjects = `
apiVersion: mesh.tulle.dev/v1alpha1
kind: MeshPolicy
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  jwt: {issuers: [{issuer: "https://accounts.example", jwks: {uri: %q}}]}
---
apiVersion: mesh.tulle.dev/v1alpha1
kind: TrafficSplit
metadata: {name: reviews, namespace: shop}
spec: {service: reviews, backends: [{service: reviews-v1, weight: 100}]}
---
apiVersion: mesh.tulle.dev/v1alpha1
kind: ExternalService
metadata: {name: payments, namespace: shop}
spec: {hosts: [api.payments.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
`
	gatewayObjects = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop, annotations: {mesh.tulle.dev/max-replicas: "3"}}
spec:
  gatewayClassName: tulle
  listeners: [{name: web, port: 80, protocol: HTTP}, {name: tls, port: 8443, protocol: TLS, tls: {mode: Passthrough}}, {name: tcp, port: 5432, protocol: TCP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: reviews, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: reviews, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: edge}], hostnames: [shop.example], rules: [{backendRefs: [{name: reviews, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: reviews, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: reviews, namespace: shop}
spec: {targetRefs: [{group: "", kind: Service, name: reviews}], validation: {hostname: reviews.example, wellKnownCACertificates: System}}
`
	anotherClass = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: others}
spec: {controllerName: example.org/another}
`
	fetching = `
apiVersion: mesh.tulle.dev/v1alpha1
kind: MeshConfig
metadata: {name: default, annotations: {mesh.tulle.dev/rotate-ca: %q}}
spec: {jwks: {allowHTTP: true, allowedRanges: [127.0.0.0/8]}, ca: {%s}}
`
	signedBy       = "certManager: {issuerRef: {name: company, kind: %s}}"
	gatewayAccount = "edge-tulle" // the ServiceAccount that the Gateway is given
)

// What the control plane's service account may do is what the control plane does: the
// real one, on a real API server that writes down what it is asked, with the roles of
// deploy/base, deploy/control-plane and deploy/gateways. What each verb is for is done
// here once: a verb that is missing is refused, and one that nothing needs is not used.
func TestTheControlPlaneIsPermittedWhatItDoesAndNothingElse(t *testing.T) {
	crds, err := apitest.GatewayCRDs()
	if err != nil {
		t.Fatal(err)
	}
	config, audit := apitest.StartAudited(t, func(e *envtest.Environment) { e.CRDDirectoryPaths = append(e.CRDDirectoryPaths, crds) })
	c := ofConfig(t, config)
	for _, file := range []string{"gateways/role.yaml", "gateways/bindings.yaml", "gateways/class.yaml"} {
		c.apply(t, manifest(t, file))
	}
	// Its webhooks are about nothing here: the API server would not find them. The label is
	// the kustomization's.
	about := strings.NewReplacer("resources: [pods]", "resources: [nothing]", "resources: [meshpolicies, trafficsplits, externalservices, meshconfigs]", "resources: [nothing]",
		"  name: tulle\nwebhooks:", "  name: tulle\n  labels: {app.kubernetes.io/part-of: tulle}\nwebhooks:")
	c.apply(t, about.Replace(manifest(t, "control-plane/injection.yaml")))
	c.apply(t, about.Replace(manifest(t, "base/validation.yaml")))
	c.apply(t, objects)
	web := &pod{namespace: shop, name: "web", account: "web", address: "10.244.0.10"}
	c.run(t, web, map[string]string{"app": "web"}, true)

	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	}))
	t.Cleanup(keys.Close)
	api, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	r := startControlPlane(t, t, writeKubeconfig(t, config, api.Host, c.token(t, meshNamespace, "tulled", nil)), "tulled")

	ask := ca.Ask{Scope: ca.ScopeIssuer, At: time.Now()}
	c.apply(t, fmt.Sprintf(fetching, ask, ""))
	c.apply(t, fmt.Sprintf(meshObjects, keys.URL))
	c.apply(t, gatewayObjects)
	c.apply(t, anotherClass)
	c.spoilBundle(t)
	connect(t, r.xds, c.proxyToken(t, web))
	connect(t, r.xds, forged(t, web))
	injected(t, r.webhook)
	eventually(t, "the Gateway's account", func() error {
		return c.client.Get(t.Context(), types.NamespacedName{Namespace: shop, Name: gatewayAccount}, &corev1.ServiceAccount{})
	})
	c.installCertManager(t)
	c.apply(t, fmt.Sprintf(fetching, ask, fmt.Sprintf(signedBy, "ClusterIssuer")))
	patiently(t, "the ClusterIssuer to be looked for", func() error {
		left, err := audit.Complaints(t.Context(), config, meshNamespace, "tulled")
		if strings.Contains(strings.Join(left, "\n"), "get clusterissuers") {
			err = errors.Join(err, fmt.Errorf("%q", left))
		}
		return err
	})
	c.apply(t, fmt.Sprintf(fetching, ask, fmt.Sprintf(signedBy, "Issuer")))
	patiently(t, "the Gateway to have all", func() error {
		left, err := audit.Complaints(t.Context(), config, meshNamespace, "tulled")
		if i := strings.Index(strings.Join(left, "\n"), "create "); i >= 0 {
			err = errors.Join(err, fmt.Errorf("%q", left))
		}
		return err
	})
	c.gatewaysHaveNoRole(t)
	c.apply(t, strings.ReplaceAll(strings.SplitN(gatewayObjects, "---\n", 2)[0], "gatewayClassName: tulle", "gatewayClassName: others"))

	// Keys are kept in what is there by then.
	eventually(t, "the keys", func() error {
		return c.client.Get(t.Context(), types.NamespacedName{Namespace: meshNamespace, Name: "tulle-jwks"}, &corev1.ConfigMap{})
	})
	c.apply(t, fmt.Sprintf(meshObjects, keys.URL+"/moved"))

	patiently(t, "all that is permitted to be used", func() error {
		// A condition that is lost and found again is an event of the same words.
		c.apply(t, fmt.Sprintf(split, "nobody"))
		c.apply(t, fmt.Sprintf(split, "reviews-v1"))
		is, err := audit.Complaints(t.Context(), config, meshNamespace, "tulled")
		if err == nil && len(is) > 0 {
			err = errors.New(strings.Join(is, "\n"))
		}
		return err
	})
}

// spoilBundle does to a trust bundle what has it written again, and made anew.
func (c *cluster) spoilBundle(t *testing.T) {
	t.Helper()
	c.bundle(t, shop, trust.ConfigMapName)
	for _, immutable := range []bool{false, true} {
		var m corev1.ConfigMap
		eventually(t, "the bundle to be spoilt", func() error {
			if err := c.client.Get(t.Context(), types.NamespacedName{Namespace: shop, Name: trust.ConfigMapName}, &m); err != nil {
				return err
			}
			m.Data[trust.RootsPEM], m.Immutable = "spoilt", &immutable
			return c.client.Update(t.Context(), &m)
		})
		eventually(t, "the bundle to be mended", func() error {
			if strings.Contains(c.bundle(t, shop, trust.ConfigMapName)[trust.RootsPEM], "spoilt") {
				return errors.New("it is spoilt")
			}
			return nil
		})
	}
}

// connect opens a stream as a proxy with the token does, and waits for an answer.
func connect(t *testing.T, at, token string) {
	t.Helper()
	conn, err := grpc.NewClient(at, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), patience)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}) // Recv tells more
	if _, err := stream.Recv(); err != nil && ctx.Err() != nil {
		t.Errorf("no answer: %v", err)
	}
}

// forged is a token that says all that a proxy's says, by a key that is not published.
func forged(t *testing.T, p *pod) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "nobody's"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: "https://kubernetes.default.svc", Subject: "system:serviceaccount:" + p.namespace + ":" + p.account, Audience: jwt.Audience{server.Audience},
		Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
	}).Claims(map[string]any{"kubernetes.io": map[string]any{
		"namespace": p.namespace, "pod": map[string]any{"name": p.name, "uid": p.uid}, "serviceaccount": map[string]any{"name": p.account, "uid": "u"},
	}}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// injected asks for a pod's injection as the API server does.
func injected(t *testing.T, at string) {
	t.Helper()
	pod := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"app","namespace":"shop","labels":{"mesh.tulle.dev/inject":"enabled"}},"spec":{"containers":[{"name":"app","image":"app"}]}}`
	review, err := json.Marshal(&admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "u", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Namespace: shop, Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: []byte(pod)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "tulled." + meshNamespace + ".svc"}}}
	resp, err := c.Post("https://"+at+webhook.InjectPath, "application/json", bytes.NewReader(review))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer admissionv1.AdmissionReview
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.Response == nil || !answer.Response.Allowed || len(answer.Response.Patch) == 0 {
		t.Errorf("the pod is not injected: %+v", answer.Response)
	}
}

// gatewaysHaveNoRole looks for roles of the accounts that Gateways are given: their
// proxies ask nothing of the API server.
func (c *cluster) gatewaysHaveNoRole(t *testing.T) {
	t.Helper()
	var ofCluster rbacv1.ClusterRoleBindingList
	var local rbacv1.RoleBindingList
	for _, list := range []client.ObjectList{&ofCluster, &local} {
		if err := c.client.List(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	var subjects []rbacv1.Subject
	for _, b := range ofCluster.Items {
		subjects = append(subjects, b.Subjects...)
	}
	for _, b := range local.Items {
		subjects = append(subjects, b.Subjects...)
	}
	if len(subjects) == 0 {
		t.Error("nobody has a role")
	}
	for _, s := range subjects {
		if s.Kind == rbacv1.ServiceAccountKind && s.Namespace == shop {
			t.Errorf("%s has a role", s.Name)
		}
	}
	var d corev1.ServiceAccount
	if err := c.client.Get(t.Context(), types.NamespacedName{Namespace: shop, Name: gatewayAccount}, &d); err != nil {
		t.Error(err)
	}
}
