package server

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// signedName is a certificate of the harness's root for a name, as a Secret has it.
func (h *harness) signedName(secret, name string, serial int64) *mesh.Certificate {
	h.t.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, h.root, h.key.Public(), h.key)
	if err != nil {
		h.t.Fatal(err)
	}
	return &mesh.Certificate{
		Name:  mesh.Name{Namespace: "edge", Name: secret},
		Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), Key: h.keyPEM,
	}
}

func pairOf(t *testing.T, c *mesh.Certificate) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(c.Chain, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

const (
	edgeInClear   = "127.0.0.1:8088"
	edgeEncrypted = "127.0.0.1:8443"
	outsideBank   = "192.0.2.50"
)

// inquisitor is a server that asks its clients for a certificate of the root, and says which
// it was shown, over one connection each.
func (h *harness) inquisitor(address string) (at netip.AddrPort) {
	h.t.Helper()
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		h.t.Fatal(err)
	}
	own := h.signedName("server", "pay.example.org", 99)
	pair, err := tls.X509KeyPair(own.Chain, own.Key)
	if err != nil {
		h.t.Fatal(err)
	}
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			leaf := r.TLS.PeerCertificates[0]
			_, _ = fmt.Fprintf(w, "%s %d; %s", leaf.Subject.CommonName, leaf.SerialNumber, r.Header.Get("X-Forwarded-Client-Cert"))
		}),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: h.roots, ClientAuth: tls.RequireAndVerifyClientCert},
		ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
	}
	go func() { _ = s.ServeTLS(l, "", "") }()
	h.t.Cleanup(func() { s.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// edge is a Gateway that shows its certificate to the Service pay, and to the external
// service bank, and asks those who come in by TLS for theirs.
func (h *harness) edge() (*mesh.Gateway, *mesh.Workload) {
	front := mesh.Name{Namespace: "edge", Name: "front"}
	open := mesh.RouteNamespaces{All: true}
	g := &mesh.Gateway{
		Meta: mesh.Meta{Name: front}, Class: "tulle", Certificate: &mesh.Backend{Kind: "Secret", Name: mesh.Name{Namespace: "edge", Name: "client"}},
		Listeners: []mesh.Listener{
			{Name: "clear", Port: 8088, Protocol: mesh.ListenerHTTP, Namespaces: open},
			{
				Name: "encrypted", Port: 8443, Protocol: mesh.ListenerHTTPS, Namespaces: open, Certificates: []mesh.Backend{{Kind: "Secret", Name: mesh.Name{Namespace: "edge", Name: "cert"}}},
				Clients: &mesh.ClientValidation{Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: mesh.Name{Namespace: "edge", Name: "partners"}}}},
			},
		},
	}
	pod := &mesh.Workload{
		Name: mesh.Name{Namespace: "edge", Name: "front-1"}, UID: "uid-front-1", ServiceAccount: "front-tulle", Gateway: "front",
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	}
	route := func(host string, to mesh.Backend) mesh.Change {
		return mesh.Put(&mesh.Route{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: "edge", Name: host}}, Of: mesh.KindHTTPRoute, Hostnames: []string{host},
			Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: front}},
			Rules:   []mesh.RouteRule{{Backends: []mesh.RouteBackend{{Backend: to, Weight: 1}}}},
		})
	}
	if out, err := exec.Command("ip", "address", "add", outsideBank+"/32", "dev", "lo").CombinedOutput(); err != nil {
		h.t.Fatalf("adding an address: %v: %s", err, out)
	}
	pay, bank := h.inquisitor("127.0.0.1"), h.inquisitor(outsideBank)
	n := mesh.Name{Namespace: "edge", Name: "pay"}
	h.builder.Apply(
		mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}), mesh.Put(&mesh.Class{Name: "tulle"}), mesh.Put(g), mesh.Put(pod),
		mesh.Put(h.signedName("cert", "www.example.org", 50)), mesh.Put(h.signedName("client", "front", 1)),
		mesh.Put(&mesh.Bundle{Name: mesh.Name{Namespace: "edge", Name: "partners"}, PEM: h.rootPEM}),
		mesh.Put(&mesh.Service{Name: n, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: []mesh.ServicePort{{Name: "http", Port: 443, Protocol: mesh.HTTP}}}),
		mesh.Put(&mesh.Slice{
			Name: mesh.Name{Namespace: "edge", Name: "pay-1"}, Service: "pay", Ports: []mesh.SlicePort{{Name: "http", Port: pay.Port()}},
			Endpoints: []mesh.Endpoint{{Address: pay.Addr(), Ready: true}},
		}),
		mesh.Put(&mesh.BackendTLS{
			Meta: mesh.Meta{Name: n}, Targets: []mesh.BackendTLSTarget{{Service: "pay"}}, Hostname: "pay.example.org",
			Authorities: []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: mesh.Name{Namespace: "edge", Name: "partners"}}},
		}),
		mesh.Put(&mesh.External{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: "edge", Name: "bank"}}, Hosts: []string{"pay.example.org"}, Resolution: mesh.ResolveStatic,
			Ports:     []mesh.ExternalPort{{Number: 80, Protocol: mesh.HTTP, Target: bank.Port()}},
			Endpoints: []mesh.ExternalEndpoint{{Address: outsideBank}}, TLS: &mesh.Origination{CA: string(h.rootPEM)},
		}),
		route("pay.example", mesh.Backend{Kind: mesh.BackendService, Name: n, Port: 443}),
		route("bank.example", mesh.Backend{Kind: mesh.BackendExternal, Name: mesh.Name{Namespace: "edge", Name: "bank"}, Port: 80}),
	)
	return g, pod
}

