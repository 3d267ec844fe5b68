package translate

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// issued is a self-signed certificate for the names.
func issued(t *testing.T, names ...string) (pair tls.Certificate, chain, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	chain, key = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	pair, err = tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair, chain, key
}

// speaker says its name to whoever connects, before they say anything.
func speaker(t *testing.T, name string, pair *tls.Certificate) netip.AddrPort {
	t.Helper()
	l := listen(t)
	at := netip.MustParseAddrPort(l.Addr().String())
	if pair != nil {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*pair}, MinVersion: tls.VersionTLS12})
	}
	talk(t, l, func(c net.Conn) { _, _ = fmt.Fprintln(c, name) })
	return at
}

// talk has each connection served by itself, and closed then.
func talk(t *testing.T, l net.Listener, serve func(net.Conn)) {
	t.Helper()
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

// echoes says what it hears.
func echoes(c net.Conn) { _, _ = io.Copy(c, c) }

// heard is what the server says first, and of TLS whose certificate it has.
func heard(at string, sni string) (line, certificate string, err error) {
	c, err := net.DialTimeout("tcp", at, 5*time.Second)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", "", err
	}
	if sni != "" {
		encrypted := tls.Client(c, &tls.Config{ServerName: sni, InsecureSkipVerify: true}) //nolint:gosec // who answers is what is asked
		if err := encrypted.Handshake(); err != nil {
			return "", "", err
		}
		c, certificate = encrypted, encrypted.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	line, err = bufio.NewReader(c).ReadString('\n')
	return line, certificate, err
}

// withCertificate has a chain's TLS use a certificate at hand instead of one that the
// control plane sends.
func withCertificate(t *testing.T, l *listener.Listener, chain, key []byte) {
	t.Helper()
	for _, c := range l.FilterChains {
		if c.TransportSocket == nil {
			continue
		}
		var down envoytls.DownstreamTlsContext
		if err := c.TransportSocket.GetTypedConfig().UnmarshalTo(&down); err != nil {
			t.Fatal(err)
		}
		down.CommonTlsContext.TlsCertificateSdsSecretConfigs = nil
		down.CommonTlsContext.TlsCertificates = []*envoytls.TlsCertificate{{CertificateChain: inline(chain), PrivateKey: inline(key)}}
		c.TransportSocket = &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&down)}}
	}
}

// to is a cluster of one address.
func to(name string, at netip.AddrPort) *cluster.Cluster {
	c := emptyCluster(name)
	c.LoadAssignment = assignment(name, lbEndpoint(at, false))
	return c
}

