package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var seed = flag.Uint64("seed", 0, "replay this one random history")

// client holds what it was told of, as a proxy would.
type client struct {
	b    *Builder
	mu   sync.Mutex
	held map[Key]string
	told int
}

func (c *client) Changed(keys []Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		c.told++
		if k == AllScopes {
			continue
		}
		if v := c.b.Value(k); v != nil { // nil: unsubscribed meanwhile, and dropped
			c.held[k] = v.Version
		}
	}
}

func config() *mesh.Config {
	return &mesh.Config{
		TrustDomain: "cluster.local", RootNamespace: "tulle-system", MTLS: mesh.MTLSPermissive,
		ServiceRanges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		PodRanges:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
	}
}

// world makes random changes over a small set of names, so that they collide.
type world struct{ *rand.Rand }

func (w world) namespace() string    { return []string{"tulle-system", "a", "b"}[w.IntN(3)] }
func (w world) name(p string) string { return fmt.Sprintf("%s%d", p, w.IntN(4)) }
func (w world) vip() netip.Addr      { return netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + w.IntN(5))}) }

func (w world) pod() netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 0, byte(1 + w.IntN(6))}) }
func (w world) port() uint16    { return []uint16{80, 8080, 3306}[w.IntN(3)] }
func (w world) labels() map[string]string {
	return map[string]string{"app": w.name("app")}
}
func (w world) mode() mesh.MTLSMode { return mesh.MTLSMode(w.IntN(4)) }
func (w world) near() mesh.Near     { return mesh.Near(w.IntN(4)) }
func (w world) id(p string) mesh.Name {
	return mesh.Name{Namespace: w.namespace(), Name: w.name(p)}
}

