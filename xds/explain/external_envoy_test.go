package explain

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var (
	outer       = mesh.Name{Namespace: "egress", Name: "exit"}
	outerHosts  = []string{"api.outside.test", "db.outside.test", "x.outside.test"}
	calledHosts = []string{"api.outside.test", "db.outside.test", "API.outside.test", "x.outside.test", "a.b.outside.test", "-bad-.outside.test", "y.test", "outside.test", "other.example"}
	outerPorts  = []uint16{portOpen, portHTTP, portTCP, portOther}
	web         = mesh.Name{Namespace: "shop", Name: "web"}
)

// portExit is the egress listener's at the gateway.
const portExit = 21100

// outside is a random ExternalService, of those that admission takes.
func (g generator) outside(i int, addresses []netip.Prefix, ca []byte) *mesh.External {
	e := &mesh.External{
		Meta:       mesh.Meta{Name: mesh.Name{Namespace: pick(g, []string{"shop", "shop", "tulle-system"}), Name: fmt.Sprint("e", i)}, Created: time.Unix(int64(g.IntN(3)), 0)},
		Resolution: pick(g, []mesh.Resolution{mesh.ResolveNone, mesh.ResolveStatic, mesh.ResolveDNS}),
		Hosts:      []string{pick(g, outerHosts)},
	}
	if g.chance(40) {
		e.Addresses = []netip.Prefix{pick(g, addresses)}
	}
	ranges := len(e.Addresses) > 0 && !e.Addresses[0].IsSingleIP()
	if ranges || g.chance(60) && e.Resolution == mesh.ResolveNone {
		e.Resolution = mesh.ResolveNone
		e.Hosts = []string{pick(g, []string{"*.outside.test", "*.test", "*.b.outside.test"})}
	}
	switch {
	case e.Resolution == mesh.ResolveStatic:
		e.Endpoints = []mesh.ExternalEndpoint{{Address: "203.0.113.5"}, {Address: "203.0.113.6", Ports: map[string]uint16{"a": 9000}}}[:1+g.IntN(2)]
	case e.Resolution == mesh.ResolveDNS && g.chance(40):
		e.Endpoints = []mesh.ExternalEndpoint{{Address: "servers.test"}}
	}
	for _, n := range g.Perm(len(outerPorts))[:1+g.IntN(2)] {
		p := mesh.ExternalPort{Name: pick(g, []string{"", "a"}), Number: outerPorts[n], Protocol: pick(g, []mesh.Protocol{mesh.HTTP, mesh.HTTP, mesh.TLS, mesh.TCP}), Target: pick(g, []uint16{0, 0, 9443})}
		if p.Protocol == mesh.TCP && len(e.Addresses) == 0 {
			p.Protocol = mesh.TLS
		}
		e.Ports = append(e.Ports, p)
	}
	if e.Resolution != mesh.ResolveNone && g.chance(60) && !slices.ContainsFunc(e.Ports, func(p mesh.ExternalPort) bool { return p.Protocol == mesh.TLS }) {
		e.TLS = &mesh.Origination{SNI: pick(g, []string{"", "sni.test"}), CA: string(ca)}
	}
	if g.chance(40) {
		e.Callers = []mesh.Caller{pick(g, []mesh.Caller{{Namespaces: []string{"shop"}}, {ServiceAccounts: []mesh.Name{web}}, {ServiceAccounts: []mesh.Name{{Namespace: "shop", Name: "api"}}}, {Namespaces: []string{"front"}}})}
	}
	if g.chance(50) && (e.Resolution != mesh.ResolveNone || len(e.Addresses) == 0) {
		e.Gateway = &mesh.Name{Namespace: outer.Namespace, Name: pick(g, []string{outer.Name, outer.Name, outer.Name, outer.Name, "gone"})}
	}
	if g.chance(3) {
		e.Invalid = "it makes no sense"
	}
	return e
}

