package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var (
	edge          = mesh.Name{Namespace: "front", Name: "edge"}
	listenerHosts = []string{"", "", "*.example", "shop.example", "*.shop.example"}
	routeHosts    = []string{"shop.example", "*.example", "a.shop.example", "*.shop.example", "other", "127.0.0.1"}
)

// gateway is a random Gateway with routes and policies.
func (g generator) gateway() (*mesh.Snapshot, []mesh.Entity) {
	all := mesh.RouteNamespaces{All: true}
	gw := &mesh.Gateway{Meta: mesh.Meta{Name: edge}, Class: "tulle"}
	for i := range 1 + g.IntN(4) {
		gw.Listeners = append(gw.Listeners, mesh.Listener{
			Name: fmt.Sprint("l", i), Protocol: mesh.ListenerHTTP, Namespaces: all,
			Port: pick(g, []uint16{portOpen, portOpen, portOther}), Hostname: pick(g, listenerHosts),
		})
	}
	entities := []mesh.Entity{&mesh.Class{Name: "tulle"}, gw}
	for i := range 1 + g.IntN(3) {
		r := g.routes()
		r.Meta.Name.Name = fmt.Sprint("r", i)
		r.Parents = []mesh.Parent{{Kind: mesh.KindGateway, Name: edge, Section: pick(g, []string{"", "", "", "l0"}), Port: pick(g, []uint16{0, 0, 0, portOpen})}}
		r.Hostnames = some(g, 40, routeHosts)
		if g.chance(60) {
			r.Rules[0].Matches = nil
		}
		entities = append(entities, r)
	}
	for i := range g.IntN(3) {
		p := &mesh.Policy{
			Meta:    mesh.Meta{Name: mesh.Name{Namespace: edge.Namespace, Name: string(rune('a' + i))}, Created: time.Unix(int64(g.IntN(3)), 0)},
			Targets: []mesh.Target{{Kind: mesh.KindGateway, Name: edge, Section: pick(g, []string{"", "l0", "l1"})}},
		}
		if g.chance(85) {
			p.Authorization = &mesh.Authorization{DefaultDeny: g.chance(10)}
			for range 1 + g.IntN(2) {
				p.Authorization.Rules = append(p.Authorization.Rules, g.rule())
			}
		}
		if g.chance(30) {
			p.JWT = g.jwt()
		}
		if g.chance(2) {
			p.Invalid = "it makes no sense"
		}
		entities = append(entities, p)
	}
	changes := []mesh.Change{}
	for _, e := range append(entities, service("cart", 1, "10.96.0.1", "cart-1")...) {
		changes = append(changes, mesh.Put(e))
	}
	s, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system", TrustedHops: uint32(g.IntN(4))}).Apply(changes...)
	return s, entities
}

// gatewayListener is that of the random Gateway, at the i-th address.
func (l *lab) gatewayListener(i int, v *mesh.View, ports ...uint16) *listener.Listener {
	l.t.Helper()
	return l.settled(built[*listener.Listener](v, translate.Listener, translate.ListenerGateway, edge.String()), fmt.Sprint("edge-", i), translate.SecretWorkload,
		func(name string) *route.RouteConfiguration {
			return built[*route.RouteConfiguration](v, translate.Route, name, edge.String())
		}, socketAddresses([]string{l.host(i)}, ports)...)
}

// What a gateway lets in, and by which rule of which route it sends it on, is what Envoy
// does.
func TestGatewaysDecideAsEnvoyTakesThem(t *testing.T) {
	const gateways, requests, each = 100, 60, 25
	first := firstSeed(t, t.Name())
	l := newLab(t)
	l.clusters = []*cluster.Cluster{static("h1|shop/cart|80", l.app)}
	count := map[string]int{}
	for from := 0; from < gateways && !t.Failed(); from += each {
		var listeners []*listener.Listener
		var views []*mesh.View
		var gs []generator
		var made [][]mesh.Entity
		for i := range each {
			g := newGenerator(first + uint64(from+i))
			g.tokens = i%3 == 0
			s, entities := g.gateway()
			gs, views, made = append(gs, g), append(views, mesh.NewView(s)), append(made, entities)
			listeners = append(listeners, l.gatewayListener(i, views[i], portOpen, portOther))
		}
		stop := l.run(listeners)
		for i, g := range gs {
			kept := connections{}
			gw, _ := translate.GatewayOf(edge, views[i])
			for range requests {
				r := Request{Peer: netip.MustParseAddr(pick(g, peers[:3])), Port: gw.Listeners[g.IntN(len(gw.Listeners))].Port, HTTP: g.http()}
				if g.chance(50) {
					r.HTTP.Path = pick(g, routePaths)
				}
				if g.chance(50) {
					r.HTTP.Host = pick(g, []string{"shop.example", "a.shop.example", "b.example:80", "other"})
				}
				want := "closed"
				at, err := arrive(views[i], gw, r.Port, false, r.Peer, r.HTTP)
				var tokens translate.Tokens
				if err == nil {
					entry, _ := translate.EntryOf(gw, r.Port, hostOf(r.HTTP.Host), false, views[i])
					tokens = entry.Tokens
					want = expected(at)
				}
				_, answer := l.try(i, carrying(t, r, tokens), "", kept)
				got := heard(answer)
				if want == "denied" && (strings.HasPrefix(got, "401") || strings.HasPrefix(got, "403")) {
					got = "denied"
				}
				if len(want) == 3 {
					got, _, _ = strings.Cut(got, " ")
				}
				if got != want {
					t.Errorf("seed %d: the request %s from %s at port %d\nis %s: %s\nand by Envoy %s\n(%q)\nof %s", first+uint64(from+i), text(r.HTTP), r.Peer, r.Port, want, at.Reason, got, answer, text(made[i]))
					break
				}
				count[want[:3]]++
			}
			kept.close()
		}
		stop()
	}
	t.Log(count)
	for _, what := range []string{"200", "302", "404", "401", "403"} {
		if count[what] < 20 {
			t.Errorf("%d requests are answered with %s: the test shows little", count[what], what)
		}
	}
}

// expected is the answer to what arrives, where the authorizer says what its name does.
func expected(at arrived) string {
	switch {
	case at.Answer != "":
		return at.Answer[:3]
	case at.Status != 0:
		return fmt.Sprint(at.Status)
	case at.Verdict == Denied, at.Verdict == Depends && (len(at.Authorizers) != 1 || at.Authorizers[0] != "yes"):
		return "denied"
	}
	return routedBy(at.rules, at.http)
}
