package explain

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var (
	passageNames = []string{"", "shop.example", "a.shop.example", "b.a.shop.example", "x.example", "SHOP.Example", "other", "example"}
	certificate  = mesh.Name{Namespace: "front", Name: "tls"}
)

// passages is a random Gateway that passes connections on.
func (g generator) passages() *mesh.View {
	gw := &mesh.Gateway{Meta: mesh.Meta{Name: edge}, Class: "tulle"}
	for i := range 1 + g.IntN(5) {
		l := mesh.Listener{
			Name: fmt.Sprint("l", i), Port: pick(g, []uint16{portOpen, portOpen, portTCP, portOther}), Namespaces: mesh.RouteNamespaces{All: true},
			Protocol: pick(g, []mesh.ListenerProtocol{mesh.ListenerTLS, mesh.ListenerTLS, mesh.ListenerTLS, mesh.ListenerHTTPS, mesh.ListenerTCP}),
		}
		l.Passthrough = l.Protocol == mesh.ListenerTLS && g.chance(60)
		if l.Encrypted() {
			l.Hostname = pick(g, listenerHosts)
		}
		if l.Terminates() {
			l.Certificates = []mesh.Backend{{Kind: "Secret", Name: pick(g, []mesh.Name{certificate, certificate, certificate, {Namespace: "front", Name: "gone"}})}}
		}
		gw.Listeners = append(gw.Listeners, l)
	}
	proxy := pod("front", "edge-0", "10.244.0.7", false, nil)
	proxy.Gateway = edge.Name
	out := &mesh.External{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "out"}}, Hosts: []string{"api.outside.test"}, Resolution: mesh.ResolveDNS,
		Ports: []mesh.ExternalPort{{Number: 443, Protocol: mesh.TLS}},
	}
	if g.chance(30) {
		out.Callers = []mesh.Caller{{Namespaces: []string{pick(g, namespaces)}}}
	}
	entities := []mesh.Entity{&mesh.Class{Name: "tulle"}, &mesh.Certificate{Name: certificate, Chain: []byte("c"), Key: []byte("k")}, gw, proxy, out}
	backend := func() mesh.RouteBackend {
		b := mesh.Backend{Kind: mesh.BackendService, Name: mesh.Name{Namespace: "shop", Name: pick(g, []string{"cart", "cart", "cart-next", "gone"})}, Port: 80}
		if g.chance(15) {
			b = mesh.Backend{Kind: mesh.BackendExternal, Name: out.Meta.Name, Port: 443}
		}
		return mesh.RouteBackend{Backend: b, Weight: pick(g, []uint32{0, 1, 1, 3})}
	}
	for i := range 1 + g.IntN(5) {
		r := &mesh.Route{
			Of: pick(g, []mesh.Kind{mesh.KindTLSRoute, mesh.KindTLSRoute, mesh.KindTCPRoute}), Hostnames: some(g, 70, routeHosts[:5]),
			Meta:    mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: fmt.Sprint("r", i)}, Created: time.Unix(int64(g.IntN(3)), 0)},
			Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edge, Section: pick(g, []string{"", "", "", "l0"})}},
			Rules:   []mesh.RouteRule{{Backends: []mesh.RouteBackend{backend()}}},
		}
		if r.Of == mesh.KindTCPRoute {
			r.Hostnames = nil
		}
		for g.chance(30) {
			r.Rules[0].Backends = append(r.Rules[0].Backends, backend())
		}
		entities = append(entities, r)
	}
	for i := range g.IntN(2) * g.IntN(3) {
		p := &mesh.Policy{
			Meta:          mesh.Meta{Name: mesh.Name{Namespace: edge.Namespace, Name: string(rune('a' + i))}},
			Targets:       []mesh.Target{{Kind: mesh.KindGateway, Name: edge, Section: pick(g, []string{"", "l0", "l1"})}},
			Authorization: &mesh.Authorization{DefaultDeny: g.chance(10)},
		}
		for range 1 + g.IntN(2) {
			p.Authorization.Rules = append(p.Authorization.Rules, g.rule())
		}
		entities = append(entities, p)
	}
	return shop(entities...)
}

// proxied are the names of the clusters that the listener's connections may go to.
func (l *lab) proxied(of *listener.Listener) (out []string) {
	for _, c := range of.FilterChains {
		for _, f := range c.Filters {
			p := &tcpproxy.TcpProxy{}
			if !f.GetTypedConfig().MessageIs(p) {
				continue
			}
			l.unmarshal(f.GetTypedConfig(), p)
			out = append(out, p.GetCluster())
			for _, w := range p.GetWeightedClusters().GetClusters() {
				out = append(out, w.Name)
			}
		}
	}
	return slices.DeleteFunc(out, func(name string) bool { return name == "" || name == translate.ClusterBlackhole })
}

