package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// tokenIssuer signs tokens with ES256 (RFC 7518, section 3.4).
type tokenIssuer struct {
	t    *testing.T
	name string
	key  *ecdsa.PrivateKey
}

func newTokenIssuer(t *testing.T, name string) *tokenIssuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return &tokenIssuer{t, name, key}
}

func part(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (i *tokenIssuer) jwks() string {
	i.t.Helper()
	point, err := i.key.PublicKey.Bytes() // 4, x, y
	must(i.t, err)
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","x":"%s","y":"%s"}]}`, part(point[1:33]), part(point[33:]))
}

// bearer is the arguments of a call with a token, whose claims are added to those that
// make it valid.
func (i *tokenIssuer) bearer(claims map[string]any) []string {
	i.t.Helper()
	all := map[string]any{"iss": i.name, "sub": "alice", "aud": "shop", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		all[k] = v
	}
	payload, err := json.Marshal(all)
	must(i.t, err)
	text := part([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + part(payload)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	must(i.t, err)
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return []string{"--header", "Authorization: Bearer " + text + "." + part(signature)}
}

// meshConfig applies a MeshConfig for the length of the test.
func (s *space) meshConfig(spec string) {
	s.t.Helper()
	text := "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: " + spec + "\n"
	must(s.t, s.c.Apply(s.t.Context(), text))
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.c.Delete(ctx, text); err != nil {
			s.t.Errorf("deleting the MeshConfig: %v", err)
		}
	})
}

// Keys come from an issuer in the cluster, which sidecars never call.
func TestTokensOfAnIssuerInTheCluster(t *testing.T) {
	s, outside := newSpace(t, "jwt", true), newSpace(t, "issuer", false)
	s.deploy(app{name: "server"}, app{name: "bare"}, app{name: "client"}, app{name: "stranger"})
	outside.deploy(app{name: "issuer"})
	first, second := newTokenIssuer(t, "https://accounts.example"), newTokenIssuer(t, "https://accounts.example")
	uri := outside.url("issuer") + "/kept"
	get := func(to string, more ...string) []string {
		return append([]string{"http", s.url(to) + "/headers"}, more...)
	}
	want := func(what string, r *report.Call, judge func(*report.Call) error) {
		t.Helper()
		if err := judge(r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	policy := `selector: {matchLabels: {app: server}}
jwt: {issuers: [{issuer: "https://accounts.example", audiences: [shop], jwks: {uri: "` + uri + `"}, claimsToHeaders: [{header: X-User, claim: sub}]}]}
authorization: {rules: [{from: [{serviceAccounts: [client], requestPrincipals: ["https://accounts.example/*"]}], when: {claims: [{path: [roles], values: [clerk]}]}}]}
mtls: {mode: Strict}`
	clerk := map[string]any{"roles": []string{"clerk"}}

	// What is not allowed is not asked for, and said.
	s.apply("MeshPolicy", "tokens", policy)
	eventually(t, 20*time.Second, "that the policy says that its keys cannot be fetched", func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind("MeshPolicy"), s.name, "tokens", "ResolvedRefs", "False")
	})
	s.callUntil(s.in("client"), answered(401), get("server", first.bearer(clerk)...)...)

	issuer, err := s.c.Client.CoreV1().Services(outside.name).Get(t.Context(), "issuer", metav1.GetOptions{})
	must(t, err)
	s.meshConfig(`{jwks: {allowHTTP: true, refreshInterval: 1m, allowedRanges: ["` + issuer.Spec.ClusterIP + `/32"]}}`)
	want("the issuer is told its keys", outside.call(outside.in("issuer"), "http", "http://127.0.0.1:8080/kept", "--header", "X-Keep: "+first.jwks()), answered(200))
	r := s.callUntil(s.in("client"), answered(200), get("server", first.bearer(clerk)...)...)
	if r.Reply == nil || http.Header(r.Reply.Headers).Get("X-User") != "alice" {
		t.Errorf("the application got %+v, want the claim in X-User", r.Reply)
	}
	eventually(t, 20*time.Second, "that the policy's references are resolved", func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind("MeshPolicy"), s.name, "tokens", "ResolvedRefs", "True")
	})

	want("without a token", s.call(s.in("client"), get("server")...), answered(401))
	want("with another role", s.call(s.in("client"), get("server", first.bearer(nil)...)...), answered(403))
	want("expired", s.call(s.in("client"), get("server", first.bearer(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})...)...), answered(401))
	want("of another issuer", s.call(s.in("client"), get("server", second.bearer(clerk)...)...), answered(401))
	want("by another workload", s.call(s.in("stranger"), get("server", first.bearer(clerk)...)...), answered(403))
	want("in the clear", outside.call(outside.in("issuer"), get("server", first.bearer(clerk)...)...), fails("reset", "eof"))

	// Where no policy speaks of tokens they pass as they are.
	token := second.bearer(nil)
	r = s.call(s.in("stranger"), get("bare", token...)...)
	want("where there is no jwt section", r, answered(200))
	if _, sent, _ := strings.Cut(token[1], ": "); r.Reply == nil || http.Header(r.Reply.Headers).Get("Authorization") != sent {
		t.Errorf("the application got %+v, want the token as it was sent", r.Reply)
	}

	// Other keys hold when they were fetched.
	want("the issuer is told other keys", outside.call(outside.in("issuer"), "http", "http://127.0.0.1:8080/kept", "--header", "X-Keep: "+second.jwks()), answered(200))
	s.t.Log("waiting for the next fetch, which is due within a minute")
	eventually(t, 90*time.Second, "that the next keys hold", func(context.Context) error {
		return answered(200)(s.call(s.in("client"), get("server", second.bearer(clerk)...)...))
	})
	want("with the key that is gone", s.call(s.in("client"), get("server", first.bearer(clerk)...)...), answered(401))
}
