package translate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	file "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	stream "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// authorizer lets pass what has not "no" in its path, and notes what it is asked.
type authorizer struct {
	asked atomic.Int64
	slow  atomic.Bool
	fails atomic.Bool
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.asked.Add(1)
	if a.fails.Load() {
		return nil, errors.New("it fails")
	}
	if a.slow.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	code := codes.OK
	if strings.Contains(r.GetAttributes().GetRequest().GetHttp().GetPath(), "no") {
		code = codes.PermissionDenied
	}
	return &authv3.CheckResponse{Status: &status.Status{Code: int32(code)}}, nil
}

func (a *authorizer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.asked.Add(1)
	switch {
	case a.fails.Load():
		w.WriteHeader(http.StatusBadGateway)
	case a.slow.Load():
		<-r.Context().Done()
	case r.Header.Get("x-other") != "":
		http.Error(w, "the authorizer was told what it was not to be", http.StatusTeapot)
	case strings.HasPrefix(r.URL.Path, "/check/") && !strings.Contains(r.URL.Path, "no") && r.Header.Get("x-token") != "bad":
		w.Header().Set("x-user", "who")
	default:
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// asks is a sidecar whose rules ask a gRPC and an HTTP authorizer. It returns its
// address, Envoy's admin address, the authorizers, and where its access log is.
func asks(t *testing.T, app *application, failOpen bool, policies ...*mesh.Policy) (at, admin string, overGRPC, overHTTP *authorizer, log string) {
	t.Helper()
	overGRPC, overHTTP = &authorizer{}, &authorizer{}
	grpcAt, httpAt := listen(t), listen(t)
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, overGRPC)
	go func() { _ = s.Serve(grpcAt) }()
	t.Cleanup(s.Stop)
	h := &http.Server{Handler: overHTTP}
	go func() { _ = h.Serve(httpAt) }()
	t.Cleanup(func() { h.Close() })

	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	es := []mesh.Entity{w, &mesh.Service{
		Name: mesh.Name{Namespace: "auth", Name: "opa"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.9")},
		Ports: []mesh.ServicePort{{Port: 80}, {Port: 9191}},
	}}
	for _, p := range policies {
		es = append(es, p)
	}
	opa := mesh.Name{Namespace: "auth", Name: "opa"}
	v := viewOf(&mesh.Config{
		TrustDomain: "cluster.local", RootNamespace: "tulle-system", MTLS: mesh.MTLSPermissive,
		Authorizers: []mesh.Authorizer{
			{Name: "grpc", Service: opa, Port: 9191, Timeout: 300 * time.Millisecond, FailOpen: failOpen},
			{
				Name: "http", Service: opa, Port: 80, HTTP: true, Timeout: 300 * time.Millisecond, FailOpen: failOpen,
				PathPrefix: "/check", RequestHeaders: []string{"X-Token"}, UpstreamHeaders: []string{"X-User"},
			},
		},
	}, es...)
	profile := mesh.ProfileOf(w)
	m := inboundOf(profile, v).manager(false)
	toStdout := &stream.StdoutAccessLog{}
	if err := m.AccessLog[0].GetTypedConfig().UnmarshalTo(toStdout); err != nil {
		t.Fatal(err)
	}
	log = filepath.Join(t.TempDir(), "access.log")
	m.AccessLog[0] = &accesslog.AccessLog{Name: "file", ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: typed(&file.FileAccessLog{
		Path: log, AccessLogFormat: &file.FileAccessLog_LogFormat{LogFormat: toStdout.GetLogFormat()},
	})}}
	routes := inboundRoutes(RouteInbound, profile.ID, v)
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: routesIn(profile, v)}
	port, adminPort := freePort(t), freePort(t)
	b := &bootstrap.Bootstrap{
		Admin: &bootstrap.Admin{Address: socketAddress("127.0.0.1", uint32(adminPort))},
		StaticResources: &bootstrap.Bootstrap_StaticResources{
			Listeners: []*listener.Listener{{
				Name: "inbound", Address: socketAddress("127.0.0.1", uint32(port)),
				FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
			}},
		},
	}
	to := map[string]net.Addr{ClusterInbound: app.Addr(), "h2|auth/opa|9191": grpcAt.Addr(), "h1|auth/opa|80": httpAt.Addr()}
	for _, name := range routes.Clusters {
		c := staticCluster(ClusterInbound)
		if name != ClusterInbound {
			made, ok := clusterFor(Key{Type: Cluster, Name: name, For: "shop"}, v).Message.(*cluster.Cluster)
			if !ok {
				t.Fatalf("no cluster is made for %s", name)
			}
			c = made
		}
		c.Name = name
		c.ClusterDiscoveryType, c.LbPolicy = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, cluster.Cluster_ROUND_ROBIN
		c.EdsClusterConfig, c.TransportSocketMatches, c.UpstreamBindConfig = nil, nil, nil // in the clear, on this machine
		c.LoadAssignment = assignment(name, lbEndpoint(netip.MustParseAddrPort(to[name].String()), false))
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, c)
	}
	at, admin = fmt.Sprint("127.0.0.1:", port), fmt.Sprint("127.0.0.1:", adminPort)
	runEnvoy(t, b, at)
	return at, admin, overGRPC, overHTTP, log
}

