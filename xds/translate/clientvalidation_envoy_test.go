package translate

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	stdtls "crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// signer is an authority that signs certificates.
type signer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newSigner(t *testing.T, name string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{t, cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// signs makes a certificate for a client, of the name and the URI, that ends then.
func (a *signer) signs(name, uri string, end time.Time) *stdtls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: end.Add(-24 * time.Hour), NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &stdtls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// withTrust has a listener's chains have at hand their routes, and returns what they trust,
// instead of what the control plane sends.
func withTrust(t *testing.T, l *listener.Listener, v *mesh.View) []*tls.Secret {
	t.Helper()
	trusted := map[string]*tls.Secret{}
	for _, c := range l.FilterChains {
		for _, f := range c.Filters {
			var m hcm.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&m) != nil {
				continue
			}
			m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: gatewayRoutes(m.GetRds().RouteConfigName, edgeName().String(), v).Message.(*route.RouteConfiguration)}
			m.AccessLog = nil
			f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: typed(&m)}
		}
		var down tls.DownstreamTlsContext
		if c.TransportSocket == nil {
			continue
		}
		if err := c.TransportSocket.GetTypedConfig().UnmarshalTo(&down); err != nil {
			t.Fatal(err)
		}
		sent := down.CommonTlsContext.GetCombinedValidationContext().GetValidationContextSdsSecretConfig()
		if sent == nil {
			continue
		}
		trusted[sent.Name] = secret(Key{Type: Secret, Name: sent.Name}, v).Message.(*tls.Secret)
		sent.SdsConfig = nil
		c.TransportSocket = downstream(&down)
	}
	return slices.Collect(maps.Values(trusted))
}

// edgeClient calls a gateway over TLS.
type edgeClient struct {
	certificate *stdtls.Certificate
	sessions    stdtls.ClientSessionCache
	version     uint16
	alpn        []string
}

// dial does a handshake, of which a server may still think otherwise.
func (c edgeClient) dial(port uint16) (*stdtls.Conn, error) {
	config := &stdtls.Config{ServerName: "www.example", InsecureSkipVerify: true, ClientSessionCache: c.sessions, MaxVersion: c.version, NextProtos: c.alpn} //nolint:gosec // who answers is not what is asked
	config.GetClientCertificate = func(*stdtls.CertificateRequestInfo) (*stdtls.Certificate, error) {
		if c.certificate == nil {
			return &stdtls.Certificate{}, nil
		}
		return c.certificate, nil
	}
	return stdtls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", fmt.Sprint("127.0.0.1:", port), config)
}

