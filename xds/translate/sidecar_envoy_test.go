package translate

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// sidecarProxy is a real Envoy with the whole inbound listener of a workload, whose
// application is somewhere else on this machine, and with certificates of its own.
type sidecarProxy struct {
	t         *testing.T
	ca        *authority
	at, admin string
}

func startSidecar(t *testing.T, app net.Addr, c *mesh.Config, es ...mesh.Entity) *sidecarProxy {
	t.Helper()
	s := &sidecarProxy{t: t, ca: newAuthority(t)}
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true}
	v := viewOf(c, append(es, w)...)
	profile := mesh.ProfileOf(w)
	l := inboundListener(ForInbound(profile.ID, false), v)
	port, admin := freePort(t), freePort(t)
	l.Address = socketAddress("127.0.0.1", uint32(port))
	l.ListenerFilters = l.ListenerFilters[1:] // nobody was redirected
	for _, chain := range l.FilterChains {
		if chain.TransportSocket != nil {
			chain.TransportSocket = s.socket(chain.TransportSocket)
		}
		m := &hcm.HttpConnectionManager{}
		if f := chain.Filters[len(chain.Filters)-1]; f.GetTypedConfig().UnmarshalTo(m) == nil {
			m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: routesIn(profile, v)}
			chain.Filters[len(chain.Filters)-1] = networkFilter(hcmName, m)
		}
	}
	to := staticCluster(ClusterInbound)
	to.ClusterDiscoveryType, to.LbPolicy = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, cluster.Cluster_ROUND_ROBIN
	to.LoadAssignment = assignment(ClusterInbound, lbEndpoint(netip.MustParseAddrPort(app.String()), false))
	s.at, s.admin = fmt.Sprint("127.0.0.1:", port), fmt.Sprint("127.0.0.1:", admin)
	runEnvoy(t, &bootstrap.Bootstrap{
		Admin:           &bootstrap.Admin{Address: socketAddress("127.0.0.1", uint32(admin))},
		StaticResources: &bootstrap.Bootstrap_StaticResources{Clusters: []*cluster.Cluster{to}, Listeners: []*listener.Listener{l}},
	}, s.at)
	return s
}

// socket is the socket with what comes over SDS in it.
func (s *sidecarProxy) socket(from *core.TransportSocket) *core.TransportSocket {
	s.t.Helper()
	context := &envoytls.DownstreamTlsContext{}
	if err := from.GetTypedConfig().UnmarshalTo(context); err != nil {
		s.t.Fatal(err)
	}
	mine := s.identity("spiffe://cluster.local/ns/shop/sa/web")
	key, err := x509.MarshalPKCS8PrivateKey(mine.PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	common := context.CommonTlsContext
	check := common.GetCombinedValidationContext().GetDefaultValidationContext()
	check.TrustedCa = inline(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.ca.Raw}))
	common.ValidationContextType = &envoytls.CommonTlsContext_ValidationContext{ValidationContext: check}
	common.TlsCertificateSdsSecretConfigs = nil
	common.TlsCertificates = []*envoytls.TlsCertificate{{
		CertificateChain: inline(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mine.Certificate[0]})),
		PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	}}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(context)}}
}

func (s *sidecarProxy) identity(id string) tls.Certificate {
	s.t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		s.t.Fatal(err)
	}
	key, c := s.ca.sign(&x509.Certificate{URIs: []*url.URL{u}}, s.ca.key)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