func (w world) change() mesh.Change {
	k := []mesh.Kind{
		mesh.KindService, mesh.KindSlice, mesh.KindWorkload, mesh.KindPolicy, mesh.KindSplit, mesh.KindHTTPRoute, mesh.KindGRPCRoute,
		mesh.KindTLSRoute, mesh.KindTCPRoute, mesh.KindBackendTLS, mesh.KindBundle, mesh.KindGrant, mesh.KindNode, mesh.KindGateway,
		mesh.KindClass, mesh.KindNamespace, mesh.KindCertificate, mesh.KindExternal, mesh.KindKeys, mesh.KindConfig, mesh.KindTrust,
	}[w.IntN(21)]
	if w.IntN(4) == 0 && k != mesh.KindKeys && k != mesh.KindConfig && k != mesh.KindTrust {
		return mesh.Delete(k, w.id(map[mesh.Kind]string{
			mesh.KindService: "s", mesh.KindSlice: "s", mesh.KindWorkload: "w", mesh.KindPolicy: "p", mesh.KindSplit: "x",
			mesh.KindHTTPRoute: "r", mesh.KindGRPCRoute: "r", mesh.KindTLSRoute: "r", mesh.KindTCPRoute: "r", mesh.KindBackendTLS: "t",
			mesh.KindBundle: "b", mesh.KindGrant: "g", mesh.KindNode: "n", mesh.KindGateway: "g", mesh.KindCertificate: "c", mesh.KindExternal: "e",
		}[k]))
	}
	switch k {
	case mesh.KindKeys:
		if w.IntN(4) == 0 {
			return mesh.Delete(mesh.KindKeys, mesh.Name{Name: w.namespace()})
		}
		return mesh.Put(&mesh.Keys{Namespace: w.namespace(), Sets: map[string]*mesh.KeySet{
			w.name("k"): {JWKS: w.name("jwks")}, mesh.FetchedKey(w.name("u")): {JWKS: w.name("jwks"), Problem: w.name("why")},
		}})
	case mesh.KindService:
		s := &mesh.Service{Name: w.id("s"), Selector: w.labels(), Distribution: w.near()}
		if w.IntN(4) > 0 {
			s.Addresses = []netip.Addr{w.vip()}
		}
		for range 1 + w.IntN(2) {
			p := w.port()
			s.Ports = append(s.Ports, mesh.ServicePort{Name: fmt.Sprint(p), Port: p, Target: p, Protocol: mesh.Protocol(w.IntN(6))})
		}
		return mesh.Put(s)
	case mesh.KindSlice:
		id := w.id("s")
		s := &mesh.Slice{Name: id, Service: w.name("s"), Ports: []mesh.SlicePort{{Name: "80", Port: 80}, {Name: "3306", Port: 3306}}}
		for range w.IntN(3) {
			s.Endpoints = append(s.Endpoints, mesh.Endpoint{Address: w.pod(), Workload: w.name("w"), Ready: w.IntN(3) > 0, Zone: w.name("z"), Node: w.name("n")})
		}
		return mesh.Put(s)
	case mesh.KindWorkload:
		return mesh.Put(&mesh.Workload{
			Name: w.id("w"), ServiceAccount: w.name("sa"), Labels: w.labels(), Addresses: []netip.Addr{w.pod()},
			Meshed: w.IntN(2) == 0, Terminating: w.IntN(4) == 0, Terminal: w.IntN(8) == 0,
		})
	case mesh.KindPolicy:
		return mesh.Put(w.policy())
	case mesh.KindSplit:
		return mesh.Put(&mesh.Split{
			Meta: mesh.Meta{Name: w.id("x"), Generation: w.Int64N(3)}, Service: w.name("s"),
			Backends: []mesh.SplitBackend{{Service: w.id("s"), Weight: w.Uint32N(3)}, {Service: w.id("s"), Labels: w.labels(), Weight: 1}},
		})
	case mesh.KindHTTPRoute, mesh.KindGRPCRoute, mesh.KindTLSRoute, mesh.KindTCPRoute:
		return mesh.Put(w.route(k))
	case mesh.KindBackendTLS:
		return mesh.Put(&mesh.BackendTLS{
			Meta: mesh.Meta{Name: w.id("t"), Created: time.Unix(w.Int64N(5), 0), Generation: w.Int64N(3)}, Hostname: w.name("h"),
			Targets:     []mesh.BackendTLSTarget{{Service: w.name("s"), Port: []string{"", "80"}[w.IntN(2)]}},
			Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: w.id("b")}}[:w.IntN(2)],
		})
	case mesh.KindBundle:
		return mesh.Put(&mesh.Bundle{Name: w.id("b"), PEM: []byte(w.name("pem")), Invalid: []string{"", "x"}[w.IntN(2)]})
	case mesh.KindGrant:
		return mesh.Put(&mesh.Grant{
			Name: w.id("g"), From: []mesh.GrantFrom{
				{Group: "gateway.networking.k8s.io", Kind: "HTTPRoute", Namespace: w.namespace()},
				{Group: "mesh.tulle.dev", Kind: "ExternalService", Namespace: w.namespace()},
			},
			To: []mesh.GrantTo{{Kind: mesh.BackendService}, {Kind: "Secret"}, {Group: "gateway.networking.k8s.io", Kind: "Gateway"}, {Group: "mesh.tulle.dev", Kind: "ExternalService"}},
		})
	case mesh.KindGateway:
		return mesh.Put(w.gateway())
	case mesh.KindClass:
		if w.IntN(3) == 0 {
			return mesh.Delete(mesh.KindClass, mesh.Name{Name: "tulle"})
		}
		return mesh.Put(&mesh.Class{Name: "tulle"})
	case mesh.KindNamespace:
		return mesh.Put(&mesh.Namespace{Name: w.namespace(), Labels: w.labels()})
	case mesh.KindCertificate:
		return mesh.Put(&mesh.Certificate{Name: w.id("c"), Chain: []byte(w.name("chain"))})
	case mesh.KindExternal:
		return mesh.Put(w.external())
	case mesh.KindNode:
		return mesh.Put(&mesh.Node{Name: w.name("n"), Region: w.name("r"), Zone: w.name("z")})
	case mesh.KindConfig:
		c := config()
		c.MTLS, c.Egress = w.mode(), mesh.EgressMode(w.IntN(2))
		return mesh.Put(c)
	default:
		return mesh.Put(&mesh.TrustBundle{PEM: []byte(w.name("root"))})
	}
}

