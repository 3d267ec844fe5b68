package translate

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// limiter is a server of the protocol that lets each descriptor through so many times.
type limiter struct {
	rls.UnimplementedRateLimitServiceServer
	net.Listener
	most int

	lock   sync.Mutex
	counts map[string]int // by domain and descriptor
	delay  time.Duration
}

func startLimiter(t *testing.T, most int) *limiter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out := &limiter{Listener: l, most: most, counts: map[string]int{}}
	s := grpc.NewServer()
	rls.RegisterRateLimitServiceServer(s, out)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return out
}

func (l *limiter) ShouldRateLimit(_ context.Context, r *rls.RateLimitRequest) (*rls.RateLimitResponse, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	time.Sleep(l.delay)
	out := &rls.RateLimitResponse{OverallCode: rls.RateLimitResponse_OK}
	for _, d := range r.Descriptors {
		var entries []string
		for _, e := range d.Entries {
			entries = append(entries, e.Key+"="+e.Value)
		}
		key := r.Domain + ": " + strings.Join(entries, ", ")
		l.counts[key]++
		status := &rls.RateLimitResponse_DescriptorStatus{
			Code: rls.RateLimitResponse_OK, LimitRemaining: uint32(max(0, l.most-l.counts[key])), DurationUntilReset: durationpb.New(time.Minute),
			CurrentLimit: &rls.RateLimitResponse_RateLimit{RequestsPerUnit: uint32(l.most), Unit: rls.RateLimitResponse_RateLimit_MINUTE},
		}
		if l.counts[key] > l.most {
			status.Code, out.OverallCode = rls.RateLimitResponse_OVER_LIMIT, rls.RateLimitResponse_OVER_LIMIT
		}
		out.Statuses = append(out.Statuses, status)
	}
	return out, nil
}

func (l *limiter) take() map[string]int {
	l.lock.Lock()
	defer l.lock.Unlock()
	out := l.counts
	l.counts = map[string]int{}
	return out
}

func (l *limiter) expect(t *testing.T, what string, want map[string]int) {
	t.Helper()
	if got := l.take(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: the service was asked about %v, want %v", what, got, want)
	}
}

// serviceOf is the mesh's rate limit service.
func serviceOf(closed bool) *mesh.Config {
	return &mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system", RateLimitService: &mesh.RateLimitService{
		Service: mesh.Name{Namespace: "limits", Name: "counter"}, Port: 8081, Domain: "shop", Timeout: 2 * time.Second, Closed: closed,
	}}
}

func toLimiter(at net.Addr) *cluster.Cluster {
	c := emptyCluster("h2|limits/counter|8081")
	c.TypedExtensionProtocolOptions = explicitProtocol(nil, true)
	c.LoadAssignment = assignment(c.Name, lbEndpoint(netip.MustParseAddrPort(at.String()), false))
	return c
}

// startCounted runs two servers' sidecars before one application, which ask the service.
func startCounted(t *testing.T, a *application, l net.Addr, closed bool, policies ...*mesh.Policy) [2]*limited {
	t.Helper()
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	es := []mesh.Entity{w, serviceOf(closed)}
	for _, p := range policies {
		es = append(es, p)
	}
	v := view(es...)
	profile := mesh.ProfileOf(w)
	in := inboundOf(profile, v)
	ca := newAuthority(t)
	var out [2]*limited
	for i := range out {
		to := staticCluster(ClusterInbound)
		to.ClusterDiscoveryType, to.LbPolicy = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, cluster.Cluster_ROUND_ROBIN
		to.LoadAssignment = assignment(ClusterInbound, lbEndpoint(netip.MustParseAddrPort(a.Addr().String()), false))
		b := &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{Clusters: []*cluster.Cluster{to, toLimiter(l)}}}
		out[i] = &limited{t: t, ca: ca}
		for mtls, at := range map[bool]*string{true: &out[i].mtls, false: &out[i].open} {
			m, port := in.manager(mtls), freePort(t)
			m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: inboundRoutes(RouteInbound, profile.ID, v).Message.(*routev3.RouteConfiguration)}
			chain := &listener.FilterChain{Filters: []*listener.Filter{networkFilter(hcmName, m)}}
			if mtls {
				chain.TransportSocket = ca.socket()
			}
			b.StaticResources.Listeners = append(b.StaticResources.Listeners, &listener.Listener{
				Name: fmt.Sprint(port), Address: socketAddress("127.0.0.1", uint32(port)), FilterChains: []*listener.FilterChain{chain},
			})
			*at = fmt.Sprint("127.0.0.1:", port)
		}
		runEnvoy(t, b, out[i].open)
	}
	return out
}

