package explain

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// gatewayed is the shop behind a Gateway with a listener in the clear, two of HTTPS, one
// that lacks its certificate, and one that passes TLS through.
func gatewayed(more ...mesh.Entity) *mesh.View {
	secure := func(name, host string, secret string) mesh.Listener {
		return mesh.Listener{
			Name: name, Port: 443, Protocol: mesh.ListenerHTTPS, Hostname: host, Namespaces: mesh.RouteNamespaces{All: true},
			Certificates: []mesh.Backend{{Kind: "Secret", Name: mesh.Name{Namespace: "front", Name: secret}}},
		}
	}
	proxy := &mesh.Workload{
		Name: mesh.Name{Namespace: "front", Name: "edge-0"}, UID: "edge-0", ServiceAccount: "edge", Gateway: "edge",
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.7")},
	}
	r := &mesh.Route{
		Of: mesh.KindHTTPRoute, Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "r"}},
		Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: mesh.Name{Namespace: "front", Name: "edge"}}},
		Rules: []mesh.RouteRule{{
			Matches:  []mesh.RequestMatch{{Path: &mesh.StringMatch{Type: mesh.Prefix, Value: "/cart"}}},
			Filters:  mesh.RouteFilters{Rewrite: &mesh.Rewrite{Path: &mesh.PathChange{Prefix: true, Value: "/"}}},
			Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: mesh.Name{Namespace: "shop", Name: "cart"}, Port: 80}, Weight: 1}},
		}},
	}
	return shop(append([]mesh.Entity{
		&mesh.Class{Name: "tulle"}, &mesh.Certificate{Name: mesh.Name{Namespace: "front", Name: "tls"}, Chain: []byte("c"), Key: []byte("k")}, proxy, r,
		&mesh.Gateway{Meta: mesh.Meta{Name: mesh.Name{Namespace: "front", Name: "edge"}}, Class: "tulle", Listeners: []mesh.Listener{
			{Name: "clear", Port: 80, Protocol: mesh.ListenerHTTP, Namespaces: mesh.RouteNamespaces{All: true}},
			secure("wide", "*.example", "tls"), secure("narrow", "shop.example", "tls"), secure("bare", "bare.example", "gone"),
			{Name: "through", Port: 443, Protocol: mesh.ListenerTLS, Hostname: "through.example", Passthrough: true},
		}},
	}, more...)...)
}

// Whether a client has a certificate is not asked: whose would do is told. What it is told
// to have is what the gateway writes, and where it verifies none there is nothing.
func TestAGatewayTellsWhoseCertificatesLetIn(t *testing.T) {
	const xfcc = "Hash=1;Subject=\"CN=a\";URI=spiffe://partner.example/a"
	edge := mesh.Name{Namespace: "front", Name: "edge"}
	bundle := mesh.Backend{Kind: mesh.BundleConfigMap, Name: mesh.Name{Namespace: "front", Name: "partners"}}
	for what, c := range map[string]struct {
		clients *mesh.ClientValidation
		want    Verdict
		says    string
	}{
		"verified": {&mesh.ClientValidation{Authorities: []mesh.Backend{bundle}}, Allowed, "verified by ConfigMap front/partners"},
		"any":      {&mesh.ClientValidation{Authorities: []mesh.Backend{bundle}, Insecure: true}, Denied, "any certificate or none"},
		"unasked":  {nil, Denied, ""},
	} {
		v := gatewayed(
			&mesh.Bundle{Name: bundle.Name, PEM: []byte("c")},
			&mesh.Gateway{Meta: mesh.Meta{Name: edge}, Class: "tulle", Listeners: []mesh.Listener{{
				Name: "known", Port: 443, Protocol: mesh.ListenerHTTPS, Namespaces: mesh.RouteNamespaces{All: true}, Clients: c.clients,
				Certificates: []mesh.Backend{{Kind: "Secret", Name: mesh.Name{Namespace: "front", Name: "tls"}}},
			}}},
			&mesh.Policy{
				Meta: mesh.Meta{Name: edge}, Targets: []mesh.Target{{Kind: mesh.KindGateway, Name: edge}},
				Authorization: &mesh.Authorization{Rules: []mesh.Rule{{When: mesh.Condition{Headers: []mesh.HeaderCondition{{Name: "x-forwarded-client-cert", Values: []string{"*;URI=spiffe://partner.example/a"}}}}}}},
			},
		)
		a := explained(t, v, Question{Pod: "front/edge-0", Scheme: "https", Port: 443, Host: "shop.example", Path: "/cart/open", Headers: []Header{{Name: "X-Forwarded-Client-Cert", Value: xfcc}}})
		if a.Entrance.Verdict != c.want || !strings.Contains(a.Entrance.Clients, c.says) || (a.Entrance.Clients == "") != (c.says == "") {
			t.Errorf("%s: %s (%s), clients %s; want %s, %s", what, a.Entrance.Verdict, a.Entrance.Reason, a.Entrance.Clients, c.want, c.says)
		}
	}
}

