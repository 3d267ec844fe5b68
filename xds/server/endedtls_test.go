package server

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

const (
	accounts   = "https://accounts.example"
	endedName  = "web.example.org"
	endedAt    = "10.244.0.1:8443"
	friendOfIt = "spiffe://test.mesh/ns/front/sa/friend"
)

// operators certificate of the name, as a Secret has it.
func operatorsCertificate(t *testing.T, serial int64) *mesh.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{endedName}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &mesh.Certificate{
		Name:  mesh.Name{Namespace: "shop", Name: "web"},
		Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}
}

// endsTLS is of the workload web, whose application is at 8080.
func endsTLS() *mesh.Policy {
	return &mesh.Policy{
		Meta:     mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "web"}},
		Selector: &mesh.Selector{MatchLabels: map[string]string{"app": "web"}},
		TLS:      &mesh.EndedTLS{Ports: []mesh.PortTLS{{Port: 8443, Target: 8080, Certificate: mesh.Name{Namespace: "shop", Name: "web"}}}},
	}
}

// heard is what reached an application that notes it.
type heard struct {
	lock sync.Mutex
	last string
}

func (a *heard) take() string {
	a.lock.Lock()
	defer a.lock.Unlock()
	out := a.last
	a.last = ""
	return out
}

// hearing is an application in the clear at the addresses.
func hearing(t *testing.T, addresses ...string) *heard {
	t.Helper()
	a := &heard{}
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		at, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		a.lock.Lock()
		defer a.lock.Unlock()
		a.last = fmt.Sprintf("%s at %s as %s by %q", r.Proto, at, r.Header.Get("X-User"), r.Header.Get("X-Forwarded-Client-Cert"))
	})
	for _, address := range addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		protocols := &http.Protocols{}
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		s := &http.Server{Handler: handler, Protocols: protocols, ReadHeaderTimeout: time.Minute}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { s.Close() })
	}
	return a
}

// caller is a client outside of the pod.
type caller struct {
	*tls.Conn
	in *bufio.Reader
}

// calls does a handshake; nil where it is refused.
func (o *outside) calls(c *tls.Config) *caller {
	o.t.Helper()
	c.ServerName, c.InsecureSkipVerify = cmp.Or(c.ServerName, endedName), true
	s := tls.Client(o.dial(endedAt), c)
	if s.HandshakeContext(o.t.Context()) != nil {
		return nil
	}
	return &caller{s, bufio.NewReader(s)}
}

// ask is the status of an answer, over HTTP/1.1; 0 where there is none, and negative where
// the connection is about to be closed.
func (c *caller) ask(headers ...string) int {
	if c == nil {
		return 0
	}
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nX-Forwarded-Client-Cert: URI=%s\r\nX-User: mallory\r\n%s\r\n", endedName, friendOfIt, strings.Join(append(headers, ""), "\r\n")); err != nil {
		return 0
	}
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return 0
	}
	if r.Close {
		return -r.StatusCode
	}
	return r.StatusCode
}