func (w world) route(k mesh.Kind) *mesh.Route {
	backend := func() mesh.Backend {
		if w.IntN(4) == 0 {
			return mesh.Backend{Kind: mesh.BackendExternal, Name: w.id("e"), Port: w.port()}
		}
		return mesh.Backend{Kind: mesh.BackendService, Name: w.id("s"), Port: w.port()}
	}
	r := &mesh.Route{Meta: mesh.Meta{Name: w.id("r"), Created: time.Unix(w.Int64N(5), 0), Generation: w.Int64N(3)}, Of: k}
	for i := range 1 + w.IntN(2) {
		if w.IntN(3) == 0 {
			r.Parents = append(r.Parents, mesh.Parent{Index: i, Kind: mesh.KindGateway, Name: w.id("g"), Port: []uint16{0, 80}[w.IntN(2)]})
			continue
		}
		r.Parents = append(r.Parents, mesh.Parent{Index: i, Kind: mesh.KindService, Name: w.id("s"), Port: []uint16{0, 80}[w.IntN(2)]})
	}
	r.Rules = []mesh.RouteRule{{Backends: []mesh.RouteBackend{{Backend: backend(), Weight: w.Uint32N(3)}, {Backend: backend(), Weight: 1}}}}
	if w.IntN(3) == 0 {
		r.Rules[0].Filters.Mirrors = []mesh.RouteMirror{{Backend: backend(), Numerator: 1, Denominator: 2}}
	}
	return r
}

func (w world) account() string { return translate.ForEgress(w.namespace(), w.name("sa")) }

func (w world) external() *mesh.External {
	e := &mesh.External{
		Meta: mesh.Meta{Name: w.id("e"), Generation: w.Int64N(3)}, Hosts: []string{w.name("h") + ".example", "*.example"}[:1+w.IntN(2)],
		Ports:      []mesh.ExternalPort{{Number: w.port(), Protocol: mesh.Protocol(w.IntN(6))}},
		Resolution: mesh.Resolution(w.IntN(3)), Endpoints: []mesh.ExternalEndpoint{{Address: "203.0.113.1"}},
	}
	if w.IntN(2) == 0 {
		e.Addresses = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(w.IntN(3))}), 32)}
	}
	if w.IntN(2) == 0 {
		e.Callers = []mesh.Caller{{Namespaces: []string{w.namespace()}}}
	}
	if w.IntN(2) == 0 {
		e.Gateway = new(w.id("g"))
	}
	if w.IntN(8) == 0 {
		e.Invalid = "it makes no sense"
	}
	return e
}

// out is the cluster by which calls leave a gateway.
func (w world) out() string {
	of, host := fmt.Sprintf("%s|%d|", w.id("e"), w.port()), ""
	if w.IntN(2) == 0 {
		host = w.name("h") + ".example"
	}
	sum := sha256.Sum256([]byte(of + host))
	return translate.PrefixOut + of + hex.EncodeToString(sum[:16])
}

func (w world) gateway() *mesh.Gateway {
	g := &mesh.Gateway{Meta: mesh.Meta{Name: w.id("g"), Generation: w.Int64N(3)}, Class: "tulle"}
	for i := range 1 + w.IntN(3) {
		l := mesh.Listener{Name: fmt.Sprint("l", i), Port: w.port(), Protocol: mesh.ListenerHTTP, Hostname: []string{"", "a.example", "*.example"}[w.IntN(3)]}
		switch w.IntN(6) {
		case 4:
			l.Protocol = mesh.ListenerEgress
		case 0:
			l.Protocol = mesh.ListenerTCP
		case 1:
			l.Protocol, l.Passthrough = mesh.ListenerTLS, true
		case 2:
			l.Protocol, l.Certificates = mesh.ListenerTLS, []mesh.Backend{{Kind: "Secret", Name: w.id("c")}}
		case 3:
			l.Protocol, l.Certificates = mesh.ListenerHTTPS, []mesh.Backend{{Kind: "Secret", Name: w.id("c")}}
		}
		switch w.IntN(3) {
		case 0:
			l.Namespaces.All = true
		case 1:
			l.Namespaces.Requirements = []mesh.Requirement{{Key: "app", Operator: "In", Values: []string{w.name("app")}}}
		}
		if l.Terminates() && w.IntN(2) == 0 {
			l.Clients = &mesh.ClientValidation{Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: w.id("b")}}, Insecure: w.IntN(4) == 0}
		}
		g.Listeners = append(g.Listeners, l)
	}
	if w.IntN(2) == 0 {
		g.Certificate = &mesh.Backend{Kind: "Secret", Name: w.id("c")}
	}
	return g
}