func custom(name, authorizer string, to mesh.Operation) mesh.Rule {
	return mesh.Rule{Name: name, Action: mesh.Custom, Authorizer: authorizer, To: []mesh.Operation{to}}
}

func TestExternalAuthorizerDecidesOnWhatItsRulesMatch(t *testing.T) {
	app := startApplication(t)
	at, _, overGRPC, overHTTP, _ := asks(t, app, false, policyWith(&mesh.Authorization{Rules: []mesh.Rule{
		custom("a", "grpc", mesh.Operation{Paths: []string{"/g/*", "/both/*"}}),
		custom("b", "http", mesh.Operation{Paths: []string{"/h/*", "/both/*"}}),
		custom("c", "gone", mesh.Operation{Paths: []string{"/gone/*"}}),
		{Action: mesh.Custom, Authorizer: "grpc", DryRun: true, To: []mesh.Operation{{Paths: []string{"/dry/*"}}}},
		{Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{"/g/denied"}}}},
	}})...)
	for _, c := range []struct {
		path       string
		want       int
		grpc, http int64
	}{
		{"/open", 200, 0, 0},
		{"/g/yes", 200, 1, 0},
		{"/g/no", 403, 1, 0},
		{"/h/yes", 200, 0, 1},
		{"/h/no", 401, 0, 1},
		{"/both/yes", 200, 1, 1},
		{"/both/no", 403, 1, 0},
		{"/gone/yes", 403, 0, 0}, // nobody to ask
		{"/dry/no", 200, 0, 0},   // not asked
		{"/g/denied", 403, 1, 0}, // the authorizer lets pass, a Deny rule does not
	} {
		overGRPC.asked.Store(0)
		overHTTP.asked.Store(0)
		got := ask(t, at, "GET "+c.path+" HTTP/1.1", "host: web", "x-token: good", "x-other: x", "x-user: forged", "x_user: forged")
		if got != c.want || overGRPC.asked.Load() != c.grpc || overHTTP.asked.Load() != c.http {
			t.Errorf("%s: %d, the authorizers were asked %d and %d times; want %d, %d and %d",
				c.path, got, overGRPC.asked.Load(), overHTTP.asked.Load(), c.want, c.grpc, c.http)
		}
		if seen := app.take(); (len(seen) == 1) != (c.want == 200) {
			t.Errorf("%s: the application saw %q", c.path, seen)
		} else if c.http > 0 && c.want == 200 && (!strings.Contains(seen[0], "x-user: who\n") || strings.Contains(seen[0], "x_user")) {
			t.Errorf("%s: the application is told %q, want the authorizer's x-user alone", c.path, seen[0])
		}
	}
	if got := ask(t, at, "GET /h/yes HTTP/1.1", "host: web", "x-token: bad"); got != 401 {
		t.Errorf("a header that the authorizer is to be told: %d, want its refusal", got)
	}
}

