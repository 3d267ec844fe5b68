package translate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// authority signs the identities of a test.
type authority struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	ca  *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.key, a.ca = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	return a
}

func (a *authority) sign(c *x509.Certificate, by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	c.Subject = pkix.Name{CommonName: fmt.Sprint(c.SerialNumber)}
	parent := a.ca
	if by == nil {
		by, parent = key, c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, out
}

func (a *authority) identity(namespace, account string) tls.Certificate {
	id, err := url.Parse(Identity("cluster.local", namespace, account))
	if err != nil {
		a.t.Fatal(err)
	}
	key, c := a.sign(&x509.Certificate{URIs: []*url.URL{id}}, a.key)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

// socket is a server's TLS, which asks for a client's certificate.
func (a *authority) socket() *core.TransportSocket {
	c := a.identity("shop", "server")
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	block := func(kind string, der []byte) *core.DataSource {
		return inline(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&envoytls.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &envoytls.CommonTlsContext{
			TlsCertificates: []*envoytls.TlsCertificate{{CertificateChain: block("CERTIFICATE", c.Certificate[0]), PrivateKey: block("PRIVATE KEY", key)}},
			ValidationContextType: &envoytls.CommonTlsContext_ValidationContext{ValidationContext: &envoytls.CertificateValidationContext{
				TrustedCa: block("CERTIFICATE", a.ca.Raw),
			}},
		},
	})}}
}

// limited is a real Envoy with a server's managers for mTLS and for plaintext.
type limited struct {
	t                 *testing.T
	ca                *authority
	mtls, open, admin string
}

func startLimited(t *testing.T, a *application, policies ...*mesh.Policy) *limited {
	t.Helper()
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	es := []mesh.Entity{w}
	for _, p := range policies {
		es = append(es, p)
	}
	v := view(es...)
	profile := mesh.ProfileOf(w)
	in := inboundOf(profile, v)
	to := staticCluster(ClusterInbound)
	to.ClusterDiscoveryType, to.LbPolicy = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, cluster.Cluster_ROUND_ROBIN
	to.LoadAssignment = assignment(ClusterInbound, lbEndpoint(netip.MustParseAddrPort(a.Addr().String()), false))
	b := &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{Clusters: []*cluster.Cluster{to}}}
	out := &limited{t: t, ca: newAuthority(t)}
	serve := func(socket *core.TransportSocket) string {
		m, port := in.manager(socket != nil), freePort(t)
		m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: routesIn(profile, v)}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, &listener.Listener{
			Name: fmt.Sprint(port), Address: socketAddress("127.0.0.1", uint32(port)),
			FilterChains: []*listener.FilterChain{{TransportSocket: socket, Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
		})
		return fmt.Sprint("127.0.0.1:", port)
	}
	out.mtls, out.open = serve(out.ca.socket()), serve(nil)
	admin := freePort(t)
	b.Admin = &bootstrap.Admin{Address: socketAddress("127.0.0.1", uint32(admin))}
	out.admin = fmt.Sprint("127.0.0.1:", admin)
	runEnvoy(t, b, out.open)
	return out
}

// client is of the service account in the namespace front.
func (l *limited) client(account string) *http.Client {
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{l.ca.identity("front", account)}, InsecureSkipVerify: true,
	}}}
	l.t.Cleanup(c.CloseIdleConnections)
	return c
}

func (l *limited) send(c *http.Client, method, path string, headers ...string) *http.Response {
	l.t.Helper()
	at := "https://" + l.mtls
	if c == http.DefaultClient {
		at = "http://" + l.open
	}
	r, err := http.NewRequestWithContext(l.t.Context(), method, at+path, http.NoBody)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	p, err := c.Do(r)
	if err != nil {
		l.t.Fatal(err)
	}
	p.Body.Close()
	return p
}

// statuses sends the request n times.
func (l *limited) statuses(n int, c *http.Client, method, path string, headers ...string) []int {
	l.t.Helper()
	var out []int
	for range n {
		out = append(out, l.send(c, method, path, headers...).StatusCode)
	}
	return out
}

func (l *limited) expect(what string, got []int, want ...int) {
	l.t.Helper()
	if !slices.Equal(got, want) {
		l.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// limit makes the rule's limit so many an hour, so that none come back in a test.
func limit(n uint32, r mesh.RateLimitRule) mesh.RateLimitRule {
	r.Requests, r.Burst, r.Unit = n, n, time.Hour
	return r
}

func limits(rules ...mesh.RateLimitRule) *mesh.Policy {
	return &mesh.Policy{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "limits"}}, RateLimit: &mesh.RateLimit{Rules: rules}}
}