// get is the status of an answer; 0: there is none. resumed says that the session was one of before.
func (c edgeClient) get(t *testing.T, port uint16, path string) (status int, resumed bool) {
	t.Helper()
	s, err := c.dial(port)
	if err != nil {
		return 0, false
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(s, "GET %s HTTP/1.1\r\nhost: www.example\r\nconnection: close\r\nx-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/admin\r\n\r\n", path)
	r, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil {
		return 0, false
	}
	r.Body.Close()
	return r.StatusCode, s.ConnectionState().DidResume
}

// A Gateway lets in clients whose certificates are of the authorities that it names for the
// port, tells backends who they are, and takes none of them for one of the mesh.
func TestGatewayVerifiesItsClients(t *testing.T) {
	const ours = "spiffe://cluster.local/ns/shop/sa/web"
	partners, others := newSigner(t, "partners"), newSigner(t, "others")
	later := time.Now().Add(time.Hour)
	known, stranger := partners.signs("orders", ours, later), others.signs("orders", ours, later)
	bundle := func(name string) *mesh.ClientValidation {
		return &mesh.ClientValidation{Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: mesh.Name{Namespace: "edge", Name: name}}}}
	}
	open := bundle("partners")
	open.Insecure = true
	ports := map[string]uint16{}
	g := edgeGateway(uint16(freePort(t)), uint16(freePort(t)))
	g.Listeners = nil
	listen := func(name string, protocol mesh.ListenerProtocol, clients *mesh.ClientValidation) {
		ports[name] = uint16(freePort(t))
		g.Listeners = append(g.Listeners, mesh.Listener{
			Name: name, Port: ports[name], Protocol: protocol, Clients: clients, Namespaces: mesh.RouteNamespaces{All: true},
			Certificates: []mesh.Backend{{Kind: kindSecret, Name: mesh.Name{Namespace: "edge", Name: "cert"}}},
		})
	}
	both := bundle("gone")
	both.Authorities = append(both.Authorities, bundle("partners").Authorities...)
	for name, clients := range map[string]*mesh.ClientValidation{
		"partners": bundle("partners"), "others": bundle("others"), "open": open, "unasked": nil, "missing": bundle("gone"), "some": both,
		"allowed": bundle("partners"), "denied": bundle("partners"), "limited": bundle("partners"), "but": bundle("partners"), "by hash": bundle("partners"), "by name": bundle("partners"),
	} {
		listen(name, mesh.ListenerHTTPS, clients)
	}
	for _, name := range []string{"bytes", "allowed bytes", "denied bytes"} {
		listen(name, mesh.ListenerTLS, bundle("partners"))
	}
	listen("openbytes", mesh.ListenerTLS, nil)

	identity := mesh.Source{Identities: []string{ours}}
	anybody := mesh.Source{Namespaces: []string{"shop"}}
	rules := func(rs ...mesh.Rule) mesh.Policy { return mesh.Policy{Authorization: &mesh.Authorization{Rules: rs}} }
	header := func(value string) mesh.Policy {
		return rules(mesh.Rule{When: mesh.Condition{Headers: []mesh.HeaderCondition{{Name: "x-forwarded-client-cert", Values: []string{value}}}}})
	}
	_, chain, key := issued(t, "www.example")
	web := mesh.Name{Namespace: "shop", Name: "web"}
	backend := []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web, Port: 80}, Weight: 1}}
	v := view(
		&mesh.Class{Name: "tulle"}, g, &mesh.Certificate{Name: mesh.Name{Namespace: "edge", Name: "cert"}, Chain: chain, Key: key},
		&mesh.Bundle{Name: mesh.Name{Namespace: "edge", Name: "partners"}, PEM: partners.pem}, &mesh.Bundle{Name: mesh.Name{Namespace: "edge", Name: "others"}, PEM: others.pem},
		&mesh.Service{Name: web, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}},
		&mesh.Route{
			Meta: mesh.Meta{Name: web}, Of: mesh.KindHTTPRoute, Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName()}}, Rules: []mesh.RouteRule{{Backends: backend}},
		},
		&mesh.Route{
			Meta: mesh.Meta{Name: web}, Of: mesh.KindTLSRoute, Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName()}}, Rules: []mesh.RouteRule{{Backends: backend}},
		},
		at("allowed", "allowed", rules(mesh.Rule{From: []mesh.Source{identity}}, mesh.Rule{From: []mesh.Source{anybody}}, mesh.Rule{From: []mesh.Source{{TrustDomains: []string{"cluster.local"}}}}, mesh.Rule{From: []mesh.Source{{NotNamespaces: []string{"other"}}}})),
		at("denied", "denied", rules(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{identity}}, mesh.Rule{Action: mesh.Deny, From: []mesh.Source{anybody}})),
		at("but", "but", rules(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{NotNamespaces: []string{"shop"}}}})),
		at("limited", "limited", mesh.Policy{RateLimit: &mesh.RateLimit{Rules: []mesh.RateLimitRule{limit(1, mesh.RateLimitRule{From: []mesh.Source{identity}})}}}),
		at("allowed-bytes", "allowed bytes", rules(mesh.Rule{From: []mesh.Source{identity}})),
		at("denied-bytes", "denied bytes", rules(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{identity}})),
		at("by-hash", "by hash", header(fmt.Sprintf("Hash=%s;*", fingerprint(known)))),
		at("by-name", "by name", header("*;URI="+ours)),
	)
	l := gatewayListener(edgeName().String(), v).Message.(*listener.Listener)
	withCertificate(t, l, chain, key)
	trust := withTrust(t, l, v)
	app := startApplication(t)
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Secrets: trust, Listeners: []*listener.Listener{l},
		Clusters: []*cluster.Cluster{
			emptyCluster(ClusterBlackhole), to("h1|shop/web|80", netip.MustParseAddrPort(app.Addr().String())), to("dec|shop/web|80", parrot(t)),
		},
	}}, fmt.Sprint("127.0.0.1:", ports["unasked"]))

	nobody := (*stdtls.Certificate)(nil)
	expired := partners.signs("orders", ours, time.Now().Add(-time.Hour))
	another := partners.signs("billing", "spiffe://partner.example/billing", later)
	anonymous := partners.signs("nameless", "", later)
	told := func(c *stdtls.Certificate, rest string) string { return "Hash=" + fingerprint(c) + ";" + rest }
	for _, c := range []struct {
		what        string
		listener    string
		certificate *stdtls.Certificate
		status      int
		told        string // of the certificate
	}{
		{"a certificate", "partners", known, 200, told(known, `Subject="CN=orders";URI=`+ours)},
		{"another of the authority", "partners", another, 200, told(another, `Subject="CN=billing";URI=spiffe://partner.example/billing`)},
		{"one without a URI", "partners", anonymous, 200, told(anonymous, `Subject="CN=nameless";URI=`)},
		{"none", "partners", nobody, 0, ""},
		{"one of another authority", "partners", stranger, 0, ""},
		{"one that is over", "partners", expired, 0, ""},
		{"one of the other port's authority", "others", known, 0, ""},
		{"the other port's", "others", stranger, 200, told(stranger, `Subject="CN=orders";URI=`+ours)},
		{"none, where any will do", "open", nobody, 200, ""},
		{"one of another authority, where any will do", "open", stranger, 200, ""},
		{"one that is over, where any will do", "open", expired, 200, ""},
		{"one, where any will do", "open", known, 200, ""},
		{"none, where none is asked for", "unasked", nobody, 200, ""},
		{"one, where none is asked for", "unasked", known, 200, ""},
		{"one, where nobody vouches", "missing", known, 0, ""},
		{"none, where nobody vouches", "missing", nobody, 0, ""},
		{"one, where one of two vouches", "some", known, 200, told(known, `Subject="CN=orders";URI=`+ours)},
		{"another, where one of two vouches", "some", stranger, 0, ""},
		{"an identity that is let in", "allowed", known, 403, ""},
		{"an identity that is refused", "denied", known, 200, told(known, `Subject="CN=orders";URI=`+ours)},
		{"all but a namespace that is refused", "but", known, 403, ""},
		{"the certificate that is let in", "by hash", known, 200, told(known, `Subject="CN=orders";URI=`+ours)},
		{"another than the one that is let in", "by hash", another, 403, ""},
		{"the name that is let in", "by name", known, 200, told(known, `Subject="CN=orders";URI=`+ours)},
		{"another name than the one that is let in", "by name", another, 403, ""},
	} {
		for _, version := range []uint16{stdtls.VersionTLS12, stdtls.VersionTLS13} {
			app.take()
			status, _ := edgeClient{certificate: c.certificate, version: version}.get(t, ports[c.listener], "/ok")
			if status != c.status {
				t.Errorf("%s, TLS %x: answered with %d, want %d", c.what, version, status, c.status)
			}
			seen := app.take()
			switch {
			case (len(seen) == 1) != (c.status == 200):
				t.Errorf("%s: the application saw %q", c.what, seen)
			case len(seen) == 0:
			case c.told == "" && strings.Contains(seen[0], "x-forwarded-client-cert"):
				t.Errorf("%s: the application is told %q", c.what, seen[0])
			case c.told != "" && !strings.Contains(seen[0], "x-forwarded-client-cert: "+c.told+"\n"):
				t.Errorf("%s: the application is told %q, want %s", c.what, seen[0], c.told)
			}
		}
	}
	for range 3 {
		if status, _ := (edgeClient{certificate: known}).get(t, ports["limited"], "/ok"); status != 200 {
			t.Errorf("a limit for an identity: %d", status)
		}
	}

	for _, c := range []struct {
		listener    string
		certificate *stdtls.Certificate
		open        bool
	}{
		{"bytes", known, true},
		{"bytes", nobody, false},
		{"bytes", stranger, false},
		{"bytes", expired, false},
		{"openbytes", nobody, true},
		{"allowed bytes", known, false},
		{"denied bytes", known, true},
	} {
		line := ""
		if s, err := (edgeClient{certificate: c.certificate}).dial(ports[c.listener]); err == nil {
			_ = s.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = fmt.Fprintln(s, "web") // rules are looked at with the first byte
			line, _ = bufio.NewReader(s).ReadString('\n')
			s.Close()
		}
		if (line == "web\n") != c.open {
			t.Errorf("connections to %s: heard %q, want it open: %v", c.listener, line, c.open)
		}
	}

	// A session of a listener that asks for less opens none that asks for more.
	for _, version := range []uint16{stdtls.VersionTLS12, stdtls.VersionTLS13} {
		sessions := stdtls.NewLRUClientSessionCache(8)
		loose := edgeClient{sessions: sessions, version: version}
		loose.get(t, ports["open"], "/ok")
		if _, resumed := loose.get(t, ports["open"], "/ok"); !resumed {
			t.Errorf("TLS %x: no session is resumed, so that nothing is seen here", version)
		}
		for _, name := range []string{"partners", "others", "missing"} {
			if status, _ := loose.get(t, ports[name], "/ok"); status != 0 {
				t.Errorf("TLS %x: a session from elsewhere is answered at %s with %d", version, name, status)
			}
		}
	}
}