// line is a connection to the gateway. A goroutine of another thread, as clients of net/http
// dial by, would be in another network.
type line struct {
	net.Conn
	in *bufio.Reader
}

func edgeLine(t *testing.T, address string, c *tls.Config) *line {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if c != nil {
		conn = tls.Client(conn, c)
	}
	return &line{conn, bufio.NewReader(conn)}
}

// ask is the body of an answer of 200, or another status.
func (l *line) ask(host string) string {
	if l == nil {
		return "closed"
	}
	if _, err := fmt.Fprintf(l, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return "closed"
	}
	answer, err := http.ReadResponse(l.in, nil)
	if err != nil {
		return "closed"
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Sprint(answer.StatusCode)
	}
	return string(b)
}

// A real Envoy shows backends that ask for it the certificate of its Gateway, takes up a
// renewed one without a failed request, and calls nobody while there is none.
func TestGatewayShowsItsCertificateToBackends(t *testing.T) {
	ownNetwork(t)
	h := newHarness(t, nil)
	h.genuine = true
	_, pod := h.edge()
	h.startEnvoy(h.api.token(Peer{Pod: pod.Name, UID: pod.UID, ServiceAccount: pod.ServiceAccount}))
	pay := func() string { return edgeLine(t, edgeInClear, nil).ask("pay.example") }
	bank := func() string { return edgeLine(t, edgeInClear, nil).ask("bank.example") }
	eventually(t, "that the backend is shown it", func() bool { return pay() == "front 1; " })
	eventually(t, "that the external service is shown it", func() bool { return bank() == "front 1; " })

	// Renewed, while requests go on, each with a connection of its own to the backend.
	var stop atomic.Bool
	failed := make(chan []string)
	var count atomic.Int64
	own := edgeLine(t, edgeInClear, nil)
	go func() {
		var out []string
		for !stop.Load() {
			if got := own.ask("pay.example"); !strings.HasPrefix(got, "front ") {
				out = append(out, got)
			}
			count.Add(1)
		}
		failed <- out
	}()
	name := build.Key{Type: translate.Cluster, Name: "h1|edge/pay|443|by|front", For: "edge"}
	before := h.builder.Value(name).Version
	for serial := int64(2); serial <= 6; serial++ {
		h.builder.Apply(mesh.Put(h.signedName("client", "front", serial)))
		want := fmt.Sprintf("front %d; ", serial)
		eventually(t, "the renewed certificate", func() bool { return pay() == want && bank() == want })
		enough := count.Load() + 20
		eventually(t, "more requests", func() bool { return count.Load() >= enough })
	}
	stop.Store(true)
	if out := <-failed; len(out) > 0 {
		t.Errorf("while certificates were renewed %d of %d requests failed: %v", len(out), count.Load(), out)
	}
	t.Logf("%d requests while the certificate was renewed 5 times", count.Load())
	if h.builder.Value(name).Version != before {
		t.Error("the cluster is another, and so are its connections")
	}
	if n := h.metric("tulle_xds_nacks_total"); n != 0 {
		t.Errorf("Envoy refused %v responses", n)
	}

	// Nobody is called without it.
	for _, c := range []mesh.Change{
		mesh.Delete(mesh.KindCertificate, mesh.Name{Namespace: "edge", Name: "client"}),
		mesh.Put(&mesh.Certificate{Name: mesh.Name{Namespace: "edge", Name: "client"}, Invalid: "its key is another's"}),
	} {
		h.builder.Apply(c)
		eventually(t, "that nobody is called", func() bool { return pay() == "503" && bank() == "503" })
		h.builder.Apply(mesh.Put(h.signedName("client", "front", 7)))
		eventually(t, "that it is shown again", func() bool { return pay() == "front 7; " && bank() == "front 7; " })
	}
}