// ask sends a request as it stands, over mesh mTLS with the identity, or in the clear
// where it is empty. It returns the status; 0 where the connection was closed.
func (s *sidecarProxy) ask(id string, lines ...string) int {
	s.t.Helper()
	raw, err := net.Dial("tcp", s.at)
	if err != nil {
		s.t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	c := raw
	if id != "" {
		c = tls.Client(raw, &tls.Config{Certificates: []tls.Certificate{s.identity(id)}, InsecureSkipVerify: true, NextProtos: []string{ALPNHTTP}})
	}
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		return 0
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	return r.StatusCode
}

func meshConfig() *mesh.Config {
	return &mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system", MTLS: mesh.MTLSPermissive}
}

func authorized(rules ...mesh.Rule) *mesh.Policy {
	return policyWith(&mesh.Authorization{Rules: rules})[0]
}

const (
	friend   = "spiffe://cluster.local/ns/front/sa/friend"
	stranger = "spiffe://cluster.local/ns/back/sa/stranger"
)

type attempt struct {
	from  string
	lines []string
	want  int
}

func (s *sidecarProxy) expect(attempts map[string]attempt) {
	s.t.Helper()
	for name, a := range attempts {
		lines := a.lines
		if len(lines) == 0 {
			lines = []string{"GET / HTTP/1.1", "host: web"}
		}
		if got := s.ask(a.from, lines...); got != a.want {
			s.t.Errorf("%s: %d, want %d", name, got, a.want)
		}
	}
}

// Who is nobody is not "anybody but": an Allow rule does not let him in, and a Deny
// rule refuses him.
func TestNotFormsAreNoWayInWithoutAnIdentity(t *testing.T) {
	app := startApplication(t)
	for _, source := range []mesh.Source{
		{NotNamespaces: []string{"back"}},
		{NotIdentities: []string{"spiffe://cluster.local/ns/back/*"}},
		{NotServiceAccounts: []mesh.Name{{Namespace: "back", Name: "stranger"}}},
	} {
		startSidecar(t, app.Addr(), meshConfig(), authorized(mesh.Rule{From: []mesh.Source{source}})).expect(map[string]attempt{
			"another, allowed":    {from: friend, want: 200},
			"who is not, allowed": {from: stranger, want: 403},
			"nobody, allowed":     {from: "", want: 403},
		})
		startSidecar(t, app.Addr(), meshConfig(), authorized(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{source}})).expect(map[string]attempt{
			"another, denied":    {from: friend, want: 403},
			"who is not, denied": {from: stranger, want: 200},
			"nobody, denied":     {from: "", want: 403},
		})
	}
}

func TestAliasOfTheTrustDomainIsTheTrustDomain(t *testing.T) {
	app := startApplication(t)
	c := meshConfig()
	c.TrustDomain, c.Aliases = "new.example", []string{"old.example"}
	s := startSidecar(t, app.Addr(), c, authorized(
		mesh.Rule{From: []mesh.Source{{Identities: []string{"spiffe://new.example/ns/a/sa/b"}}}},
		mesh.Rule{From: []mesh.Source{{Namespaces: []string{"c"}}}},
		mesh.Rule{From: []mesh.Source{{TrustDomains: []string{"partner.example"}}}},
		mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{Identities: []string{"spiffe://old.example/ns/c/sa/denied"}}}},
	))
	s.expect(map[string]attempt{
		"the identity":                      {from: "spiffe://new.example/ns/a/sa/b", want: 200},
		"under the alias":                   {from: "spiffe://old.example/ns/a/sa/b", want: 200},
		"the namespace under the alias":     {from: "spiffe://old.example/ns/c/sa/d", want: 200},
		"another":                           {from: "spiffe://old.example/ns/a/sa/x", want: 403},
		"denied under the alias":            {from: "spiffe://old.example/ns/c/sa/denied", want: 403},
		"denied under the trust domain":     {from: "spiffe://new.example/ns/c/sa/denied", want: 403},
		"another trust domain":              {from: "spiffe://partner.example/ns/a/sa/b", want: 0},
		"one whose name begins as the mesh": {from: "spiffe://new.example.org/ns/a/sa/b", want: 0},
	})
}

