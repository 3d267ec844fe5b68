package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// secretOf puts key sets into the Secret that policies of the namespace may name.
func (s *space) secretOf(keys map[string]string) {
	s.t.Helper()
	data, err := json.Marshal(keys)
	must(s.t, err)
	must(s.t, s.c.Apply(s.t.Context(), fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: tulle-jwks, namespace: %s}\nstringData: %s\n", s.name, data)))
}

// sent is the token in the arguments of a call, as the application is to see it.
func sent(bearer []string) string {
	_, value, _ := strings.Cut(bearer[1], ": ")
	return value
}

// reached judges that the application got the request, with the headers.
func reached(want map[string]string) func(*report.Call) error {
	return func(r *report.Call) error {
		if err := answered(200)(r); err != nil {
			return err
		}
		for name, value := range want {
			if got := http.Header(r.Reply.Headers).Get(name); got != value {
				return fmt.Errorf("the application got %s: %q, want %q", name, got, value)
			}
		}
		return nil
	}
}

// Where tokens may be looked at: by the application alone, by the gateway, behind a gateway
// that passes TLS through, and by the sidecar beside mutual TLS.
func TestTheFormsOfAuthenticationByTokens(t *testing.T) {
	t.Parallel()
	tulle := cli(t)
	s, outside := newSpace(t, "tokens", true), newSpace(t, "visitors", false)
	s.deploy(app{name: "server"}, app{name: "guarded"}, app{name: "client"}, app{name: "stranger"})
	outside.deploy(app{name: "client"})
	s.strict()
	accounts := newTokenIssuer(t, "https://accounts.example")
	from, alice, expired := outside.in("client"), accounts.bearer(nil), accounts.bearer(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})
	with := func(token []string, args ...string) []string { return append(args, token...) }
	issuer := `jwt: {issuers: [{issuer: "https://accounts.example", audiences: [shop], jwks: {secretKey: accounts.json}, claimsToHeaders: [{header: X-User, claim: sub}]}]}`
	members := `authorization: {rules: [{name: members, from: [{requestPrincipals: ["https://accounts.example/*"]}]}]}`

	s.certificate("front", "front")
	s.gateway("front", `
  - {name: open, port: 80, protocol: HTTP}
  - {name: members, port: 8080, protocol: HTTP}
  - {name: through, port: 443, protocol: TLS, hostname: "*.through.example", tls: {mode: Passthrough}}`)
	s.route("HTTPRoute", "server", "parentRefs: [{name: front, sectionName: open}, {name: front, sectionName: members}]\nrules: [{backendRefs: [{name: server, port: 80}]}]")
	url, host := s.url("front-tulle"), s.host("front-tulle")

	t.Run("in the application", func(t *testing.T) {
		s, outside := s.on(t), outside.on(t)
		for what, token := range map[string][]string{"a good one": alice, "one that is over": expired} {
			if err := reached(map[string]string{"Authorization": sent(token)})(outside.callUntil(from, answered(200), with(token, "http", url)...)); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		// By TLS of its own, which nobody on the way looks into.
		s.route("TLSRoute", "application", "parentRefs: [{name: front, sectionName: through}]\nhostnames: [own.through.example]\nrules: [{backendRefs: [{name: server, port: 8443}]}]")
		r := outside.callUntil(from, peer("echo.application.test"), with(expired, "tls", host+":443", "--host", "own.through.example")...)
		if err := reached(map[string]string{"Authorization": sent(expired)})(r); err != nil {
			t.Error(err)
		}
	})

	t.Run("at the gateway", func(t *testing.T) {
		s, outside := s.on(t), outside.on(t)
		s.secretOf(map[string]string{"accounts.json": accounts.jwks()})
		s.apply("MeshPolicy", "at-the-gateway", "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front, sectionName: members}]\n"+issuer+"\n"+members)
		at := url + ":8080"
		r := outside.callUntil(from, answered(401), "http", at)
		if said := r.Headers.Get("Www-Authenticate"); !strings.HasPrefix(said, "Bearer") || strings.Contains(said, "error=") {
			t.Errorf("who has no token is told %q", said)
		}
		r = outside.callUntil(from, answered(200), with(alice, "http", at, "--header", "X-User: root")...)
		if err := reached(map[string]string{"X-User": "alice", "Authorization": sent(alice)})(r); err != nil {
			t.Error(err)
		}
		r = outside.call(from, with(expired, "http", at)...)
		if err := answered(401)(r); err != nil || !strings.Contains(r.Headers.Get("Www-Authenticate"), `error="invalid_token"`) {
			t.Errorf("with a token that is over: %v, %v", err, r.Headers)
		}
		for what, c := range map[string]struct {
			token []string
			want  int
		}{"another audience": {accounts.bearer(map[string]any{"aud": "bank"}), 403}, "another issuer": {newTokenIssuer(t, "https://accounts.example").bearer(nil), 401}} {
			if err := answered(c.want)(outside.call(from, with(c.token, "http", at)...)); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := answered(200)(outside.call(from, "http", url)); err != nil {
			t.Errorf("at the other listener: %v", err)
		}

		// It is explained as it is answered.
		claims := filepath.Join(t.TempDir(), "claims.json")
		must(t, os.WriteFile(claims, []byte(`{"iss":"https://accounts.example","sub":"alice","aud":"shop"}`), 0o600))
		for verdict, flags := range map[string][]string{"Allowed": {"--jwt-claims", "@" + claims}, "Denied": nil} {
			out, code := tulle(append([]string{"explain", "gateway/front", "http://shop.example:8080/", "-n", s.name, "-o", "json"}, flags...)...)
			var a struct {
				Verdict  string
				Entrance struct {
					Listener, Verdict string
					Status            int
				}
			}
			must(t, json.Unmarshal([]byte(out), &a))
			if a.Verdict != verdict || a.Entrance.Listener != "members" || (code == 0) != (verdict == "Allowed") || (a.Entrance.Status == 401) != (verdict == "Denied") {
				t.Errorf("with %v it is explained as %s, exit code %d\n%s", flags, a.Verdict, code, out)
			}
		}
	})

	// TLS of clients passes the ingress and ends at the workload's sidecar, which looks at
	// tokens: the ingress never has the certificate, and the application has no TLS.
	t.Run("at the sidecar, behind TLS that the ingress passes through", func(t *testing.T) {
		s, outside := s.on(t), outside.on(t)
		s.certificate("guarded", "guarded")
		s.route("TLSRoute", "guarded", "parentRefs: [{name: front, sectionName: through}]\nhostnames: [api.through.example]\nrules: [{backendRefs: [{name: guarded, port: 8443}]}]")
		s.secretOf(map[string]string{"accounts.json": accounts.jwks()})
		s.apply("MeshPolicy", "at-the-sidecar", "selector: {matchLabels: {app: guarded}}\n"+issuer+`
tls: {ports: [{port: 8443, targetPort: 8080, certificateRef: {name: guarded}}]}
authorization:
  rules:
  - {name: outside, from: [{requestPrincipals: ["https://accounts.example/*"]}], to: [{ports: [8443]}]}
  - {name: inside, from: [{serviceAccounts: [client], requestPrincipals: ["https://accounts.example/*"]}]}`)
		call := []string{"tls", host + ":443", "--host", "api.through.example"}
		outside.callUntil(from, answered(401), call...)
		r := outside.callUntil(from, answered(200), with(alice, call...)...)
		if err := reached(map[string]string{"X-User": "alice"})(r); err != nil || r.Peer != "guarded" {
			t.Errorf("by TLS of %s: %v", r.Peer, err)
		}
		if err := answered(401)(outside.call(from, with(expired, call...)...)); err != nil {
			t.Errorf("with a token that is over: %v", err)
		}
		// A caller of the mesh that asks for the same port has an identity, and gets to the
		// application too, which has TLS of its own at that port.
		inside := "http://" + s.addresses("app=guarded")[0] + ":8443/headers"
		r = s.callUntil(s.in("client"), answered(200), with(alice, "http", inside)...)
		if err := reached(map[string]string{"X-User": "alice"})(r); err != nil {
			t.Errorf("by mesh mTLS: %v", err)
		}
		out, _ := tulle("status", "deploy/guarded", "-n", s.name, "--plaintext", "-o", "json")
		var status struct {
			Proxies []struct{ Plaintext struct{ Requests, TLS int } }
		}
		must(t, json.Unmarshal([]byte(out), &status))
		if len(status.Proxies) != 1 || status.Proxies[0].Plaintext.TLS < 3 || status.Proxies[0].Plaintext.Requests != 0 {
			t.Errorf("tulle status --plaintext says %s", out)
		}
		// Another certificate is shown at once, and none of use is not shown.
		s.certificate("guarded", "renewed")
		outside.callUntil(from, peer("renewed"), with(alice, call...)...)
		must(t, s.c.Client.CoreV1().Secrets(s.name).Delete(t.Context(), "guarded", metav1.DeleteOptions{}))
		eventually(t, 20*time.Second, "that the policy says that the certificate is gone", func(ctx context.Context) error {
			return s.c.Condition(ctx, kube.MeshKind("MeshPolicy"), s.name, "at-the-sidecar", "ResolvedRefs", "False")
		})
		outside.callUntil(from, func(r *report.Call) error {
			if r.Failure == nil {
				return fmt.Errorf("without its certificate it is answered with %d", r.Status)
			}
			return nil
		}, with(alice, call...)...)
		s.certificate("guarded", "guarded")
		outside.callUntil(from, answered(200), with(alice, call...)...)
	})

	// Who calls and who asks are both known, and both count; other keys of a Secret hold at
	// once, on connections that stay.
	t.Run("beside mutual TLS", func(t *testing.T) {
		s := s.on(t)
		guarded := s.url("guarded") + "/headers"
		s.callUntil(s.in("client"), answered(200), with(alice, "http", guarded)...)
		for what, c := range map[string]struct {
			by    string
			token []string
			want  int
		}{"the caller without a token": {"client", nil, 401}, "a token by another caller": {"stranger", alice, 403}, "neither": {"stranger", nil, 403}} {
			if err := answered(c.want)(s.call(s.in(c.by), with(c.token, "http", guarded)...)); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		next := newTokenIssuer(t, "https://accounts.example")
		s.secretOf(map[string]string{"accounts.json": next.jwks()})
		s.callUntil(s.in("client"), answered(200), with(next.bearer(nil), "http", guarded)...)
		if err := answered(401)(s.call(s.in("client"), with(alice, "http", guarded)...)); err != nil {
			t.Errorf("with the key that is gone: %v", err)
		}
		s.secretOf(map[string]string{"accounts.json": `{"keys":[{"kty":"oct","k":"aGlkZGVu"}]}`})
		s.callUntil(s.in("client"), answered(401), with(next.bearer(nil), "http", guarded)...)
		eventually(t, 20*time.Second, "that the policy says that a key is private", func(ctx context.Context) error {
			return s.c.Condition(ctx, kube.MeshKind("MeshPolicy"), s.name, "at-the-sidecar", "ResolvedRefs", "False")
		})
	})
}
