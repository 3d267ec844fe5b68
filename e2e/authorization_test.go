package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// expectation is a call and what is to come of it.
type expectation struct {
	from  string // "friend", "stranger" (same namespace), "foreign" (another) or "plain" (without a sidecar)
	args  []string
	judge func(*report.Call) error
}

// TestAuthorizationDecidesBy applies one policy after the other to the same
// server and makes the calls that it lets in and refuses.
func TestAuthorizationDecidesBy(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "authz", true)
	other := newSpace(t, "foreign", true)
	s.deploy(app{name: "server"}, app{name: "friend"}, app{name: "stranger"})
	other.deploy(app{name: "foreign"})
	outside := newSpace(t, "plain", false)
	outside.deploy(app{name: "plain"})
	from := map[string]kube.Pod{"friend": s.in("friend"), "stranger": s.in("stranger"), "foreign": other.in("foreign"), "plain": outside.in("plain")}
	friendIP := s.running("friend").Status.PodIP

	allowed, refused, closed := answered(200), answered(403), fails("reset", "eof")
	get := func(path string, more ...string) []string {
		return append([]string{"http", s.url("server") + path}, more...)
	}
	tcp := []string{"tcp", s.host("server") + ":9001"}
	for name, c := range map[string]struct {
		authorization string
		expect        []expectation
	}{
		"service account": {`rules: [{from: [{serviceAccounts: [friend]}]}]`, []expectation{
			{"stranger", get("/"), refused},
			{"foreign", get("/"), refused},
			{"friend", get("/"), allowed},
			{"stranger", tcp, closed},
			{"friend", tcp, works},
		}},
		"service account of another namespace": {`rules: [{from: [{serviceAccounts: [` + other.name + `/foreign]}]}]`, []expectation{
			{"friend", get("/"), refused}, {"foreign", get("/"), allowed},
		}},
		"identity": {`rules: [{from: [{identities: ["spiffe://cluster.local/ns/` + s.name + `/sa/friend"]}]}]`, []expectation{
			{"stranger", get("/"), refused}, {"friend", get("/"), allowed},
		}},
		"namespace": {`rules: [{from: [{namespaces: [` + s.name + `]}]}]`, []expectation{
			{"foreign", get("/"), refused}, {"friend", get("/"), allowed}, {"stranger", get("/"), allowed},
		}},
		"address": {`rules: [{from: [{ipBlocks: ["` + friendIP + `/32"]}]}]`, []expectation{
			{"stranger", get("/"), refused}, {"friend", get("/"), allowed},
		}},
		"method": {`rules: [{to: [{methods: [GET]}]}]`, []expectation{
			{"friend", get("/", "--method", "DELETE"), refused}, {"friend", get("/"), allowed}, {"friend", tcp, closed},
		}},
		"path": {`rules: [{to: [{paths: ["/open/*"]}]}]`, []expectation{
			{"friend", get("/shut"), refused}, {"friend", get("/open/door?q=1"), allowed}, {"friend", get("/open/../shut"), refused},
		}},
		"host": {`rules: [{to: [{hosts: [good.example]}]}]`, []expectation{
			{"friend", get("/", "--host", "bad.example"), refused}, {"friend", get("/", "--host", "good.example"), allowed},
		}},
		"port": {`rules: [{to: [{ports: [9001]}]}]`, []expectation{
			{"friend", get("/"), refused}, {"friend", tcp, works},
		}},
		"deny before allow": {`rules: [{action: Allow}, {action: Deny, from: [{serviceAccounts: [stranger]}]}]`, []expectation{
			{"stranger", get("/"), refused}, {"friend", get("/"), allowed},
		}},
		"deny of a path, and what is not HTTP": {`rules: [{action: Deny, to: [{paths: ["/admin"]}]}]`, []expectation{
			{"friend", get("/admin"), refused}, {"friend", get("/"), allowed}, {"friend", tcp, closed},
		}},
		"deny of a path on one port": {`rules: [{action: Deny, to: [{paths: ["/admin"], ports: [8080]}]}]`, []expectation{
			{"friend", get("/admin"), refused}, {"friend", get("/"), allowed}, {"friend", tcp, works},
		}},
		"anybody of the mesh but one": {`rules: [{from: [{notServiceAccounts: [stranger]}]}]`, []expectation{
			{"stranger", get("/"), refused}, {"plain", get("/"), refused}, {"friend", get("/"), allowed}, {"foreign", get("/"), allowed},
		}},
		"nobody but a namespace": {`rules: [{action: Deny, from: [{notNamespaces: [` + s.name + `]}]}]`, []expectation{
			{"foreign", get("/"), refused}, {"plain", get("/"), refused}, {"friend", get("/"), allowed},
		}},
		"trust domain": {`rules: [{from: [{trustDomains: [cluster.local]}]}]`, []expectation{
			{"plain", get("/"), refused}, {"foreign", get("/"), allowed},
		}},
		"template": {`rules: [{to: [{paths: ["/users/{id}/orders", "/files/**"]}]}]`, []expectation{
			{"friend", get("/users/1/2/orders"), refused}, {"friend", get("/users/1/orders?q=1"), allowed}, {"friend", get("/files/a/b"), allowed},
		}},
		"paths and methods excepted": {`rules: [{to: [{notPaths: ["/admin", "/admin/*"], notMethods: [DELETE]}]}]`, []expectation{
			{"friend", get("/admin/x"), refused}, {"friend", get("/", "--method", "DELETE"), refused}, {"friend", get("/open"), allowed}, {"friend", tcp, closed},
		}},
		"header": {`rules: [{when: {headers: [{name: X-Role, values: ["dev-*"], notValues: [dev-off]}]}}]`, []expectation{
			{"friend", get("/"), refused},
			{"friend", get("/", "--header", "x-role: dev-off"), refused},
			{"friend", get("/", "--header", "x-role: dev-a", "--header", "x-role: root"), refused},
			{"friend", get("/", "--header", "x-role: dev-a", "--header", "x_role: root"), refused},
			{"friend", get("/", "--header", "X-ROLE: dev-a"), allowed},
		}},
		"rules that only note": {`rules: [{action: Deny, to: [{paths: ["/shut"], ports: [8080]}]}, {action: Deny, mode: DryRun, to: [{paths: ["/tried"]}]}, {action: Audit}, {mode: DryRun, from: [{serviceAccounts: [nobody]}]}]`, []expectation{
			{"friend", get("/shut"), refused}, {"friend", get("/tried"), allowed}, {"plain", get("/"), allowed}, {"friend", tcp, works},
		}},
		"default": {`default: Deny`, []expectation{
			{"friend", get("/"), refused}, {"friend", tcp, closed},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.on(t)
			s.apply("MeshPolicy", "authz", "selector: {matchLabels: {app: server}}\nauthorization: {"+c.authorization+"}")
			for i, e := range c.expect {
				if i == 0 {
					// The first one, a refusal, shows that the policy has arrived.
					s.callUntil(from[e.from], e.judge, e.args...)
					continue
				}
				if err := e.judge(s.call(from[e.from], e.args...)); err != nil {
					t.Errorf("%s calls %v: %v", e.from, e.args, err)
				}
			}
			s.remove("MeshPolicy", "authz")
			s.callUntil(from["friend"], answered(200), get("/")...)
			s.callUntil(from["stranger"], answered(200), get("/")...)
		})
	}
}

