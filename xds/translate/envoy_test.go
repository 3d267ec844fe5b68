package translate

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// application is a server behind a sidecar. It notes what reaches it.
type application struct {
	net.Listener
	lock sync.Mutex
	seen []string // request lines and headers, lower case
}

// startApplication answers every request with 200, or as its path says: /fail
// with 503, and as though its sidecar had said so.
func startApplication(t *testing.T) *application {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &application{Listener: l}
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: both, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := fmt.Sprintf("%s %s %s\n", r.Method, r.Host, r.RequestURI)
		for k, v := range r.Header {
			text += strings.ToLower(k) + ": " + strings.Join(v, ",") + "\n"
		}
		a.lock.Lock()
		a.seen = append(a.seen, text)
		a.lock.Unlock()
		if strings.HasPrefix(r.URL.Path, "/fail") {
			w.Header().Set(unreachedHeader, "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return a
}

func (a *application) take() []string {
	a.lock.Lock()
	defer a.lock.Unlock()
	out := a.seen
	a.seen = nil
	return out
}

// startEnvoy runs a real Envoy with the manager of a profile's inbound
// listener for plaintext, before the application. It returns its address.
func startEnvoy(t *testing.T, a *application, policies ...*mesh.Policy) string {
	t.Helper()
	return startEnvoyWith(t, a, policies, policies)
}

// startEnvoyWith is startEnvoy with a listener and routes of different moments,
// as a connection has them that is older than the latest policy.
func startEnvoyWith(t *testing.T, a *application, ofListener, ofRoutes []*mesh.Policy) string {
	t.Helper()
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	with := func(policies []*mesh.Policy) *mesh.View {
		es := []mesh.Entity{w}
		for _, p := range policies {
			es = append(es, p)
		}
		return view(es...)
	}
	profile := mesh.ProfileOf(w)
	m := inboundOf(profile, with(ofListener)).manager(false)
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: routesIn(profile, with(ofRoutes))}
	port := freePort(t)
	to := staticCluster(ClusterInbound)
	to.ClusterDiscoveryType, to.LbPolicy = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, cluster.Cluster_ROUND_ROBIN
	to.LoadAssignment = assignment(ClusterInbound, lbEndpoint(netip.MustParseAddrPort(a.Addr().String()), false))
	b := &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Clusters: []*cluster.Cluster{to},
		Listeners: []*listener.Listener{{
			Name: "inbound", Address: socketAddress("127.0.0.1", uint32(port)),
			FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
		}},
	}}
	at := fmt.Sprint("127.0.0.1:", port)
	runEnvoy(t, b, at)
	return at
}

// runEnvoy runs a real Envoy until the test ends, and returns when it listens
// at the address.
func runEnvoy(t *testing.T, b *bootstrap.Bootstrap, at string) {
	t.Helper()
	envoy := os.Getenv("ENVOY")
	if envoy == "" {
		t.Fatal("ENVOY does not name the Envoy binary; run: make test")
	}
	// As in xds/bootstrap.
	layer, err := structpb.NewStruct(map[string]any{"re2.max_program_size.error_level": 1000})
	if err != nil {
		t.Fatal(err)
	}
	b.LayeredRuntime = &bootstrap.LayeredRuntime{Layers: []*bootstrap.RuntimeLayer{{
		Name: "static", LayerSpecifier: &bootstrap.RuntimeLayer_StaticLayer{StaticLayer: layer},
	}}}
	j, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, j, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, envoy, "-c", file, "-l", "error", "--use-dynamic-base-id", "--concurrency", "1")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); _ = cmd.Wait() })
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("tcp", at)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Envoy does not listen: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// freePort gives those from the first on, in turn.
var (
	firstPort = rand.IntN(8000)
	lastPort  atomic.Int32
)

