package explain

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Ports of the workload of a random mesh, by what is declared of them. Tests listen at
// them, on addresses of their own: they are none that others are fond of.
const (
	portOpen  = 21080 // nothing
	portHTTP  = 21081
	portTCP   = 21090
	portOther = 21443 // nothing, and policies have a mode of its own for it

	endedTarget = 21000 // of the application, where TLS of clients ends
)

// generator makes random meshes and requests. Values come from small pools, so that
// rules match often, and each has its neighbours: what differs in a letter, in case, in
// what an escape means.
type generator struct {
	*rand.Rand
	// tokens has all rules be about tokens, and most requests have one.
	tokens bool
}

func newGenerator(seed uint64) generator { return generator{Rand: rand.New(rand.NewPCG(seed, 0))} }

func (g generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g generator, from []T) T { return from[g.IntN(len(from))] }

// some are none with the given chance to be any, else up to three.
func some[T any](g generator, percent int, from []T) []T {
	if !g.chance(percent) {
		return nil
	}
	var out []T
	for range 1 + g.IntN(3) {
		out = append(out, pick(g, from))
	}
	return out
}

var (
	identities = []string{
		"spiffe://cluster.local/ns/front/sa/web", "spiffe://cluster.local/ns/front/sa/api", "spiffe://cluster.local/ns/shop/sa/web",
		"spiffe://old.local/ns/front/sa/web", "spiffe://other.domain/ns/front/sa/web",
	}
	identityPatterns = []string{
		"spiffe://cluster.local/ns/front/sa/web", "spiffe://old.local/ns/front/sa/api", "spiffe://cluster.local/ns/front/*", "spiffe://old.local/ns/shop/*",
		"spiffe://cluster.local/*", "spiffe://cluster.local/ns/fr*", "spiffe://cluster.local/ns/front/sa/w*", "spiffe://other.domain/*", "spiffe://cluster.local/ns/front/sa/we",
	}
	trustDomains = []string{"cluster.local", "old.local", "other.domain", "cluster.loca"}
	namespaces   = []string{"front", "shop", "fron", "other"}
	accounts     = []mesh.Name{{Namespace: "front", Name: "web"}, {Name: "web"}, {Namespace: "front", Name: "we"}, {Namespace: "front", Name: "api"}}
	peers        = []string{"127.0.0.1", "127.0.0.77", "127.9.8.7", "::1"}
	peerBlocks   = blocks("127.0.0.0/16", "127.0.0.77/32", "127.9.0.0/16", "::1/128", "::/0", "0.0.0.0/0", "10.0.0.0/8", "127.0.0.76/31")
	clients      = []string{"10.1.2.3", "10.1.2.3, 192.0.2.1", "192.0.2.1,10.1.2.3", "2001:db8::7", "junk", "10.1.2.3:80", "[2001:db8::7]:80", "", "10.1.2.3,", " 192.0.2.1 , junk", "::ffff:10.1.2.3", "127.0.0.77", "10.1.2.3,,192.0.2.1"}
	clientBlocks = blocks("10.0.0.0/8", "10.1.2.3/32", "192.0.2.0/24", "2001:db8::/32", "127.0.0.0/8", "0.0.0.0/0", "::/0", "::1/128")
	methods      = []string{"GET", "POST", "DELETE", "PUT"}
	sentMethods  = []string{"GET", "GET", "POST", "DELETE", "PUT", "HEAD", "PATCH"}
	paths        = []string{
		"/admin", "/admin/*", "*", "/", "/*", "*.png", "*/orders", "/a/b", "/a*", "/Admin", "/admin/", "*/",
		"/users/{id}/orders", "/files/**", "/files/{name=**}", "/a/*/c/**", "/{x}", "/a~b", "/a b", "/%41", "/a%20b", "/a;b", "/{a}/{b}", "/x:y", "/caf%C3%A9/*", "/a%25",
		"/admin/..", "/a//b", "/shop.Cart/*", "*%2fx", `/a\b`, "/<x>*", "/.well-known/*", "/...", "*..", "/a..",
	}
	sentPaths = []string{
		"/admin", "/admin/", "/admin/x", "/Admin", "/ADMIN", "/admin?x=1", "/admin/?a=/b//c", "/", "//", "/?", "/admins", "/a", "/a/b", "/a/b/", "/a/x/c/d", "/a/x/c/", "/a/x/c", "/x.png", "/x.png?y", "/x/y.png", "/.png", "/x:y",
		"/users/1/orders", "/users//orders", "/users/orders", "/users/1/2/orders", "/users/%2e/orders", "/users/%20/orders", "/files", "/files/", "/files/a/b", "/files/../admin", "/files/%2e%2e/admin", "/./admin", "/admin/.", "/admin/..", "/admin/../", "/..", "/../..", "/a/./b", "/a/../../b", "/.../x", "/..a", "/a..", "/...", "/..;/admin", "/files/..;/admin", "/files/..;x/admin", "/files/..;", "/files/%2e%2e;/admin", "/files/.%2e;x", "/a/.;/b", "/a/%2e;/b", "/a/;../b", "/a/...;/b", "/admin/..;", "/admin;x", "/admin%3bx", "/.%2e/admin",
		"//admin", "/admin//x", "/a//b", "///", "/a/%2f/b", "/admin%2Fx", "/admin%5cx", `/a\b`, `/files\..\admin`, "/%61dmin", "/%41dmin", "/%2561dmin", "/%25", "/%", "/%4", "/%zz", "/a%zb", "/a%20b", "/a%7eb", "/a~b", "/a%7Eb", "/caf%C3%A9/x", "/caf%c3%a9/x", "/%C3%28", "/%00", "/admin%00", "/a%0ab", "/%ff",
		"/a;b", "/a,b", "/a=b", "/a|b", "/a{b}", "/a^b", "/a`b", "/a\"b", "/<x>", "/a'b", "/a(b)", "/a*b", "/a!b$c&d+e", "/a@b", "/[x]", "/a%3Cb", "/a%22b", "/a%7Cb", "/a%5Eb", "/a%60b", "/a%7Bb%7D", "/a%27b", "/a%5Bb%5D", "/a%26b", "/a%3Ab", "/a%2Bb", "/a%24",
		"/shop.Cart/Add", "/shop.Cart/Get", "/shop.Cart/", "/shop.Cart", "/shop.Cart/Add/x", "/shop.Carts/Add", "//shop.Cart/Add", "/other/Add", "/shop.Till/Reset", "/shop.Cart/add", "/shop%2eCart/Add", "/x#y", "/admin#", "/.well-known/x", "/./", "/a/.", "/a/b/..", "/a?b?c", "/admin?%2f", "/admin?#",
	}
	grpcMethods = []mesh.GRPCMethod{{Service: "shop.Cart", Method: "Add"}, {Service: "shop.Cart"}, {Method: "Add"}, {Method: "Reset"}, {Service: "other", Method: "Add"}}
	hosts       = []string{"shop.example", "*.example", "shop.*", "*", "SHOP.example", "*.internal", "shop.example.", "a.shop.example", "xn--bcher-kva.example", "*example", "shop*", "127.0.0.1", "*.example."}
	sentHosts   = []string{
		"shop.example", "SHOP.Example", "shop.example:80", "shop.example:", "shop.example.", "shop.example.:8080", "shop.example..", "a.shop.example", "example", ".example", "shop.", "shop", "shopx.example", "shop.example.org", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80", "xn--bcher-kva.example:443", "shop.example:80:80", "shop.example.:", "*", "a_b.internal", "shop.example:0080", "shop-example", "shop.example:x", "shop.example,a.shop.example", "x@shop.example", "[shop.example]",
	}
	headerNames = []string{"x-role", "x-user-role", "x-a"}
	values      = []string{"admin", "admin*", "*admin", "*", "user", "Admin", "a*", "*-op", "root-*", `"admin"`, "a b", "é*"[2:], "x;q=1", "*\"", `a\b`, "a.b", "(a)*", "[a]", "a'b"}
	sentHeaders = []string{"x-role", "X-Role", "x-role", "x-user-role", "X-USER-ROLE", "x_role", "x-user_role", "x_user_role", "x-a", "x-aa"}
	sentValues  = []string{"admin", "user", "Admin", "", "admin,user", "user, admin", "user,", ",", " , ", "root-x", "an-op", "root-x , y", "\"admin\"", "a b", "administrator", "xadmin", "\tadmin ", "user;admin", "x;q=1", "*", "a,b-op,c", `a\b`, "axb", "a.b", "(a)b", "[a]", "a'b"}
	serverNames = []string{"shop.example", "*.example", "shop.*", "*", "db.internal", "SHOP.example"}
	askedNames  = []string{"shop.example", "db.internal", "a.example", "SHOP.Example", "example", "other"}
)

