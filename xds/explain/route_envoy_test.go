package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var (
	routePaths   = []string{"/", "/a", "/a/", "/a/b", "/admin", "/users", "/files", "/shop.Cart", "/shop.Cart/Add", "/x.png", "/A"}
	routeRegexes = []string{"/a.*", "/[a-z]+", "/users/[0-9]+/orders", ".*png"}
	routeValues  = []string{"1", "a", "", "1,2", "a b"}
	routeQueries = []string{"", "?q=1", "?q=a", "?q", "?q=", "?p=1&q=a", "?q=1&q=a", "?Q=1", "?q=a%20b", "?q=a+b", "?q=%31", "?x=?q=1", "?q=1#", "?;q=1"}
)

func (g generator) routeMatch() mesh.RequestMatch {
	var m mesh.RequestMatch
	switch g.IntN(4) {
	case 0:
		m.Path = &mesh.StringMatch{Type: mesh.Exact, Value: pick(g, routePaths)}
	case 1:
		m.Path = &mesh.StringMatch{Type: mesh.Regex, Value: pick(g, routeRegexes)}
	case 2:
		m.Path = &mesh.StringMatch{Type: mesh.Prefix, Value: pick(g, routePaths)}
	}
	value := func(name string) []mesh.HeaderMatch {
		if !g.chance(30) {
			return nil
		}
		if g.chance(30) {
			return []mesh.HeaderMatch{{Name: name, Type: mesh.Regex, Value: "[0-9]+"}}
		}
		return []mesh.HeaderMatch{{Name: name, Value: pick(g, routeValues)}}
	}
	m.Headers, m.Query = value("x-beta"), value("q")
	if g.chance(20) {
		m.Method = pick(g, methods)
	}
	return m
}

func (g generator) changes() *mesh.HeaderChanges {
	if !g.chance(30) {
		return nil
	}
	one := []mesh.Header{{Name: "x-beta", Value: pick(g, []string{"9", "8%"})}}
	return pick(g, []*mesh.HeaderChanges{{Set: one}, {Add: one}, {Remove: []string{"x-beta"}}, {Remove: []string{"x-beta"}, Add: one}})
}

func (g generator) routes() *mesh.Route {
	cart := mesh.Name{Namespace: "shop", Name: "cart"}
	r := &mesh.Route{
		Of: mesh.KindHTTPRoute, Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "r"}},
		Parents: []mesh.Parent{{Kind: mesh.KindService, Name: cart}},
	}
	for range 1 + g.IntN(4) {
		rule := mesh.RouteRule{
			Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: cart, Port: 80}, Weight: 1, Request: g.changes()}},
			Filters:  mesh.RouteFilters{Request: g.changes()},
		}
		for range 1 + g.IntN(2) {
			rule.Matches = append(rule.Matches, g.routeMatch())
		}
		if g.chance(40) {
			rule.Filters.Rewrite = &mesh.Rewrite{Host: pick(g, []string{"", "other.example"})}
			rule.Filters.Rewrite.Path = pick(g, []*mesh.PathChange{nil, {Value: "/new"}, {Value: `/n\1`}, {Prefix: true, Value: "/new"}, {Prefix: true, Value: "/new/"}, {Prefix: true, Value: "/"}})
		}
		if g.chance(10) {
			rule.Filters = mesh.RouteFilters{Redirect: &mesh.Redirect{Status: 302, Host: "x.example"}}
		}
		r.Rules = append(r.Rules, rule)
	}
	return r
}

// outboundListener takes what is sent to the Service's routes.
func (l *lab) outboundListener(i int, v *mesh.View) *listener.Listener {
	manager := &hcm.HttpConnectionManager{
		StatPrefix: "outbound", RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: "10.96.0.1:80"}},
		HttpFilters: []*hcm.HttpFilter{{Name: "router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: any1(l.t, &router.Router{})}}},
	}
	filters := []*listener.Filter{{Name: "http", ConfigType: &listener.Filter_TypedConfig{TypedConfig: any1(l.t, manager)}}}
	return l.settled(&listener.Listener{FilterChains: []*listener.FilterChain{{Filters: filters}}}, fmt.Sprint("routes-", i), "",
		func(name string) *route.RouteConfiguration {
			return built[*route.RouteConfiguration](v, translate.Route, name, "front")
		}, socketAddress(l.host(i), portOther))
}

