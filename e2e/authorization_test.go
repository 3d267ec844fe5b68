package e2e

import (
	"testing"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// expectation is a call and what is to come of it.
type expectation struct {
	from  string // "friend", "stranger" (same namespace) or "foreign" (another)
	args  []string
	judge func(*report.Call) error
}

// TestAuthorizationDecidesBy applies one policy after the other to the same
// server and makes the calls that it lets in and refuses.
func TestAuthorizationDecidesBy(t *testing.T) {
	s := newSpace(t, "authz", true)
	other := newSpace(t, "foreign", true)
	s.deploy(app{name: "server"}, app{name: "friend"}, app{name: "stranger"})
	other.deploy(app{name: "foreign"})
	from := map[string]kube.Pod{"friend": s.in("friend"), "stranger": s.in("stranger"), "foreign": other.in("foreign")}
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