func blocks(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func (g generator) source() mesh.Source {
	return mesh.Source{
		Identities: some(g, 20, identityPatterns), NotIdentities: some(g, 10, identityPatterns), TrustDomains: some(g, 10, trustDomains),
		Namespaces: some(g, 15, namespaces), NotNamespaces: some(g, 10, namespaces), ServiceAccounts: some(g, 10, accounts), NotServiceAccounts: some(g, 10, accounts),
		IPBlocks: some(g, 20, peerBlocks), NotIPBlocks: some(g, 10, peerBlocks), RemoteIPBlocks: some(g, 15, clientBlocks), NotRemoteIPBlocks: some(g, 8, clientBlocks),
		RequestPrincipals: some(g, 12, principals), NotRequestPrincipals: some(g, 6, principals),
	}
}

func (g generator) operation() mesh.Operation {
	ports := []uint16{portOpen, portHTTP, portTCP, portOther, 1}
	return mesh.Operation{
		Ports: some(g, 15, ports), NotPorts: some(g, 8, ports), Methods: some(g, 15, methods), NotMethods: some(g, 8, methods),
		Paths: some(g, 40, paths), NotPaths: some(g, 12, paths), Hosts: some(g, 20, hosts), NotHosts: some(g, 8, hosts), GRPC: some(g, 8, grpcMethods),
	}
}

func (g generator) condition() mesh.Condition {
	var c mesh.Condition
	for _, name := range headerNames {
		if g.chance(10) {
			h := mesh.HeaderCondition{Name: name, Values: some(g, 75, values), NotValues: some(g, 30, values)}
			if len(h.Values)+len(h.NotValues) > 0 {
				c.Headers = append(c.Headers, h)
			}
		}
	}
	for range g.IntN(2) * g.IntN(3) {
		if one := (mesh.ClaimCondition{Path: pick(g, claimPaths), Values: some(g, 75, claimValues), NotValues: some(g, 30, claimValues)}); len(one.Values)+len(one.NotValues) > 0 {
			c.Claims = append(c.Claims, one)
		}
	}
	c.SNI, c.NotSNI = some(g, 4, serverNames), some(g, 3, serverNames)
	return c
}

func (g generator) rule() mesh.Rule {
	if g.tokens {
		return g.tokenRule()
	}
	r := mesh.Rule{Name: pick(g, []string{"", "", "a", "0"}), When: g.condition()}
	switch n := g.IntN(100); {
	case n < 45:
		r.Action = mesh.Allow
	case n < 80:
		r.Action = mesh.Deny
	case n < 88:
		r.Action = mesh.Audit
	default:
		r.Action, r.Authorizer = mesh.Custom, pick(g, []string{"yes", "yes", "no", "gone", "unknown"})
	}
	r.DryRun = r.Action != mesh.Audit && g.chance(12)
	for range g.IntN(3) {
		r.From = append(r.From, said(g.source))
	}
	for range g.IntN(3) {
		r.To = append(r.To, said(g.operation))
	}
	return r
}

// said is one that says something.
func said[T any](random func() T) T {
	for {
		if v := random(); !reflect.ValueOf(v).IsZero() {
			return v
		}
	}
}

// few is at most n, and less where rules are about tokens alone: one decides.
func (g generator) few(n int) int {
	if g.tokens {
		return 2
	}
	return n
}

func (g generator) mode() mesh.MTLSMode {
	return pick(g, []mesh.MTLSMode{mesh.MTLSUnset, mesh.MTLSPermissive, mesh.MTLSPermissive, mesh.MTLSStrict, mesh.MTLSDisabled})
}

// ended says at which ports TLS of clients ends.
func (g generator) ended() *mesh.EndedTLS {
	out := &mesh.EndedTLS{}
	for _, p := range []uint16{portOpen, portHTTP, portTCP, portOther} {
		if g.chance(50) {
			out.Ports = append(out.Ports, mesh.PortTLS{Port: p, Target: endedTarget, Certificate: pick(g, []mesh.Name{endedSecret, endedSecret, endedSecret, endedSecret, endedSecret, endedSecret, endedSecret, {Namespace: "shop", Name: "gone"}})})
		}
	}
	return out
}

// authorizers are what Custom rules may ask: one that is not there, one that says no, and one
// that says yes.
func authorizers() (out []mesh.Authorizer) {
	for _, name := range []string{"gone", "no", "yes"} {
		out = append(out, mesh.Authorizer{Name: name, Service: mesh.Name{Namespace: "auth", Name: name}, Port: 80, HTTP: true, Timeout: 5 * time.Second})
	}
	return out
}

// mesh is a random one, with one workload; the second result is of all that policies
// are.
func (g generator) mesh() (*mesh.Snapshot, *mesh.Workload, []*mesh.Policy) {
	app := map[string]string{"app": "web"}
	w := &mesh.Workload{
		Name: mesh.Name{Namespace: "shop", Name: "web-0"}, UID: "u", ServiceAccount: "web", Labels: app, Meshed: true, Started: true,
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.9")},
	}
	service := func(namespace, name string, selector map[string]string, ports ...mesh.ServicePort) mesh.Change {
		return mesh.Put(&mesh.Service{Name: mesh.Name{Namespace: namespace, Name: name}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.9")}, Selector: selector, Ports: ports})
	}
	changes := []mesh.Change{
		mesh.Put(w), mesh.Put(&mesh.Certificate{Name: endedSecret, Chain: []byte("c"), Key: []byte("k")}),
		service("shop", "web", app, mesh.ServicePort{Name: "http", Port: 80, Protocol: mesh.HTTP, Target: portHTTP}, mesh.ServicePort{Name: "tcp", Port: 90, Protocol: mesh.TCP, Target: portTCP}),
		service("auth", "yes", nil, mesh.ServicePort{Port: 80}),
		service("auth", "no", nil, mesh.ServicePort{Port: 80}),
	}
	var policies []*mesh.Policy
	for i := range 1 + g.IntN(g.few(4)) {
		p := &mesh.Policy{
			Meta:     mesh.Meta{Name: mesh.Name{Namespace: pick(g, []string{"shop", "shop", "tulle-system", "front"}), Name: string(rune('a' + i))}, Created: time.Unix(int64(g.IntN(3)), 0)},
			Selector: pick(g, []*mesh.Selector{nil, nil, {MatchLabels: app}, {MatchLabels: map[string]string{"app": "other"}}}),
		}
		if g.tokens {
			p.Meta.Namespace, p.Selector = "shop", nil
		}
		if g.chance(85) {
			p.Authorization = &mesh.Authorization{DefaultDeny: g.chance(10)}
			for range 1 + g.IntN(g.few(3)) {
				p.Authorization.Rules = append(p.Authorization.Rules, g.rule())
			}
		}
		if g.chance(20) && !g.tokens {
			p.MTLS = &mesh.MTLS{Mode: g.mode()}
			if g.chance(50) {
				p.MTLS.Ports = map[uint16]mesh.MTLSMode{pick(g, []uint16{portOther, portOther, portHTTP, portTCP}): g.mode()}
			}
		}
		if g.chance(10) {
			p.RateLimit = &mesh.RateLimit{Rules: []mesh.RateLimitRule{{Requests: 1 << 20, Burst: 1 << 20, Unit: time.Second, To: []mesh.RateLimitOperation{{Paths: []string{"/a"}}}}}}
		}
		if g.chance(25) || g.tokens {
			p.JWT = g.jwt()
		}
		if g.chance(map[bool]int{true: 50, false: 5}[p.Meta.Namespace == "shop"]) { // nobody else's has a certificate
			p.TLS = g.ended()
		}
		if g.chance(2) {
			p.Invalid = "it makes no sense"
		}
		policies = append(policies, p)
		changes = append(changes, mesh.Put(p))
	}
	config := &mesh.Config{
		TrustDomain: "cluster.local", RootNamespace: "tulle-system", MTLS: pick(g, []mesh.MTLSMode{mesh.MTLSUnset, mesh.MTLSPermissive, mesh.MTLSPermissive, mesh.MTLSStrict, mesh.MTLSDisabled}),
		TrustedHops: uint32(g.IntN(3)), Authorizers: authorizers(),
	}
	if g.chance(60) {
		config.Aliases = []string{"old.local"}
	}
	s, _ := mesh.New(config).Apply(changes...)
	return s, w, policies
}

// request is a random one: HTTP of a caller, a connection of one, or TLS of an
// application.
func (g generator) request() Request {
	if g.tokens && g.chance(90) {
		r := Request{Peer: netip.MustParseAddr("127.0.0.1"), Port: portOpen, Identity: identities[0], HTTP: g.http()}
		if g.chance(20) {
			r.Identity, r.SNI = "", pick(g, askedNames)
		}
		return r
	}
	r := Request{Peer: netip.MustParseAddr(pick(g, peers)), Port: pick(g, []uint16{portOpen, portOpen, portHTTP, portTCP, portOther})}
	if g.chance(65) {
		r.Identity = pick(g, identities[:4])
		if g.chance(2) {
			r.Identity = identities[4]
		}
	}
	switch n := g.IntN(100); {
	case n < 92:
		r.HTTP = g.http()
		r.Unseen = r.Identity != "" && (r.Port == portTCP || g.chance(10))
		if g.chance(map[bool]int{true: 60, false: 5}[r.Identity == ""]) {
			r.SNI = pick(g, askedNames)
		}
	case n < 96:
		r.SNI = pick(g, askedNames)
	}
	return r
}

func (g generator) http() *HTTP {
	h := &HTTP{Method: pick(g, sentMethods), Path: pick(g, sentPaths), Host: pick(g, sentHosts)}
	if g.chance(40) {
		for range 1 + g.IntN(3) {
			h.Headers = append(h.Headers, mesh.Header{Name: pick(g, sentHeaders), Value: pick(g, sentValues)})
		}
	}
	if g.chance(60) || g.tokens && g.chance(80) {
		h.Claims = g.claims()
	}
	for range g.IntN(3) {
		if g.chance(60) {
			h.Headers = append(h.Headers, mesh.Header{Name: "x-forwarded-for", Value: pick(g, clients)})
		}
	}
	return h
}