// freePort is one that nobody listens at, and that no other call gives. They are above the
// proxy's own, which a Gateway does not listen at, and below those that connections are given
// (net.ipv4.ip_local_port_range begins at 32768) and the tests of cmd/tulled take, which may
// run at the same time.
func freePort(t *testing.T) int {
	t.Helper()
	for range 8000 {
		port := 16000 + (firstPort+int(lastPort.Add(1)))%8000
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// An application may close an idle connection just as a request is put on it.
// What is safe to send twice is not lost by that, and nothing else is sent twice.
func TestConnectionThatTheApplicationCloses(t *testing.T) {
	l := listen(t)
	var lock sync.Mutex
	seen := map[string]int{}      // by method and path
	talk(t, l, func(c net.Conn) { // answers one request, and closes when the next comes
		in := bufio.NewReader(c)
		for i := range 2 {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			lock.Lock()
			seen[r.Method+r.URL.Path]++
			lock.Unlock()
			if i == 0 {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
			}
		}
	})
	at := startEnvoy(t, &application{Listener: l})
	lost := 0
	for i := range 20 {
		for range 2 { // one on a new connection, one on that which it leaves behind
			if got := ask(t, at, fmt.Sprintf("GET /%d HTTP/1.1", i), "host: web"); got != 200 {
				t.Errorf("GET %d is answered with %d, want 200", i, got)
			}
		}
		if got := ask(t, at, fmt.Sprintf("POST /%d HTTP/1.1", i), "host: web", "content-length: 0"); got != 200 {
			lost++
		}
	}
	lock.Lock()
	defer lock.Unlock()
	for i := range 20 {
		if n := seen[fmt.Sprint("POST/", i)]; n != 1 {
			t.Errorf("POST %d reached the application %d times, want once", i, n)
		}
	}
	if lost == 0 {
		t.Error("no connection was closed under a POST: the test shows nothing")
	}
}

// ask sends a request as it stands and returns the answer's status; 0 where the
// connection was closed instead.
func ask(t *testing.T, at string, lines ...string) int {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	return r.StatusCode
}

// Each request asks for what a rule refuses in a way that the rule does not
// spell. None may reach the application.
func TestRulesCannotBeTalkedRound(t *testing.T) {
	t.Run("on a connection that knows of the rules", func(t *testing.T) { talkRound(t, true) })
	t.Run("on a connection that is older than the rules", func(t *testing.T) { talkRound(t, false) })
}

func talkRound(t *testing.T, known bool) {
	rule := func(to mesh.Operation) mesh.Rule {
		return mesh.Rule{Action: mesh.Deny, To: []mesh.Operation{to}}
	}
	app := startApplication(t)
	rules := policyWith(&mesh.Authorization{Rules: []mesh.Rule{
		rule(mesh.Operation{Paths: []string{"/admin", "/admin/*"}}),
		rule(mesh.Operation{Hosts: []string{"admin.example"}}),
		rule(mesh.Operation{Methods: []string{"DELETE"}}),
		rule(mesh.Operation{Methods: []string{"GET"}, Paths: []string{"/socket"}}),
	}})
	before := rules
	if !known {
		before = nil
	}
	at := startEnvoyWith(t, app, before, rules)
	if got := ask(t, at, "GET /open HTTP/1.1", "host: open.example"); got != 200 {
		t.Fatalf("what no rule refuses is answered with %d, want 200", got)
	}
	app.take()
	const host = "host: open.example"
	for name, lines := range map[string][]string{
		"the path":                     {"GET /admin HTTP/1.1", host},
		"a query":                      {"GET /admin?x HTTP/1.1", host},
		"a fragment":                   {"GET /admin#x HTTP/1.1", host},
		"escaped letters":              {"GET /%61dmin HTTP/1.1", host},
		"dots":                         {"GET /open/../admin HTTP/1.1", host},
		"escaped dots":                 {"GET /open/%2e%2e/admin HTTP/1.1", host},
		"escaped dots with parameters": {"GET /open/%2e%2e;/admin HTTP/1.1", host},
		"dots with parameters":         {"GET /open/..;x=y/admin HTTP/1.1", host},
		"two slashes":                  {"GET //admin HTTP/1.1", host},
		"two slashes further on":       {"GET /admin//x HTTP/1.1", host},
		"an escaped slash":             {"GET /admin%2fx HTTP/1.1", host},
		"a backslash":                  {`GET /open\..\admin HTTP/1.1`, host},
		"an absolute form":             {"GET http://open.example/admin HTTP/1.1", host},
		"HTTP/1.0":                     {"GET /admin HTTP/1.0", host},
		"the host":                     {"GET / HTTP/1.1", "host: admin.example"},
		"the host in capitals":         {"GET / HTTP/1.1", "host: ADMIN.example"},
		"the host with a port":         {"GET / HTTP/1.1", "host: admin.example:8080"},
		"the host with its last dot":   {"GET / HTTP/1.1", "host: admin.example."},
		"the host with an empty port":  {"GET / HTTP/1.1", "host: admin.example:"},
		"dot and port":                 {"GET / HTTP/1.1", "host: admin.example.:80"},
		"the host in an absolute form": {"GET http://admin.example/ HTTP/1.1", host},
		"a user before the host":       {"GET / HTTP/1.1", "host: x@admin.example"},
		"the host with no port":        {"GET / HTTP/1.1", "host: admin.example:x"},
		"the host with two ports":      {"GET / HTTP/1.1", "host: admin.example:80:80"},
		"the host after another":       {"GET / HTTP/1.1", host, "host: admin.example"},
		"the host before another":      {"GET / HTTP/1.1", "host: admin.example", host},
		"the host with an escape":      {"GET / HTTP/1.1", "host: admin%2eexample"},
		"the method":                   {"DELETE / HTTP/1.1", host},
		"the method in small letters":  {"delete / HTTP/1.1", host},
		"a method put over another":    {"DELETE / HTTP/1.1", host, "x-http-method-override: GET"},
		"a WebSocket":                  {"GET /socket HTTP/1.1", host, "connection: upgrade", "upgrade: websocket"},
		"a WebSocket in capitals":      {"GET /socket HTTP/1.1", host, "connection: Upgrade", "upgrade: WebSocket"},
		"an upgrade to h2c":            {"GET /socket HTTP/1.1", host, "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"},
		"CONNECT":                      {"CONNECT admin.example:80 HTTP/1.1", "host: admin.example:80"},
		"another upgrade":              {"GET / HTTP/1.1", host, "connection: upgrade", "upgrade: tcp"},
		"no host":                      {"GET /admin HTTP/1.0"},
	} {
		status := ask(t, at, lines...)
		if got := app.take(); len(got) > 0 {
			t.Errorf("%s: reaches the application (%d): %q", name, status, got)
		}
	}
}

// What nobody is let in for is not passed either by an upgrade, whose filters Envoy may
// choose otherwise.
func TestDefaultDenyHoldsForUpgrades(t *testing.T) {
	app := startApplication(t)
	at := startEnvoy(t, app, policyWith(&mesh.Authorization{DefaultDeny: true})...)
	for _, lines := range [][]string{
		{"GET /open HTTP/1.1", "host: open.example"},
		{"GET /socket HTTP/1.1", "host: open.example", "connection: upgrade", "upgrade: websocket"},
		{"GET /socket HTTP/1.1", "host: open.example", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"},
	} {
		if status := ask(t, at, lines...); status != 403 {
			t.Errorf("%q: %d, want 403", lines, status)
		}
	}
	if got := app.take(); len(got) > 0 {
		t.Errorf("reaches the application: %q", got)
	}
}

// The same over HTTP/2, whose requests are spelt otherwise.
func TestRulesHoldForHTTP2(t *testing.T) {
	app := startApplication(t)
	at := startEnvoy(t, app, policyWith(&mesh.Authorization{Rules: []mesh.Rule{
		{Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{"/admin"}}, {Hosts: []string{"admin.example"}}, {Methods: []string{"DELETE"}}}},
	}})...)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/open", "open.example", 200},
		{"GET", "/admin", "open.example", 403},
		{"GET", "/%61dmin?x", "open.example", 403},
		{"GET", "/open", "ADMIN.example.:80", 403},
		{"DELETE", "/open", "open.example", 403},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+at+c.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		answer, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.ProtoMajor != 2 || answer.StatusCode != c.want {
			t.Errorf("%s %s%s over %s: %d, want %d over HTTP/2", c.method, c.host, c.path, answer.Proto, answer.StatusCode, c.want)
		}
	}
}