// knownClients has a real Envoy be a gateway that verifies its clients, with what is trusted
// when the Gateway lets in others as well, or does not.
func knownClients(t *testing.T, by *signer, insecure bool) (port uint16, app *application) {
	t.Helper()
	_, chain, key := issued(t, "www.example")
	port, app = uint16(freePort(t)), startApplication(t)
	cert, bundle, web := mesh.Name{Namespace: "edge", Name: "cert"}, mesh.Name{Namespace: "edge", Name: "partners"}, mesh.Name{Namespace: "shop", Name: "web"}
	with := func(insecure bool) *mesh.View {
		return view(
			&mesh.Class{Name: "tulle"}, &mesh.Certificate{Name: cert, Chain: chain, Key: key}, &mesh.Bundle{Name: bundle, PEM: by.pem},
			&mesh.Gateway{Meta: mesh.Meta{Name: edgeName()}, Class: "tulle", Listeners: []mesh.Listener{{
				Name: "known", Port: port, Protocol: mesh.ListenerHTTPS, Certificates: []mesh.Backend{{Kind: kindSecret, Name: cert}}, Namespaces: mesh.RouteNamespaces{All: true},
				Clients: &mesh.ClientValidation{Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: bundle}}, Insecure: insecure},
			}}},
			&mesh.Service{Name: web, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}},
			&mesh.Route{
				Meta: mesh.Meta{Name: web}, Of: mesh.KindHTTPRoute, Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName()}},
				Rules: []mesh.RouteRule{{Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web, Port: 80}, Weight: 1}}}},
			},
		)
	}
	l := gatewayListener(edgeName().String(), with(false)).Message.(*listener.Listener)
	withCertificate(t, l, chain, key)
	trust := withTrust(t, l, with(insecure))
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Secrets: trust, Listeners: []*listener.Listener{l}, Clusters: []*cluster.Cluster{to("h1|shop/web|80", netip.MustParseAddrPort(app.Addr().String()))},
	}}, fmt.Sprint("127.0.0.1:", port))
	return port, app
}