// Who calls is what the certificate says, whatever the caller writes into headers.
func TestEachCallerHasItsOwnLimitByItsCertificate(t *testing.T) {
	l := startLimited(t, startApplication(t), limits(limit(3, mesh.RateLimitRule{PerCaller: true})))
	ann, bob := l.client("ann"), l.client("bob")
	l.expect("the first caller", l.statuses(5, ann, "GET", "/"), 200, 200, 200, 429, 429)
	l.expect("the second caller", l.statuses(4, bob, "GET", "/"), 200, 200, 200, 429)
	id := Identity("cluster.local", "front", "eve")
	l.expect("the first caller as another", l.statuses(1, ann, "GET", "/", "x-forwarded-client-cert: URI="+id, "caller: "+id), 429)
	l.expect("the first caller's account again", l.statuses(1, l.client("ann"), "GET", "/"), 429)
	l.expect("callers without a certificate", l.statuses(4, http.DefaultClient, "GET", "/", "x-forwarded-client-cert: URI="+id), 200, 200, 200, 429)
}

func TestLimitTellsWhatIsLeftAndWhenToComeBack(t *testing.T) {
	app := startApplication(t)
	l := startLimited(t, app, limits(mesh.RateLimitRule{Requests: 60, Burst: 2, Unit: time.Minute, To: []mesh.RateLimitOperation{{Methods: []string{"GET"}}}}))
	header := func(p *http.Response, name, want string) {
		t.Helper()
		if got := p.Header.Get(name); got != want {
			t.Errorf("%s of a %d is %q, want %q", name, p.StatusCode, got, want)
		}
	}
	p := l.send(http.DefaultClient, "GET", "/")
	header(p, "X-Ratelimit-Limit", "2")
	header(p, "X-Ratelimit-Remaining", "1")
	l.send(http.DefaultClient, "GET", "/")
	p = l.send(http.DefaultClient, "GET", "/")
	if p.StatusCode != 429 {
		t.Fatalf("the third request is answered with %d, want 429", p.StatusCode)
	}
	header(p, "X-Ratelimit-Remaining", "0")
	header(p, "Retry-After", "1")
	p = l.send(http.DefaultClient, "POST", "/")
	header(p, "X-Ratelimit-Limit", "") // no rule is about it
	if n := len(app.take()); n != 3 {
		t.Errorf("%d requests reached the application, want 3", n)
	}
	if status, code := callGRPC(t, l.open); status != 200 || code != "" {
		t.Errorf("a gRPC call, which is a POST, ends with %d and %q", status, code)
	}
	r, err := http.Get("http://" + l.admin + "/stats/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`envoy_http_local_rate_limit_rate_limited{envoy_local_http_ratelimit_prefix="inbound"} 1`,
		`envoy_http_local_rate_limit_ok{envoy_local_http_ratelimit_prefix="inbound"} 4`,
	} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
	// What comes back comes evenly: one a second.
	time.Sleep(1100 * time.Millisecond)
	l.expect("a second later", l.statuses(2, http.DefaultClient, "GET", "/"), 200, 429)
}

func TestLimitOfGRPCIsResourceExhausted(t *testing.T) {
	l := startLimited(t, startApplication(t), limits(limit(1, mesh.RateLimitRule{To: []mesh.RateLimitOperation{{Paths: []string{"/shop.Cart/*"}}}})))
	callGRPC(t, l.open)
	if status, code := callGRPC(t, l.open); status != 200 || code != "8" {
		t.Errorf("a call over the limit ends with %d and %q, want 200 and 8", status, code)
	}
}

// What authorization refuses costs nothing of what others may send.
func TestWhoIsRefusedUsesUpNothing(t *testing.T) {
	l := startLimited(t, startApplication(t), limits(limit(2, mesh.RateLimitRule{})), policyWith(&mesh.Authorization{Rules: []mesh.Rule{
		{Action: mesh.Allow, From: []mesh.Source{{ServiceAccounts: []mesh.Name{{Namespace: "front", Name: "friend"}}}}},
	}})[0])
	for _, got := range l.statuses(10, l.client("stranger"), "GET", "/") {
		if got != 403 {
			t.Errorf("a stranger is answered with %d, want 403", got)
		}
	}
	l.expect("a friend", l.statuses(3, l.client("friend"), "GET", "/"), 200, 200, 429)
}