func (w world) policy() *mesh.Policy {
	p := &mesh.Policy{Meta: mesh.Meta{Name: w.id("p"), Created: time.Unix(w.Int64N(5), 0), Generation: w.Int64N(3)}}
	if w.IntN(2) == 0 {
		p.Selector = &mesh.Selector{MatchLabels: w.labels()}
	}
	switch w.IntN(6) {
	case 4:
		certificate := mesh.Name{Namespace: p.Meta.Namespace, Name: w.name("c")}
		p.TLS = &mesh.EndedTLS{Ports: []mesh.PortTLS{{Port: w.port(), Target: w.port(), Certificate: certificate}}}
	case 3:
		p.JWT = &mesh.JWT{Issuers: []mesh.Issuer{{Issuer: "i", ConfigMapKey: w.name("k")}, {Issuer: "j", URI: w.name("u")}}}
	case 0:
		p.MTLS = &mesh.MTLS{Mode: w.mode(), Ports: map[uint16]mesh.MTLSMode{w.port(): w.mode()}}
	case 1:
		p.Authorization = &mesh.Authorization{DefaultDeny: w.IntN(2) == 0, Rules: []mesh.Rule{{
			Action: mesh.Action(w.IntN(2)), From: []mesh.Source{{Namespaces: []string{w.namespace()}}, {RequestPrincipals: []mesh.RequestPrincipal{{Subject: "*"}}}},
			To: []mesh.Operation{{Methods: []string{"GET"}, Ports: []uint16{w.port()}}},
		}}}
	case 2:
		rule := mesh.RateLimitRule{Requests: 1 + w.Uint32N(2), Burst: 1, Unit: time.Second, PerCaller: w.IntN(2) == 0}
		if w.IntN(2) == 0 {
			rule.To = []mesh.RateLimitOperation{{Ports: []uint16{w.port()}, Paths: []string{"/a"}}}
		}
		p.RateLimit = &mesh.RateLimit{Rules: []mesh.RateLimitRule{rule}}
	default:
		d := time.Duration(w.IntN(3)) * time.Second
		p.Selector, p.Traffic = nil, &mesh.Traffic{Timeout: &d}
		if w.IntN(2) == 0 {
			p.Traffic.Fault = &mesh.Fault{Delay: time.Second, DelayPercent: w.Uint32N(2)}
			p.Traffic.Locality = &mesh.LocalityPreference{Prefer: w.near(), Overprovisioning: 140}
		}
		if w.IntN(2) == 0 {
			p.Targets = []mesh.Target{{Kind: mesh.KindService, Name: w.id("s")}, {Kind: mesh.KindExternal, Name: w.id("e")}}
		}
	}
	if w.IntN(8) == 0 {
		p.Invalid = "it makes no sense"
	}
	return p
}