// A gateway sends connections where their routes say: by the name that a client of TLS
// asks for, or all of a port's, and closes what is nobody's.
func TestConnectionsThroughAGateway(t *testing.T) {
	own, _, _ := issued(t, "backend")
	_, chain, key := issued(t, "gateway")
	name := func(n string) mesh.Name { return mesh.Name{Namespace: "shop", Name: n} }
	service := func(n string) *mesh.Service {
		return &mesh.Service{Name: name(n), Ports: []mesh.ServicePort{{Port: 1, Protocol: mesh.TCP}}}
	}
	encrypted, bare, shared := freePort(t), freePort(t), freePort(t)
	backend := func(n string, weight uint32) mesh.RouteBackend {
		return mesh.RouteBackend{Backend: mesh.Backend{Kind: mesh.BackendService, Name: name(n), Port: 1}, Weight: weight}
	}
	route := func(of mesh.Kind, n, section string, hosts []string, backends ...mesh.RouteBackend) *mesh.Route {
		return &mesh.Route{
			Meta: mesh.Meta{Name: name(n)}, Of: of, Hostnames: hosts, Rules: []mesh.RouteRule{{Backends: backends}},
			Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: name("front"), Section: section}},
		}
	}
	v := view(
		&mesh.Class{Name: "tulle"}, service("secret"), service("plain"), service("more"), &mesh.Certificate{Name: name("cert"), Chain: chain, Key: key},
		&mesh.Gateway{Meta: mesh.Meta{Name: name("front")}, Class: "tulle", Listeners: []mesh.Listener{
			{Name: "through", Port: uint16(encrypted), Protocol: mesh.ListenerTLS, Hostname: "*.example.org", Passthrough: true},
			{Name: "ends", Port: uint16(encrypted), Protocol: mesh.ListenerTLS, Hostname: "ends.example.org", Certificates: []mesh.Backend{{Kind: "Secret", Name: name("cert")}}},
			{Name: "idle", Port: uint16(encrypted), Protocol: mesh.ListenerTLS, Hostname: "*.idle.example.org", Passthrough: true},
			{Name: "bare", Port: uint16(bare), Protocol: mesh.ListenerTCP},
			{Name: "shared", Port: uint16(shared), Protocol: mesh.ListenerTCP},
		}},
		route(mesh.KindTLSRoute, "a", "through", []string{"*.example.org"}, backend("secret", 1)),
		route(mesh.KindTLSRoute, "b", "ends", []string{"ends.example.org"}, backend("plain", 1)),
		route(mesh.KindTCPRoute, "c", "bare", nil, backend("plain", 1)),
		route(mesh.KindTCPRoute, "d", "shared", nil, backend("plain", 4), backend("more", 2), backend("none", 2)),
	)
	r := gatewayListener("shop/front", v)
	l := r.Message.(*listener.Listener)
	withCertificate(t, l, chain, key)
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Listeners: []*listener.Listener{l},
		Clusters: []*cluster.Cluster{
			emptyCluster(ClusterBlackhole), to("raw|shop/secret|1", speaker(t, "secret", &own)),
			to("dec|shop/plain|1", speaker(t, "decoded", nil)), to("raw|shop/plain|1", speaker(t, "plain", nil)), to("raw|shop/more|1", speaker(t, "more", nil)),
		},
	}}, fmt.Sprint("127.0.0.1:", bare))

	for _, c := range []struct {
		what              string
		port              int
		sni               string
		line, certificate string
	}{
		{"TLS that passes through", encrypted, "a.example.org", "secret\n", "backend"},
		{"a name with more labels", encrypted, "a.b.example.org", "secret\n", "backend"},
		{"a name in capitals", encrypted, "A.Example.ORG", "secret\n", "backend"},
		{"TLS that ends at the gateway", encrypted, "ends.example.org", "decoded\n", "gateway"},
		{"a name that is nobody's", encrypted, "example.com", "", ""},
		{"a name of a listener without a route", encrypted, "x.idle.example.org", "", ""},
		{"bytes, the server first", bare, "", "plain\n", ""},
	} {
		began := time.Now()
		line, certificate, err := heard(fmt.Sprint("127.0.0.1:", c.port), c.sni)
		if line != c.line || certificate != c.certificate {
			t.Errorf("%s: %q with the certificate of %q (%v), want %q with that of %q", c.what, line, certificate, err, c.line, c.certificate)
		}
		if took := time.Since(began); c.line != "" && took > time.Second {
			t.Errorf("%s took %s", c.what, took)
		}
	}

	if got := ask(t, fmt.Sprint("127.0.0.1:", encrypted), "GET / HTTP/1.1", "host: a.example.org"); got != 0 {
		t.Errorf("what is no TLS is answered with %d, want it closed", got)
	}
	const n = 800
	got := map[string]float64{}
	for range n {
		line, _, err := heard(fmt.Sprint("127.0.0.1:", shared), "")
		if err != nil && line == "" && errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		got[line] += 1. / n
	}
	for line, want := range map[string]float64{"plain\n": 0.5, "more\n": 0.25, "": 0.25} {
		if d := got[line] - want; d < -0.07 || d > 0.07 {
			t.Errorf("%q: a share of %.2f, want %.2f", line, got[line], want)
		}
	}
	t.Logf("shares: %v", got)
}

