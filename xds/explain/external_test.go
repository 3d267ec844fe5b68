package explain

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// outsideShop is the shop of which web calls what is outside, some of it by a gateway.
func outsideShop(mode mesh.EgressMode, more ...mesh.Entity) *mesh.View {
	gateway := mesh.Name{Namespace: "front", Name: "exit"}
	named := func(name, host string, port mesh.ExternalPort, change func(*mesh.External)) *mesh.External {
		e := &mesh.External{Meta: mesh.Meta{Name: mesh.Name{Namespace: "front", Name: name}}, Hosts: []string{host}, Ports: []mesh.ExternalPort{port}, Resolution: mesh.ResolveDNS}
		change(e)
		return e
	}
	proxy := pod("front", "exit-0", "10.244.0.8", false, nil)
	proxy.Gateway, proxy.ServiceAccount = gateway.Name, "exit-tulle"
	es := append([]mesh.Entity{
		&mesh.Class{Name: "tulle"}, proxy, pod("front", "web-0", "10.244.0.1", true, nil), pod("front", "old-0", "10.244.0.2", false, nil),
		&mesh.Gateway{Meta: mesh.Meta{Name: gateway}, Class: "tulle", Listeners: []mesh.Listener{{Name: "out", Port: 15443, Protocol: mesh.ListenerEgress}}},
		&mesh.Service{Name: mesh.Name{Namespace: "front", Name: "exit-tulle"}, Ports: []mesh.ServicePort{{Port: 15443}}},
		&mesh.Slice{
			Name: mesh.Name{Namespace: "front", Name: "exit-1"}, Service: "exit-tulle", Ports: []mesh.SlicePort{{Port: 15443}},
			Endpoints: []mesh.Endpoint{{Address: proxy.Addresses[0], Workload: "exit-0", Ready: true}},
		},
		named("api", "api.outside.test", mesh.ExternalPort{Number: 80, Protocol: mesh.HTTP, Target: 443}, func(e *mesh.External) {
			e.Gateway, e.TLS = &gateway, &mesh.Origination{}
		}),
		named("plain", "plain.outside.test", mesh.ExternalPort{Number: 443, Protocol: mesh.TLS}, func(e *mesh.External) {
			e.Callers = []mesh.Caller{{ServiceAccounts: []mesh.Name{{Namespace: "front", Name: "api"}}}}
		}),
		named("db", "db.outside.test", mesh.ExternalPort{Number: 5432, Protocol: mesh.TCP}, func(e *mesh.External) {
			e.Addresses, e.Resolution, e.Endpoints = blocks("192.0.2.7/32"), mesh.ResolveStatic, []mesh.ExternalEndpoint{{Address: "203.0.113.5"}}
		}),
		named("wild", "*.wild.test", mesh.ExternalPort{Number: 443, Protocol: mesh.TLS}, func(e *mesh.External) { e.Resolution = mesh.ResolveNone }),
		&mesh.Service{Name: mesh.Name{Namespace: "shop", Name: "cart"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []mesh.ServicePort{{Port: 80}}},
	}, more...)
	var changes []mesh.Change
	for _, e := range es {
		changes = append(changes, mesh.Put(e))
	}
	s, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system", Egress: mode, ServiceRanges: blocks("10.96.0.0/16")}).Apply(changes...)
	return mesh.NewView(s)
}

func TestACallThatLeavesTheClusterIsToldWhoLetsItOutAndWhereItGoes(t *testing.T) {
	atExit := &mesh.Policy{
		Meta:          mesh.Meta{Name: mesh.Name{Namespace: "front", Name: "exit"}},
		Targets:       []mesh.Target{{Kind: mesh.KindGateway, Name: mesh.Name{Namespace: "front", Name: "exit"}}},
		Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Name: "secret", Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{"/secret"}}}}}},
	}
	all := []mesh.EgressMode{mesh.AllowAny, mesh.RegistryOnly}
	for what, c := range map[string]struct {
		q     Question
		modes []mesh.EgressMode
		want  Verdict
		says  string // of the sidecar, and then of the gateway
		leads string // where, and in what TLS
	}{
		"by a gateway":            {Question{Outside: "api.outside.test"}, all, Allowed, "front/api names it, and admits everybody for whom it holds; the gateway: no rule denies it", "api.outside.test:443 TLS api.outside.test"},
		"what the gateway denies": {Question{Outside: "api.outside.test", Path: "/secret"}, all, Denied, "the gateway: rule secret of MeshPolicy front/exit denies it", "api.outside.test:443"},
		"who is not admitted":     {Question{Outside: "plain.outside.test"}, all, Denied, "does not admit the service account front/web", ""},
		"who is":                  {Question{Outside: "plain.outside.test", Pod: "-", ServiceAccount: "front/api"}, all, Allowed, "admits the service account front/api", "plain.outside.test:443"},
		"an address":              {Question{Outside: "192.0.2.7", Port: 5432}, all, Allowed, "front/db names it", "203.0.113.5:5432"},
		"a host of addresses":     {Question{Outside: "db.outside.test"}, all, Allowed, "it is known by its addresses, here 192.0.2.7", "203.0.113.5:5432"},
		"below a wildcard":        {Question{Outside: "a.wild.test"}, all[:1], Allowed, "front/wild names it", "where the application sends it"},
		"the same, looked up":     {Question{Outside: "a.wild.test"}, all[1:], Allowed, "front/wild names it", "where the name leads that is called"},
		"what nobody names":       {Question{Outside: "other.test", Port: 443}, all[:1], Allowed, "egress.mode: AllowAny", "where the application sends it"},
		"and may not be":          {Question{Outside: "other.test", Port: 443}, all[1:], Denied, "egress.mode: RegistryOnly", ""},
		"of a namesake by HTTP":   {Question{Outside: "plain.outside.test", Scheme: "http", Port: 443}, all[1:], Denied, "no ExternalService names it", ""},
		"who has no sidecar":      {Question{Outside: "other.test", Port: 443, Pod: "front/old-0"}, all, Allowed, "nothing of the mesh stands before it", "where the application sends it"},
	} {
		switch c.q.Pod {
		case "":
			c.q.Pod = "front/web-0"
		case "-":
			c.q.Pod = ""
		}
		for _, mode := range c.modes {
			a := explained(t, outsideShop(mode, atExit), c.q)
			o := a.Backends[0].Outside
			said, leads := o.Reason, o.Leads+strings.Join(o.Servers, " ")
			if o.Exit != nil {
				said += "; the gateway: " + o.Exit.Reason
				if o.Exit.Gateway != "front/exit" || o.Exit.Endpoints != 1 {
					t.Errorf("%s: it leaves by %+v", what, o.Exit)
				}
			}
			if o.TLS != nil {
				leads += " TLS " + o.TLS.ServerName
			}
			if a.Verdict != c.want || !strings.Contains(said, c.says) || !strings.HasPrefix(leads, c.leads) {
				t.Errorf("%s, mode %d: %s, %s, %s; want %s, %s, %s", what, mode, a.Verdict, said, leads, c.want, c.says, c.leads)
			}
		}
	}
	v := outsideShop(mesh.AllowAny)
	for want, q := range map[string]Question{
		"cart.shop is a Service's name in the cluster: ask for shop/cart":                       {Outside: "cart.shop", Port: 80},
		"cart.shop.svc.cluster.local is a Service's name in the cluster: ask for shop/cart":     {Outside: "cart.shop.svc.cluster.local", Port: 80},
		"the address 10.96.0.1 is in the cluster's own ranges: name the Service that is called": {Outside: "10.96.0.1", Port: 80},
		"no ExternalService names other.test for the caller: name a port, as in other.test:443": {Outside: "other.test"},
	} {
		q.Pod = "front/web-0"
		if _, err := Explain(v, q); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// Connections that a Gateway passes on are shared out by the weights of their route, and
// pods see them as what the Gateway sends.
func TestConnectionsThroughAGatewayGoToTheBackendsOfTheirRoute(t *testing.T) {
	edge := mesh.Name{Namespace: "front", Name: "edge"}
	route := func(of mesh.Kind, section string, hosts []string, backends ...mesh.RouteBackend) *mesh.Route {
		return &mesh.Route{
			Of: of, Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: section}}, Hostnames: hosts,
			Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edge, Section: section}}, Rules: []mesh.RouteRule{{Backends: backends}},
		}
	}
	to := func(kind, name string, port uint16, weight uint32) mesh.RouteBackend {
		return mesh.RouteBackend{Backend: mesh.Backend{Kind: kind, Name: mesh.Name{Namespace: "shop", Name: name}, Port: port}, Weight: weight}
	}
	proxy := pod("front", "edge-0", "10.244.0.7", false, nil)
	proxy.Gateway, proxy.ServiceAccount = "edge", "edge-tulle"
	all := mesh.RouteNamespaces{All: true}
	v := shop(
		&mesh.Class{Name: "tulle"}, proxy,
		&mesh.Gateway{Meta: mesh.Meta{Name: edge}, Class: "tulle", Listeners: []mesh.Listener{
			{Name: "through", Port: 443, Protocol: mesh.ListenerTLS, Passthrough: true, Namespaces: all},
			{Name: "bytes", Port: 6379, Protocol: mesh.ListenerTCP, Namespaces: all},
		}},
		route(mesh.KindTLSRoute, "through", []string{"cart.example"}, to(mesh.BackendService, "cart", 80, 3), to(mesh.BackendService, "cart-next", 80, 1), to(mesh.BackendService, "gone", 80, 1)),
		route(mesh.KindTCPRoute, "bytes", nil, to(mesh.BackendExternal, "out", 5432, 1)),
		&mesh.External{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "out"}}, Hosts: []string{"db.outside.test"}, Resolution: mesh.ResolveDNS, Ports: []mesh.ExternalPort{{Number: 5432, Protocol: mesh.TLS}}},
		// It is about no calls to a Service: those of connections are a TrafficSplit's.
		&mesh.Route{Of: mesh.KindTCPRoute, Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "service"}}, Parents: []mesh.Parent{{Kind: mesh.KindService, Name: mesh.Name{Namespace: "shop", Name: "cart"}}}, Rules: []mesh.RouteRule{{Backends: []mesh.RouteBackend{to(mesh.BackendService, "cart-next", 80, 1)}}}},
		&mesh.Certificate{Name: mesh.Name{Namespace: "shop", Name: "tls"}, Chain: []byte("c"), Key: []byte("k")},
		&mesh.Policy{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "ends"}}, Selector: &mesh.Selector{MatchLabels: map[string]string{"version": "1"}},
			TLS:           &mesh.EndedTLS{Ports: []mesh.PortTLS{{Port: 8080, Target: 8081, Certificate: mesh.Name{Namespace: "shop", Name: "tls"}}}},
			Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Name: "open", To: []mesh.Operation{{Paths: []string{"/open"}}}}}},
		},
	)
	a := explained(t, v, Question{Pod: "front/edge-0", Scheme: "https", Port: 443, Host: "cart.example", Path: "/open"})
	if a.Route == nil || a.Route.Kind != "TLSRoute" || len(a.Backends) != 3 || a.Backends[0].Weight != 3 || a.Backends[2].Service != "" {
		t.Fatalf("%+v, %+v", a, a.Route)
	}
	if p := a.Backends[0].Pods[0]; p.Verdict != Allowed || p.MTLS || !strings.Contains(p.Reason, "in TLS of the client's own, which ends at port 8080") {
		t.Errorf("what the pods end: %+v", p)
	}
	for what, c := range map[string]struct {
		q    Question
		want Verdict
		says string
	}{
		"a request that is not open":       {Question{Pod: "front/edge-0", Scheme: "https", Port: 443, Host: "cart.example", Path: "/shut"}, "", "no Allow rule matches"},
		"TLS of anything":                  {Question{Pod: "front/edge-0", Scheme: "tls", Port: 443, Host: "cart.example"}, "", "say which it is"},
		"a name that no route has":         {Question{Pod: "front/edge-0", Scheme: "tls", Port: 443, Host: "other.example"}, Denied, "no route is for it"},
		"bytes":                            {Question{Pod: "front/edge-0", Scheme: "tcp", Port: 6379, Host: "x"}, Allowed, "shop/out names it"},
		"a meshed caller's HTTP":           {Question{Pod: "front/web-0", Service: "shop/cart", Path: "/open"}, Allowed, "rule open of MeshPolicy shop/ends allows it"},
		"a meshed caller's own TLS":        {Question{Pod: "front/web-0", Service: "shop/cart", SNI: "cart.example", Path: "/open"}, Allowed, "in TLS of the client's own"},
		"who is outside":                   {Question{Service: "shop/cart", Path: "/open"}, Allowed, "in TLS of the client's own"},
		"who is outside, and is not let":   {Question{Service: "shop/cart", Path: "/shut"}, Denied, "no Allow rule matches"},
		"who is outside, without HTTP":     {Question{Service: "shop/cart", TCP: true}, Denied, "takes nothing in the clear"},
		"a meshed caller's bytes":          {Question{Pod: "front/web-0", Service: "shop/cart", TCP: true}, Denied, "takes nothing in the clear"},
		"bytes, past a TCPRoute elsewhere": {Question{Pod: "front/web-0", Service: "shop/cart-next", TCP: true}, Allowed, "has no sidecar"},
	} {
		a := explained(t, v, c.q)
		var said []string
		if a.Entrance != nil {
			said = append(said, a.Entrance.Reason)
		}
		for _, b := range a.Backends {
			for _, p := range b.Pods {
				said = append(said, p.Reason)
			}
			if b.Outside != nil {
				said = append(said, b.Outside.Reason)
			}
		}
		if a.Verdict != c.want || !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, c.says) }) {
			t.Errorf("%s: %q, %q; want %q, %s", what, a.Verdict, said, c.want, c.says)
		}
		if c.q.Service != "" && a.Route != nil && a.Route.Kind != "Service" {
			t.Errorf("%s: it is routed by %+v", what, a.Route)
		}
	}
}