// key is a random target, a nonsensical one too.
func (w world) key(s *mesh.Snapshot) Key {
	at := netip.AddrPortFrom(w.vip(), w.port()).String()
	if w.IntN(2) == 0 {
		at = netip.AddrPortFrom(w.pod(), w.port()).String()
	}
	svc := fmt.Sprintf("svc|%s|%d", w.id("s"), w.port())
	profile := ""
	if x, ok := s.Workload(w.id("w")); ok {
		profile = s.Profile(x)
	}
	nearby := fmt.Sprintf("near|%s|%s|%s", []string{"region", "zone", "node"}[w.IntN(3)], w.namespace(), svc)
	all := []Key{
		{Type: translate.Cluster, Name: svc, For: w.namespace()},
		{Type: translate.Endpoints, Name: nearby, For: translate.ForEndpoints(nearby, mesh.Locality{Region: w.name("r"), Zone: w.name("z"), Node: w.name("n")})},
		{Type: translate.Cluster, Name: "tcp|" + at},
		{Type: translate.Cluster, Name: "http|" + at},
		{Type: translate.Cluster, Name: "junk"},
		{Type: translate.Endpoints, Name: svc},
		{Type: translate.Endpoints, Name: "tcp|" + at},
		{Type: translate.Route, Name: at, For: w.namespace()},
		{Type: translate.Route, Name: "inbound", For: profile},
		{Type: translate.Listener, Name: "inbound", For: translate.ForInbound(profile, w.IntN(2) == 0)},
		{Type: translate.Listener, Name: "outbound"},
		{Type: translate.Listener, Name: "egress", For: w.account()},
		{Type: translate.Route, Name: "egress", For: w.account()},
		{Type: translate.Route, Name: "egress-at", For: w.account()},
		{Type: translate.Cluster, Name: fmt.Sprintf("ext|%s.example:%d", w.name("h"), w.port()), For: w.namespace()},
		{Type: translate.Cluster, Name: fmt.Sprintf("ext|192.0.2.%d:%d", w.IntN(3), w.port()), For: w.namespace()},
		{Type: translate.Cluster, Name: fmt.Sprintf("ext|*.example:%d", w.port()), For: w.namespace()},
		{Type: translate.Cluster, Name: w.out(), For: w.id("g").String()},
		translate.FindingsKey(translate.KindExternal, w.id("e")),
		{Type: translate.Secret, Name: "san" + svc[3:]},
		{Type: translate.Secret, Name: "san" + svc[3:] + "|tls"},
		{Type: translate.Cluster, Name: "h1" + svc[3:], For: w.namespace()},
		{Type: translate.Cluster, Name: "h1" + svc[3:] + "|by|" + w.name("g"), For: w.namespace()},
		{Type: translate.Endpoints, Name: "h1" + svc[3:] + "|by|" + w.name("g")},
		{Type: translate.Secret, Name: fmt.Sprintf("san|%s|%d|clients", w.id("g"), w.port())},
		translate.FindingsKey(translate.KindBackendTLS, w.id("t")),
		{Type: translate.Secret, Name: "roots"},
		{Type: translate.Secret, Name: translate.PrefixEnded + w.id("c").String(), For: profile},
		{Type: translate.Route, Name: fmt.Sprintf("inbound|%d", w.port()), For: profile},
		{Type: translate.Route, Name: fmt.Sprintf("inbound|%d|mesh", w.port()), For: profile},
		{Type: translate.Cluster, Name: fmt.Sprintf("inbound|%d|http1", w.port())},
		translate.FindingsKey(translate.KindPolicy, w.id("p")),
		translate.FindingsKey(translate.KindSplit, w.id("x")),
		translate.FindingsKey(translate.KindHTTPRoute, w.id("r")),
		translate.FindingsKey(translate.KindGRPCRoute, w.id("r")),
		translate.FindingsKey(translate.KindTLSRoute, w.id("r")),
		translate.FindingsKey(translate.KindTCPRoute, w.id("r")),
		{Type: translate.Cluster, Name: "raw" + svc[3:], For: w.namespace()},
		{Type: translate.Cluster, Name: "dec" + svc[3:], For: w.namespace()},
		translate.FindingsKey(translate.KindGateway, w.id("g")),
		{Type: translate.Listener, Name: translate.ListenerGateway, For: w.id("g").String()},
		{Type: translate.Route, Name: "gateway|80", For: w.id("g").String()},
		{Type: translate.Route, Name: "gateway|80|l0", For: w.id("g").String()},
		{Type: translate.Secret, Name: translate.PrefixCertificate + w.id("c").String(), For: w.id("g").String()},
	}
	return all[w.IntN(len(all))]
}

func TestIncrementalBuildEqualsBuildFromScratch(t *testing.T) {
	first, last := uint64(1), uint64(100)
	if *seed != 0 {
		first, last = *seed, *seed
	}
	for s := first; s <= last; s++ {
		history(t, s)
		if t.Failed() {
			t.Fatalf("replay with: go test ./xds/build -run %s -seed %d", t.Name(), s)
		}
	}
}

