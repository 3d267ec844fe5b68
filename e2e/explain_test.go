package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// What is explained is what a call then meets.
func TestAnExplanationIsWhatACallMeets(t *testing.T) {
	tulle := cli(t)
	s, outside := newSpace(t, "explain", true), newSpace(t, "outside", false)
	s.deploy(app{name: "server", replicas: 2}, app{name: "friend"}, app{name: "stranger"})
	outside.deploy(app{name: "client"})
	from := map[string]kube.Pod{"friend": s.in("friend"), "stranger": s.in("stranger"), "outside": outside.in("client")}
	named := map[string]string{"friend": "deploy/friend", "stranger": "sa/stranger", "outside": outside.name + "/deploy/client"}

	type call struct {
		from, path string
		more       []string // flags of both programs
		verdict    string
		judge      func(*report.Call) error
	}
	allowed, refused := answered(200), answered(403)
	for name, c := range map[string]struct {
		spec  string
		calls []call // the first one shows that the policy has arrived
	}{
		"an account and a path": {`authorization: {rules: [
  {name: friends, from: [{serviceAccounts: [friend]}], to: [{paths: ["/open/*"]}]},
  {name: secret, action: Deny, to: [{paths: ["/open/secret"]}]}]}`, []call{
			{"stranger", "/open/x", nil, "Denied", refused},
			{"friend", "/open/x", nil, "Allowed", allowed},
			{"friend", "/shut", nil, "Denied", refused},
			{"friend", "/open/../shut", nil, "Denied", refused},
			{"friend", "/open/%73ecret", nil, "Denied", refused},
			{"outside", "/open/x", nil, "Denied", refused},
		}},
		"a method and a host": {`authorization: {rules: [
  {action: Deny, to: [{methods: [DELETE]}, {hosts: [bad.example]}]}]}`, []call{
			{"friend", "/", []string{"--method", "DELETE"}, "Denied", refused},
			{"friend", "/", []string{"--host", "BAD.example:80"}, "Denied", refused},
			{"stranger", "/", []string{"--host", "good.example"}, "Allowed", allowed},
			{"outside", "/", nil, "Allowed", allowed},
		}},
		"what only notes": {`authorization: {rules: [
  {action: Deny, mode: DryRun}, {action: Deny, to: [{paths: ["/shut"]}]}]}`, []call{
			{"friend", "/shut", nil, "Denied", refused},
			{"friend", "/", nil, "Allowed", allowed},
		}},
		"a port that is Strict alone": {`mtls: {mode: Permissive, ports: [{port: 8080, mode: Strict}]}`, []call{
			{"outside", "/", nil, "Denied", fails("reset", "eof")},
			{"friend", "/", nil, "Allowed", allowed},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.on(t)
			s.apply("MeshPolicy", "explained", "selector: {matchLabels: {app: server}}\n"+c.spec)
			defer s.remove("MeshPolicy", "explained")
			for i, e := range c.calls {
				args := append([]string{"http", s.url("server") + e.path}, e.more...)
				caller := s
				if e.from == "outside" {
					caller = outside.on(t)
				}
				if i == 0 {
					caller.callUntil(from[e.from], e.judge, args...)
				} else if err := e.judge(caller.call(from[e.from], args...)); err != nil {
					t.Errorf("%s calls %v: %v", e.from, args, err)
				}
				out, code := tulle(append([]string{"explain", named[e.from], "server:80", "-n", s.name, "--path", e.path, "-o", "json"}, e.more...)...)
				if problem := explains(out, code, e.verdict); problem != nil {
					t.Errorf("%s calls %v, which is explained: %v\n%s", e.from, args, problem, out)
				}
			}
		})
	}
}

// explains complains unless an explanation has the verdict, of both servers.
func explains(out string, code int, verdict string) error {
	var a struct {
		Verdict  string
		Backends []struct {
			Endpoints int
			Pods      []struct{ Reason string }
		}
	}
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		return err
	}
	wanted := map[string]int{"Allowed": 0, "Denied": 2}[verdict]
	if a.Verdict != verdict || code != wanted || len(a.Backends) != 1 || a.Backends[0].Endpoints != 2 || len(a.Backends[0].Pods) != 1 {
		return fmt.Errorf("exit code %d, verdict %s, want %s by both servers", code, a.Verdict, verdict)
	}
	return nil
}
