package translate

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// A page of another origin may do what the filter says; preflights never reach the
// application.
func TestPagesOfOtherOrigins(t *testing.T) {
	app := startApplication(t)
	name := mesh.Name{Namespace: "shop", Name: "web"}
	rule := func(path string, c *mesh.CORS) mesh.RouteRule {
		return mesh.RouteRule{
			Matches: []mesh.RequestMatch{{Path: &mesh.StringMatch{Type: mesh.Prefix, Value: path}}}, Filters: mesh.RouteFilters{CORS: c},
			Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: name, Port: 80}, Weight: 1}},
		}
	}
	port := freePort(t)
	v := view(
		&mesh.Class{Name: "tulle"}, &mesh.Service{Name: name, Ports: []mesh.ServicePort{{Port: 80, Protocol: mesh.HTTP}}},
		&mesh.Gateway{Meta: mesh.Meta{Name: name}, Class: "tulle", Listeners: []mesh.Listener{{Name: "http", Port: uint16(port), Protocol: mesh.ListenerHTTP}}},
		&mesh.Route{Meta: mesh.Meta{Name: name}, Of: mesh.KindHTTPRoute, Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: name}}, Rules: []mesh.RouteRule{
			rule("/some", &mesh.CORS{
				Origins: []string{"https://www.example.com", "https://*.example.org", "http://plain.example:80"}, Methods: []string{"GET", "PUT"},
				Headers: []string{"x-one", "x-two"}, Expose: []string{"x-three"}, Credentials: true, MaxAge: 60,
			}),
			rule("/all", &mesh.CORS{Origins: []string{"*"}, Methods: []string{"*"}, Headers: []string{"*"}, MaxAge: 5}),
			rule("/all-with-credentials", &mesh.CORS{Origins: []string{"*"}, Methods: []string{"*"}, Headers: []string{"*"}, Credentials: true, MaxAge: 5}),
			rule("/none", nil),
		}},
		// Beside what a policy has be done to the same requests.
		trafficOf(mesh.KindHTTPRoute, "web", mesh.Traffic{Fault: &mesh.Fault{Delay: time.Millisecond, DelayPercent: 100}}),
	)
	m := gatewayManager("", v.Config())
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: gatewayRoutes(fmt.Sprint("gateway|", port), name.String(), v).Message.(*route.RouteConfiguration)}
	at := fmt.Sprint("127.0.0.1:", port)
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Clusters: []*cluster.Cluster{to("h1|shop/web|80", netip.MustParseAddrPort(app.Addr().String()))},
		Listeners: []*listener.Listener{{
			Name: "gateway", Address: socketAddress("127.0.0.1", uint32(port)),
			FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
		}},
	}}, at)
	ask := func(method, path, origin string) http.Header {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+at+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("origin", origin)
		if method == http.MethodOptions {
			r.Header.Set("access-control-request-method", "PUT")
			r.Header.Set("access-control-request-headers", "x-one, x-two")
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("%s %s from %s: %d", method, path, origin, answer.StatusCode)
		}
		return answer.Header
	}
	const allowed, methods, headers, credentials, age = "Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Allow-Credentials", "Access-Control-Max-Age"
	for _, c := range []struct {
		path, origin string
		want         map[string]string
	}{
		{"/some", "https://www.example.com", map[string]string{allowed: "https://www.example.com", methods: "GET, PUT", headers: "x-one, x-two", credentials: "true", age: "60"}},
		{"/some", "https://a.b.example.org", map[string]string{allowed: "https://a.b.example.org"}},
		{"/some", "http://plain.example", map[string]string{allowed: "http://plain.example"}},
		{"/some", "https://example.org", map[string]string{allowed: ""}},
		{"/some", "https://a.example.org.evil.example", map[string]string{allowed: ""}},
		{"/some", "https://evil.example:1.example.org", map[string]string{allowed: ""}},
		{"/some", "https://wwwxexample.com", map[string]string{allowed: ""}},
		{"/all", "https://any.example", map[string]string{allowed: "https://any.example", methods: "PUT", headers: "x-one, x-two", credentials: "", age: "5"}},
		{"/all-with-credentials", "https://any.example", map[string]string{allowed: "https://any.example", methods: "PUT", headers: "x-one, x-two", credentials: "true"}},
	} {
		got := ask(http.MethodOptions, c.path, c.origin)
		for h, want := range c.want {
			if got.Get(h) != want {
				t.Errorf("preflight of %s from %s: %s is %q, want %q", c.path, c.origin, h, got.Get(h), want)
			}
		}
	}
	if seen := app.take(); len(seen) > 0 {
		t.Errorf("preflights reached the application: %q", seen)
	}
	if got := ask(http.MethodGet, "/some", "https://www.example.com"); got.Get(allowed) != "https://www.example.com" || got.Get("Access-Control-Expose-Headers") != "x-three" {
		t.Errorf("a request: %v", got)
	}
	if got := ask(http.MethodGet, "/some", "https://evil.example"); got.Get(allowed) != "" {
		t.Errorf("a request from nobody who may: %v", got)
	}
	if got := ask(http.MethodOptions, "/none", "https://www.example.com"); got.Get(allowed) != "" || len(app.take()) != 3 {
		t.Errorf("without the filter, a preflight is the application's to answer: %v", got)
	}
}