func (c *caller) serial() int64 {
	if c == nil {
		return 0
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// sidecar starts that of the workload web, and waits until it is ready.
func (h *harness) sidecar() {
	h.t.Helper()
	h.startEnvoy(h.api.token(peer("web")))
	eventually(h.t, "that the sidecar is ready", func() bool {
		c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", translate.PortReady))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// A real Envoy behind the real redirection ends TLS of clients from outside at the port that
// a policy names, with the certificate of a Secret, and looks at their tokens.
func TestSidecarEndsTLSOfClients(t *testing.T) {
	o := newOutside(t)
	h := newHarness(t, nil)
	h.genuine, h.proxyGroup = true, proxyGroup
	app := hearing(t, "10.244.0.1:8080", "10.244.0.1:8443")
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: h.api.key.Public(), KeyID: h.api.kid, Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	policy := endsTLS()
	policy.MTLS = &mesh.MTLS{Mode: mesh.MTLSStrict}
	policy.JWT = &mesh.JWT{Issuers: []mesh.Issuer{{Issuer: accounts, Keys: mesh.ParseKeySet(string(keys)), ClaimsToHeaders: []mesh.ClaimHeader{{Header: "x-user", Claim: "sub"}}}}}
	policy.Authorization = &mesh.Authorization{Rules: []mesh.Rule{
		{Name: "members", From: []mesh.Source{{RequestPrincipals: []mesh.RequestPrincipal{{Issuer: accounts, Subject: "*"}}}}},
		{Name: "friend", From: []mesh.Source{{ServiceAccounts: []mesh.Name{{Namespace: "front", Name: "friend"}}}}},
	}}
	h.builder.Apply(mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}), mesh.Put(policy), mesh.Put(operatorsCertificate(t, 1)))
	token := func(claims map[string]any) string {
		return "Authorization: Bearer " + h.api.sign(claims)
	}
	good := token(map[string]any{"iss": accounts, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	over := token(map[string]any{"iss": accounts, "sub": "alice", "exp": time.Now().Add(-time.Hour).Unix()})
	h.sidecar()

	modern := func() *tls.Config { return &tls.Config{MinVersion: tls.VersionTLS13} }
	var stays *caller
	eventually(t, "that TLS ends", func() bool {
		stays = o.calls(modern())
		return stays.ask(good) == 200
	})
	if got, want := app.take(), `HTTP/1.1 at 10.244.0.1:8080 as alice by ""`; got != want {
		t.Errorf("the application got %s, want %s", got, want)
	}
	for what, c := range map[string]struct {
		headers []string
		want    int
	}{"no token": {nil, 401}, "a token that is over": {[]string{over}, 401}} {
		if got := o.calls(modern()).ask(c.headers...); got != c.want {
			t.Errorf("with %s: %d, want %d", what, got, c.want)
		}
		if got := app.take(); got != "" {
			t.Errorf("with %s the application got %s", what, got)
		}
	}
	if got := o.calls(&tls.Config{MaxVersion: tls.VersionTLS12}).ask(good); got != 200 {
		t.Errorf("TLS 1.2: %d", got)
	}
	if c := o.calls(&tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}); c != nil {
		t.Error("TLS 1.1 is taken")
	}
	app.take()

	// HTTP/2, which is between the client and the sidecar.
	second := o.calls(&tls.Config{NextProtos: []string{"h2", "http/1.1"}})
	if second == nil || second.ConnectionState().NegotiatedProtocol != "h2" {
		t.Fatal("HTTP/2 is not agreed on")
	}
	client := second.inHTTP2(t)
	for status, header := range map[int]string{200: good, 401: over} {
		r, err := http.NewRequest(http.MethodGet, "https://"+endedName+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, value, _ := strings.Cut(header, ": ")
		r.Header.Set("Authorization", value)
		answer, err := client.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != status {
			t.Errorf("over HTTP/2: %d, want %d", answer.StatusCode, status)
		}
	}
	if got, want := app.take(), `HTTP/1.1 at 10.244.0.1:8080 as alice by ""`; got != want {
		t.Errorf("over HTTP/2 the application got %s, want %s", got, want)
	}

	// A workload's certificate is its identity in mesh mTLS, and nothing in other TLS.
	if got := o.calls(h.member(translate.ALPNHTTP)).ask(); got != 200 {
		t.Errorf("by mesh mTLS: %d, want 200", got)
	}
	if got, want := app.take(), `HTTP/1.1 at 10.244.0.1:8080 as  by "`; !strings.HasPrefix(got, want) || !strings.Contains(got, friendOfIt) {
		t.Errorf("by mesh mTLS the application got %s", got)
	}
	if got := o.calls(h.member()).ask(); got != 401 {
		t.Errorf("with the mesh's certificate in other TLS: %d, want 401", got)
	}
	for _, protocol := range []string{translate.ALPNHTTP, translate.ALPNTCP} {
		if got := o.calls(&tls.Config{NextProtos: []string{protocol}}).ask(good); got != 0 {
			t.Errorf("who says %s and is nobody is answered with %d", protocol, got)
		}
	}
	// Nothing but TLS, and no bytes within mesh mTLS that nobody could look into.
	for what, bytes := range map[string]string{"HTTP in the clear": "GET / HTTP/1.1\r\nHost: web\r\n" + good + "\r\n\r\n", "other bytes": "\x00\x01\x02\x03"} {
		c := o.dial(endedAt)
		_, _ = io.WriteString(c, bytes)
		if got, err := io.ReadAll(c); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s is answered: %q, %v", what, got, err)
		}
	}
	inner := o.calls(h.member(translate.ALPNTCP))
	if inner == nil {
		t.Fatal("mesh mTLS for TCP is refused")
	}
	if tls.Client(inner.Conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()) == nil {
		t.Error("TLS in mesh mTLS is answered")
	}
	if got := app.take(); got != "" {
		t.Errorf("the application got %s", got)
	}

	// A renewed certificate comes to new connections, and those from before stay.
	listener := build.Key{Type: translate.Listener, Name: translate.ListenerInbound, For: translate.ForInbound(h.builder.Snapshot().Profile(workload("web")), false)}
	before := h.builder.Value(listener).Version
	h.builder.Apply(mesh.Put(operatorsCertificate(t, 2)))
	eventually(t, "the renewed certificate", func() bool { return o.calls(modern()).serial() == 2 })
	if got := stays.ask(good); got != 200 || stays.serial() != 1 {
		t.Errorf("a connection from before: %d", got)
	}
	if h.builder.Value(listener).Version != before {
		t.Error("the listener is another, and so drains")
	}
	if n := h.metric("tulle_xds_nacks_total"); n != 0 {
		t.Errorf("Envoy refused %v responses", n)
	}
	// Without a certificate of use the port is closed, and nothing falls back to what takes
	// any bytes. Envoy refuses the secret that is empty, and goes on with the one before for
	// the connections of the listener that it drains.
	app.take()
	for _, c := range []mesh.Change{
		mesh.Put(&mesh.Certificate{Name: mesh.Name{Namespace: "shop", Name: "web"}, Invalid: "its key is another's"}),
		mesh.Delete(mesh.KindCertificate, mesh.Name{Namespace: "shop", Name: "web"}),
	} {
		h.builder.Apply(c)
		eventually(t, "that TLS is refused", func() bool { return o.calls(modern()) == nil })
		h.builder.Apply(mesh.Put(operatorsCertificate(t, 3)))
		eventually(t, "that TLS ends again", func() bool { return o.calls(modern()).ask(good) == 200 })
	}
}

// What rules ask of clients whose TLS ends at the sidecar: the name that they asked for is
// known, and the client before the gateways is not, since nobody on the way looked into the
// request and wrote X-Forwarded-For.
func TestRulesAboutClientsWhoseTLSEnds(t *testing.T) {
	o := newOutside(t)
	h := newHarness(t, nil)
	h.genuine, h.proxyGroup = true, proxyGroup
	hearing(t, "10.244.0.1:8080")
	config := *h.builder.Snapshot().Config()
	config.TrustedHops = 1
	policy := endsTLS()
	rules := func(rs ...mesh.Rule) {
		changed := *policy
		changed.Authorization = &mesh.Authorization{Rules: rs}
		policy = &changed
		h.builder.Apply(mesh.Put(policy))
	}
	rules()
	h.builder.Apply(mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}), mesh.Put(&config), mesh.Put(operatorsCertificate(t, 1)))
	h.sidecar()
	eventually(t, "that TLS ends", func() bool { return o.calls(&tls.Config{}).ask() == 200 })

	far := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	who := func(s mesh.Source) []mesh.Source { return []mesh.Source{s} }
	const other, forged = "X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 198.51.100.7"
	named := func(names ...string) mesh.Condition { return mesh.Condition{SNI: names} }
	for _, c := range []struct {
		what    string
		rule    mesh.Rule
		name    string
		headers []string
		want    int
	}{
		{"a client that is refused says that it is another", mesh.Rule{Action: mesh.Deny, From: who(mesh.Source{RemoteIPBlocks: far})}, "", []string{other}, 403},
		{"a client that is not let in says that it is another", mesh.Rule{Action: mesh.Allow, From: who(mesh.Source{RemoteIPBlocks: far})}, "", []string{forged}, 403},
		{"all but some are refused", mesh.Rule{Action: mesh.Deny, From: who(mesh.Source{NotRemoteIPBlocks: far})}, "", []string{forged}, 403},
		{"the connection is from where it may be", mesh.Rule{Action: mesh.Allow, From: who(mesh.Source{IPBlocks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}})}, "", []string{other}, 200},
		{"there is nobody to ask", mesh.Rule{Action: mesh.Custom, Authorizer: "none"}, "", nil, 403},
		{"a rule that is tried", mesh.Rule{Action: mesh.Deny, DryRun: true}, "", nil, 200},
		{"a rule about the application's port", mesh.Rule{Action: mesh.Deny, To: []mesh.Operation{{Ports: []uint16{8080}}}}, "", nil, 200},
		{"a rule about the port that is called", mesh.Rule{Action: mesh.Deny, To: []mesh.Operation{{Ports: []uint16{8443}}}}, "", nil, 403},
		{"the name is one that may be asked for", mesh.Rule{Action: mesh.Allow, When: named("*.example.org")}, "", nil, 200},
		{"it is none", mesh.Rule{Action: mesh.Allow, When: named("*.example.org")}, "admin.internal", nil, 403},
		{"it is refused", mesh.Rule{Action: mesh.Deny, When: named("admin.internal")}, "ADMIN.internal", nil, 403},
		{"another is refused", mesh.Rule{Action: mesh.Deny, When: named("admin.internal")}, "", nil, 200},
		{"all others are refused", mesh.Rule{Action: mesh.Deny, When: mesh.Condition{NotSNI: []string{endedName}}}, "admin.internal", nil, 403},
		{"the name that all others are refused for", mesh.Rule{Action: mesh.Deny, When: mesh.Condition{NotSNI: []string{endedName}}}, "", nil, 200},
	} {
		ask := func() int { return o.calls(&tls.Config{ServerName: c.name}).ask(c.headers...) }
		before, opposite := 200, []mesh.Rule(nil)
		if c.want == before {
			before, opposite = 403, []mesh.Rule{{Name: "nobody", Action: mesh.Deny}}
		}
		rules(opposite...)
		eventually(t, c.what+": what held before", func() bool { return ask() == before })
		c.rule.Name = "r"
		rules(c.rule)
		eventually(t, c.what, func() bool { return ask() == c.want })
	}

	rules()
	limited := *policy
	limited.RateLimit = &mesh.RateLimit{Rules: []mesh.RateLimitRule{{Name: "few", Requests: 3, Burst: 3, Unit: time.Hour, PerCaller: true}}}
	h.builder.Apply(mesh.Put(&limited))
	eventually(t, "that too many requests are refused", func() bool { return o.calls(&tls.Config{}).ask() == 429 })
	member := o.calls(h.member(translate.ALPNHTTP))
	for n := range 3 {
		if got := member.ask(); got != 200 {
			t.Errorf("request %d of another caller, in mesh mTLS, is answered with %d", n+1, got)
		}
	}
}

// The key of the certificate is for the proxies that end TLS with it, by whatever name the
// others ask for it.
func TestOperatorsCertificateIsForSelectedWorkloadsAlone(t *testing.T) {
	h := newHarness(t, nil)
	c := operatorsCertificate(t, 1)
	h.builder.Apply(mesh.Put(endsTLS()), mesh.Put(c))
	name := translate.PrefixEnded + "shop/web"
	key, _ := pem.Decode(c.Key)
	has := func(pod string) bool {
		a := h.connect(h.api.token(peer(pod)))
		a.subscribe(translate.Secret, name, translate.PrefixCertificate+"shop/web")
		a.until("an answer", a.has(translate.Secret, name))
		for _, r := range a.got[translate.Secret] {
			if bytes.Contains(r.GetResource().GetValue(), c.Key) || bytes.Contains(r.GetResource().GetValue(), key.Bytes) {
				return true
			}
		}
		return false
	}
	if !has("web") {
		t.Error("the selected workload's proxy does not have it")
	}
	if has("api") {
		t.Error("another workload's proxy has it")
	}
}
