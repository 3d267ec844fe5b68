package translate

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/go-jose/go-jose/v4"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// edgeEnvoy is a real Envoy as a gateway with three listeners: open and api at one port, apart
// at another.
type edgeEnvoy struct {
	t            *testing.T
	app          *application
	first, other uint16
}

func edgeName() mesh.Name { return mesh.Name{Namespace: "edge", Name: "front"} }

func edgeGateway(first, other uint16) *mesh.Gateway {
	all := mesh.RouteNamespaces{All: true}
	return &mesh.Gateway{Meta: mesh.Meta{Name: edgeName()}, Class: "tulle", Listeners: []mesh.Listener{
		{Name: "open", Port: first, Protocol: mesh.ListenerHTTP, Namespaces: all},
		{Name: "api", Port: first, Protocol: mesh.ListenerHTTP, Hostname: "api.example", Namespaces: all},
		{Name: "apart", Port: other, Protocol: mesh.ListenerHTTP, Namespaces: all},
	}}
}

// edgeView is of a gateway with a route to a Service, of /, but not of /none.
func edgeView(first, other uint16, more ...mesh.Entity) *mesh.View {
	web := mesh.Name{Namespace: "shop", Name: "web"}
	to := []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web, Port: 80}, Weight: 1}}
	match := func(prefixes ...string) (out []mesh.RequestMatch) {
		for _, p := range prefixes {
			out = append(out, mesh.RequestMatch{Path: &mesh.StringMatch{Type: mesh.Prefix, Value: p}})
		}
		return out
	}
	return view(slices.Concat([]mesh.Entity{
		&mesh.Class{Name: "tulle"}, edgeGateway(first, other),
		&mesh.Service{Name: web, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}},
		&mesh.Route{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "web"}}, Of: mesh.KindHTTPRoute,
			Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName()}}, Hostnames: []string{"www.example", "shop.example", "api.example"},
			Rules: []mesh.RouteRule{{Matches: match("/ok", "/admin"), Backends: to}},
		},
	}, more)...)
}

func startEdge(t *testing.T, policies ...mesh.Entity) *edgeEnvoy {
	t.Helper()
	return startEdgeBeside(t, nil, policies...)
}

// startEdgeBeside is startEdge with clusters that it may ask.
func startEdgeBeside(t *testing.T, beside []*cluster.Cluster, policies ...mesh.Entity) *edgeEnvoy {
	t.Helper()
	e := &edgeEnvoy{t: t, app: startApplication(t), first: uint16(freePort(t)), other: uint16(freePort(t))}
	for _, p := range policies {
		if p, ok := p.(*mesh.Policy); ok && p.Authorization != nil {
			for i := range p.Authorization.Rules {
				for j := range p.Authorization.Rules[i].To {
					for k, port := range p.Authorization.Rules[i].To[j].Ports {
						p.Authorization.Rules[i].To[j].Ports[k] = map[uint16]uint16{1: e.first, 2: e.other}[port]
					}
				}
			}
		}
	}
	v := edgeView(e.first, e.other, policies...)
	to := &cluster.Cluster{Name: "h1|shop/web|80", ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}}
	to.LoadAssignment = assignment(to.Name, lbEndpoint(netip.MustParseAddrPort(e.app.Addr().String()), false))
	b := &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{Clusters: append(beside, to)}}
	for _, port := range []uint16{e.first, e.other} {
		name := fmt.Sprint(PrefixGateway, port)
		m := gatewayManager(name, v.Config())
		m.AccessLog = nil
		m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: gatewayRoutes(name, edgeName().String(), v).Message.(*route.RouteConfiguration)}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, &listener.Listener{
			Name: name, Address: socketAddress("127.0.0.1", uint32(port)),
			FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
		})
	}
	runEnvoy(t, b, fmt.Sprint("127.0.0.1:", e.first))
	e.app.take()
	return e
}

// at is a policy about the gateway, or one of its listeners.
func at(name, section string, p mesh.Policy) *mesh.Policy {
	p.Meta.Name = mesh.Name{Namespace: "edge", Name: name}
	p.Targets = []mesh.Target{{Kind: mesh.KindGateway, Name: edgeName(), Section: section}}
	return &p
}