func TestClientBeforeTheGatewayIsBelievedAsFarAsConfigured(t *testing.T) {
	app := startApplication(t)
	blocks := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	allow := authorized(mesh.Rule{From: []mesh.Source{{RemoteIPBlocks: blocks("192.0.2.0/24")}}})
	deny := authorized(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{RemoteIPBlocks: blocks("192.0.2.0/24"), Namespaces: []string{"front"}}}})
	except := authorized(mesh.Rule{From: []mesh.Source{{NotRemoteIPBlocks: blocks("192.0.2.0/24")}}})
	mesh6 := authorized(mesh.Rule{From: []mesh.Source{{RemoteIPBlocks: blocks("2001:db8::/32")}}})
	peer := authorized(mesh.Rule{From: []mesh.Source{{RemoteIPBlocks: blocks("127.0.0.0/8")}}})
	for _, c := range []struct {
		name      string
		hops      uint32
		policy    *mesh.Policy
		forwarded []string
		from      string
		want      int
	}{
		{"nothing is believed", 0, allow, []string{"192.0.2.7"}, friend, 403},
		{"nothing is believed, and denied", 0, deny, []string{"10.0.0.1"}, friend, 403},
		{"nothing is believed, and denied to others", 0, deny, []string{"10.0.0.1"}, stranger, 200},
		{"nothing is believed of who is not", 0, except, []string{"10.0.0.1"}, friend, 403},
		{"the gateway's word", 1, allow, []string{"192.0.2.7"}, friend, 200},
		{"what the client said before", 1, allow, []string{"192.0.2.7, 198.51.100.1"}, friend, 403},
		{"what the client said in a line of its own", 1, allow, []string{"192.0.2.7", "198.51.100.1"}, friend, 403},
		{"no identity", 1, allow, []string{"192.0.2.7"}, "", 403},
		{"no word", 1, allow, nil, friend, 403},
		{"denied", 1, deny, []string{"192.0.2.7"}, friend, 403},
		{"not denied", 1, deny, []string{"198.51.100.1"}, friend, 200},
		{"excepted", 1, except, []string{"192.0.2.7"}, friend, 403},
		{"not excepted", 1, except, []string{"198.51.100.1"}, friend, 200},
		{"the load balancer's word", 2, allow, []string{"192.0.2.7, 10.0.0.1"}, friend, 200},
		{"what the client said before the load balancer", 2, allow, []string{"192.0.2.7, 198.51.100.1, 10.0.0.1"}, friend, 403},
		{"the load balancer's word, in lines of their own", 2, allow, []string{"192.0.2.7", "10.0.0.1"}, friend, 200},
		{"the word of many", 4, allow, []string{"192.0.2.7,10.0.0.1", "unknown,2001:db8::1"}, friend, 200},
		{"the word about IPv6", 1, mesh6, []string{"2001:db8::7"}, friend, 200},
		{"another about IPv6", 1, mesh6, []string{"2001:db9::7"}, friend, 403},
		{"the word about IPv4 as IPv6", 1, allow, []string{"::ffff:192.0.2.7"}, friend, 200},
		{"the word about IPv4 as IPv6, and denied", 1, deny, []string{"::ffff:192.0.2.7"}, friend, 403},
		{"the word about IPv4 as IPv6 in hexadecimals, and denied", 1, deny, []string{"::FFFF:C000:0207"}, friend, 403},
		{"the word about IPv4 as IPv6, and excepted", 1, except, []string{"0:0:0:0:0:ffff:192.0.2.7"}, friend, 403},
		{"another about IPv4 as IPv6", 1, deny, []string{"::ffff:192.0.3.7"}, friend, 200},
		// Fewer proxies have written into it than are trusted: who is meant by what is there
		// nobody knows, be it the client itself that wrote it.
		{"fewer words than proxies", 2, allow, []string{"192.0.2.7"}, friend, 403},
		{"fewer words than proxies, in lines of their own", 3, allow, []string{"192.0.2.7", "192.0.2.8"}, friend, 403},
		{"no word of two", 2, allow, nil, friend, 403},
		{"fewer words than proxies, and denied", 2, deny, []string{"198.51.100.1"}, friend, 403},
		{"fewer words than proxies, and excepted", 2, except, []string{"198.51.100.1"}, friend, 403},
		{"no word, and denied", 1, deny, nil, friend, 403},
		{"no word, and excepted", 1, except, nil, friend, 403},
		{"no address, and denied", 1, deny, []string{"unknown"}, friend, 403},
		{"no address, and excepted", 1, except, []string{"unknown"}, friend, 403},
		{"no address", 1, allow, []string{"unknown"}, friend, 403},
		{"no word, and the peer would be let in", 1, peer, nil, friend, 403},
		{"fewer words than proxies, and the peer would be let in", 2, peer, []string{"127.0.0.1"}, friend, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := meshConfig()
			config.TrustedHops = c.hops
			lines := []string{"GET / HTTP/1.1", "host: web"}
			for _, f := range c.forwarded {
				lines = append(lines, "x-forwarded-for: "+f)
			}
			if got := startSidecar(t, app.Addr(), config, c.policy).ask(c.from, lines...); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}

// handshake opens a TLS connection of the application's own through the sidecar.
func (s *sidecarProxy) handshake(name string, protocols ...string) bool {
	s.t.Helper()
	raw, err := net.Dial("tcp", s.at)
	if err != nil {
		s.t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols, Certificates: []tls.Certificate{s.identity(friend)}})
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return false
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return err == nil && line == "hello\n"
}