// world is a random mesh whose workload calls what is outside of the cluster.
func (g generator) world(addresses []netip.Prefix, ca []byte) (*mesh.View, []*mesh.External) {
	grant := func(namespace string) mesh.Entity {
		return &mesh.Grant{
			Name: mesh.Name{Namespace: outer.Namespace, Name: namespace}, From: []mesh.GrantFrom{{Group: "mesh.tulle.dev", Kind: "ExternalService", Namespace: namespace}},
			To: []mesh.GrantTo{{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: outer.Name}},
		}
	}
	es := []mesh.Entity{
		&mesh.Class{Name: "tulle"}, grant("shop"), pod("shop", "web-0", "10.244.0.9", true, nil),
		&mesh.Gateway{Meta: mesh.Meta{Name: outer}, Class: "tulle", Listeners: []mesh.Listener{{Name: "out", Port: portExit, Protocol: mesh.ListenerEgress}}},
		&mesh.Service{Name: mesh.Name{Namespace: "auth", Name: "yes"}, Ports: []mesh.ServicePort{{Port: 80}}},
		&mesh.Service{Name: mesh.Name{Namespace: "auth", Name: "no"}, Ports: []mesh.ServicePort{{Port: 80}}},
	}
	if g.chance(80) {
		es = append(es, grant("tulle-system"))
	}
	var all []*mesh.External
	for i := range 3 + g.IntN(6) {
		all = append(all, g.outside(i, addresses, ca))
		es = append(es, all[i])
	}
	for i := range g.IntN(3) {
		p := &mesh.Policy{
			Meta:          mesh.Meta{Name: mesh.Name{Namespace: outer.Namespace, Name: string(rune('a' + i))}},
			Targets:       []mesh.Target{{Kind: mesh.KindGateway, Name: outer, Section: pick(g, []string{"", "out", "another"})}},
			Authorization: &mesh.Authorization{Rules: []mesh.Rule{g.rule()}},
		}
		es = append(es, p)
	}
	config := &mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system", Egress: pick(g, []mesh.EgressMode{mesh.AllowAny, mesh.RegistryOnly}), TrustedHops: uint32(g.IntN(3)), Authorizers: authorizers()}
	var changes []mesh.Change
	for _, e := range es {
		changes = append(changes, mesh.Put(e))
	}
	s, _ := mesh.New(config).Apply(changes...)
	return mesh.NewView(s), all
}

// servers are who stands for what is outside, by name.
type servers struct {
	*lab
	secure *tls.Config
	at     map[string]net.Addr
}

func (s servers) named(name string, secure bool) net.Addr {
	key := fmt.Sprint(name, secure)
	if s.at[key] == nil {
		var config *tls.Config
		if secure {
			config = s.secure
		}
		s.at[key] = s.serveAs("200 OK", name, config)
	}
	return s.at[key]
}

// redirect has a cluster lead to a server that answers with where the cluster would lead; one
// that leads to the gateway to the one at the address. It returns the name of the gateway's
// own cluster then.
func (s servers) redirect(c *cluster.Cluster, gateway net.Addr) (out string) {
	var names []string
	for _, l := range c.GetLoadAssignment().GetEndpoints() {
		for _, e := range l.LbEndpoints {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			names = append(names, fmt.Sprintf("%s:%d", a.GetAddress(), a.GetPortValue()))
		}
	}
	var to net.Addr
	switch {
	case c.GetType() == cluster.Cluster_ORIGINAL_DST && c.GetClusterType() == nil:
		to = s.named("sent", false)
	case c.GetType() == cluster.Cluster_EDS && c.GetEdsClusterConfig() != nil:
		s.settleTLS(c.TransportSocket, translate.SecretWorkload)
		client := &envoytls.UpstreamTlsContext{}
		s.unmarshal(c.TransportSocket.GetTypedConfig(), client)
		to, out = gateway, "out|"+strings.TrimPrefix(c.AltStatName, "ext|")+"|"+client.Sni
	case len(names) > 0:
		to = s.named(strings.Join(names, ","), c.TransportSocket != nil)
	default:
		return "" // where nobody is
	}
	is := static(c.Name, to)
	c.ClusterDiscoveryType, c.LoadAssignment, c.EdsClusterConfig, c.LbPolicy, c.LbConfig = is.ClusterDiscoveryType, is.LoadAssignment, nil, cluster.Cluster_ROUND_ROBIN, nil
	return out
}