// A real Envoy verifies its clients by the authorities that are now, without a change of its
// listener, and closes the port while there are none.
func TestGatewayVerifiesClientsByTheAuthoritiesOfNow(t *testing.T) {
	ownNetwork(t)
	h := newHarness(t, nil)
	h.genuine, h.drain = true, time.Second
	_, pod := h.edge()
	h.startEnvoy(h.api.token(Peer{Pod: pod.Name, UID: pod.UID, ServiceAccount: pod.ServiceAccount}))
	other := operatorsCertificate(t, 8) // which is its own authority
	with := func(pairs ...tls.Certificate) *line {
		return edgeLine(t, edgeEncrypted, &tls.Config{RootCAs: h.roots, ServerName: "www.example.org", Certificates: pairs})
	}
	pair := pairOf(t, h.signedName("partner", "partner", 3))
	const host = "pay.example"
	var stays *line
	eventually(t, "that a client is let in", func() bool {
		stays = with(pair)
		return strings.HasPrefix(stays.ask(host), "front 1; Hash=")
	})
	if got := stays.ask(host); !strings.HasSuffix(got, `;Subject="CN=partner";URI=`) {
		t.Errorf("the backend is told %s", got)
	}
	refused := func(what string, c *line) {
		t.Helper()
		if got := c.ask(host); got != "closed" {
			t.Errorf("%s is answered: %s", what, got)
		}
	}
	refused("nobody", with())
	refused("one whom another vouches for", with(pairOf(t, other)))

	listener := build.Key{Type: translate.Listener, Name: translate.ListenerGateway, For: "edge/front"}
	before := h.builder.Value(listener).Version
	partners := func(pem []byte) mesh.Change {
		return mesh.Put(&mesh.Bundle{Name: mesh.Name{Namespace: "edge", Name: "partners"}, PEM: pem})
	}
	h.builder.Apply(partners(bytes.Join([][]byte{h.rootPEM, other.Chain}, nil)))
	eventually(t, "that another is let in as well", func() bool { return strings.HasPrefix(with(pairOf(t, other)).ask(host), "front 1; ") })
	if got := with(pair).ask(host); !strings.HasPrefix(got, "front 1; ") {
		t.Errorf("the first is answered %s", got)
	}
	if h.builder.Value(listener).Version != before {
		t.Error("the listener is another, and so drains")
	}
	if got := stays.ask(host); !strings.HasPrefix(got, "front 1; ") {
		t.Errorf("a connection from before: %s", got)
	}
	if n := h.metric("tulle_xds_nacks_total"); n != 0 {
		t.Errorf("Envoy refused %v responses", n)
	}
	for _, c := range []mesh.Change{
		mesh.Delete(mesh.KindBundle, mesh.Name{Namespace: "edge", Name: "partners"}),
		mesh.Put(&mesh.Bundle{Name: mesh.Name{Namespace: "edge", Name: "partners"}, Invalid: "there is nothing in PEM"}),
	} {
		h.builder.Apply(c)
		eventually(t, "that the port is closed", func() bool {
			return with(pair).ask(host) == "closed" && with().ask(host) == "closed"
		})
		h.builder.Apply(partners(h.rootPEM))
		eventually(t, "that a client is let in again", func() bool { return strings.HasPrefix(with(pair).ask(host), "front 1; ") })
		refused("one of an authority that is taken out", with(pairOf(t, other)))
	}
}

// The key is for the proxies of the Gateway that names it, by whatever name others ask.
func TestCertificateForBackendsIsForItsGatewayAlone(t *testing.T) {
	h := newHarness(t, nil)
	c := h.signedName("client", "front", 1)
	g := &mesh.Gateway{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "edge", Name: "front"}}, Class: "tulle", Certificate: &mesh.Backend{Kind: "Secret", Name: c.Name},
		Listeners: []mesh.Listener{{Name: "clear", Port: 8088, Protocol: mesh.ListenerHTTP}},
	}
	beside := *g
	beside.Meta.Name.Name, beside.Certificate = "beside", nil
	afar := *g
	afar.Meta.Name.Namespace = "afar" // without a grant
	h.builder.Apply(mesh.Put(&mesh.Class{Name: "tulle"}), mesh.Put(g), mesh.Put(&beside), mesh.Put(&afar), mesh.Put(c))
	key, _ := pem.Decode(c.Key)
	name := translate.PrefixCertificate + c.Name.String()
	has := func(namespace, gateway string) bool {
		pod := &mesh.Workload{
			Name: mesh.Name{Namespace: namespace, Name: gateway + "-1"}, UID: "uid-" + namespace + gateway, ServiceAccount: gateway, Gateway: gateway,
			Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.1")},
		}
		h.builder.Apply(mesh.Put(pod))
		a := h.connect(h.api.token(Peer{Pod: pod.Name, UID: pod.UID, ServiceAccount: pod.ServiceAccount}))
		a.subscribe(translate.Secret, name)
		a.until("an answer", a.has(translate.Secret, name))
		b := a.got[translate.Secret][name].GetResource().GetValue()
		return bytes.Contains(b, c.Key) || bytes.Contains(b, key.Bytes)
	}
	if !has("edge", "front") {
		t.Error("the Gateway's proxy does not have it")
	}
	if has("edge", "beside") {
		t.Error("another Gateway of the namespace has it")
	}
	if has("afar", "front") {
		t.Error("a Gateway of another namespace has it, without a grant")
	}
	a := h.connect(h.api.token(peer("web")))
	a.subscribe(translate.Secret, name, translate.PrefixEnded+c.Name.String(), translate.SecretRoots)
	a.until("an answer", a.has(translate.Secret, translate.SecretRoots))
	for n, r := range a.got[translate.Secret] {
		if bytes.Contains(r.GetResource().GetValue(), c.Key) {
			t.Errorf("a sidecar has it, as %s", n)
		}
	}
}