// What is trusted comes to proxies apart from listeners. One that tells backends of whom it
// verified still verifies them when the Gateway has changed its mind, and Envoy not yet heard
// of the listener that tells of nobody.
func TestListenersVerifyClientsUntilAnotherReplacesThem(t *testing.T) {
	partners, others := newSigner(t, "partners"), newSigner(t, "others")
	port, app := knownClients(t, partners, true)
	later := time.Now().Add(time.Hour)
	if got, _ := (edgeClient{certificate: partners.signs("orders", "", later)}).get(t, port, "/ok"); got != 200 {
		t.Errorf("one whom an authority vouches for is answered with %d", got)
	}
	app.take()
	if got, _ := (edgeClient{certificate: others.signs("orders", "spiffe://partner.example/orders", later)}).get(t, port, "/ok"); got != 0 {
		t.Errorf("one whom nobody vouches for is answered with %d, and the application told %q", got, app.take())
	}
}

// A certificate that is over opens nothing, by a session from before either.
func TestNoSessionOutlivesAClientsCertificate(t *testing.T) {
	partners := newSigner(t, "partners")
	port, _ := knownClients(t, partners, false)
	end := time.Now().Add(3 * time.Second)
	certificate := partners.signs("orders", "", end)
	clients := map[uint16]edgeClient{}
	for _, version := range []uint16{stdtls.VersionTLS12, stdtls.VersionTLS13} {
		clients[version] = edgeClient{certificate: certificate, sessions: stdtls.NewLRUClientSessionCache(8), version: version}
		if got, _ := clients[version].get(t, port, "/ok"); got != 200 {
			t.Errorf("TLS %x: before its end: %d", version, got)
		}
	}
	time.Sleep(time.Until(end.Add(1500 * time.Millisecond))) // it ends with a second
	for version, c := range clients {
		if got, resumed := c.get(t, port, "/ok"); got != 0 {
			t.Errorf("TLS %x: after its end: %d, by a session from before: %v", version, got, resumed)
		}
	}
}