func TestNameThatAClientAsksForInTLS(t *testing.T) {
	a := newAuthority(t)
	l := listen(t)
	talk(t, l, func(c net.Conn) { // echoes, whether or not there is TLS
		in := bufio.NewReader(c)
		first, err := in.Peek(1)
		if err != nil {
			return
		}
		var both io.ReadWriter = struct {
			io.Reader
			io.Writer
		}{in, c}
		if first[0] == 22 { // a TLS handshake
			both = tls.Server(peeked{c, in}, &tls.Config{Certificates: []tls.Certificate{a.identity("shop", "web")}})
		}
		_, _ = io.Copy(both, both)
	})
	sni := func(action mesh.Action, w mesh.Condition) *mesh.Policy {
		return authorized(mesh.Rule{Action: action, When: w})
	}
	for _, c := range []struct {
		policy *mesh.Policy
		passes map[string]bool // by name; "" is none, "mesh" TCP within mesh mTLS
	}{
		{sni(mesh.Allow, mesh.Condition{SNI: []string{"a.example", "*.b.example"}}), map[string]bool{"a.example": true, "A.Example": true, "x.b.example": true, "c.example": false, "": false, "mesh": false}},
		{sni(mesh.Allow, mesh.Condition{NotSNI: []string{"a.example"}}), map[string]bool{"a.example": false, "b.example": true, "": false, "mesh": false}},
		{sni(mesh.Deny, mesh.Condition{SNI: []string{"a.example"}}), map[string]bool{"a.example": false, "A.EXAMPLE": false, "b.example": true, "": true, "mesh": false}},
		{sni(mesh.Deny, mesh.Condition{NotSNI: []string{"a.example"}}), map[string]bool{"a.example": true, "b.example": false, "": false, "mesh": false}},
	} {
		s := startSidecar(t, l.Addr(), meshConfig(), c.policy)
		for name, want := range c.passes {
			var got bool
			if name == "mesh" {
				got = s.handshake("", ALPNTCP)
			} else {
				got = s.handshake(name)
			}
			if got != want {
				t.Errorf("%v and the name %q: passes %t, want %t", c.policy.Authorization.Rules[0], name, got, want)
			}
		}
	}
}

// Some servers take a name with the dot of a fully qualified one for the name, and clients
// of TLS may be made to send it.
func TestNameInTLSWithItsLastDotIsTheName(t *testing.T) {
	l := listen(t)
	reached := make(chan bool, 1)
	talk(t, l, func(c net.Conn) {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			reached <- true
		}
	})
	hello := func(name string) []byte {
		ours, theirs := net.Pipe()
		go func() {
			_ = tls.Client(theirs, &tls.Config{ServerName: name + "-", InsecureSkipVerify: true}).HandshakeContext(t.Context())
			theirs.Close()
		}()
		defer ours.Close()
		out := make([]byte, 1<<14)
		n, err := ours.Read(out)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.ReplaceAll(out[:n], []byte(name+"-"), []byte(name+"."))
	}
	s := startSidecar(t, l.Addr(), meshConfig(), authorized(mesh.Rule{Action: mesh.Deny, When: mesh.Condition{SNI: []string{"a.example", "*.b.example"}}}))
	for name, want := range map[string]bool{"a.example": false, "x.b.example": false, "c.example": true} {
		c, err := net.Dial("tcp", s.at)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(hello(name)); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 1)) // until it is closed
		c.Close()
		got := false
		select {
		case got = <-reached:
		default:
		}
		if got != want {
			t.Errorf("%s.: reaches the application %t, want %t", name, got, want)
		}
	}
}

