package translate

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func trafficOf(kind mesh.Kind, name string, t mesh.Traffic) *mesh.Policy {
	n := mesh.Name{Namespace: "shop", Name: name}
	return &mesh.Policy{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: fmt.Sprint(name, kind)}}, Targets: []mesh.Target{{Kind: kind, Name: n}}, Traffic: &t}
}

// At sidecars and at gateways alike.
func TestPolicyOfARouteGoesBeforeTheServicesAndBehindItsRules(t *testing.T) {
	second, own := 2*time.Second, 3*time.Second
	service := time.Second
	web := &mesh.Service{
		Name: mesh.Name{Namespace: "shop", Name: "web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}},
	}
	to := []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web.Name, Port: 80}, Weight: 1}}
	r := &mesh.Route{
		Meta: mesh.Meta{Name: web.Name}, Of: mesh.KindHTTPRoute,
		Parents: []mesh.Parent{{Kind: mesh.KindService, Name: web.Name}, {Kind: mesh.KindGateway, Name: edgeName()}},
		Rules: []mesh.RouteRule{
			{Name: "own", Matches: []mesh.RequestMatch{{Path: &mesh.StringMatch{Type: mesh.Exact, Value: "/own"}}}, Backends: to, Timeout: &own},
			{Name: "rest", Backends: to},
		},
	}
	v := view(web, r, &mesh.Class{Name: "tulle"}, edgeGateway(80, 81),
		trafficOf(mesh.KindService, "web", mesh.Traffic{Timeout: &service, IdleTimeout: &service, Retries: &mesh.Retries{Attempts: 1}}),
		trafficOf(mesh.KindHTTPRoute, "web", mesh.Traffic{Timeout: &second, Retries: &mesh.Retries{Attempts: 7, On: []string{"5xx"}}}),
		trafficOf(mesh.KindGRPCRoute, "web", mesh.Traffic{Timeout: new(time.Duration)}),
		trafficOf(mesh.KindHTTPRoute, "other", mesh.Traffic{Timeout: new(time.Duration)}),
	)
	for where, c := range map[string]Result{
		"a sidecar": outboundRoutes("10.96.0.1:80", "shop", v),
		"a gateway": gatewayRoutes("gateway|80", edgeName().String(), v),
	} {
		routes := c.Message.(*route.RouteConfiguration).VirtualHosts[0].Routes
		if len(routes) != 2 {
			t.Fatalf("at %s there are %d routes, want 2", where, len(routes))
		}
		for i, want := range []time.Duration{own, second} {
			a := routes[i].GetRoute()
			if a.Timeout.AsDuration() != want || a.IdleTimeout.AsDuration() != service || a.RetryPolicy.NumRetries.Value != 7 {
				t.Errorf("at %s the rule %s has %v, %v and %d retries, want %v, %v and 7", where, routes[i].Name, a.Timeout, a.IdleTimeout, a.RetryPolicy.NumRetries.Value, want, service)
			}
		}
	}
}

func TestFaultOfARouteIsForItsRequestsAlone(t *testing.T) {
	fault := func(status uint32) mesh.Traffic {
		return mesh.Traffic{Fault: &mesh.Fault{HTTPStatus: status, AbortPercent: 100}}
	}
	web := mesh.Name{Namespace: "shop", Name: "web"}
	other := &mesh.Route{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "slow"}}, Of: mesh.KindHTTPRoute,
		Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName(), Section: "open"}}, Hostnames: []string{"slow.example"},
		Rules: []mesh.RouteRule{{Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web, Port: 80}, Weight: 1}}}},
	}
	e := startEdge(t, other, trafficOf(mesh.KindHTTPRoute, "slow", fault(418)))
	e.expect(
		edgeCall{"the route", local, 1, "slow.example", "/", 418},
		edgeCall{"another route to the same Service", local, 1, "www.example", "/ok", 200},
	)
	e = startEdge(t, other, trafficOf(mesh.KindHTTPRoute, "slow", fault(418)), trafficOf(mesh.KindService, "web", fault(419)))
	e.expect(
		edgeCall{"the route, over the Service's own", local, 1, "slow.example", "/", 418},
		edgeCall{"another route, with the Service's", local, 1, "www.example", "/ok", 419},
	)
}