// What leaves the cluster, by whom it is let out and where it goes, is what Envoy does as the
// sidecar and as the egress gateway.
func TestCallsLeaveTheClusterAsEnvoyTakesThem(t *testing.T) {
	const worlds, calls = 60, 80
	first := firstSeed(t, t.Name())
	l := newLab(t)
	key, c := l.sign(&x509.Certificate{DNSNames: append([]string{"sni.test", "servers.test"}, outerHosts...)}, l.key)
	s := servers{l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{c.Raw}, PrivateKey: key}}, NextProtos: []string{"http/1.1"}}, map[string]net.Addr{}}
	l.secrets = append(l.secrets, l.certificate("gateway", l.identity("spiffe://cluster.local/ns/egress/sa/exit-tulle")))
	for _, name := range calledHosts {
		l.hellos[name] = hello(t, name)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.ca.Raw})
	destinations := []string{l.host(0), l.host(1)}
	addresses := []netip.Prefix{netip.MustParsePrefix(l.host(0) + "/32"), netip.MustParsePrefix(l.host(1) + "/32"), netip.MustParsePrefix("127.0.0.0/8")}
	count := map[string]int{}
	for i := uint64(0); i < worlds && !t.Failed(); i++ {
		g := newGenerator(first + i)
		v, all := g.world(addresses, ca)
		stop := s.leave(v, all, destinations)
		leaves := translate.LeavingOf(web, v)
		kept := connections{}
		for range calls {
			at := pick(g, destinations)
			r := Request{Peer: netip.MustParseAddr("127.0.0.1"), Port: pick(g, outerPorts)}
			host, form := pick(g, calledHosts), pick(g, []mesh.Protocol{mesh.HTTP, mesh.HTTP, mesh.HTTP, mesh.TLS, mesh.TCP})
			if e := pick(g, all); g.chance(60) {
				p := pick(g, e.Ports)
				r.Port, form = p.Number, p.Protocol
				if host = e.Hosts[0]; strings.HasPrefix(host, "*") {
					host = pick(g, calledHosts[4:])
				}
			}
			switch form {
			case mesh.HTTP:
				r.HTTP = g.http()
				r.HTTP.Claims, r.HTTP.Host = nil, host+pick(g, []string{"", "", ":80", fmt.Sprint(":", r.Port)})
				if strings.Contains(r.HTTP.Path, "#") {
					continue
				}
			case mesh.TLS:
				r.SNI = host
			}
			b := leaving{at: netip.MustParseAddr(at), port: r.Port, http: r.HTTP, sni: r.SNI}.backend(v, leaves, web, Request{Peer: r.Peer, Identity: "spiffe://cluster.local/ns/shop/sa/web", HTTP: r.HTTP, SNI: r.SNI})
			want := led(b.Outside)
			_, answer := l.tryAt(net.JoinHostPort(at, fmt.Sprint(r.Port)), r, kept)
			got := heardOutside(r, answer)
			if got != want && !(want == "denied" && (got == "closed" || got >= "400" && got < "500")) {
				t.Errorf("seed %d: the call %s of %s\nis %s: %s\nand by Envoy %s (%q)\nof %s, %s", first+i, text(r), at, want, text(b), got, answer, text(all), text(v.Config()))
				break
			}
			count["sidecar "+string(b.Outside.Verdict)]++
			if x := b.Outside.Exit; x != nil {
				count["gateway "+string(x.Verdict)]++
			}
			if strings.Contains(got, " by ") {
				count["TLS"]++
			}
			if len(got) == 3 {
				count[got]++
			}
			if got == "sent" || got == "names" {
				count[got]++
			}
		}
		kept.close()
		stop()
	}
	t.Log(count)
	for _, what := range []string{"sidecar Allowed", "sidecar Denied", "gateway Allowed", "gateway Denied", "TLS", "sent", "names", "403", "502", "503"} {
		if count[what] < 3 {
			t.Errorf("%d calls are %q: the test shows little", count[what], what)
		}
	}
}