func TestLimitIsForWhatItNames(t *testing.T) {
	op := func(o mesh.RateLimitOperation) []mesh.RateLimitOperation { return []mesh.RateLimitOperation{o} }
	l := startLimited(t, startApplication(t), limits(
		limit(1, mesh.RateLimitRule{To: op(mesh.RateLimitOperation{Paths: []string{"/cart"}})}),
		limit(1, mesh.RateLimitRule{To: op(mesh.RateLimitOperation{Paths: []string{"/api/*", "*.png"}, Methods: []string{"PUT", "POST"}})}),
		limit(1, mesh.RateLimitRule{To: op(mesh.RateLimitOperation{Headers: []mesh.HeaderMatch{{Name: "x-plan", Value: `a "free" one é`}, {Name: "x-user"}}})}),
		limit(1, mesh.RateLimitRule{
			From: []mesh.Source{{Namespaces: []string{"none"}}, {Identities: []string{"spiffe://cluster.local/ns/front/sa/pre*"}, Namespaces: []string{"front"}}},
			To:   op(mesh.RateLimitOperation{Paths: []string{"/from"}}),
		}),
		limit(1, mesh.RateLimitRule{From: []mesh.Source{{ServiceAccounts: []mesh.Name{{Namespace: "front", Name: "web"}, {Name: "web"}}}}, To: op(mesh.RateLimitOperation{Paths: []string{"/account"}})}),
		limit(1, mesh.RateLimitRule{To: op(mesh.RateLimitOperation{Ports: []uint16{1}, Paths: []string{"/port"}})}),
		limit(1, mesh.RateLimitRule{To: op(mesh.RateLimitOperation{Paths: []string{"/both"}})}),
		limit(5, mesh.RateLimitRule{To: op(mesh.RateLimitOperation{Paths: []string{"/two/*"}})}),
		limit(1, mesh.RateLimitRule{To: op(mesh.RateLimitOperation{Paths: []string{"/two/one"}})}),
	))
	plain := http.DefaultClient
	l.expect("a path", l.statuses(2, plain, "GET", "/cart?a=b"), 200, 429)
	for _, other := range []string{"/cart", "//cart", "/%63art", "/x/../cart", "/cart#x"} {
		if got := ask(t, l.open, "GET "+other+" HTTP/1.1", "host: web"); got == 200 {
			t.Errorf("spelt %s the path is not limited", other)
		}
	}
	l.expect("another path", l.statuses(2, plain, "GET", "/cart/x"), 200, 200)
	l.expect("a prefix and another method", l.statuses(2, plain, "GET", "/api/x"), 200, 200)
	l.expect("a prefix and a method", l.statuses(2, plain, "PUT", "/api/x"), 200, 429)
	l.expect("a suffix, of the same rule", l.statuses(1, plain, "POST", "/a.png"), 429)
	l.expect("one header of two", l.statuses(2, plain, "GET", "/", `X-Plan: a "free" one é`), 200, 200)
	l.expect("another value", l.statuses(2, plain, "GET", "/", "X-Plan: b", "X-User: u"), 200, 200)
	l.expect("both headers", l.statuses(2, plain, "GET", "/", `X-Plan: a "free" one é`, "X-User: u"), 200, 429)
	l.expect("nobody of the callers", l.statuses(2, plain, "GET", "/from"), 200, 200)
	l.expect("another identity", l.statuses(2, l.client("other"), "GET", "/from"), 200, 200)
	l.expect("an identity's beginning", l.statuses(2, l.client("prefix"), "GET", "/from"), 200, 429)
	l.expect("an account", l.statuses(2, l.client("web"), "GET", "/account"), 200, 429)
	l.expect("another account", l.statuses(2, l.client("webb"), "GET", "/account"), 200, 200)
	l.expect("another port", l.statuses(2, plain, "GET", "/port"), 200, 200)
	l.expect("the narrower of two rules", l.statuses(3, plain, "GET", "/two/one"), 200, 429, 429)
	l.expect("one limit for all methods", append(l.statuses(1, plain, "POST", "/both"), l.statuses(1, plain, "GET", "/both")...), 200, 429)
	l.expect("the wider of two rules", l.statuses(6, plain, "GET", "/two/two"), 200, 200, 200, 200, 429, 429)
}

