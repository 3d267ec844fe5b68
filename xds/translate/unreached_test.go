package translate

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// startChain runs a client's sidecar and the sidecars of two servers in one
// Envoy: one server is the application, the other has no port open. It returns
// the client's address for each of both, and for a service of the latter alone.
func startChain(t *testing.T, a *application) (both, closed string) {
	t.Helper()
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	service := &mesh.Service{
		Name: mesh.Name{Namespace: "shop", Name: "web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}},
	}
	v := view(w, service)
	profile := mesh.ProfileOf(w)
	b := &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{}}
	r := b.StaticResources
	serve := func(m *hcm.HttpConnectionManager, routes *route.RouteConfiguration) netip.AddrPort {
		port := uint16(freePort(t))
		m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: routes}
		r.Listeners = append(r.Listeners, &listener.Listener{
			Name: fmt.Sprint(port), Address: socketAddress("127.0.0.1", uint32(port)),
			FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
		})
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	}
	to := func(name string, at ...netip.AddrPort) {
		c := emptyCluster(name)
		c.LbPolicy, c.LoadAssignment = cluster.Cluster_ROUND_ROBIN, assignment(name)
		for _, x := range at {
			c.LoadAssignment.Endpoints[0].LbEndpoints = append(c.LoadAssignment.Endpoints[0].LbEndpoints, lbEndpoint(x, false))
		}
		r.Clusters = append(r.Clusters, c)
	}
	rename := func(rc *route.RouteConfiguration, name string) *route.RouteConfiguration {
		for _, x := range rc.VirtualHosts[0].Routes {
			x.GetRoute().ClusterSpecifier = &route.RouteAction_Cluster{Cluster: name}
		}
		return rc
	}
	server := func(name string, app netip.AddrPort) netip.AddrPort {
		to(name, app)
		return serve(inboundOf(profile, v).manager(true), rename(routesIn(profile, v), name))
	}
	client := func(name string, servers ...netip.AddrPort) string {
		to(name, servers...)
		m := connectionManager("outbound", 0)
		m.HttpFilters = httpFilters()
		routes := outboundRoutes("10.96.0.1:80", "shop", v).Message.(*route.RouteConfiguration)
		return serve(m, rename(routes, name)).String()
	}
	one := server("open", netip.MustParseAddrPort(a.Addr().String()))
	other := server("closed", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), uint16(freePort(t))))
	both, closed = client("both", one, other), client("none", other)
	runEnvoy(t, b, closed)
	return both, closed
}

func TestRequestThatReachedNoApplicationIsTriedOnAnotherHost(t *testing.T) {
	app := startApplication(t)
	both, closed := startChain(t, app)
	send := func(method, at, path string) int {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), method, "http://"+at+path, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		p, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		p.Body.Close()
		if len(p.Header.Values(unreachedHeader)) > 0 {
			t.Errorf("%s %s: the client sees %v", method, path, p.Header)
		}
		return p.StatusCode
	}
	for i := range 10 {
		method := []string{http.MethodGet, http.MethodPost}[i%2]
		if got := send(method, both, "/"); got != 200 {
			t.Errorf("%s is answered with %d, want 200", method, got)
		}
	}
	if n := len(app.take()); n != 10 {
		t.Errorf("10 requests reached the application %d times", n)
	}
	if got := send(http.MethodPost, closed, "/"); got != 503 {
		t.Errorf("where no application is, the answer is %d, want 503", got)
	}
	// What the application itself says is its answer.
	for range 4 {
		if got := send(http.MethodGet, both, "/fail"); got != 503 {
			t.Errorf("the application's own 503 came as %d", got)
		}
	}
	if n := len(app.take()); n != 4 {
		t.Errorf("4 requests that the application failed reached it %d times", n)
	}
}
