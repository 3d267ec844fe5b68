package e2e

import (
	"net"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// trafficKinds are the calls of every kind to a host that has all ports.
func trafficKinds(host string) map[string][]string {
	return map[string][]string{
		"HTTP/1":                {"http", "http://" + host + "/a"},
		"HTTP/1 with a body":    {"http", "http://" + host + "/a", "--body", "100000"},
		"h2c":                   {"http", "http://" + host + "/a", "--h2c"},
		"unary gRPC":            {"grpc", host + ":9000"},
		"bidirectional gRPC":    {"grpc-bidi", host + ":9000"},
		"WebSocket":             {"ws", "http://" + host + "/ws"},
		"client-first TCP":      {"tcp", host + ":9001"},
		"server-first TCP":      {"greet", host + ":3306"},
		"the application's TLS": {"tls", host + ":8443"},
		"undeclared HTTP":       {"http", "http://" + host + ":8888/a"},
		"undeclared h2c":        {"http", "http://" + host + ":8888/a", "--h2c"},
		"undeclared TCP":        {"tcp", host + ":8889"},
	}
}

// Detection is what a server-first protocol must not wait for on a port that is
// declared TCP. A caller without a proxy has to under Permissive, for he might
// be about to begin TLS.
const (
	greetingAtOnce   = 500 * time.Millisecond
	greetingDetected = 1500 * time.Millisecond
)

// checkTraffic makes a call of every kind.
func (s *space) checkTraffic(t *testing.T, from kube.Pod, host string, greeting time.Duration) {
	t.Helper()
	// From here on kube-proxy knows the Service, which a caller outside the mesh
	// depends on.
	s.callUntil(from, answered(200), "http", "http://"+host)
	for kind, args := range trafficKinds(host) {
		t.Run(kind, func(t *testing.T) {
			r := s.on(t).call(from, args...)
			if err := works(r); err != nil {
				t.Fatal(err)
			}
			if args[0] == "tls" && r.Peer != "echo.application.test" {
				t.Errorf("certificate of %q, want the application's own", r.Peer)
			}
			if limit := float64(greeting.Milliseconds()); args[0] == "greet" && r.StepsMS[0] > limit {
				t.Errorf("the greeting took %.0f ms, want at most %.0f", r.StepsMS[0], limit)
			}
		})
	}
}

func TestTrafficOfEveryKindPassesUnderStrict(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "strict", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	s.strict()
	s.checkTraffic(t, s.in("client"), s.host("server"), greetingAtOnce)
}

func TestTrafficOfEveryKindFromOutsidePassesUnderPermissive(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "permissive", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "server"})
	outside.deploy(app{name: "client"})
	outside.checkTraffic(t, outside.in("client"), s.host("server"), greetingDetected)
}

func TestTrafficOfEveryKindPassesToWorkloadsOutsideTheMesh(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "meshed", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "client"})
	outside.deploy(app{name: "server"})
	s.checkTraffic(t, s.in("client"), outside.host("server"), greetingAtOnce)
}

func TestHeadlessServicesAndPodAddressesWork(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "headless", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 2})
	s.service("bare", map[string]string{"app": "server"}, headless)
	s.strict()
	from := s.in("client")
	// A headless name resolves to the pods: the target port is the container's.
	host := s.host("bare")
	for kind, args := range map[string][]string{
		"HTTP":             {"http", "http://" + host + ":8080/"},
		"gRPC":             {"grpc-bidi", host + ":9000"},
		"client-first TCP": {"tcp", host + ":9001"},
		"server-first TCP": {"greet", host + ":3306"},
	} {
		t.Run("headless "+kind, func(t *testing.T) {
			s.on(t).callUntil(from, works, args...)
		})
	}
	pods, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=server"})
	must(t, err)
	for _, p := range pods.Items {
		r := s.callUntil(from, answered(200), "http", "http://"+net.JoinHostPort(p.Status.PodIP, "8080")+"/")
		if r.Reply == nil || r.Reply.Pod != p.Name {
			t.Errorf("the call to %s was answered by %+v", p.Name, r.Reply)
		}
	}
}

// Two headless services with one port number must not be mixed up: each name's
// pods answer for themselves.
func TestHeadlessServicesThatShareAPortAreKeptApart(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "collide", true)
	s.deploy(app{name: "client"}, app{name: "red", version: "red"}, app{name: "blue", version: "blue"})
	s.service("bare-red", map[string]string{"app": "red"}, headless)
	s.service("bare-blue", map[string]string{"app": "blue"}, headless)
	for _, colour := range []string{"red", "blue", "red"} {
		r := s.callUntil(s.in("client"), works, "tcp", s.host("bare-"+colour)+":9001")
		if r.Reply.Version != colour {
			t.Errorf("bare-%s was answered by %s", colour, r.Reply.Version)
		}
	}
}

func TestAServiceWithoutASelectorUsesItsSlices(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "noselector", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "client"})
	outside.deploy(app{name: "server", version: "far"})
	s.service("external", nil)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "external-1", Labels: map[string]string{discoveryv1.LabelServiceName: "external"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{outside.running("server").Status.PodIP},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		}},
	}
	for _, p := range ports() {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
			Name: ptr.To(p.Name), Port: ptr.To(p.TargetPort.IntVal), Protocol: ptr.To(corev1.ProtocolTCP),
		})
	}
	_, err := s.c.Client.DiscoveryV1().EndpointSlices(s.name).Create(t.Context(), slice, metav1.CreateOptions{})
	must(t, err)
	from := s.in("client")
	r := s.callUntil(from, answered(200), "http", s.url("external"))
	if r.Reply.Version != "far" {
		t.Errorf("answered by version %q", r.Reply.Version)
	}
	for _, args := range [][]string{{"tcp", s.host("external") + ":9001"}, {"greet", s.host("external") + ":3306"}} {
		s.callUntil(from, works, args...)
	}
}

// A caller's Host header decides nothing: the address does.
func TestTheDestinationDecidesNotTheHostHeader(t *testing.T) {
	s := newSpace(t, "host", true)
	s.deploy(app{name: "client"}, app{name: "real", version: "real"}, app{name: "other", version: "other"})
	r := s.callUntil(s.in("client"), answered(200), "http", s.url("real"), "--host", s.host("other"))
	if r.Reply.Version != "real" || r.Reply.Host != s.host("other") {
		t.Errorf("answered by %q, which saw host %q", r.Reply.Version, r.Reply.Host)
	}
	// What the mesh puts in for itself must not arrive.
	for name := range r.Reply.Headers {
		if name == "X-Tulle-Dst" {
			t.Error("the application saw the mesh's own header x-tulle-dst")
		}
	}
}
