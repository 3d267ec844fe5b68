package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// shop is a mesh with a caller of each kind, and two versions of a Service.
func shop(more ...mesh.Entity) *mesh.View {
	es := slices.Concat([]mesh.Entity{
		pod("front", "web-0", "10.244.0.1", true, nil),
		pod("front", "old-0", "10.244.0.2", false, nil),
		pod("shop", "cart-1", "10.244.1.1", true, map[string]string{"app": "cart", "version": "1"}),
		pod("shop", "cart-1b", "10.244.1.2", true, map[string]string{"app": "cart", "version": "1"}),
		pod("shop", "cart-2", "10.244.1.3", false, map[string]string{"app": "cart", "version": "2"}),
	}, service("cart", 1, "10.96.0.1", "cart-1", "cart-1b"), service("cart-next", 2, "10.96.0.2", "cart-2"), more)
	changes := make([]mesh.Change, 0, len(es))
	for _, e := range es {
		changes = append(changes, mesh.Put(e))
	}
	s, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system"}).Apply(changes...)
	return mesh.NewView(s)
}

func pod(namespace, name, address string, meshed bool, labels map[string]string) *mesh.Workload {
	return &mesh.Workload{
		Name: mesh.Name{Namespace: namespace, Name: name}, UID: name, ServiceAccount: strings.Split(name, "-")[0], Labels: labels,
		Meshed: meshed, Started: meshed, Addresses: []netip.Addr{netip.MustParseAddr(address)},
	}
}

func service(name string, version int, address string, pods ...string) []mesh.Entity {
	n := mesh.Name{Namespace: "shop", Name: name}
	slice := &mesh.Slice{Name: n, Service: name, Ports: []mesh.SlicePort{{Name: "http", Port: 8080}}}
	for i, p := range pods {
		at := netip.AddrFrom4([4]byte{10, 244, 1, byte(version + i)})
		if version == 2 {
			at = netip.MustParseAddr("10.244.1.3")
		}
		slice.Endpoints = append(slice.Endpoints, mesh.Endpoint{Address: at, Workload: p, Ready: true})
	}
	return []mesh.Entity{slice, &mesh.Service{
		Name: n, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Selector: map[string]string{"app": "cart"},
		Ports: []mesh.ServicePort{{Name: "http", Port: 80, Target: 8080}},
	}}
}

func policy(a *mesh.Authorization) *mesh.Policy {
	return &mesh.Policy{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "p"}}, Authorization: a}
}