func TestAGatewaysOwnRulesAreAskedBeforeTheBackends(t *testing.T) {
	target := func(section string) []mesh.Target {
		return []mesh.Target{{Kind: mesh.KindGateway, Name: mesh.Name{Namespace: "front", Name: "edge"}, Section: section}}
	}
	atEdge := &mesh.Policy{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "front", Name: "edge"}}, Targets: target("narrow"),
		Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Name: "office", From: []mesh.Source{{IPBlocks: blocks("192.0.2.0/24")}}}}},
	}
	atWide := &mesh.Policy{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "front", Name: "wide"}}, Targets: target("wide"),
		Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Name: "home", Action: mesh.Deny, From: []mesh.Source{{IPBlocks: blocks("198.51.100.0/24")}}}}},
	}
	ofCart := policy(&mesh.Authorization{Rules: []mesh.Rule{
		{Name: "edge", From: []mesh.Source{{ServiceAccounts: []mesh.Name{{Namespace: "front", Name: "edge"}}}}, To: []mesh.Operation{{Paths: []string{"/open"}}}},
	}})
	// Of the backends' namespace, and about no workload of it.
	elsewhere := &mesh.Policy{
		Meta:          mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "elsewhere"}},
		Targets:       []mesh.Target{{Kind: mesh.KindGateway, Name: mesh.Name{Namespace: "shop", Name: "another"}}},
		Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Name: "all", Action: mesh.Deny}}},
	}
	v := gatewayed(atEdge, atWide, ofCart, elsewhere)
	for what, c := range map[string]struct {
		q        Question
		want     Verdict
		listener string
		says     string // of the entrance, the route, and the first pods, what one has to say
	}{
		"by https":             {Question{Scheme: "https", Port: 443, Host: "shop.example", Path: "/cart/open", Address: "192.0.2.7"}, Allowed, "narrow", "rule office of MeshPolicy front/edge allows it"},
		"from elsewhere":       {Question{Scheme: "https", Port: 443, Host: "shop.example", Path: "/cart/open", Address: "198.51.100.7"}, Denied, "narrow", "no Allow rule matches"},
		"from nobody knows":    {Question{Scheme: "https", Port: 443, Host: "shop.example", Path: "/cart/open"}, Denied, "narrow", "no Allow rule matches"},
		"from elsewhere alone": {Question{Scheme: "https", Port: 443, Host: "a.example", Path: "/cart/open", Address: "198.51.100.7"}, Denied, "wide", "rule home of MeshPolicy front/wide denies it"},
		"or nobody knows":      {Question{Scheme: "https", Port: 443, Host: "a.example", Path: "/cart/open"}, Denied, "wide", "rule home of MeshPolicy front/wide denies it"},
		"what the pods refuse": {Question{Scheme: "https", Port: 443, Host: "SHOP.example.:443", Path: "/cart/shut", Address: "192.0.2.7"}, Denied, "narrow", "the workload has Allow rules"},
		"another listener":     {Question{Scheme: "https", Port: 443, Host: "a.example", Path: "/cart/open", Address: "192.0.2.7"}, Allowed, "wide", "rule edge of MeshPolicy shop/p allows it"},
		"in the clear":         {Question{Scheme: "http", Port: 80, Host: "shop.example", Path: "/cart/open"}, Allowed, "clear", "rule edge of MeshPolicy shop/p allows it"},
		"no route":             {Question{Scheme: "http", Port: 80, Host: "shop.example", Path: "/x"}, "", "clear", "404: no rule matches"},
		"an escaped slash":     {Question{Scheme: "http", Port: 80, Host: "shop.example", Path: "/cart%2fopen"}, Denied, "clear", "307"},
	} {
		c.q.Pod = "front/edge-0"
		a := explained(t, v, c.q)
		said := a.Entrance.Reason + "; "
		if a.Route != nil {
			said += a.Route.Answer
		}
		if len(a.Backends) > 0 {
			p := a.Backends[0].Pods[0]
			said += p.Reason
			if !p.MTLS || !strings.HasPrefix(p.Path, "/") || strings.HasPrefix(p.Path, "/cart") {
				t.Errorf("%s: the backend is asked as %+v", what, p)
			}
		}
		if a.Verdict != c.want || a.Entrance.Listener != c.listener || !strings.Contains(said, c.says) {
			t.Errorf("%s: %q, listener %s, %s; want %q, %s, %s", what, a.Verdict, a.Entrance.Listener, said, c.want, c.listener, c.says)
		}
	}
	for what, c := range map[string]struct {
		q    Question
		want string
	}{
		"no listener":          {Question{Scheme: "http", Port: 8080, Host: "shop.example"}, "no listener that takes what is for shop.example at port 8080 by http; it has http://HOST:80 (clear), https://*.example:443 (wide)"},
		"no name of a secure":  {Question{Scheme: "https", Port: 443, Host: "other.test"}, "no listener that takes what is for other.test"},
		"in the clear to TLS":  {Question{Scheme: "http", Port: 443, Host: "shop.example"}, "at port 443 by http"},
		"without certificate":  {Question{Scheme: "https", Port: 443, Host: "bare.example"}, "lacks its certificate"},
		"TLS of anything":      {Question{Scheme: "tls", Port: 443, Host: "shop.example"}, "listener narrow of Gateway front/edge takes requests of HTTP: ask for https://HOST:443/PATH"},
		"bytes":                {Question{Scheme: "tcp", Port: 80, Host: "shop.example"}, "listener clear of Gateway front/edge takes requests of HTTP"},
		"bytes nowhere":        {Question{Scheme: "tcp", Port: 81, Host: "shop.example"}, "no listener that takes what is for no name at port 81 by tcp"},
		"a pod that is no one": {Question{Scheme: "http", Port: 80, Host: "shop.example", Pod: "front/web-0"}, "is no Gateway's"},
	} {
		if c.q.Pod == "" {
			c.q.Pod = "front/edge-0"
		}
		if _, err := Explain(v, c.q); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", what, err, c.want)
		}
	}
}