// Backends hear nothing of connections of TLS before it is known who the client is.
func TestNobodyUnknownIsConnectedToABackend(t *testing.T) {
	partners := newSigner(t, "partners")
	_, chain, key := issued(t, "www.example")
	port := uint16(freePort(t))
	cert, bundle, web := mesh.Name{Namespace: "edge", Name: "cert"}, mesh.Name{Namespace: "edge", Name: "partners"}, mesh.Name{Namespace: "shop", Name: "web"}
	v := view(
		&mesh.Class{Name: "tulle"}, &mesh.Certificate{Name: cert, Chain: chain, Key: key}, &mesh.Bundle{Name: bundle, PEM: partners.pem},
		&mesh.Gateway{Meta: mesh.Meta{Name: edgeName()}, Class: "tulle", Listeners: []mesh.Listener{{
			Name: "known", Port: port, Protocol: mesh.ListenerTLS, Certificates: []mesh.Backend{{Kind: kindSecret, Name: cert}}, Namespaces: mesh.RouteNamespaces{All: true},
			Clients: &mesh.ClientValidation{Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: bundle}}},
		}}},
		&mesh.Service{Name: web, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}},
		&mesh.Route{
			Meta: mesh.Meta{Name: web}, Of: mesh.KindTLSRoute, Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName()}},
			Rules: []mesh.RouteRule{{Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web, Port: 80}, Weight: 1}}}},
		},
	)
	l := gatewayListener(edgeName().String(), v).Message.(*listener.Listener)
	withCertificate(t, l, chain, key)
	trust := withTrust(t, l, v)
	backend := listen(t)
	var connections atomic.Int32
	go func() {
		for {
			c, err := backend.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			fmt.Fprintln(c, "hello") // it speaks first
			t.Cleanup(func() { c.Close() })
		}
	}()
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Secrets: trust, Listeners: []*listener.Listener{l}, Clusters: []*cluster.Cluster{to("dec|shop/web|80", netip.MustParseAddrPort(backend.Addr().String()))},
	}}, fmt.Sprint("127.0.0.1:", port))
	connections.Store(0)
	for range 5 {
		if s, err := (edgeClient{}).dial(port); err == nil {
			_ = s.SetDeadline(time.Now().Add(5 * time.Second))
			if n, _ := s.Read(make([]byte, 1)); n > 0 {
				t.Error("somebody without a certificate is spoken to")
			}
			s.Close()
		}
	}
	if n := connections.Load(); n > 0 {
		t.Errorf("%d connections to the backend of clients without a certificate", n)
	}
	s, err := (edgeClient{certificate: partners.signs("orders", "", time.Now().Add(time.Hour))}).dial(port)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(5 * time.Second))
	if line, err := bufio.NewReader(s).ReadString('\n'); line != "hello\n" {
		t.Errorf("a client with a certificate hears %q: %v", line, err)
	}
}