func explained(t *testing.T, v *mesh.View, q Question) *Answer {
	t.Helper()
	a, err := Explain(v, q)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestWhoCallsIsWhoHasASidecarAndAPlaceToCallFrom(t *testing.T) {
	v := shop(policy(&mesh.Authorization{Rules: []mesh.Rule{
		{Name: "web", From: []mesh.Source{{ServiceAccounts: []mesh.Name{{Namespace: "front", Name: "web"}}}}},
		{Name: "office", From: []mesh.Source{{IPBlocks: blocks("192.0.2.0/24")}}},
	}}))
	for what, c := range map[string]struct {
		q    Question
		want Verdict
		rule string
	}{
		"a pod of the mesh":            {Question{Pod: "front/web-0"}, Allowed, "web"},
		"its account":                  {Question{ServiceAccount: "front/web"}, Allowed, "web"},
		"another account":              {Question{ServiceAccount: "front/api"}, Denied, ""},
		"a pod without a sidecar":      {Question{Pod: "front/old-0"}, Denied, ""},
		"somebody else":                {Question{}, Denied, ""},
		"somebody with a good address": {Question{Address: "192.0.2.7"}, Allowed, "office"},
	} {
		c.q.Service = "shop/cart"
		a := explained(t, v, c.q)
		if a.Verdict != c.want || len(a.Backends) != 1 || len(a.Backends[0].Pods) != 1 || a.Backends[0].Endpoints != 2 {
			t.Fatalf("%s: %+v", what, a)
		}
		p := a.Backends[0].Pods[0]
		if deciding := slices.IndexFunc(p.Rules, func(m Match) bool { return m.Decides }); c.rule != "" && (deciding < 0 || p.Rules[deciding].Rule != c.rule) {
			t.Errorf("%s: %+v decide, want %s", what, p.Rules, c.rule)
		}
		if a.Caller.Meshed != (a.Route != nil) || a.Caller.Meshed != p.MTLS {
			t.Errorf("%s: meshed %t, encrypted %t, the route %+v", what, a.Caller.Meshed, p.MTLS, a.Route)
		}
	}
}

// The server's rules are asked about the request as the caller's routes make it.
func TestARouteSaysWhereARequestGoesAndAsWhat(t *testing.T) {
	backend := func(name string, weight uint32) mesh.RouteBackend {
		return mesh.RouteBackend{Backend: mesh.Backend{Kind: mesh.BackendService, Name: mesh.Name{Namespace: "shop", Name: name}, Port: 80}, Weight: weight}
	}
	match := func(path string, headers ...mesh.HeaderMatch) []mesh.RequestMatch {
		return []mesh.RequestMatch{{Path: &mesh.StringMatch{Type: mesh.Prefix, Value: path}, Headers: headers}}
	}
	route := &mesh.Route{
		Of: mesh.KindHTTPRoute, Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "r"}},
		Parents: []mesh.Parent{{Kind: mesh.KindService, Name: mesh.Name{Namespace: "shop", Name: "cart"}}},
		Rules: []mesh.RouteRule{
			{Matches: match("/"), Backends: []mesh.RouteBackend{backend("cart", 9), backend("cart-next", 1)}},
			{
				Matches: match("/v2", mesh.HeaderMatch{Name: "x-beta", Value: "1"}), Backends: []mesh.RouteBackend{backend("cart", 1), backend("gone", 1)},
				Filters: mesh.RouteFilters{
					Rewrite: &mesh.Rewrite{Path: &mesh.PathChange{Prefix: true, Value: "/admin"}},
					Request: &mesh.HeaderChanges{Set: []mesh.Header{{Name: "x-role", Value: "guest"}}},
				},
			},
			{Matches: match("/old"), Filters: mesh.RouteFilters{Redirect: &mesh.Redirect{Status: 302}}},
			{Matches: match("/new"), Unsupported: "it cannot be done"},
		},
	}
	v := shop(route, policy(&mesh.Authorization{Rules: []mesh.Rule{{
		Name: "admin", Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{"/admin/*"}}},
		When: mesh.Condition{Headers: []mesh.HeaderCondition{{Name: "x-role", Values: []string{"guest"}}}},
	}}}))
	q := Question{Pod: "front/web-0", Service: "shop/cart", Path: "/x"}
	a := explained(t, v, q)
	if a.Route.Kind != "HTTPRoute" || a.Route.Name != "shop/r" || a.Verdict != Allowed || len(a.Backends) != 2 {
		t.Fatalf("a path that most rules do not match: %+v, %+v", a, a.Route)
	}
	if b := a.Backends[1]; b.Service != "shop/cart-next" || b.Weight != 1 || b.Endpoints != 1 || b.Pods[0].MTLS || b.Pods[0].Reason != "the workload has no sidecar: nothing stands before it" {
		t.Errorf("the second backend: %+v", b)
	}
	q.Path, q.Headers = "/v2/x?y", []Header{{Name: "X-Beta", Value: "1"}, {Name: "x-role", Value: "admin"}}
	a = explained(t, v, q)
	if len(a.Backends) != 2 || a.Backends[0].Pods[0].Path != "/admin/x?y" || a.Backends[0].Pods[0].Verdict != Denied || a.Backends[1].Service != "" {
		t.Errorf("a request that is rewritten: %+v", a)
	}
	for path, answer := range map[string]string{"/old/x": "302", "/new": "500"} {
		q.Path = path
		if a := explained(t, v, q); !strings.HasPrefix(a.Route.Answer, answer) || a.Verdict != "" {
			t.Errorf("%s: %+v, want %s", path, a.Route, answer)
		}
	}
	if a := explained(t, v, Question{Pod: "front/old-0", Service: "shop/cart", Path: "/old"}); a.Route != nil || a.Verdict != Allowed {
		t.Errorf("who has no sidecar is not routed: %+v", a)
	}
}

