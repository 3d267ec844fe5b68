package translate

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// openProxy is a real Envoy whose routes are in a file that is read anew when it is
// replaced, as though they came over ADS.
type openProxy struct {
	t    *testing.T
	file string
	at   string
}

func (p *openProxy) routes(es ...mesh.Entity) {
	p.t.Helper()
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	r, err := anypb.New(routesIn(mesh.ProfileOf(w), viewOf(meshConfig(), append(es, w)...)))
	if err != nil {
		p.t.Fatal(err)
	}
	b, err := protojson.Marshal(&discovery.DiscoveryResponse{TypeUrl: r.GetTypeUrl(), Resources: []*anypb.Any{r}, VersionInfo: fmt.Sprint(time.Now().UnixNano())})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.file+".new", b, 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(p.file+".new", p.file); err != nil {
		p.t.Fatal(err)
	}
}

func startOpen(t *testing.T, app net.Addr, change func(*hcm.HttpConnectionManager), es ...mesh.Entity) *openProxy {
	t.Helper()
	p := &openProxy{t: t, file: filepath.Join(t.TempDir(), "routes.json")}
	p.routes(es...)
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	m := inboundOf(mesh.ProfileOf(w), viewOf(meshConfig(), w)).manager(false) // older than any policy
	change(m)
	m.GetRds().ConfigSource = &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_PathConfigSource{PathConfigSource: &core.PathConfigSource{Path: p.file}},
	}
	to := staticCluster(ClusterInbound)
	to.ClusterDiscoveryType, to.LbPolicy = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, cluster.Cluster_ROUND_ROBIN
	to.LoadAssignment = assignment(ClusterInbound, lbEndpoint(netip.MustParseAddrPort(app.String()), false))
	port := freePort(t)
	p.at = fmt.Sprint("127.0.0.1:", port)
	runEnvoy(t, &bootstrap.Bootstrap{
		Node: &core.Node{Id: "open", Cluster: "open"},
		StaticResources: &bootstrap.Bootstrap_StaticResources{
			Clusters: []*cluster.Cluster{to},
			Listeners: []*listener.Listener{{
				Name: "inbound", Address: socketAddress("127.0.0.1", uint32(port)),
				FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, m)}}},
			}},
		},
	}, p.at)
	return p
}

// connection is one that stays open.
type connection struct {
	t *testing.T
	net.Conn
	in   *bufio.Reader
	last http.Header // of the latest answer
}

func (p *openProxy) connect() *connection {
	p.t.Helper()
	c, err := net.Dial("tcp", p.at)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return &connection{t: p.t, Conn: c, in: bufio.NewReader(c)}
}

func (c *connection) ask(lines []string) int {
	c.t.Helper()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		c.t.Fatal(err)
	}
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatalf("the connection did not stay open: %v", err)
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		c.t.Fatal(err)
	}
	if r.Close {
		c.t.Fatal("the connection is being drained")
	}
	c.last = r.Header
	return r.StatusCode
}

// until asks until the answer is what is wanted.
func (c *connection) until(want int, lines []string) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := c.ask(lines)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("it is still %d, want %d", got, want)
		}
	}
}

// The first policy, other keys, and the policy's end come to connections that are open,
// and none of them is drained.
func TestKeysChangeOnOpenConnections(t *testing.T) {
	app := startApplication(t)
	old, next := newIssuer(t, "https://a.example", jose.RS256), newIssuer(t, "https://a.example", jose.ES256)
	with := func(i *issuer) *mesh.Policy { return withTokens(mesh.Issuer{Issuer: i.name, Keys: i.keys()}) }
	p := startOpen(t, app.Addr(), func(*hcm.HttpConnectionManager) {})
	c := p.connect()
	if got := c.ask(bearer(old.unsigned())); got != 200 {
		t.Fatalf("without a policy: %d, want 200", got)
	}
	p.routes(with(old))
	c.until(401, bearer(old.unsigned()))
	if got := c.last.Get("www-authenticate"); !strings.HasPrefix(got, "Bearer ") || !strings.Contains(got, "invalid_token") {
		t.Errorf("www-authenticate is %q", got)
	}
	for name, a := range map[string]attempt{"signed": {lines: bearer(old.token(nil)), want: 200}, "with the key to come": {lines: bearer(next.token(nil)), want: 401}} {
		if got := c.ask(a.lines); got != a.want {
			t.Errorf("%s: %d, want %d", name, got, a.want)
		}
	}
	p.routes(with(next))
	c.until(200, bearer(next.token(nil)))
	if got := c.ask(bearer(old.token(nil))); got != 401 {
		t.Errorf("with the key that is gone: %d, want 401", got)
	}
	p.routes()
	c.until(200, bearer(old.unsigned()))
}