// get asks port 1 or 2 for a path of a host, from an address, and returns the status.
func (e *edgeEnvoy) get(from string, port int, host, path string, headers ...string) int {
	e.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", fmt.Sprint("127.0.0.1:", map[int]uint16{1: e.first, 2: e.other}[port]))
	if err != nil {
		e.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		e.t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nhost: %s\r\n%s\r\n", path, host, strings.Join(append(headers, ""), "\r\n"))
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		e.t.Fatalf("%s%s from %s: %v", host, path, from, err)
	}
	return r.StatusCode
}

type edgeCall struct {
	what, from string
	port       int
	host, path string
	want       int
}

func (e *edgeEnvoy) expect(calls ...edgeCall) {
	e.t.Helper()
	for _, c := range calls {
		if got := e.get(c.from, c.port, c.host, c.path, "x-forwarded-for: 10.9.9.9", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/web"); got != c.want {
			e.t.Errorf("%s: %s%s at port %d is answered with %d, want %d", c.what, c.host, c.path, c.port, got, c.want)
		}
	}
}

const local, remote = "127.0.0.1", "127.0.0.2"

func TestAuthorizationOfAGatewayHoldsAtAllItsListeners(t *testing.T) {
	deny := func(to mesh.Operation) mesh.Rule { return mesh.Rule{Action: mesh.Deny, To: []mesh.Operation{to}} }
	e := startEdge(t, at("all", "", mesh.Policy{Authorization: &mesh.Authorization{Rules: []mesh.Rule{
		deny(mesh.Operation{Paths: []string{"/admin", "/admin/*"}}),
		deny(mesh.Operation{Hosts: []string{"shop.example"}, Ports: []uint16{2}}),
		{Action: mesh.Allow, From: []mesh.Source{{IPBlocks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}}},
		{Action: mesh.Allow, From: []mesh.Source{{IPBlocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, {Namespaces: []string{"shop"}}}},
	}}}))
	e.expect(
		edgeCall{"from the allowed address", local, 1, "www.example", "/ok", 200},
		edgeCall{"the other listener", local, 1, "api.example", "/ok", 200},
		edgeCall{"the other port", local, 2, "www.example", "/ok", 200},
		edgeCall{"an address and an identity that are only said", remote, 1, "www.example", "/ok", 403},
		edgeCall{"the same at the other listener", remote, 1, "api.example", "/ok", 403},
		edgeCall{"a path", local, 1, "www.example", "/admin/x?y", 403},
		edgeCall{"a path with dots", local, 1, "www.example", "/ok/../admin", 403},
		edgeCall{"a path with escapes", local, 1, "www.example", "/%61dmin", 403},
		edgeCall{"a path with slashes", local, 1, "www.example", "//admin", 403},
		edgeCall{"a host at another port", local, 1, "shop.example", "/ok", 200},
		edgeCall{"a host at that port", local, 2, "shop.example", "/ok", 403},
		edgeCall{"a path without a route", local, 1, "www.example", "/none", 404},
		edgeCall{"a path without a route, of who may not come in", remote, 1, "www.example", "/none", 403},
	)
	if n := len(e.app.take()); n != 4 {
		t.Errorf("%d requests reached the application, want 4", n)
	}
}

func TestAuthorizationOfAListenerLeavesTheOthersAlone(t *testing.T) {
	e := startEdge(t,
		at("one", "api", mesh.Policy{Authorization: &mesh.Authorization{DefaultDeny: true}}),
		at("nowhere", "gone", mesh.Policy{Authorization: &mesh.Authorization{DefaultDeny: true}}),
	)
	e.expect(
		edgeCall{"the listener", local, 1, "api.example", "/ok", 403},
		edgeCall{"the listener, spelt otherwise", local, 1, "API.example:80", "/ok", 403},
		edgeCall{"its neighbour", local, 1, "www.example", "/ok", 200},
		edgeCall{"the listener at another port", local, 2, "api.example", "/ok", 200},
	)
}

// It fails closed for exactly what it names.
func TestPolicyOfAGatewayThatCannotBeUnderstood(t *testing.T) {
	bad := at("bad", "apart", mesh.Policy{Authorization: &mesh.Authorization{}, RateLimit: &mesh.RateLimit{}})
	bad.Invalid = "it makes no sense"
	e := startEdge(t, bad)
	e.expect(
		edgeCall{"the listener", local, 2, "www.example", "/ok", 403},
		edgeCall{"another", local, 1, "www.example", "/ok", 200},
	)
}

// Whoever comes in from outside has no identity in the mesh.
func TestPoliciesOfWorkloadsDoNotHoldAtGateways(t *testing.T) {
	closed := func(namespace string, s *mesh.Selector) mesh.Entity {
		return &mesh.Policy{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: namespace, Name: "closed"}}, Selector: s,
			Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Action: mesh.Allow, From: []mesh.Source{{Namespaces: []string{"shop"}}}}}},
			RateLimit:     &mesh.RateLimit{Rules: []mesh.RateLimitRule{limit(1, mesh.RateLimitRule{})}},
		}
	}
	e := startEdge(t, closed("tulle-system", nil), closed("edge", &mesh.Selector{MatchLabels: map[string]string{"gateway.networking.k8s.io/gateway-name": "front"}}))
	for range 3 {
		e.expect(edgeCall{"from outside", local, 1, "www.example", "/ok", 200})
	}
	// Nor the other way round.
	v := edgeView(1, 2, at("a", "", mesh.Policy{Authorization: &mesh.Authorization{DefaultDeny: true}, RateLimit: &mesh.RateLimit{}}))
	if got := len(authorizations("edge", nil, v)) + len(rateLimits("edge", nil, v)); got != 0 {
		t.Errorf("%d sections about a gateway hold for workloads of its namespace", got)
	}
}