func TestASplitSendsConnectionsToPartOfThePods(t *testing.T) {
	split := &mesh.Split{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "s"}}, Service: "cart",
		Backends: []mesh.SplitBackend{{Service: mesh.Name{Namespace: "shop", Name: "cart"}, Labels: map[string]string{"version": "1"}, Weight: 3}, {Service: mesh.Name{Namespace: "shop", Name: "cart-next"}, Weight: 1}},
	}
	for _, tcp := range []bool{false, true} {
		a := explained(t, shop(split), Question{Pod: "front/web-0", Service: "shop/cart", Port: 80, TCP: tcp})
		if a.Route.Kind != "TrafficSplit" || len(a.Backends) != 2 || a.Backends[0].Endpoints != 2 || a.Backends[0].Subset["version"] != "1" || a.Backends[0].Weight != 3 {
			t.Errorf("tcp=%t: %+v", tcp, a)
		}
	}
}

func TestRulesThatDoNotDecideAreToldOf(t *testing.T) {
	v := shop(policy(&mesh.Authorization{Rules: []mesh.Rule{
		{Name: "noted", Action: mesh.Audit}, {Name: "trial", Action: mesh.Deny, DryRun: true}, {Name: "all"}, {Name: "asked", Action: mesh.Custom, Authorizer: "opa", DryRun: true},
	}}))
	d := explained(t, v, Question{Pod: "front/web-0", Service: "shop/cart"}).Backends[0].Pods[0].Decision
	var got []string
	for _, m := range d.Rules {
		if m.Decides != (m.Rule == "all") {
			t.Errorf("%+v decides: %t", m, m.Decides)
		}
		got = append(got, m.Rule)
	}
	if d.Verdict != Allowed || d.Enforced != Denied || !slices.Equal(got, []string{"noted", "trial", "all", "asked"}) {
		t.Errorf("%+v", d)
	}
}

// A gateway calls as itself; what it does with what is sent to it is not told.
func TestAGatewayIsACallerAndNothingThatIsCalled(t *testing.T) {
	edge := pod("shop", "edge-0", "10.244.1.9", false, nil)
	edge.Gateway = "edge"
	v := shop(
		edge,
		&mesh.Service{Name: mesh.Name{Namespace: "shop", Name: "edge"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.9")}, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Target: 80}}},
		&mesh.Slice{
			Name: mesh.Name{Namespace: "shop", Name: "edge-1"}, Service: "edge", Ports: []mesh.SlicePort{{Name: "http", Port: 80}},
			Endpoints: []mesh.Endpoint{{Address: edge.Addresses[0], Workload: "edge-0", Ready: true}},
		},
	)
	a := explained(t, v, Question{Pod: "shop/edge-0", Service: "shop/cart"})
	if a.Caller.Identity != "spiffe://cluster.local/ns/shop/sa/edge" || a.Route.Kind != "Gateway" || a.Route.Name != "shop/edge" || !a.Backends[0].Pods[0].MTLS {
		t.Errorf("%+v, %+v", a, a.Route)
	}
	if a, err := Explain(v, Question{Pod: "front/web-0", Service: "shop/edge"}); err == nil || !strings.Contains(err.Error(), "that of Gateway shop/edge") {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestAQuestionThatMakesNoSenseIsRefused(t *testing.T) {
	for want, q := range map[string]Question{
		"there is no Service shop/gone":                  {Service: "shop/gone"},
		"the Service shop/cart has no port 81":           {Service: "shop/cart", Port: 81},
		"there is no pod front/gone that the mesh knows": {Service: "shop/cart", Pod: "front/gone"},
		`"x" is no IP address`:                           {Service: "shop/cart", Address: "x"},
		`the path "x" does not begin with '/'`:           {Service: "shop/cart", Path: "x"},
		`the method "get" is not in capitals`:            {Service: "shop/cart", Method: "get"},
	} {
		if a, err := Explain(shop(), q); err == nil || err.Error() != want {
			t.Errorf("%+v: %v, %v; want %s", q, a, err, want)
		}
	}
}

// Ports differ from one another; what is open at one is not for that open at another.
func TestAPortIsAsOpenAsItsOwnModeSays(t *testing.T) {
	l := newLab(t)
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Labels: map[string]string{"app": "web"}, Meshed: true}
	p := policy(nil)
	p.MTLS = &mesh.MTLS{Mode: mesh.MTLSPermissive, Ports: map[uint16]mesh.MTLSMode{portOther: mesh.MTLSStrict}}
	s, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system"}).Apply(mesh.Put(w), mesh.Put(p), mesh.Put(&mesh.Service{
		Name: mesh.Name{Namespace: "shop", Name: "web"}, Selector: w.Labels, Ports: []mesh.ServicePort{{Port: 80, Protocol: mesh.HTTP, Target: portHTTP}},
	}))
	defer l.run([]*listener.Listener{l.listener(0, s, w)})()
	get := &HTTP{Method: "GET", Path: "/", Host: "web"}
	for what, c := range map[string]struct {
		r    Request
		want bool
	}{
		"plaintext where all may":             {Request{Port: portOpen, HTTP: get}, true},
		"HTTP in plaintext to a Strict port":  {Request{Port: portOther, HTTP: get}, false},
		"TCP in plaintext to a Strict port":   {Request{Port: portOther}, false},
		"TLS of its own to a Strict port":     {Request{Port: portOther, SNI: askedNames[0]}, false},
		"mesh mTLS to a Strict port":          {Request{Port: portOther, HTTP: get, Identity: identities[0]}, true},
		"HTTP to a port that is declared so":  {Request{Port: portHTTP, HTTP: get}, true},
		"TCP to a port that is declared HTTP": {Request{Port: portHTTP}, false},
		"TLS to a port that is declared HTTP": {Request{Port: portHTTP, SNI: askedNames[0]}, false},
		"mesh TCP to a port declared HTTP":    {Request{Port: portHTTP, Identity: identities[0]}, false},
		"mesh HTTP to a port declared HTTP":   {Request{Port: portHTTP, HTTP: get, Identity: identities[0]}, true},
		"an identity of another trust domain": {Request{Port: portOpen, HTTP: get, Identity: identities[4]}, false},
	} {
		c.r.Peer = netip.MustParseAddr("127.0.0.1")
		reached, answer := l.try(0, c.r, "", connections{})
		if said := Decide(mesh.NewView(s), w, c.r).Verdict == Allowed; reached != c.want || said != c.want {
			t.Errorf("%s: it reaches the application: %t (%s), and is said to: %t; want %t", what, reached, answer, said, c.want)
		}
	}
}