// A connection that has no filter for tokens, since a version of Tulle without it has
// made its listener, gets rules about claims at once: nothing may pass by them.
func TestRulesAboutClaimsOnAConnectionThatIsOlderThanTheFilter(t *testing.T) {
	app := startApplication(t)
	rs := newIssuer(t, "https://rs.example", jose.RS256)
	tokens := withTokens(mesh.Issuer{Issuer: rs.name, Keys: rs.keys(), ClaimsToHeaders: []mesh.ClaimHeader{{Header: "x-sub", Claim: "sub"}}})
	role := func(action mesh.Action, c mesh.ClaimCondition) *mesh.Policy {
		c.Path = []string{"role"}
		return authorized(mesh.Rule{Action: action, When: mesh.Condition{Claims: []mesh.ClaimCondition{c}}})
	}
	p := startOpen(t, app.Addr(), func(m *hcm.HttpConnectionManager) {
		m.HttpFilters = slices.DeleteFunc(m.HttpFilters, func(f *hcm.HttpFilter) bool { return f.GetName() == jwtName })
	})
	c := p.connect()
	for name, es := range map[string][]mesh.Entity{
		"no rule":   {tokens},
		"allow":     {tokens, role(mesh.Allow, mesh.ClaimCondition{Values: []string{"admin"}})},
		"allow not": {tokens, role(mesh.Allow, mesh.ClaimCondition{NotValues: []string{"guest"}})},
		"deny":      {tokens, role(mesh.Deny, mesh.ClaimCondition{Values: []string{"guest"}})},
		"deny not":  {tokens, role(mesh.Deny, mesh.ClaimCondition{NotValues: []string{"admin"}})},
	} {
		p.routes()
		c.until(200, bearer("x"))
		p.routes(es...)
		c.until(403, bearer("x"))
		app.take()
		for _, lines := range [][]string{bearer(rs.token(claimsOf{"role": "admin"})), bearer(rs.token(claimsOf{"role": "guest"})), bearer(rs.unsigned()), {"GET / HTTP/1.1", "host: web", "x-sub: mallory"}} {
			if got := c.ask(lines); got != 403 {
				t.Errorf("%s: %q is answered with %d, want 403", name, lines[2], got)
			}
		}
		if got := app.take(); len(got) > 0 {
			t.Errorf("%s: the application got %q", name, got)
		}
	}
}

// Keys in a Secret verify as those elsewhere do, and without them no token is valid.
func TestKeysOfASecret(t *testing.T) {
	app := startApplication(t)
	a := newIssuer(t, "https://a.example", jose.ES256)
	policy := withTokens(mesh.Issuer{Issuer: a.name, SecretKey: "a.json"})
	for name, c := range map[string]struct {
		keys *mesh.Keys
		want int
		says string // the policy's status
	}{
		"there":          {&mesh.Keys{Namespace: "shop", Secret: true, Sets: map[string]*mesh.KeySet{"a.json": a.keys()}}, 200, ""},
		"another's":      {&mesh.Keys{Namespace: "front", Secret: true, Sets: map[string]*mesh.KeySet{"a.json": a.keys()}}, 401, "the key a.json of Secret shop/tulle-jwks: create it, or correct secretKey"},
		"in a ConfigMap": {&mesh.Keys{Namespace: "shop", Sets: map[string]*mesh.KeySet{"a.json": a.keys()}}, 401, "are not there"},
		"private ones":   {&mesh.Keys{Namespace: "shop", Secret: true, Sets: map[string]*mesh.KeySet{"a.json": mesh.ParsePublicKeySet(`{"keys":[{"kty":"EC","d":"x"}]}`)}}, 401, "has a private part (d)"},
	} {
		s := startSidecar(t, app.Addr(), meshConfig(), policy, c.keys)
		s.expect(map[string]attempt{name: {lines: bearer(a.token(nil)), want: c.want}})
		said := ""
		for _, f := range jwtFaults(policy, view(policy, c.keys)) {
			if f != nil {
				said += f.message
			}
		}
		if (said == "") != (c.says == "") || !strings.Contains(said, c.says) {
			t.Errorf("%s: the status says %q, want %q", name, said, c.says)
		}
	}
}