func askingFor(name string, r mesh.RateLimitRule, entries ...mesh.RateLimitEntry) mesh.RateLimitRule {
	r.Name, r.Global = name, &mesh.GlobalRateLimit{Entries: entries}
	return r
}

// What the service counts it counts for all pods together, by what it is told: who
// calls is what the certificate says.
func TestGlobalLimitIsForAllPodsTogether(t *testing.T) {
	app, l := startApplication(t), startLimiter(t, 3)
	pods := startCounted(t, app, l.Addr(), false, limits(
		askingFor("each", mesh.RateLimitRule{To: []mesh.RateLimitOperation{{Paths: []string{"/each"}}}}, mesh.RateLimitEntry{Key: "who", Attribute: mesh.CallerAttribute}),
		askingFor("order", mesh.RateLimitRule{
			From: []mesh.Source{{Namespaces: []string{"front"}}}, To: []mesh.RateLimitOperation{{Methods: []string{"POST"}, Paths: []string{"/orders/*"}}},
		}, mesh.RateLimitEntry{Key: "tenant", Header: "x-tenant"}, mesh.RateLimitEntry{Key: "how", Attribute: mesh.MethodAttribute},
			mesh.RateLimitEntry{Key: "what", Attribute: mesh.PathAttribute}, mesh.RateLimitEntry{Key: "plan", Value: "free"}),
	))
	ann, bob := pods[0].client("ann"), pods[0].client("bob")
	first, second := pods[0], pods[1]
	first.expect("a caller at one pod", first.statuses(2, ann, "GET", "/each", "x-forwarded-client-cert: URI=spiffe://x"), 200, 200)
	second.expect("the caller at another pod", second.statuses(2, ann, "GET", "/each"), 200, 429)
	first.expect("another caller", first.statuses(1, bob, "GET", "/each"), 200)
	l.expect(t, "by caller", map[string]int{
		"shop: rule=shop/limits/each, who=spiffe://cluster.local/ns/front/sa/ann": 4,
		"shop: rule=shop/limits/each, who=spiffe://cluster.local/ns/front/sa/bob": 1,
	})
	p := first.send(ann, "GET", "/each")
	if p.Header.Get("X-Ratelimit-Limit") == "" || p.Header.Get("X-Ratelimit-Remaining") != "2" || p.Header.Get("X-Ratelimit-Reset") != "60" {
		t.Errorf("the answer's headers are %v", p.Header)
	}
	l.take()
	first.expect("a rule", first.statuses(1, ann, "POST", "/orders/1?q", "x-tenant: t1", "x-tenant: t1"), 200)
	first.expect("without the header", first.statuses(1, ann, "POST", "/orders/1"), 200)
	first.expect("another method", first.statuses(1, ann, "GET", "/orders/1", "x-tenant: t1"), 200)
	first.expect("another caller", first.statuses(1, http.DefaultClient, "POST", "/orders/1", "x-tenant: t1"), 200)
	l.expect(t, "of a rule", map[string]int{"shop: rule=shop/limits/order, tenant=t1, how=POST, what=/orders/1, plan=free": 1})
	app.take()
	first.statuses(5, ann, "GET", "/each")
	if n := len(app.take()); n != 3 {
		t.Errorf("%d of 5 requests reached the application, want 3", n)
	}
}