// leave runs an Envoy that is the workload's sidecar and the gateway.
func (s servers) leave(v *mesh.View, all []*mesh.External, destinations []string) (stop func()) {
	gateway := &net.TCPAddr{IP: net.ParseIP(s.host(2)), Port: portExit}
	s.clusters = []*cluster.Cluster{
		static(translate.ClusterPassthrough, s.named("sent", false)), static(translate.ClusterPassthroughHTTP, s.named("sent", false)), static(translate.ClusterExternalNames, s.named("names", false)),
	}
	known := map[string]bool{}
	add := func(name, class string) string {
		if known[name] {
			return ""
		}
		known[name] = true
		c := built[*cluster.Cluster](v, translate.Cluster, name, class)
		out := s.redirect(c, gateway)
		s.clusters = append(s.clusters, c)
		return out
	}
	for _, e := range all {
		for _, p := range e.Ports {
			for _, host := range append(slices.Clone(e.Hosts), destinations...) {
				if out := add(fmt.Sprintf("ext|%s:%d", host, p.Number), "shop"); out != "" {
					add(out, outer.String())
				}
			}
		}
	}
	egress := s.settled(built[*listener.Listener](v, translate.Listener, translate.ListenerEgress, translate.ForEgress("shop", "web")), "egress", translate.SecretWorkload,
		func(name string) *route.RouteConfiguration {
			return built[*route.RouteConfiguration](v, translate.Route, name, translate.ForEgress("shop", "web"))
		}, socketAddresses(destinations, outerPorts)...)
	exit := s.settled(built[*listener.Listener](v, translate.Listener, translate.ListenerGateway, outer.String()), "exit", "gateway",
		func(name string) *route.RouteConfiguration {
			return built[*route.RouteConfiguration](v, translate.Route, name, outer.String())
		}, socketAddress(s.host(2), portExit))
	return s.run([]*listener.Listener{egress, exit})
}

// led is where a call gets.
func led(o *Outside) string {
	for _, d := range []*Decision{&o.Decision, exitOf(o)} {
		switch {
		case d == nil:
		case d.Verdict == Denied && d.Status != 0 && d == &o.Decision:
			return fmt.Sprint(d.Status)
		case d.Verdict == Denied && d == &o.Decision:
			return "closed"
		case d.Verdict == Denied, d.Verdict == Depends && (len(d.Authorizers) != 1 || d.Authorizers[0] != "yes"):
			return "denied"
		}
	}
	switch {
	case o.Leads == asSent:
		return "sent"
	case o.Leads != "":
		return "names"
	case o.TLS != nil:
		return strings.Join(o.Servers, ",") + " by " + o.TLS.ServerName
	}
	return strings.Join(o.Servers, ",")
}

func exitOf(o *Outside) *Decision {
	if o.Exit == nil {
		return nil
	}
	return &o.Exit.Decision
}

// heardOutside is where a call got: a server's name, a status, or closed.
func heardOutside(r Request, answer string) string {
	fields := strings.Fields(answer)
	switch {
	case r.HTTP == nil && !strings.HasPrefix(answer, "byte "):
		return answer
	case r.HTTP == nil || len(fields) < 2 || !strings.HasPrefix(answer, "HTTP/"):
		return "closed"
	case fields[1] != "200":
		return fields[1]
	}
	_, seen, _ := strings.Cut(answer, "x-seen: ")
	seen, _, _ = strings.Cut(seen, "\n")
	return seen[strings.LastIndex(seen, "\t")+1:]
}