// Which rule of which route takes a request, and what it makes of it, is what Envoy
// does with the routes.
func TestRoutesAreTakenAsEnvoyTakesThem(t *testing.T) {
	const meshes, requests = 60, 60
	first := firstSeed(t, t.Name())
	l := newLab(t)
	l.clusters = []*cluster.Cluster{static("svc|shop/cart|80", l.app)}
	var listeners []*listener.Listener
	var views []*mesh.View
	var gs []generator
	for i := range meshes {
		g := newGenerator(first + uint64(i))
		v := shop(g.routes())
		gs, views, listeners = append(gs, g), append(views, v), append(listeners, l.outboundListener(i, v))
	}
	defer l.run(listeners)()
	count := map[string]int{}
	for i, g := range gs {
		kept := connections{}
		svc, _ := views[i].Service(mesh.Name{Namespace: "shop", Name: "cart"})
		rules := translate.Calls(svc, svc.Ports[0], "front", true, views[i])
		for range requests {
			path, _, _ := strings.Cut(pick(g, append(sentPaths, routePaths...)), "?")
			r := Request{Peer: netip.MustParseAddr("127.0.0.1"), Port: portOther, HTTP: &HTTP{Method: pick(g, sentMethods), Path: path + pick(g, routeQueries), Host: "cart.shop"}}
			if strings.Contains(r.HTTP.Path, "#") {
				continue
			}
			for range g.IntN(3) {
				r.HTTP.Headers = append(r.HTTP.Headers, mesh.Header{Name: pick(g, []string{"x-beta", "X-Beta", "x-alpha"}), Value: pick(g, routeValues)})
			}
			want := routedBy(rules, r.HTTP)
			_, answer := l.try(i, r, "", kept)
			if got := heard(answer); got != want {
				t.Fatalf("seed %d: %s\nis %s\nand by Envoy %s\n(%q)\nby the rules %s", first+uint64(i), text(r.HTTP), want, got, answer, text(rules))
			}
			count[want[:3]]++
		}
		kept.close()
	}
	t.Log(count)
	if count["200"] < meshes*requests/6 || count["404"] == 0 || count["302"] == 0 {
		t.Errorf("what becomes of the requests is all alike: %v", count)
	}
}

// routedBy is the answer to a request, in one line, by the rules.
func routedBy(rules []translate.Rule, r *HTTP) string {
	rule := chosen(rules, r)
	to, _, as := taken(rule, r)
	switch {
	case rule.Name == "":
		return "404"
	case to.Answer != "":
		return to.Answer[:3] + " x-route: " + rule.Name
	}
	out := as(0)
	return fmt.Sprintf("200 %s %s host %s x-beta %q x-route: %s", out.Method, out.Path, out.Host, strings.Join(out.values("x-beta"), ","), rule.Name)
}

// heard is an answer in one line.
func heard(answer string) string {
	fields := strings.Fields(answer)
	if len(fields) < 2 {
		return answer
	}
	out, name := fields[1], ""
	for line := range strings.SplitSeq(answer, "\n") {
		if seen, ok := strings.CutPrefix(line, "x-seen: "); ok {
			parts := strings.Split(seen, "\t")
			host, beta := "", []string{}
			for _, p := range parts[1:] {
				key, value, _ := strings.Cut(p, ":")
				switch value = strings.Trim(value, " "); key {
				case "host":
					host = value
				case "x-beta":
					beta = append(beta, value)
				}
			}
			out += fmt.Sprintf(" %s host %s x-beta %q", strings.TrimSuffix(parts[0], " HTTP/1.1"), host, strings.Join(beta, ","))
		} else if strings.HasPrefix(line, "x-route: ") {
			name = " " + line
		}
	}
	return out + name
}