// peeked is a connection whose first bytes were looked at.
type peeked struct {
	net.Conn
	in io.Reader
}

func (p peeked) Read(b []byte) (int, error) { return p.in.Read(b) }

// What comes in plaintext is counted apart from what comes over mesh mTLS, refused or
// not, in the metrics that `tulle status --plaintext` reads.
func TestPlaintextIsCountedApart(t *testing.T) {
	app := startApplication(t)
	s := startSidecar(t, app.Addr(), meshConfig(), authorized(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{NotNamespaces: []string{"front"}}}}))
	for range 3 {
		if got := s.ask(friend, "GET / HTTP/1.1", "host: web"); got != 200 {
			t.Errorf("over mesh mTLS: %d", got)
		}
	}
	for range 2 {
		if got := s.ask("", "GET / HTTP/1.1", "host: web"); got != 403 {
			t.Errorf("in plaintext: %d", got)
		}
	}
	s.handshake("a.example") // TLS that is not the mesh's
	r, err := http.Get("http://" + s.admin + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"http.inbound.downstream_rq_total: 3", "http.inbound-plain.downstream_rq_total: 2"} {
		if !strings.Contains(string(body), want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if !strings.Contains(string(body), "tcp.plain-tcp.downstream_cx_total: ") || strings.Contains(string(body), "tcp.plain-tcp.downstream_cx_total: 0\n") {
		t.Error("a connection in plaintext is not counted")
	}
}

// On connections that are not HTTP a Custom rule refuses, and rules that only note are
// counted.
func TestRulesOnConnectionsThatAreNotHTTP(t *testing.T) {
	l := listen(t)
	talk(t, l, echoes)
	echoes := func(s *sidecarProxy) bool {
		c, err := net.Dial("tcp", s.at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "\x00hello\n")
		line, err := bufio.NewReader(c).ReadString('\n')
		return err == nil && line == "\x00hello\n"
	}
	closed := startSidecar(t, l.Addr(), meshConfig(), authorized(mesh.Rule{Action: mesh.Custom, Authorizer: "nobody", To: []mesh.Operation{{Methods: []string{"GET"}}}}))
	if echoes(closed) {
		t.Error("a Custom rule lets a connection pass about which nobody can be asked")
	}
	s := startSidecar(t, l.Addr(), meshConfig(), authorized(
		mesh.Rule{Name: "noted", Action: mesh.Audit},
		mesh.Rule{Name: "denies", Action: mesh.Deny, DryRun: true, To: []mesh.Operation{{Methods: []string{"GET"}}}},
		mesh.Rule{Name: "allows", DryRun: true, From: []mesh.Source{{Namespaces: []string{"front"}}}},
	))
	if !echoes(s) {
		t.Error("rules that only note refuse a connection")
	}
	r, err := http.Get("http://" + s.admin + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"plain-tcp.rbac.audit_.shadow_denied: 1", "plain-tcp.rbac.dry_run_deny_.shadow_denied: 1", "plain-tcp.rbac.dry_run_allow_.shadow_denied: 1",
	} {
		if !strings.Contains(string(body), want+"\n") {
			t.Errorf("the metrics lack %s", want)
			for line := range strings.SplitSeq(string(body), "\n") {
				if strings.Contains(line, "rbac") {
					t.Log(line)
				}
			}
		}
	}
}

// A certificate is verified for each connection: a session that is resumed would outlive it.
func TestNoSessionOfTheMeshIsResumed(t *testing.T) {
	s := startSidecar(t, startApplication(t).Addr(), meshConfig())
	config := &tls.Config{
		Certificates: []tls.Certificate{s.identity(friend)}, InsecureSkipVerify: true, NextProtos: []string{ALPNHTTP},
		ServerName: "web", ClientSessionCache: tls.NewLRUClientSessionCache(4),
	}
	for n := range 3 {
		c, err := tls.Dial("tcp", s.at, config)
		if err != nil {
			t.Fatal(err)
		}
		// Tickets come after the handshake, before the answer.
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nhost: web\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		if c.ConnectionState().DidResume {
			t.Errorf("connection %d goes on with a session of before", n)
		}
		_ = c.Close()
	}
}
