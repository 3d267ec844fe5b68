package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// by judges that a call was answered, and came to the server from one of the addresses.
func by(addresses func() []string) func(*report.Call) error {
	return func(r *report.Call) error {
		if err := answered(200)(r); err != nil {
			return err
		}
		from, _, err := net.SplitHostPort(r.Reply.Remote)
		if err == nil && !slices.Contains(addresses(), from) {
			err = fmt.Errorf("the server was called from %s, want one of %v", from, addresses())
		}
		return err
	}
}

// addresses are those of the pods with the label.
func (s *space) addresses(selector string) []string {
	s.t.Helper()
	pods, err := s.c.Client.CoreV1().Pods(s.name).List(s.t.Context(), metav1.ListOptions{LabelSelector: selector})
	must(s.t, err)
	var out []string
	for _, p := range pods.Items {
		out = append(out, p.Status.PodIP)
	}
	return out
}

// What is outside is called from the gateway's address alone, by those whose certificate the
// gateway takes; its pods are replaced under load; and without it nothing leaves.
func TestCallsLeaveByAnEgressGateway(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "egress", true)
	outside := newSpace(t, "internet", false)
	s.deploy(app{name: "client"}, app{name: "other"})
	outside.deploy(app{name: "server"}, app{name: "stranger"})
	s.gateway("exit", "  - {name: out, port: 15443, protocol: mesh.tulle.dev/Egress}")
	tulle := cli(t)
	explained := func(caller, host string, want int, says string) {
		t.Helper()
		if out, code := tulle("explain", caller, host, "-n", s.name); code != want || !strings.Contains(out, says) {
			t.Errorf("explain %s %s: exit code %d, want %d and %q\n%s", caller, host, code, want, says, out)
		}
	}

	server := outside.running("server").Status.PodIP
	r := outside.callUntil(outside.in("server"), works, "tls", outside.host("server")+":8443")
	authority := r.Certificate
	service := func(name, ports, more string) {
		t.Helper()
		s.apply("ExternalService", name, fmt.Sprintf("hosts: [%s.outside.test]\nports: %s\nresolution: Static\nendpoints: [{address: %q}]\ngateway: {name: exit}\n%s", name, ports, server, more))
	}
	const http, tcp = "[{number: 80, protocol: HTTP, targetPort: 8080}]", "[{number: 3306, protocol: TCP}]"
	service("api", "[{number: 80, protocol: HTTP, targetPort: 8080}, {number: 8443, protocol: TLS}]", "")
	service("secure", "[{number: 80, protocol: HTTP, targetPort: 8443}]", fmt.Sprintf("tls: {sni: echo.application.test, caBundle: %q}", authority))
	service("at", http, "addresses: [192.0.2.9]")
	service("database", tcp, "addresses: [192.0.2.2]")
	service("mine", http, "from: [{serviceAccounts: [client]}]")
	service("theirs", tcp, "addresses: [192.0.2.3]\nfrom: [{serviceAccounts: [client]}]")

	from, other := s.in("client"), s.in("other")
	host := func(name string) []string {
		return []string{"http", "http://192.0.2.1", "--host", name + ".outside.test"}
	}
	gateways := func() []string { return s.addresses("gateway.networking.k8s.io/gateway-name=exit") }
	for _, c := range []struct {
		what  string
		from  kube.Pod
		judge func(*report.Call) error
		args  []string
	}{
		{"HTTP by its name", from, by(gateways), host("api")},
		{"HTTP by its address", from, by(gateways), []string{"http", "http://192.0.2.9"}},
		{"TLS of the application", from, peer("echo.application.test"), []string{"tls", "192.0.2.1:8443", "--host", "api.outside.test"}},
		{"TLS of the gateway", from, by(gateways), host("secure")},
		{"a server that speaks first", from, works, []string{"greet", "192.0.2.2:3306"}},
		{"who may", from, by(gateways), host("mine")},
		{"who may not", other, answered(403), host("mine")},
		{"who may, by TCP", from, works, []string{"greet", "192.0.2.3:3306"}},
		{"who may not, by TCP", other, fails("reset", "eof"), []string{"greet", "192.0.2.3:3306"}},
	} {
		if err := c.judge(s.call(c.from, c.args...)); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	explained("deploy/client", "mine.outside.test", 0, "by listener out of Gateway "+s.name+"/exit to "+server+":8080")
	explained("deploy/client", "secure.outside.test", 0, "in TLS that the gateway speaks for the server name echo.application.test")
	explained("deploy/other", "mine.outside.test", 2, "does not admit the service account "+s.name+"/other")
	explained("deploy/other", "192.0.2.3:3306", 2, "does not admit the service account "+s.name+"/other")
	if works(outside.call(outside.in("stranger"), "tls", s.host("exit-tulle")+":15443", "--host", "api.outside.test")) == nil {
		t.Error("the gateway takes connections from outside of the mesh")
	}

	// Who calls is known there, from the certificate.
	s.apply("MeshPolicy", "not-the-other", "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: exit}]\nauthorization: {rules: [{action: Deny, from: [{serviceAccounts: [other]}]}]}")
	s.callUntil(other, answered(403), host("api")...)
	if err := by(gateways)(s.call(from, host("api")...)); err != nil {
		t.Errorf("whom the gateway's policy does not name: %v", err)
	}
	explained("deploy/other", "api.outside.test:80", 2, "MeshPolicy "+s.name+"/not-the-other denies it")
	s.remove("MeshPolicy", "not-the-other")
	s.callUntil(other, by(gateways), host("api")...)

	// Another namespace asks first.
	away := newSpace(t, "away", true)
	must(t, s.c.Apply(t.Context(), away.object("ExternalService", "api", fmt.Sprintf(
		"hosts: [api.outside.test]\nports: %s\nresolution: Static\nendpoints: [{address: %q}]\ngateway: {name: exit, namespace: %s}", http, server, s.name,
	))))
	resolved := func(status string) {
		t.Helper()
		eventually(t, 20*time.Second, "ResolvedRefs="+status, func(ctx context.Context) error {
			return s.c.Condition(ctx, kube.MeshKind("ExternalService"), away.name, "api", "ResolvedRefs", status)
		})
	}
	away.deploy(app{name: "client"})
	resolved("False")
	away.callUntil(away.in("client"), answered(503), host("api")...)
	must(t, s.c.Apply(t.Context(), fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: away, namespace: %s}
spec:
  from: [{group: mesh.tulle.dev, kind: ExternalService, namespace: %s}]
  to: [{group: gateway.networking.k8s.io, kind: Gateway, name: exit}]`, s.name, away.name)))
	resolved("True")
	away.callUntil(away.in("client"), by(gateways), host("api")...)

	load := s.startLoad(from, "http", "http://192.0.2.9", "--rate", "100", "--connections", "10", "--new-connection-share", "0.3")
	s.rolls("exit-tulle")
	s.ended(s.name)
	result := load.stop()
	figure(t, "an egress gateway whose pods are replaced: %d requests, %d failed", result.Requests, result.Failed)
	noFailure(s, result)

	must(t, s.c.Delete(t.Context(), fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: exit, namespace: %s}", s.name)))
	gone := s.callUntil(from, answered(503), host("api")...)
	if !strings.Contains(gone.Text, "through a gateway alone") {
		t.Errorf("the answer is %q", gone.Text)
	}
	s.callUntil(from, fails("reset", "eof"), "greet", "192.0.2.2:3306")
	s.callUntil(from, fails("reset", "eof"), "tls", "192.0.2.1:8443", "--host", "api.outside.test")
}