// TestAnExternalAuthorizerIsAskedOverTheMesh has a meshed application stand for the
// authorizer over HTTP: it answers every request with 200, and 403 where it is not to
// be reached.
func TestAnExternalAuthorizerIsAskedOverTheMesh(t *testing.T) {
	noLeftovers(t)
	s := newSpace(t, "asked", true)
	s.deploy(app{name: "server"}, app{name: "friend"}, app{name: "authorizer"})
	config := fmt.Sprintf("apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {externalAuthorizers: [{name: web, service: {namespace: %s, name: authorizer, port: 80}, protocol: HTTP, pathPrefix: /check}]}\n", s.name)
	must(t, s.c.Apply(t.Context(), config))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, s.c.Delete(ctx, config))
	})
	friend := s.in("friend")
	asked := []string{"http", s.url("server") + "/asked/x"}
	s.apply("MeshPolicy", "ask", "selector: {matchLabels: {app: server}}\nauthorization: {rules: [{action: Custom, provider: web, to: [{paths: [/asked/*], ports: [8080]}]}]}")
	s.callUntil(friend, answered(200), asked...)
	// Whom the authorizer does not want, it does not answer: the server's own identity
	// is what it sees.
	s.apply("MeshPolicy", "unwanted", "selector: {matchLabels: {app: authorizer}}\nauthorization: {rules: [{action: Deny, from: [{serviceAccounts: [server]}]}]}")
	s.callUntil(friend, answered(403), asked...)
	if err := answered(200)(s.call(friend, "http", s.url("server")+"/")); err != nil {
		t.Errorf("what no rule matches: %v", err)
	}
}

// What a rule cannot be asked about is refused, and the policy's status says so.
func TestAuthorizationThatCannotBeAskedFailsClosed(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "closed", true)
	s.deploy(app{name: "server"}, app{name: "friend"})
	friend := s.in("friend")
	for name, c := range map[string]struct {
		rule, condition string
		refused         []string
	}{
		"an authorizer that there is not": {
			`{action: Custom, provider: nobody, to: [{paths: [/asked/*], ports: [8080]}]}`, "ResolvedRefs",
			[]string{"http", s.url("server") + "/asked/x"},
		},
		"a client that nobody is believed about": {
			`{action: Deny, from: [{remoteIpBlocks: [192.0.2.0/24]}], to: [{paths: [/asked/*], ports: [8080]}]}`, "Accepted",
			[]string{"http", s.url("server") + "/asked/x", "--header", "x-forwarded-for: 198.51.100.1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.on(t)
			must(t, s.c.Apply(t.Context(), s.object("MeshPolicy", "closed", "selector: {matchLabels: {app: server}}\nauthorization: {rules: ["+c.rule+"]}")))
			eventually(t, 20*time.Second, "the condition "+c.condition, func(ctx context.Context) error {
				return s.c.Condition(ctx, kube.MeshKind("MeshPolicy"), s.name, "closed", c.condition, "False")
			})
			s.callUntil(friend, answered(403), c.refused...)
			for _, call := range [][]string{{"http", s.url("server") + "/"}, {"tcp", s.host("server") + ":9001"}} {
				if err := works(s.call(friend, call...)); err != nil {
					t.Errorf("%v, which the rule is not about: %v", call, err)
				}
			}
			s.remove("MeshPolicy", "closed")
			s.callUntil(friend, answered(200), c.refused...)
		})
	}
}