// What policies say of who may come in holds for connections as well: what they ask of
// requests is not known of them, and a policy that cannot be understood closes the listener.
func TestConnectionsAreRefusedAtAGateway(t *testing.T) {
	own, _, _ := issued(t, "backend")
	web := mesh.Name{Namespace: "edge", Name: "web"}
	all := mesh.Listener{Protocol: mesh.ListenerTCP}
	ports := map[string]uint16{}
	var listeners []mesh.Listener
	entities := []mesh.Entity{
		&mesh.Class{Name: "tulle"}, &mesh.Service{Name: web, Ports: []mesh.ServicePort{{Port: 1, Protocol: mesh.TCP}}},
	}
	route := func(of mesh.Kind, section string) *mesh.Route {
		return &mesh.Route{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: "edge", Name: section}}, Of: of,
			Rules:   []mesh.RouteRule{{Backends: []mesh.RouteBackend{{Backend: mesh.Backend{Kind: mesh.BackendService, Name: web, Port: 1}, Weight: 1}}}},
			Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: edgeName(), Section: section}},
		}
	}
	for _, name := range []string{"open", "denied", "elsewhere", "broken", "requests", "asked"} {
		l := all
		l.Name, l.Port = name, uint16(freePort(t))
		ports[name] = l.Port
		listeners = append(listeners, l)
		entities = append(entities, route(mesh.KindTCPRoute, name))
	}
	ports["names"] = uint16(freePort(t))
	listeners = append(listeners, mesh.Listener{Name: "names", Port: ports["names"], Protocol: mesh.ListenerTLS, Passthrough: true})
	here, there := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")
	rules := func(r mesh.Rule) mesh.Policy {
		return mesh.Policy{Authorization: &mesh.Authorization{Rules: []mesh.Rule{r}}}
	}
	v := view(append(
		entities, route(mesh.KindTLSRoute, "names"),
		&mesh.Gateway{Meta: mesh.Meta{Name: edgeName()}, Class: "tulle", Listeners: listeners},
		at("open", "open", rules(mesh.Rule{From: []mesh.Source{{IPBlocks: []netip.Prefix{here}}}})),
		at("denied", "denied", rules(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{IPBlocks: []netip.Prefix{here}}}})),
		at("elsewhere", "elsewhere", rules(mesh.Rule{From: []mesh.Source{{IPBlocks: []netip.Prefix{there}}}})),
		at("broken", "broken", mesh.Policy{Invalid: "it is", Authorization: &mesh.Authorization{}}),
		at("requests", "requests", rules(mesh.Rule{To: []mesh.Operation{{Methods: []string{"GET"}}}})),
		at("asked", "asked", rules(mesh.Rule{Action: mesh.Custom, Authorizer: "nobody"})),
		at("names", "names", rules(mesh.Rule{Action: mesh.Deny, When: mesh.Condition{SNI: []string{"closed.example"}}})),
	)...)
	l := gatewayListener(edgeName().String(), v).Message.(*listener.Listener)
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{
		Listeners: []*listener.Listener{l},
		Clusters:  []*cluster.Cluster{emptyCluster(ClusterBlackhole), to("raw|edge/web|1", speaker(t, "web", &own))},
	}}, fmt.Sprint("127.0.0.1:", ports["open"]))
	for _, c := range []struct {
		listener, sni string
		open          bool
	}{
		{"open", "a.example", true},
		{"denied", "a.example", false},
		{"elsewhere", "a.example", false},
		{"broken", "a.example", false},
		{"requests", "a.example", false},
		{"asked", "a.example", false},
		{"names", "a.example", true},
		{"names", "closed.example", false},
	} {
		line, _, err := heard(fmt.Sprint("127.0.0.1:", ports[c.listener]), c.sni)
		if (line == "web\n") != c.open {
			t.Errorf("%s, %s: heard %q (%v), want it open: %v", c.listener, c.sni, line, err, c.open)
		}
	}
}