// fingerprint is a certificate's, as Envoy tells it.
func fingerprint(c *stdtls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return hex.EncodeToString(sum[:])
}

// parrot says what it hears.
func parrot(t *testing.T) netip.AddrPort {
	t.Helper()
	l := listen(t)
	talk(t, l, echoes)
	return netip.MustParseAddrPort(l.Addr().String())
}

// told is an authorizer that lets everybody in, and notes who it is told asks.
type told struct {
	authv3.UnimplementedAuthorizationServer
	principal atomic.Value
}

func (a *told) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.principal.Store(r.GetAttributes().GetSource().GetPrincipal())
	return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}}, nil
}

// What Envoy tells an authorizer of the client is what the certificate says, which is why it
// is told to users: at a Gateway it is no identity in the mesh.
func TestAuthorizersOfAGatewayAreToldWhatACertificateSays(t *testing.T) {
	const ours = "spiffe://cluster.local/ns/shop/sa/web"
	partners, asked, app := newSigner(t, "partners"), &told{}, startApplication(t)
	at9191 := listen(t)
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, asked)
	go func() { _ = server.Serve(at9191) }()
	t.Cleanup(server.Stop)

	_, chain, key := issued(t, "www.example")
	port := uint16(freePort(t))
	cert, bundle, opa := mesh.Name{Namespace: "edge", Name: "cert"}, mesh.Name{Namespace: "edge", Name: "partners"}, mesh.Name{Namespace: "auth", Name: "opa"}
	web := mesh.Name{Namespace: "shop", Name: "web"}
	v := viewOf(&mesh.Config{
		TrustDomain: "cluster.local", RootNamespace: "tulle-system", Authorizers: []mesh.Authorizer{{Name: "grpc", Service: opa, Port: 9191, Timeout: 5 * time.Second}},
	},
		&mesh.Class{Name: "tulle"}, &mesh.Certificate{Name: cert, Chain: chain, Key: key}, &mesh.Bundle{Name: bundle, PEM: partners.pem},
		&mesh.Gateway{Meta: mesh.Meta{Name: edgeName()}, Class: "tulle", Listeners: []mesh.Listener{{
			Name: "known", Port: port, Protocol: mesh.ListenerHTTPS, Certificates: []mesh.Backend{{Kind: kindSecret, Name: cert}}, Namespaces: mesh.RouteNamespaces{All: true},
			Clients: &mesh.ClientValidation{Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: bundle}}},
		}}},
		&mesh.Service{Name: web, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}},
		&mesh.Service{Name: opa, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.9")}, Ports: []mesh.ServicePort{{Port: 9191}}},
		&mesh.Route{
			Meta: mesh.Meta{Name: web}, Of: mesh.KindHTTPRoute, Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName()}},
			Rules: []mesh.RouteRule{{Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web, Port: 80}, Weight: 1}}}},
		},
		at("ask", "", mesh.Policy{Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Action: mesh.Custom, Authorizer: "grpc"}}}}),
	)
	l := gatewayListener(edgeName().String(), v).Message.(*listener.Listener)
	withCertificate(t, l, chain, key)
	trust := withTrust(t, l, v)
	authorizer := to("h2|auth/opa|9191", netip.MustParseAddrPort(at9191.Addr().String()))
	authorizer.TypedExtensionProtocolOptions = explicitProtocol(nil, true)
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Secrets: trust, Listeners: []*listener.Listener{l}, Clusters: []*cluster.Cluster{authorizer, to("h1|shop/web|80", netip.MustParseAddrPort(app.Addr().String()))},
	}}, fmt.Sprint("127.0.0.1:", port))
	if got, _ := (edgeClient{certificate: partners.signs("orders", ours, time.Now().Add(time.Hour))}).get(t, port, "/ok"); got != 200 {
		t.Errorf("answered with %d", got)
	}
	if got := asked.principal.Load(); got != ours {
		t.Errorf("the authorizer is told of %v, want %s", got, ours)
	}
}