func TestRulesThatNeverMatchAtAGatewayAreTold(t *testing.T) {
	for _, c := range []struct {
		what  string
		rule  mesh.Rule
		never bool
	}{
		{"namespaces", mesh.Rule{From: []mesh.Source{{Namespaces: []string{"a"}}}}, true},
		{"trust domains", mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{TrustDomains: []string{"a"}}}}, true},
		{"all but a namespace, let in", mesh.Rule{From: []mesh.Source{{NotNamespaces: []string{"a"}}}}, true},
		{"all but a namespace, refused", mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{NotNamespaces: []string{"a"}}}}, false},
		{"addresses, too", mesh.Rule{From: []mesh.Source{{Namespaces: []string{"a"}}, {IPBlocks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}}, false},
	} {
		if note := unmatched(at("p", "", mesh.Policy{Authorization: &mesh.Authorization{Rules: []mesh.Rule{c.rule}}}), view()); (note != "") != c.never {
			t.Errorf("%s: %q", c.what, note)
		}
	}
}

func TestLimitOfAGatewayCountsAllItsHosts(t *testing.T) {
	e := startEdge(t,
		at("all", "", mesh.Policy{RateLimit: &mesh.RateLimit{Rules: []mesh.RateLimitRule{limit(3, mesh.RateLimitRule{})}}}),
		at("one", "api", mesh.Policy{RateLimit: &mesh.RateLimit{Rules: []mesh.RateLimitRule{limit(1, mesh.RateLimitRule{PerCaller: true})}}}),
	)
	e.expect(
		edgeCall{"a host", local, 1, "www.example", "/ok", 200},
		edgeCall{"another host", local, 1, "shop.example", "/ok", 200},
		edgeCall{"what no route is about", local, 1, "www.example", "/none", 404},
		edgeCall{"a fourth request", local, 1, "www.example", "/ok", 429},
		edgeCall{"a listener with a limit of its own", local, 1, "api.example", "/ok", 200},
		edgeCall{"the same caller", local, 1, "api.example", "/ok", 429},
		edgeCall{"another caller, whatever it says", remote, 1, "api.example", "/ok", 200},
		edgeCall{"the other caller again", remote, 1, "api.example", "/ok", 429},
		edgeCall{"another port", local, 2, "api.example", "/ok", 200},
	)
}

// What a target uses is whose proxies a policy's status counts.
func TestPolicyOfAGatewayConcernsTheGatewaysProxiesAlone(t *testing.T) {
	w := &mesh.Workload{Name: mesh.Name{Namespace: "edge", Name: "web-0"}, Meshed: true}
	p := at("a", "", mesh.Policy{Authorization: &mesh.Authorization{DefaultDeny: true}, RateLimit: &mesh.RateLimit{}})
	ref := mesh.Ref{Kind: mesh.KindPolicy, Name: p.Meta.Name}
	v := edgeView(80, 81, p, w)
	gatewayRoutes("gateway|80", edgeName().String(), v)
	if !slices.Contains(v.Uses(), ref) {
		t.Error("the gateway's proxies are not concerned")
	}
	v = edgeView(80, 81, p, w)
	inboundRoutes(RouteInbound, mesh.ProfileOf(w).ID, v)
	inboundListener(ForInbound(mesh.ProfileOf(w).ID, false), v)
	if slices.Contains(v.Uses(), ref) {
		t.Error("a sidecar of the gateway's namespace is concerned")
	}
}