func history(t *testing.T, seed uint64) {
	w := world{rand.New(rand.NewPCG(seed, 0))}
	ctx := context.Background()
	b := New(Options{Config: config(), Grace: time.Hour})
	clients := []*client{{b: b, held: map[Key]string{}}, {b: b, held: map[Key]string{}}}
	subscribed := [2]map[Key]bool{{}, {}}
	for range 60 {
		for range 1 + w.IntN(3) {
			i := w.IntN(2)
			switch k := w.key(b.Snapshot()); w.IntN(5) {
			case 0, 1:
				b.Subscribe(clients[i], k)
				subscribed[i][k] = true
			case 2:
				b.Unsubscribe(clients[i], k)
				delete(subscribed[i], k)
				clients[i].mu.Lock()
				delete(clients[i].held, k)
				clients[i].mu.Unlock()
			default:
				b.Apply(w.change())
			}
		}
		b.step(ctx)
		for i, c := range clients {
			for k := range subscribed[i] {
				want, _ := Scratch(b.Snapshot(), k)
				got := b.Value(k)
				if got.Version != want.Version || !slices.Equal(got.Findings, want.Findings) || c.held[k] != want.Version {
					t.Errorf("seed %d: %v: built %s, subscriber has %s, from scratch %s", seed, k, got.Version, c.held[k], want.Version)
					return
				}
			}
		}
		checkScopes(t, b)
	}
}

func checkScopes(t *testing.T, b *Builder) {
	t.Helper()
	var want, got []string
	b.Snapshot().VIPs(func(v string) { want = append(want, v) })
	for n := range b.Scopes().All() {
		got = append(got, n)
	}
	if !slices.Equal(want, got) {
		t.Errorf("scopes are %v, want %v", got, want)
	}
}

func TestChangeThatNobodyReadBuildsNothing(t *testing.T) {
	b := New(Options{Config: config()})
	c := &client{b: b, held: map[Key]string{}}
	svc := func(name string, last byte) *mesh.Service {
		return &mesh.Service{Name: mesh.Name{Namespace: "a", Name: name}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, last})}, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}}
	}
	slice := func(svc, ip string) *mesh.Slice {
		return &mesh.Slice{Name: mesh.Name{Namespace: "a", Name: svc + "-1"}, Service: svc, Ports: []mesh.SlicePort{{Name: "http", Port: 8080}}, Endpoints: []mesh.Endpoint{{Address: netip.MustParseAddr(ip), Ready: true}}}
	}
	b.Apply(mesh.Put(svc("x", 1)), mesh.Put(svc("y", 2)), mesh.Put(slice("x", "10.244.0.1")))
	for _, n := range []string{"svc|a/x|80", "svc|a/y|80"} {
		b.Subscribe(c, Key{Type: translate.Endpoints, Name: n}, Key{Type: translate.Cluster, Name: n})
	}
	b.step(t.Context())
	before := c.told
	b.Apply(mesh.Put(slice("x", "10.244.0.2")))
	b.step(t.Context())
	if got := c.told - before; got != 1 {
		t.Errorf("one endpoint of one service moved, and %d targets were pushed, want 1", got)
	}
	before = c.told
	b.Apply(mesh.Put(slice("x", "10.244.0.2")), mesh.Put(svc("y", 2)))
	b.step(t.Context())
	if got := c.told - before; got != 0 {
		t.Errorf("nothing changed, and %d targets were pushed", got)
	}
}

func TestTargetWithoutSubscribersIsDroppedAfterGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		b := New(Options{Config: config(), Grace: 10 * time.Second})
		done := make(chan struct{})
		go func() { _ = b.Run(ctx); close(done) }()
		c := &client{b: b, held: map[Key]string{}}
		k := Key{Type: translate.Listener, Name: "egress"}
		b.Subscribe(c, k)
		synctest.Wait()
		b.Unsubscribe(c, k)
		time.Sleep(5 * time.Second)
		if b.Value(k) == nil {
			t.Error("a proxy that reconnects within the grace finds nothing")
		}
		time.Sleep(20 * time.Second)
		if b.Value(k) != nil {
			t.Error("the target is kept though nobody wants it")
		}
		stop()
		<-done
	})
}