// What Envoy's parser does not take would hold up all that comes with it.
func TestLargestRulesAreTaken(t *testing.T) {
	many := func(n int, form string) []string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf(form, i))
		}
		return out
	}
	var from []mesh.Source
	var to []mesh.RateLimitOperation
	for range 8 {
		s := mesh.Source{Identities: many(16, "spiffe://a/%d"), Namespaces: many(16, "n%d")}
		for _, n := range many(16, "a%d") {
			s.ServiceAccounts = append(s.ServiceAccounts, mesh.Name{Name: n})
		}
		o := mesh.RateLimitOperation{Methods: many(16, "M%d"), Paths: many(16, "/p%d")}
		for i := range 16 {
			o.Ports = append(o.Ports, uint16(60000+i))
		}
		for _, n := range many(8, "x%d") {
			o.Headers = append(o.Headers, mesh.HeaderMatch{Name: n, Value: n})
		}
		from, to = append(from, s), append(to, o)
	}
	// The most text: each byte becomes six.
	to[0].Paths[0] = "/" + strings.Repeat("\x01", mesh.MaxRateLimitText)
	rules := make([]mesh.RateLimitRule, 16)
	for i := range rules {
		rules[i] = limit(1, mesh.RateLimitRule{From: from, To: to})
	}
	rules[15] = limit(1, mesh.RateLimitRule{})
	t.Logf("the largest expression has %d characters", len(rateLimitMatch(rules[0], "shop", []string{"cluster.local"})))
	l := startLimited(t, startApplication(t), limits(rules...))
	l.expect("the last of them", l.statuses(2, http.DefaultClient, "GET", "/"), 200, 429)
}

// A rule that proxies would not take does not hold, and its status says so.
func TestRuleThatIsTooLongIsToldOf(t *testing.T) {
	var s mesh.Source
	for i := range 300 {
		s.Namespaces = append(s.Namespaces, fmt.Sprint("namespace-", i))
	}
	aliases := []string{"a.example", "b.example", "c.example", "d.example", "e.example", "f.example", "g.example", "h.example"}
	p := limits(limit(1, mesh.RateLimitRule{}), limit(1, mesh.RateLimitRule{From: []mesh.Source{s}}))
	of := func(domains []string) mesh.Finding {
		snapshot, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system", Aliases: domains}).Apply(mesh.Put(p))
		return policyFindings(p, mesh.NewView(snapshot))[0]
	}
	if f := of(nil); !f.OK {
		t.Errorf("without aliases: %+v", f)
	}
	if f := of(aliases); f.OK || f.Reason != reasonInvalid || !strings.Contains(f.Message, "rateLimit.rules[1] does not hold") {
		t.Errorf("with aliases: %+v", f)
	}
}

// A listener that changes is drained: what is limited must not be in it.
func TestChangedLimitLeavesTheListenerAsItIs(t *testing.T) {
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	of := func(ps ...*mesh.Policy) proto.Message {
		es := []mesh.Entity{w}
		for _, p := range ps {
			es = append(es, p)
		}
		return inboundListener(ForInbound(mesh.ProfileOf(w).ID, false), view(es...))
	}
	none := of()
	if !proto.Equal(none, of(limits(limit(1, mesh.RateLimitRule{PerCaller: true})))) {
		t.Error("the first limit changes the listener")
	}
	path := func(p string) *mesh.Policy {
		return limits(limit(1, mesh.RateLimitRule{To: []mesh.RateLimitOperation{{Paths: []string{p}}}}))
	}
	if !proto.Equal(of(path("/a")), of(path("/b"))) {
		t.Error("another path changes the listener")
	}
}

func TestMostSpecificLimitsHoldAndEqualsAddUp(t *testing.T) {
	web := map[string]string{"app": "web"}
	policy := func(namespace, name, app, invalid string) *mesh.Policy {
		p := limits(mesh.RateLimitRule{})
		p.Meta.Name = mesh.Name{Namespace: namespace, Name: name}
		p.Invalid = invalid
		if app != "" {
			p.Selector = &mesh.Selector{MatchLabels: map[string]string{"app": app}}
		}
		return p
	}
	wide, ns := policy("tulle-system", "mesh", "", ""), policy("shop", "ns", "", "")
	for name, c := range map[string]struct {
		policies []mesh.Entity
		want     []string
	}{
		"none":                              {nil, nil},
		"mesh":                              {[]mesh.Entity{wide}, []string{"mesh"}},
		"namespace over mesh":               {[]mesh.Entity{wide, ns}, []string{"ns"}},
		"two of a workload":                 {[]mesh.Entity{wide, ns, policy("shop", "a", "web", ""), policy("tulle-system", "b", "web", "")}, []string{"b", "a"}},
		"another workload's":                {[]mesh.Entity{ns, policy("shop", "a", "other", "")}, []string{"ns"}},
		"one that cannot be understood":     {[]mesh.Entity{ns, policy("shop", "a", "web", "it makes no sense")}, []string{"ns"}},
		"one that can, beside another such": {[]mesh.Entity{policy("shop", "a", "web", "it makes no sense"), policy("shop", "b", "web", "")}, []string{"b"}},
	} {
		var got []string
		for _, p := range rateLimits("shop", web, view(c.policies...)) {
			got = append(got, p.Meta.Name.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v hold, want %v", name, got, c.want)
		}
	}
}