// connectTo sends first bytes, in TLS where there is a name or it is to be empty, and returns
// the name of the server that answers; empty: nobody does.
func (l *lab) connectTo(to string, r Request, secure bool) string {
	if !secure {
		c, err := l.connect(to, Request{Peer: r.Peer}, "")
		if err != nil {
			l.t.Fatal(err)
		}
		defer c.Close()
		_, name, _ := c.ask(l, Request{})
		return serverIn(name)
	}
	c, err := l.connect(to, Request{Peer: r.Peer}, "")
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(l.hellos[r.SNI]); err != nil {
		return ""
	}
	first, err := c.in.Peek(1)
	if err != nil {
		return ""
	}
	if first[0] == 'T' { // TLS was passed through
		line, _ := c.in.ReadString('\n')
		return serverIn(strings.Trim(line, "T\n"))
	}
	d, err := l.connect(to, Request{Peer: r.Peer}, "")
	if err != nil {
		l.t.Fatal(err)
	}
	defer d.Close()
	secured := tls.Client(d.Conn, &tls.Config{ServerName: r.SNI, InsecureSkipVerify: true})
	if _, err := io.WriteString(secured, "\x00\x01 neither HTTP nor TLS\r\n"); err != nil {
		return ""
	}
	answer, _ := bufio.NewReader(secured).ReadString('\n')
	if name, ok := strings.CutPrefix(answer, "TTTTT"); ok {
		return serverIn(strings.TrimSpace(name))
	}
	return ""
}

func serverIn(answer string) string {
	if !strings.Contains(answer, "|") {
		return ""
	}
	return answer
}

// Where a Gateway passes connections on, by which of the TLSRoutes and TCPRoutes, and whether
// its policies let them in, is what Envoy does with them.
func TestGatewaysPassConnectionsOnAsEnvoyTakesThem(t *testing.T) {
	const gateways, requests, each = 100, 40, 25
	first := firstSeed(t, t.Name())
	l := newLab(t)
	for _, name := range passageNames {
		l.hellos[name] = hello(t, name)
	}
	l.secrets = append(l.secrets, l.certificate(translate.PrefixCertificate+certificate.String(), l.identity("https://shop.example")))
	served := map[string]bool{}
	count := map[string]int{}
	for from := 0; from < gateways && !t.Failed(); from += each {
		var listeners []*listener.Listener
		var views []*mesh.View
		var gs []generator
		for i := range each {
			g := newGenerator(first + uint64(from+i))
			v := g.passages()
			gs, views = append(gs, g), append(views, v)
			listeners = append(listeners, l.gatewayListener(i, v, portOpen, portTCP, portOther))
			for _, name := range l.proxied(listeners[i]) {
				if !served[name] {
					served[name] = true
					l.clusters = append(l.clusters, static(name, l.serveAs("200 OK", name, nil)))
				}
			}
		}
		stop := l.run(listeners)
		for i, g := range gs {
			for range requests {
				q := Question{Pod: "front/edge-0", Scheme: schemeTLS, Host: pick(g, passageNames), Port: edgeIn(views[i]).Listeners[g.IntN(len(edgeIn(views[i]).Listeners))].Port, Address: pick(g, peers[:3])}
				if g.chance(25) {
					q.Scheme = schemeTCP
				}
				want, why := passing(views[i], q)
				got := l.connectTo(fmt.Sprintf("%s:%d", l.host(i), q.Port), Request{Peer: netip.MustParseAddr(q.Address), SNI: q.Host}, q.Scheme == schemeTLS)
				if !slices.ContainsFunc(want, func(w string) bool {
					return w == got || w != "" && strings.HasSuffix(w, "|") && strings.HasPrefix(got, w)
				}) {
					gw, _ := translate.GatewayOf(edge, views[i])
					t.Errorf("seed %d: the connection %s\ngoes to one of %q: %s\nand by Envoy to %q\nof %s", first+uint64(from+i), text(q), want, why, got, text(gw))
					break
				}
				count[strings.SplitN(got+"|", "|", 2)[0]]++
			}
		}
		stop()
	}
	t.Log(count)
	for _, what := range []string{"", "raw", "dec", "out"} {
		if count[what] < 5 {
			t.Errorf("%d connections go to %q: the test shows little", count[what], what)
		}
	}
}

// passing are the clusters that a connection may go to; one of an external service ends
// before its id, and an empty one is where nobody is.
func passing(v *mesh.View, q Question) (out []string, why string) {
	a, err := Explain(v, q)
	if err != nil {
		return []string{""}, err.Error()
	}
	p, _ := translate.PassageOf(edgeIn(v), q.Port, q.Scheme == schemeTLS, strings.ToLower(q.Host), v)
	prefix := "raw|"
	if p.Decoded {
		prefix = "dec|"
	}
	for _, b := range a.Backends {
		switch o := b.Outside; {
		case b.Service == "", o != nil && o.Verdict == Denied:
			out = append(out, "")
		case o != nil:
			out = append(out, fmt.Sprintf("out|%s|%d|", b.Service, b.Port))
		default:
			out = append(out, fmt.Sprintf("%s%s|%d", prefix, b.Service, b.Port))
		}
	}
	if len(out) == 0 {
		out = []string{""}
	}
	return out, a.Entrance.Reason
}

func edgeIn(v *mesh.View) *mesh.Gateway {
	g, _ := translate.GatewayOf(edge, v)
	return g
}