// Who asks for one name after the other, and drops each, has the builder keep some of them.
func TestTargetsThatAreDroppedInMassesAreNotKept(t *testing.T) {
	const times, each = 30, 4000
	b := New(Options{Config: config(), Grace: time.Hour})
	c := &client{b: b, held: map[Key]string{}}
	kept := Key{Type: translate.Listener, Name: "egress"}
	b.Subscribe(c, kept)
	var last Key
	for i := range times {
		var keys []Key
		for j := range each {
			keys = append(keys, Key{Type: translate.Endpoints, Name: fmt.Sprintf("svc|a/x%d-%d|80", i, j)})
		}
		last = keys[each-1]
		b.Subscribe(c, slices.Clone(keys)...)
		b.step(t.Context())
		b.Unsubscribe(c, keys...)
		b.step(t.Context())
	}
	if n := len(b.targets); n > 2*mostLeaving+each || len(b.leaving) > 2*mostLeaving+each {
		t.Errorf("%d targets are kept, of which one is wanted, and %d are to leave", n, len(b.leaving))
	}
	if b.Value(kept) == nil || b.Value(last) == nil {
		t.Error("what is wanted, or was a moment ago, is not kept")
	}
}

func TestFailedIssuanceIsTriedAgainAndSlowOneBlocksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		calls := 0
		var away atomic.Bool
		b := New(Options{Config: config(), Issue: func(context.Context, string) (Certificate, error) {
			if away.Load() {
				return Certificate{}, errors.New("out of reach")
			}
			calls++
			if calls == 1 {
				time.Sleep(time.Second)
				return Certificate{}, errors.New("out of reach")
			}
			return Certificate{Version: fmt.Sprint("v", calls)}, nil
		}})
		done := make(chan struct{})
		go func() { _ = b.Run(ctx); close(done) }()
		c := &client{b: b, held: map[Key]string{}}
		cert := Key{Type: translate.Secret, Name: translate.SecretWorkload, For: "spiffe://x/ns/a/sa/b"}
		other := Key{Type: translate.Listener, Name: "egress"}
		b.Subscribe(c, cert, other)
		synctest.Wait()
		if b.Value(other) == nil || b.Value(cert) != nil {
			t.Error("a slow issuer holds back what it has nothing to do with")
		}
		time.Sleep(5 * time.Second)
		if v := b.Value(cert); v == nil || v.Version != "v2" {
			t.Errorf("after a failure the certificate is %v, want v2", v)
		}
		b.Invalidate(cert)
		synctest.Wait()
		if v := b.Value(cert); v.Version != "v3" {
			t.Errorf("an invalidated certificate is %s, want v3", v.Version)
		}
		away.Store(true) // and the last one has ended
		b.Invalidate(cert)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if v := b.Value(cert); v != nil {
			t.Errorf("who asks now is given %s", v.Version)
		}
		if c.held[cert] != "v3" {
			t.Errorf("who has the last one is told of %q", c.held[cert])
		}
		away.Store(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if v := b.Value(cert); v == nil || c.held[cert] != v.Version {
			t.Errorf("the certificate is %v, and the client has %q", v, c.held[cert])
		}
		stop()
		<-done
	})
}

func TestWhyACertificateIsNotIssuedIsLoggedOnceWhileItIsTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var lines []string
		log := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
		var failed atomic.Value // an error
		failed.Store(errors.New("denied"))
		var calls atomic.Int64
		b := New(Options{Config: config(), Log: log, Issue: func(context.Context, string) (Certificate, error) {
			calls.Add(1)
			return Certificate{}, failed.Load().(error)
		}})
		done := make(chan struct{})
		go func() { _ = b.Run(ctx); close(done) }()
		b.Subscribe(&client{b: b, held: map[Key]string{}}, Key{Type: translate.Secret, Name: translate.SecretWorkload, For: "spiffe://x/ns/a/sa/b"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := calls.Load(); len(lines) != 1 || n < 10 {
			t.Errorf("%d lines of %d failures", len(lines), n)
		}
		failed.Store(errors.New("out of reach"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(lines) != 2 {
			t.Errorf("another reason is not logged, or more than once: %q", lines)
		}
		stop()
		<-done
	})
}
