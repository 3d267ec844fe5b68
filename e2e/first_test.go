package e2e

import (
	"fmt"
	"testing"
)

// Whatever the first call ever to a service is, it is answered as the second
// one is; all it costs is some milliseconds. The services are of another
// namespace and nobody has called them before: each kind gets one of its own,
// all with the same pods behind them.
func TestTheFirstCallEverToAServiceIsAnswered(t *testing.T) {
	s := newSpace(t, "caller", true)
	other := newSpace(t, "callee", true)
	s.deploy(app{name: "client"})
	other.deploy(app{name: "server"})
	from := s.in("client")
	for i, c := range []struct {
		kind string
		args func(host string) []string
	}{
		{"HTTP/1", func(h string) []string { return []string{"http", "http://" + h} }},
		{"chunked POST of 8 MiB", func(h string) []string {
			return []string{"http", "http://" + h, "--body", "8388608", "--chunked"}
		}},
		{"h2c", func(h string) []string { return []string{"http", "http://" + h, "--h2c"} }},
		{"unary gRPC", func(h string) []string { return []string{"grpc", h + ":9000"} }},
		{"bidirectional gRPC", func(h string) []string { return []string{"grpc-bidi", h + ":9000"} }},
		{"WebSocket", func(h string) []string { return []string{"ws", "http://" + h + "/ws"} }},
		{"client-first TCP", func(h string) []string { return []string{"tcp", h + ":9001"} }},
		{"server-first TCP", func(h string) []string { return []string{"greet", h + ":3306"} }},
		{"the application's TLS", func(h string) []string { return []string{"tls", h + ":8443"} }},
	} {
		t.Run(c.kind, func(t *testing.T) {
			s := s.on(t)
			service := fmt.Sprintf("fresh-%d", i)
			other.on(t).service(service, map[string]string{"app": "server"})
			// DNS answers when kube-dns knows the service; that is not the mesh's
			// time, so another name is not asked for: the cluster's address is.
			address := other.on(t).address(service)
			first := s.call(from, c.args(address)...)
			if err := works(first); err != nil {
				t.Fatalf("the first call: %v", err)
			}
			second := s.call(from, c.args(address)...)
			if err := works(second); err != nil {
				t.Fatalf("the second call: %v", err)
			}
			if first.Reply != nil && c.kind == "chunked POST of 8 MiB" && first.Reply.BodyBytes != 8<<20 {
				t.Errorf("%d bytes of the first body arrived", first.Reply.BodyBytes)
			}
			figure(t, "first call ever, %s: %.1f ms, second %.1f ms, difference %.1f ms", c.kind, first.MS, second.MS, first.MS-second.MS)
			if first.MS-second.MS > 2000 {
				t.Errorf("the first call took %.0f ms longer than the second: it waited for a time-out", first.MS-second.MS)
			}
		})
	}
}

// address waits until a Service has endpoints, and is its cluster address.
func (s *space) address(service string) string {
	s.t.Helper()
	s.endpoints(service)
	return s.clusterIP(service)
}

// A client that resets its connection while its first call waits for the
// control plane must hurt nobody: Envoy has had bugs there.
func TestAClientThatResetsWhileItsFirstCallWaitsHurtsNobody(t *testing.T) {
	s := newSpace(t, "resetter", true)
	other := newSpace(t, "callee", true)
	s.deploy(app{name: "client"})
	other.deploy(app{name: "server"})
	from := s.in("client")
	for i := range 10 {
		service := fmt.Sprintf("fresh-%d", i)
		other.service(service, map[string]string{"app": "server"})
		address := other.address(service) + ":80"
		if r := s.call(from, "reset", address, "--after", fmt.Sprintf("%dms", i)); r.Failure != nil {
			t.Errorf("%s: the reset could not be made: %+v", service, r.Failure)
		}
		if err := works(s.call(from, "http", "http://"+address)); err != nil {
			t.Errorf("%s: the call after the reset: %v", service, err)
		}
	}
	checkNoRestart(t, s, from)
}
