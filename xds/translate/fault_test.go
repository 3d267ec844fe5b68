package translate

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// startClient runs a client's sidecar before the application, as the policies have it.
func startClient(t *testing.T, a *application, traffic mesh.Traffic) string {
	t.Helper()
	service := &mesh.Service{
		Name: mesh.Name{Namespace: "shop", Name: "web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}},
	}
	v := view(service, &mesh.Policy{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "calls"}}, Traffic: &traffic})
	to := emptyCluster(ClusterName(service.Name, 80))
	to.LbPolicy, to.LoadAssignment = cluster.Cluster_ROUND_ROBIN, assignment(to.Name, lbEndpoint(netip.MustParseAddrPort(a.Addr().String()), false))
	m := serviceManager(v.Config())
	m.HttpFilters = httpFilters(filterFault) // without the scopes, which need a control plane
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: outboundRoutes("10.96.0.1:80", "shop", v).Message.(*route.RouteConfiguration)}
	port := freePort(t)
	at := fmt.Sprint("127.0.0.1:", port)
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Clusters: []*cluster.Cluster{to},
		Listeners: []*listener.Listener{{
			Name: "outbound", Address: socketAddress("127.0.0.1", uint32(port)),
			FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
		}},
	}}, at)
	return at
}

// callGRPC makes a call as gRPC does and returns HTTP's status and gRPC's.
func callGRPC(t *testing.T, at string, headers ...string) (int, string) {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+at+"/shop.Cart/Add", strings.NewReader("\x00\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	p, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	p.Body.Close()
	return p.StatusCode, p.Header.Get("Grpc-Status")
}

// An abort is for the requests that it names, none of which reaches a pod, and the
// proxy does not try one again, whatever retries are asked for.
func TestAbortIsForWhatItNamesAndIsNotTriedAgain(t *testing.T) {
	app := startApplication(t)
	at := startClient(t, app, mesh.Traffic{
		Retries: &mesh.Retries{Attempts: 5, On: []string{"5xx"}, Base: time.Second, Max: time.Second},
		Fault: &mesh.Fault{
			HTTPStatus: 503, AbortPercent: 100,
			Headers: []mesh.HeaderMatch{{Name: "x-test", Value: "fault"}, {Name: "x-user", Type: mesh.Regex, Value: "a.*"}},
		},
	})
	begin := time.Now()
	if got := ask(t, at, "GET / HTTP/1.1", "host: web", "X-Test: fault", "x-user: ann"); got != 503 {
		t.Errorf("what the fault names is answered with %d, want 503", got)
	}
	if took := time.Since(begin); took > 500*time.Millisecond {
		t.Errorf("the answer took %v: it was tried again", took)
	}
	if status, code := callGRPC(t, at, "x-test: fault", "x-user: ann"); status != 200 || code != "14" {
		t.Errorf("a gRPC call that the fault names ends with %d and %q, want 200 and 14", status, code)
	}
	if n := len(app.take()); n != 0 {
		t.Errorf("%d requests that were aborted reached the application", n)
	}
	for _, headers := range [][]string{nil, {"x-test: fault"}, {"x-test: fault", "x-user: bob"}, {"x-test: other", "x-user: ann"}} {
		if got := ask(t, at, append([]string{"GET / HTTP/1.1", "host: web"}, headers...)...); got != 200 {
			t.Errorf("with %v the answer is %d, want 200", headers, got)
		}
	}
}

func TestAbortOfGRPCIsForGRPCAlone(t *testing.T) {
	app := startApplication(t)
	at := startClient(t, app, mesh.Traffic{Fault: &mesh.Fault{GRPCStatus: 8, AbortPercent: 100}})
	if status, code := callGRPC(t, at); status != 200 || code != "8" {
		t.Errorf("a call ends with %d and %q, want 200 and 8", status, code)
	}
	if n := len(app.take()); n != 0 {
		t.Errorf("the call reached the application %d times", n)
	}
	if got := ask(t, at, "GET / HTTP/1.1", "host: web"); got != 200 || len(app.take()) != 1 {
		t.Errorf("what is not gRPC is answered with %d, want the application's 200", got)
	}
}

// A delay comes before the time-out of a request begins, and a share is a share.
func TestDelayIsAsLongAsItSaysForTheShareThatItSays(t *testing.T) {
	app := startApplication(t)
	const wait, timeout = 300 * time.Millisecond, 100 * time.Millisecond
	short := timeout
	at := startClient(t, app, mesh.Traffic{Timeout: &short, Fault: &mesh.Fault{Delay: wait, DelayPercent: 50}})
	delayed := 0
	const calls = 40
	for range calls {
		begin := time.Now()
		if got := ask(t, at, "GET / HTTP/1.1", "host: web"); got != 200 {
			t.Errorf("the answer is %d, want 200", got)
		}
		if took := time.Since(begin); took >= wait*9/10 { // Envoy's clock is that of its last look at it
			delayed++
			if took > wait+200*time.Millisecond {
				t.Errorf("a request of which %v are the delay took %v", wait, took)
			}
		}
	}
	t.Logf("%d of %d requests were delayed", delayed, calls)
	if delayed < calls/5 || delayed > calls*4/5 {
		t.Errorf("%d of %d requests were delayed, want about half", delayed, calls)
	}
}

func TestRequestThatIsDelayedAndAbortedWaitsFirst(t *testing.T) {
	const wait = 150 * time.Millisecond
	at := startClient(t, startApplication(t), mesh.Traffic{Fault: &mesh.Fault{Delay: wait, DelayPercent: 100, HTTPStatus: 500, AbortPercent: 100}})
	begin := time.Now()
	if got, took := ask(t, at, "GET / HTTP/1.1", "host: web"), time.Since(begin); got != 500 || took < wait*9/10 { // Envoy's clock is that of its last look at it
		t.Errorf("the answer is %d after %v, want 500 after %v", got, took, wait)
	}
}
