package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// peer judges that TLS was spoken with whoever has the certificate.
func peer(name string) func(*report.Call) error {
	return func(r *report.Call) error {
		if err := works(r); err != nil {
			return err
		}
		if r.Peer != name {
			return fmt.Errorf("the certificate is %q's, want %q's", r.Peer, name)
		}
		return nil
	}
}

// Connections come in by a gateway as they are: TLS to whom the client asked for, whose
// own it stays, TLS that ends at the gateway, and bytes of any kind. Within the mesh they
// are in mesh mTLS: the server takes nothing else, and from nobody else.
func TestAGatewayLetsConnectionsIn(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "connections", true)
	outside := newSpace(t, "internet", false)
	s.deploy(app{name: "server"}, app{name: "other"})
	outside.deploy(app{name: "client"})
	s.strict()
	s.apply("MeshPolicy", "only-the-gateway", "selector: {matchLabels: {app: server}}\nauthorization: {default: Deny, rules: [{action: Allow, from: [{serviceAccounts: [front-tulle]}]}]}")
	s.certificate("front", "front")
	s.gateway("front", `
  - {name: through, port: 443, protocol: TLS, hostname: "*.through.example", tls: {mode: Passthrough}}
  - {name: ends, port: 443, protocol: TLS, hostname: front.example, tls: {mode: Terminate, certificateRefs: [{name: front}]}}
  - {name: bytes, port: 9001, protocol: TCP}
  - {name: greet, port: 3306, protocol: TCP}
  - {name: shared, port: 9002, protocol: TCP}`)
	s.route("TLSRoute", "through", `
parentRefs: [{name: front, sectionName: through}]
hostnames: [a.through.example]
rules: [{backendRefs: [{name: server, port: 8443}]}]`)
	s.route("TLSRoute", "ends", `
parentRefs: [{name: front, sectionName: ends}]
hostnames: [front.example]
rules: [{backendRefs: [{name: server, port: 8888}]}]`)
	s.route("TCPRoute", "bytes", `
parentRefs: [{name: front, sectionName: bytes}]
rules: [{backendRefs: [{name: server, port: 9001}]}]`)
	s.route("TCPRoute", "greet", `
parentRefs: [{name: front, sectionName: greet}]
rules: [{backendRefs: [{name: server, port: 3306}]}]`)
	s.route("TCPRoute", "shared", `
parentRefs: [{name: front, sectionName: shared}]
rules: [{backendRefs: [{name: server, port: 9001, weight: 1}, {name: other, port: 9001, weight: 1}, {name: none, port: 1, weight: 2}]}]`)

	from, host := outside.in("client"), s.host("front-tulle")
	outside.callUntil(from, peer("echo.application.test"), "tls", host+":443", "--host", "a.through.example")
	outside.callUntil(from, peer("front"), "tls", host+":443", "--host", "front.example")
	outside.callUntil(from, works, "tcp", host+":9001")
	if r := outside.callUntil(from, works, "greet", host+":3306"); r.StepsMS[0] > float64(greetingAtOnce/time.Millisecond) {
		t.Errorf("the greeting took %.0f ms, want at most %s", r.StepsMS[0], greetingAtOnce)
	}
	for what, sni := range map[string]string{"no route's": "b.through.example", "nobody's": "example.net"} {
		if works(outside.call(from, "tls", host+":443", "--host", sni)) == nil {
			t.Errorf("a name that is %s is answered", what)
		}
	}
	if works(outside.call(from, "tcp", s.host("server")+":9001")) == nil {
		t.Error("the server can be called without the gateway")
	}
	answered := map[string]int{}
	const calls = 240
	for range calls {
		r := outside.call(from, "tcp", host+":9002")
		switch {
		case works(r) != nil:
			answered["nobody"]++
		case r.Reply.Pod == s.running("server").Name:
			answered["server"]++
		default:
			answered["other"]++
		}
	}
	figure(t, "a TCPRoute with weights 1, 1, and 2 of a Service that does not exist: %v of %d", answered, calls)
	if answered["server"] < calls/20 || answered["other"] < calls/20 || answered["nobody"] < calls*3/10 || answered["nobody"] > calls*7/10 {
		t.Errorf("connections were answered by %v", answered)
	}
}