func TestAuthorizerThatDoesNotAnswer(t *testing.T) {
	for _, c := range []struct {
		open bool
		want int
	}{{false, 403}, {true, 200}} {
		t.Run(fmt.Sprintf("open=%t", c.open), func(t *testing.T) {
			app := startApplication(t)
			at, _, overGRPC, overHTTP, _ := asks(t, app, c.open, policyWith(&mesh.Authorization{Rules: []mesh.Rule{
				custom("a", "grpc", mesh.Operation{Paths: []string{"/g/*"}}),
				custom("b", "http", mesh.Operation{Paths: []string{"/h/*"}}),
			}})...)
			for name, how := range map[string]*[2]*atomic.Bool{
				"fails":   {&overGRPC.fails, &overHTTP.fails},
				"is slow": {&overGRPC.slow, &overHTTP.slow},
			} {
				how[0].Store(true)
				how[1].Store(true)
				for _, path := range []string{"/g/yes", "/h/yes"} {
					start := time.Now()
					if got := ask(t, at, "GET "+path+" HTTP/1.1", "host: web"); got != c.want {
						t.Errorf("%s, and the authorizer %s: %d, want %d", path, name, got, c.want)
					}
					if took := time.Since(start); took > 3*time.Second {
						t.Errorf("%s, and the authorizer %s: it took %s", path, name, took)
					}
				}
				how[0].Store(false)
				how[1].Store(false)
			}
			if got := ask(t, at, "GET /open HTTP/1.1", "host: web"); got != 200 {
				t.Errorf("what no rule matches: %d", got)
			}
		})
	}
}

// What rules of Audit and DryRun match comes in as without them, and is counted by
// rule.
func TestRulesThatDoNotDecideAreCounted(t *testing.T) {
	app := startApplication(t)
	at, admin, _, _, log := asks(t, app, false, policyWith(&mesh.Authorization{Rules: []mesh.Rule{
		{Name: "noted", Action: mesh.Audit, To: []mesh.Operation{{Paths: []string{"/noted"}}}},
		{Name: "denies", Action: mesh.Deny, DryRun: true, To: []mesh.Operation{{Paths: []string{"/denied"}}}},
		{Name: "allows", Action: mesh.Allow, DryRun: true, To: []mesh.Operation{{Paths: []string{"/allowed", "/denied", "/noted"}}}},
	}})...)
	for path, times := range map[string]int{"/noted": 2, "/denied": 3, "/allowed": 1, "/x//y": 1} {
		for range times {
			if got := ask(t, at, "GET "+path+" HTTP/1.1", "host: web"); got != 200 {
				t.Errorf("%s: %d, want 200", path, got)
			}
		}
	}
	r, err := http.Get("http://" + admin + "/stats/prometheus?filter=rbac")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`envoy_http_rbac_policy_shadow_allowed{envoy_rbac_policy_name="shop/p#noted",envoy_http_conn_manager_prefix="inbound-plain"} 2`,
		`envoy_http_rbac_policy_shadow_denied{envoy_rbac_policy_name="shop/p#denies",envoy_http_conn_manager_prefix="inbound-plain"} 3`,
		`envoy_http_rbac_policy_shadow_allowed{envoy_rbac_policy_name="shop/p#allows",envoy_http_conn_manager_prefix="inbound-plain"} 6`,
		`envoy_http_rbac_shadow_denied{envoy_http_conn_manager_prefix="inbound-plain"} 4`, // 3 by denies, 1 that allows lacks
	} {
		if !strings.Contains(string(body), want+"\n") {
			t.Errorf("the metrics lack\n%s\nthey are\n%s", want, body)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; { // Envoy writes it down every second
		text, err := os.ReadFile(log)
		if err == nil && strings.Count(string(text), "\n") == 7 {
			for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
				var l struct {
					Path  string `json:"path"`
					Audit string `json:"audit"`
					Deny  string `json:"dry_run_deny"`
					Allow string `json:"dry_run_allow"`
				}
				if err := json.Unmarshal([]byte(line), &l); err != nil {
					t.Fatal(err)
				}
				want := map[string][3]string{
					"/noted":   {"shop/p#noted", "", "allowed"},
					"/denied":  {"", "shop/p#denies", "allowed"},
					"/allowed": {"", "", "allowed"},
					"/x//y":    {"", "", "denied"},
				}[l.Path]
				if got := [3]string{l.Audit, l.Deny, l.Allow}; got != want {
					t.Errorf("the log says of %s %q, want %q", l.Path, got, want)
				}
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the access log is not written: %v\n%s", err, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