func TestServiceThatDoesNotAnswer(t *testing.T) {
	for closed, want := range map[bool]int{false: 200, true: 503} {
		l := startLimiter(t, 100)
		pods := startCounted(t, startApplication(t), l.Addr(), closed, limits(
			askingFor("all", mesh.RateLimitRule{To: []mesh.RateLimitOperation{{Paths: []string{"/all"}}}}),
		))
		pods[0].expect("while it answers", pods[0].statuses(1, http.DefaultClient, "GET", "/all"), 200)
		l.lock.Lock()
		l.delay = 3 * time.Second
		l.lock.Unlock()
		begin := time.Now()
		pods[0].expect(fmt.Sprintf("while it does not answer (closed: %t)", closed), pods[0].statuses(1, http.DefaultClient, "GET", "/all"), want)
		if took := time.Since(begin); took < 1900*time.Millisecond || took > 3*time.Second {
			t.Errorf("the answer took %s, want the time-out of 2s", took)
		}
		l.Close()
		pods[0].expect("what no rule is about", pods[0].statuses(1, http.DefaultClient, "GET", "/other"), 200)
	}
}

func TestGlobalLimitOfAGatewayIsToldThePeersAddress(t *testing.T) {
	l := startLimiter(t, 2)
	e := startEdgeBeside(t, []*cluster.Cluster{toLimiter(l.Addr())}, serviceOf(false),
		at("front", "api", mesh.Policy{RateLimit: &mesh.RateLimit{Rules: []mesh.RateLimitRule{
			askingFor("each", mesh.RateLimitRule{}, mesh.RateLimitEntry{Key: "who", Attribute: mesh.CallerAttribute}),
		}}}))
	e.expect(
		edgeCall{"another listener", local, 1, "www.example", "/ok", 200},
		edgeCall{"the listener", local, 1, "api.example", "/ok", 200},
		edgeCall{"what the proxy itself answers, which is not asked about", local, 1, "api.example", "/none", 404},
		edgeCall{"the listener again", local, 1, "api.example", "/ok", 200},
		edgeCall{"over the limit", local, 1, "api.example", "/ok", 429},
		edgeCall{"another address", remote, 1, "api.example", "/ok", 200},
	)
	l.expect(t, "at a gateway", map[string]int{
		"shop: rule=edge/front/each, remote_address=127.0.0.1": 3, "shop: rule=edge/front/each, remote_address=127.0.0.2": 1,
	})
}

func TestGlobalRuleSaysWhatItLacks(t *testing.T) {
	counter := &mesh.Service{Name: mesh.Name{Namespace: "limits", Name: "counter"}, Ports: []mesh.ServicePort{{Port: 8081}}}
	other := &mesh.Service{Name: counter.Name, Ports: []mesh.ServicePort{{Port: 80}}}
	p := limits(askingFor("a", mesh.RateLimitRule{}))
	for want, es := range map[string][]mesh.Entity{
		reasonServiceNotFound + ": the mesh has no rate limit service": {},
		reasonServiceNotFound + ": there is no Service limits/counter": {serviceOf(false)},
		reasonPortNotFound + ": Service limits/counter, the mesh's":    {serviceOf(false), other},
		reasonResolvedRefs + ": everything":                            {serviceOf(false), counter},
	} {
		f := policyFindings(p, view(es...))[1]
		if got := f.Reason + ": " + f.Message; f.Type != conditionResolvedRefs || f.OK != strings.HasPrefix(want, reasonResolvedRefs) || !strings.HasPrefix(got, want) {
			t.Errorf("%s=%t %s, want %s", f.Type, f.OK, got, want)
		}
	}
}

// Without a rule the listener is as it is, and the service is not asked.
func TestGlobalRulesAreNotInTheListener(t *testing.T) {
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	profile := mesh.ProfileOf(w).ID
	none := view(w, serviceOf(false))
	some := view(w, serviceOf(false), limits(askingFor("a", mesh.RateLimitRule{})))
	key := ForInbound(profile, false)
	if a, b := inboundListener(key, none), inboundListener(key, some); a.String() != b.String() {
		t.Error("the first rule changes the listener")
	}
	if got := fmt.Sprint(inboundRoutes(RouteInbound, profile, none).Clusters, inboundRoutes(RouteInbound, profile, some).Clusters); got != "[inbound] [inbound h2|limits/counter|8081]" {
		t.Errorf("the clusters are %s", got)
	}
	// Nor is there anything where the mesh has no service.
	if got := inboundRoutes(RouteInbound, profile, view(w, limits(askingFor("a", mesh.RateLimitRule{})))).Clusters; len(got) != 1 {
		t.Errorf("without a service the clusters are %v", got)
	}
}