// Whoever has no token has none of the claims, and is none of the principals.
func TestARequestWithoutATokenMeetsRulesAboutTokens(t *testing.T) {
	l := newLab(t)
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Labels: map[string]string{"app": "web"}, Meshed: true}
	claim := func(values, not []string) mesh.Condition {
		return mesh.Condition{Claims: []mesh.ClaimCondition{{Path: []string{"team"}, Values: values, NotValues: not}}}
	}
	anybody, a := []mesh.RequestPrincipal{{Subject: "*"}}, []string{"a"}
	var listeners []*listener.Listener
	type one struct {
		what string
		s    *mesh.Snapshot
	}
	var all []one
	for _, looks := range []bool{true, false} {
		for _, action := range []mesh.Action{mesh.Allow, mesh.Deny} {
			for what, r := range map[string]mesh.Rule{
				"values": {When: claim(a, nil)}, "not values": {When: claim(nil, a)}, "both": {When: claim(a, []string{"b"})},
				"anybody": {From: []mesh.Source{{RequestPrincipals: anybody}}}, "nobody": {From: []mesh.Source{{NotRequestPrincipals: anybody}}},
			} {
				r.Action = action
				p := policy(&mesh.Authorization{Rules: []mesh.Rule{r}})
				if looks {
					p.JWT = &mesh.JWT{Issuers: []mesh.Issuer{{Issuer: "https://a.example"}}}
				}
				s, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system"}).Apply(mesh.Put(w), mesh.Put(p))
				listeners = append(listeners, l.listener(len(all), s, w))
				all = append(all, one{fmt.Sprint(what, ", tokens are looked at: ", looks, ", action ", action), s})
			}
		}
	}
	defer l.run(listeners)()
	for i, c := range all {
		r := Request{Port: portOpen, HTTP: &HTTP{Method: "GET", Path: "/", Host: "web"}, Peer: netip.MustParseAddr("127.0.0.1")}
		reached, answer := l.try(i, r, "", connections{})
		if said := Decide(mesh.NewView(c.s), w, r); reached != (said.Verdict == Allowed) {
			t.Errorf("%s: it reaches the application: %t (%s), and is said to be %s (%s)", c.what, reached, answer, said.Verdict, said.Reason)
		}
	}
}