// A caller cannot say to the application what only the sidecar knows, nor make
// the sidecar repeat its requests or cut them short.
func TestCallersHeadersDoNotSteerTheSidecar(t *testing.T) {
	app := startApplication(t)
	at := startEnvoy(t, app)
	for _, from := range []string{"", "10.0.0.1", "127.0.0.1", "192.0.2.1, 10.0.0.1"} {
		lines := []string{
			"GET /fail HTTP/1.1", "host: web", "x-envoy-retry-on: 5xx", "x-envoy-max-retries: 20", "x-envoy-upstream-rq-timeout-ms: 1",
			"x-envoy-retriable-status-codes: 503", "x-envoy-hedge-on-per-try-timeout: true", "x-envoy-internal: true",
			"x-forwarded-client-cert: By=spiffe://x;URI=spiffe://cluster.local/ns/shop/sa/admin",
			"x_forwarded_client_cert: By=spiffe://x;URI=spiffe://cluster.local/ns/shop/sa/admin", "X-Forwarded-Client_Cert: By=spiffe://x;URI=spiffe://cluster.local/ns/shop/sa/admin",
			"x-envoy-original-dst-host: 127.0.0.1:1", "x-tulle-dst: 10.0.0.1:80",
		}
		if from != "" {
			lines = append(lines, "x-forwarded-for: "+from)
		}
		if got := ask(t, at, lines...); got != 503 {
			t.Errorf("from %q: the answer is %d, want the application's 503", from, got)
		}
		seen := app.take()
		if len(seen) != 1 {
			t.Errorf("from %q: the application was asked %d times, want once", from, len(seen))
			continue
		}
		if strings.Contains(strings.ReplaceAll(seen[0], "_", "-"), "x-forwarded-client-cert") {
			t.Errorf("from %q: the application is told who called, by the caller: %s", from, seen[0])
		}
		if from != "" && !strings.Contains(seen[0], "x-forwarded-for: "+from+"\n") {
			t.Errorf("from %q: the header is not what it was: %s", from, seen[0])
		}
	}
}

// routesIn are the inbound routes of the profile.
func routesIn(p *mesh.Profile, v *mesh.View) *route.RouteConfiguration {
	return inboundRoutes(RouteInbound, p.ID, v).Message.(*route.RouteConfiguration)
}