// A Host that applications may read as that of a listener with policies of its own does not
// come in by another listener.
func TestNoListenerTakesTheHostOfAnother(t *testing.T) {
	toAll := &mesh.Route{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "all"}}, Of: mesh.KindHTTPRoute,
		Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName()}},
		Rules: []mesh.RouteRule{{Matches: []mesh.RequestMatch{{}}, Backends: []mesh.RouteBackend{
			{Backend: mesh.Backend{Kind: mesh.BackendService, Name: mesh.Name{Namespace: "shop", Name: "web"}, Port: 80}, Weight: 1},
		}}},
	}
	e := startEdge(t, toAll, at("api", "api", mesh.Policy{Authorization: &mesh.Authorization{DefaultDeny: true}}))
	for host, want := range map[string]int{
		"other.example": 200, "other.example:80": 200, "127.0.0.1:80": 200, "[::1]:80": 200, "a_b": 200, "other.example.": 200,
		"api.example": 403, "API.example:80": 403, "api.example.": 403,
		"api.example..": 403, "api.example:80:80": 403, "x,api.example": 403, "api.example,x": 403, "api%2eexample": 403,
		"other.example\r\nhost: api.example": 403, "api.example\r\nhost: other.example": 403,
	} {
		e.expect(edgeCall{"a Host", local, 1, host, "/", want})
	}
}

// A listener that changes is drained: what is enforced must not be in it.
func TestChangedPolicyLeavesTheGatewaysListenerAsItIs(t *testing.T) {
	of := func(ps ...mesh.Entity) proto.Message {
		return gatewayListener(edgeName().String(), edgeView(80, 81, ps...)).Message
	}
	deny := at("a", "", mesh.Policy{
		Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{"/admin"}}}}}},
		RateLimit:     &mesh.RateLimit{Rules: []mesh.RateLimitRule{limit(1, mesh.RateLimitRule{})}},
	})
	if !proto.Equal(of(), of(deny)) {
		t.Error("the first policy changes the listener")
	}
}

// Tokens are looked at by the listeners that a policy names, before anything is routed.
func TestAGatewayLooksAtTokens(t *testing.T) {
	a := newIssuer(t, "https://a.example", jose.RS256)
	tokens := mesh.Policy{JWT: &mesh.JWT{Issuers: []mesh.Issuer{{Issuer: a.name, Keys: a.keys(), ClaimsToHeaders: []mesh.ClaimHeader{{Header: "x-user", Claim: "sub"}}}}}}
	members := mesh.Policy{Authorization: &mesh.Authorization{Rules: []mesh.Rule{{
		From: []mesh.Source{{RequestPrincipals: []mesh.RequestPrincipal{{Issuer: a.name, Subject: "al*"}}}},
	}}}}
	e := startEdge(t, at("tokens", "open", tokens), at("members", "open", members))
	for what, c := range map[string]struct {
		host, token string
		want        int
	}{
		"a member":                       {"www.example", a.token(nil), 200},
		"somebody else":                  {"www.example", a.token(claimsOf{"sub": "bob"}), 403},
		"nobody":                         {"www.example", "", 401},
		"a token that is over":           {"www.example", a.token(claimsOf{"exp": time.Now().Add(-time.Hour).Unix()}), 401},
		"a token that nobody signed":     {"www.example", a.unsigned(), 401},
		"nobody, at another listener":    {"api.example", "", 200},
		"any token, at another listener": {"api.example", a.unsigned(), 200},
	} {
		headers := []string{"x-user: root"}
		if c.token != "" {
			headers = append(headers, "authorization: Bearer "+c.token)
		}
		if got := e.get("127.0.0.1", 1, c.host, "/ok", headers...); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
		seen := e.app.take()
		switch {
		case (len(seen) == 1) != (c.want == 200):
			t.Errorf("%s: the application saw %q", what, seen)
		case c.host == "www.example" && c.want == 200 && (!strings.Contains(seen[0], "x-user: alice\n") || strings.Contains(seen[0], "root")):
			t.Errorf("%s: the application is told %q", what, seen[0])
		}
	}
}
