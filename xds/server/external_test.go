package server

import (
	"bufio"
	"context"
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
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect" //nolint:depguard // the real redirection, in a test alone.
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// The world outside of the cluster, in a network of its own. Each address is a server
// that says its own name.
const (
	outsideAPI  = "203.0.113.1"
	outsideDB   = "203.0.113.2"
	outsideWild = "203.0.113.3"
	outsideEvil = "203.0.113.66" // that nobody named
	outsidePod  = "10.244.0.254" // as though it were a pod's, within the cluster
)

// proxyGroup is a group whose connections are not redirected: that of an Envoy which, run by
// root, can read its files.
const proxyGroup = 1338

var outsideNames = map[string]string{
	"api.example.org.": outsideAPI, "plain.example.org.": outsideAPI, "others.example.org.": outsideAPI,
	"a.example.com.": outsideWild, "pod.example.com.": outsidePod, "loop.example.com.": "127.0.0.1", "node.example.com.": "169.254.169.254",
}

// outside are the servers, and the pod's own network, which the thread of the test is in.
type outside struct {
	t  *testing.T
	ca []byte // that signed what api.example.org shows
	// there is what to do in the outside's network, one after the other.
	there chan func()
}

// dial connects from the outside to an address of the pod's.
func (o *outside) dial(address string) net.Conn {
	o.t.Helper()
	var c net.Conn
	var err error
	done := make(chan struct{})
	o.there <- func() {
		defer close(done)
		c, err = net.Dial("tcp", address)
	}
	<-done
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		o.t.Fatal(err)
	}
	return c
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	ownNetwork(t)
	o := &outside{t: t, there: make(chan func())}
	t.Cleanup(func() { close(o.there) })
	tid := make(chan int)
	listeners := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its network
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			listeners <- err
			return
		}
		tid <- syscall.Gettid()
		<-tid // the link is there
		listeners <- o.serve()
		for do := range o.there {
			do()
		}
	}()
	select {
	case err := <-listeners:
		t.Fatal(err)
	case id := <-tid:
		for _, args := range []string{
			fmt.Sprintf("link add eth0 type veth peer name eth0 netns %d", id),
			"address add 10.244.0.1/24 dev eth0", "link set eth0 up", "route add default via 10.244.0.254",
		} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s", args, err, out)
			}
		}
		tid <- 0
	}
	if err := <-listeners; err != nil {
		t.Fatal(err)
	}
	err := redirect.Apply(redirect.Config{
		Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		ProxyUID: redirect.ProxyUID, ExcludeGIDs: []uint32{proxyGroup},
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// serve runs on the thread that is in the outside's network.
func (o *outside) serve() error {
	resolver := resolvers()
	addresses := append([]string{outsideAPI, outsideDB, outsideWild, outsideEvil, outsidePod}, resolver...)
	commands := []string{"link set lo up", "address add " + outsidePod + "/24 dev eth0", "link set eth0 up"}
	for _, a := range addresses {
		if a != outsidePod {
			commands = append(commands, "address add "+a+"/32 dev lo")
		}
	}
	for _, args := range commands {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	certificate, ca, err := outsideCertificate()
	if err != nil {
		return err
	}
	o.ca = ca
	for _, a := range addresses[:5] {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := a
			if at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && strings.HasSuffix(at.String(), ":8081") {
				a = at.String()
			}
			if r.URL.Path == "/slow" {
				time.Sleep(2 * time.Second)
			}
			_, _ = fmt.Fprintf(w, "%s for %s%s", a, r.Host, strings.Repeat(" in TLS", btoi(r.TLS != nil))+strings.Repeat(" in "+r.Proto, btoi(r.ProtoMajor == 2)))
		})
		for _, port := range []string{"80", "8081", "443", "22"} {
			l, err := net.Listen("tcp", net.JoinHostPort(a, port))
			if err != nil {
				return err
			}
			o.t.Cleanup(func() { l.Close() })
			switch port {
			case "443":
				l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
				fallthrough
			case "80", "8081":
				protocols := &http.Protocols{}
				protocols.SetHTTP1(true)
				protocols.SetUnencryptedHTTP2(true)
				go func() {
					_ = (&http.Server{Handler: handler, Protocols: protocols, ReadHeaderTimeout: time.Minute}).Serve(l)
				}()
			default:
				go greet(l, a)
			}
		}
	}
	for _, a := range resolver {
		c, err := net.ListenPacket("udp", net.JoinHostPort(a, "53"))
		if err != nil {
			return err
		}
		o.t.Cleanup(func() { c.Close() })
		go answer(c)
	}
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// greet is a server that speaks first.
func greet(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, name+"\n")
		c.Close()
	}
}

// resolvers are the machine's, whose place the outside takes.
func resolvers() []string {
	raw, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" && !strings.HasPrefix(f[1], "127.") && !strings.Contains(f[1], ":") {
			out = append(out, f[1])
		}
	}
	return out
}

// answer is a DNS server.
func answer(c net.PacketConn) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		m.Response, m.Authoritative, m.Additionals = true, true, nil
		address, known := outsideNames[strings.ToLower(q.Name.String())]
		switch {
		case !known:
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 30},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(address).As4()},
			}}
		}
		if out, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(out, from)
		}
	}
}

// outsideCertificate is of api.example.org and a.example.com, and its own authority.
func outsideCertificate() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"api.example.org", "a.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), err
}

// get asks an address for a host, and returns the status and what was said.
func (o *outside) get(address, host, path string) string {
	return o.exchange(address, func(c net.Conn) (string, error) {
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host); err != nil {
			return "", err
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(r.Body)
		return fmt.Sprintf("%d %s", r.StatusCode, strings.TrimSpace(string(b))), err
	})
}

// raw sends a request as it stands, and returns the answer's first line.
func (o *outside) raw(address string, lines ...string) string {
	return o.exchange(address, func(c net.Conn) (string, error) {
		if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
			return "", err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		return strings.TrimSpace(line), err
	})
}

// tls speaks TLS with the server name, and asks for it by HTTP.
func (o *outside) tls(address, name string) string {
	return o.exchange(address, func(c net.Conn) (string, error) {
		s := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err := s.HandshakeContext(o.t.Context()); err != nil {
			return "", err
		}
		if _, err := fmt.Fprintf(s, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name); err != nil {
			return "", err
		}
		r, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(r.Body)
		return fmt.Sprintf("%d %s", r.StatusCode, b), err
	})
}

// hear waits for what a server says first.
func (o *outside) hear(address string) string {
	return o.exchange(address, func(c net.Conn) (string, error) {
		line, err := bufio.NewReader(c).ReadString('\n')
		return strings.TrimSpace(line), err
	})
}

// exchange is "closed" where the connection was, and nothing came.
func (o *outside) exchange(address string, talk func(net.Conn) (string, error)) string {
	o.t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(o.t.Context(), "tcp", address)
	if err != nil {
		o.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		o.t.Fatal(err)
	}
	got, err := talk(c)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return "nothing within 10 s"
	case err != nil:
		return "closed"
	}
	return got
}

// external is an external service of the test, by a namespace and a name.
func external(namespace, name string, change func(*mesh.External)) mesh.Change {
	e := &mesh.External{Meta: mesh.Meta{Name: mesh.Name{Namespace: namespace, Name: name}}, Resolution: mesh.ResolveDNS}
	change(e)
	return mesh.Put(e)
}

func (h *harness) egress(mode mesh.EgressMode) {
	c := *h.builder.Snapshot().Config()
	c.Egress = mode
	c.ServiceRanges = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}
	c.PodRanges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	h.builder.Apply(mesh.Put(&c))
}

// A real Envoy behind the real redirection, with the control plane that it asks: what an
// external service names is reached and nothing else, whatever a client says.
func TestExternalServices(t *testing.T) {
	o := newOutside(t)
	h := newHarness(t, nil)
	h.genuine, h.proxyGroup = true, proxyGroup
	h.egress(mesh.RegistryOnly)
	single := func(a string) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(a), 32)} }
	pick := func(hosts ...string) func(*mesh.External) {
		return func(e *mesh.External) {
			e.Hosts = hosts
			e.Ports = []mesh.ExternalPort{{Number: 80, Protocol: mesh.HTTP}, {Number: 443, Protocol: mesh.TLS}}
		}
	}
	origination := func(host, ca, san string) func(*mesh.External) {
		return func(e *mesh.External) {
			e.Hosts = []string{host}
			e.Ports = []mesh.ExternalPort{{Number: 8080, Protocol: mesh.HTTP, Target: 443}}
			e.Endpoints = []mesh.ExternalEndpoint{{Address: outsideAPI}}
			e.Resolution = mesh.ResolveStatic
			e.TLS = &mesh.Origination{CA: ca, SNI: san}
		}
	}
	h.builder.Apply(
		mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}),
		external("shop", "api", pick("api.example.org", "plain.example.org")),
		external("tulle-system", "wild", func(e *mesh.External) {
			pick("*.example.com")(e)
			e.Ports, e.Resolution = append(e.Ports, mesh.ExternalPort{Number: 8081, Protocol: mesh.HTTP}), mesh.ResolveNone
		}),
		external("tulle-system", "others", func(e *mesh.External) {
			pick("others.example.org")(e)
			e.Callers = []mesh.Caller{{Namespaces: []string{"payments"}}, {ServiceAccounts: []mesh.Name{{Namespace: "shop", Name: "api"}}}}
		}),
		external("payments", "elsewhere", pick("evil.example.org")), // holds for another namespace alone
		external("shop", "db", func(e *mesh.External) {
			e.Hosts, e.Addresses, e.Resolution = []string{"db.example.org"}, single("192.0.2.10"), mesh.ResolveStatic
			e.Ports = []mesh.ExternalPort{{Number: 5432, Protocol: mesh.TCP, Target: 22}}
			e.Endpoints = []mesh.ExternalEndpoint{{Address: outsideDB}}
		}),
		external("shop", "at", func(e *mesh.External) {
			e.Hosts, e.Addresses, e.Resolution = []string{"at.example.org"}, single("192.0.2.11"), mesh.ResolveStatic
			e.Ports = []mesh.ExternalPort{{Number: 80, Protocol: mesh.HTTP}}
			e.Endpoints = []mesh.ExternalEndpoint{{Address: outsideAPI}}
		}),
		external("shop", "range", func(e *mesh.External) {
			e.Hosts, e.Resolution = []string{"range.example.org"}, mesh.ResolveNone
			e.Addresses = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")}
			e.Ports = []mesh.ExternalPort{{Number: 22, Protocol: mesh.TCP}}
		}),
		external("shop", "secure", origination("secure.example.org", string(o.ca), "api.example.org")),
		external("shop", "wrong-ca", origination("wrong-ca.example.org", string(h.rootPEM), "api.example.org")),
		external("shop", "wrong-name", origination("wrong-name.example.org", string(o.ca), "")),
		mesh.Put(&mesh.Policy{
			Meta:    mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "at"}},
			Targets: []mesh.Target{{Kind: mesh.KindExternal, Name: mesh.Name{Namespace: "shop", Name: "at"}}},
			Traffic: &mesh.Traffic{Timeout: new(500 * time.Millisecond)},
		}),
	)
	h.startEnvoy(h.api.token(peer("web")))
	eventually(t, "readiness", func() bool {
		c, err := net.DialTimeout("tcp", "127.0.0.1:15021", time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	const no = "closed"
	type call struct{ what, got, want string }
	check := func(calls []call) {
		t.Helper()
		for _, c := range calls {
			if c.got != c.want && (c.want == "" || !strings.HasPrefix(c.got, c.want)) {
				t.Errorf("%s: %q, want %q", c.what, c.got, c.want)
			}
		}
	}
	check([]call{
		{"HTTP by name", o.get(outsideAPI+":80", "api.example.org", "/"), "200 " + outsideAPI + " for api.example.org"},
		{"a tunnel", o.raw(outsideEvil+":80", "CONNECT api.example.org:80 HTTP/1.1", "Host: api.example.org:80"), "HTTP/1.1 404"},
		{"HTTP by name in capitals, with a port", o.get(outsideAPI+":80", "API.example.org:80", "/"), "200 " + outsideAPI},
		{"HTTP by a fully qualified name", o.get(outsideEvil+":80", "api.example.org.:80", "/"), "200 " + outsideAPI},
		{"a fully qualified name below a wildcard", o.get(outsideEvil+":80", "a.example.com.", "/"), "200 " + outsideWild},
		{"what another may call, by a fully qualified name", o.get(outsideAPI+":80", "others.example.org.", "/"), "403 tulle: "},
		{"TLS of the sidecar, by a fully qualified name", o.get(outsideEvil+":8080", "secure.example.org.", "/"), "200 " + outsideAPI},
		{"a forged Host", o.get(outsideEvil+":80", "api.example.org", "/"), "200 " + outsideAPI},
		{"a Host that nobody named", o.get(outsideEvil+":80", "evil.example.org", "/"), "502 tulle: no ExternalService names this host"},
		{"a host at another port", o.get(outsideAPI+":8082", "api.example.org", "/"), no},
		{"a host at another service's port", o.get(outsideAPI+":8080", "api.example.org", "/"), "502 tulle: "},
		{"TLS by name", o.tls(outsideAPI+":443", "api.example.org"), "200 " + outsideAPI + " for api.example.org in TLS"},
		{"TLS by name in capitals", o.tls(outsideAPI+":443", "API.Example.org"), "200 " + outsideAPI},
		{"a forged server name", o.tls(outsideEvil+":443", "api.example.org"), "200 " + outsideAPI},
		{"a server name that nobody named", o.tls(outsideEvil+":443", "evil.example.org"), no},
		{"no TLS at a port of TLS", o.get(outsideEvil+":443", "api.example.org", "/"), no},
		{"TCP that nobody named", o.hear(outsideEvil + ":22"), no},
		{"TCP in a range", o.hear(outsideDB + ":22"), outsideDB},
		{"below a wildcard", o.get(outsideEvil+":80", "a.example.com", "/"), "200 " + outsideWild + " for a.example.com"},
		{"below a wildcard, with another port in Host", o.get(outsideEvil+":80", "a.example.com:22", "/"), "502 tulle: "},
		{"below a wildcard, at another port", o.get(outsideEvil+":8081", "a.example.com", "/"), "200 " + outsideWild + ":8081 for a.example.com"},
		{"below a wildcard, at another port that Host says, too", o.get(outsideEvil+":8081", "a.example.com:8081", "/"), "200 " + outsideWild + ":8081"},
		{"TLS below a wildcard", o.tls(outsideEvil+":443", "a.example.com"), "200 " + outsideWild},
		{"a name below a wildcard that is none", o.tls(outsideEvil+":443", "none.example.com"), no},
		{"the wildcard's own domain", o.tls(outsideWild+":443", "example.com"), no},
		{"by an address, whatever Host", o.get("192.0.2.11:80", "evil.example.org", "/"), "200 " + outsideAPI + " for evil.example.org"},
		{"a policy's time-out", o.get("192.0.2.11:80", "at.example.org", "/slow"), "504"},
		{"what another may call", o.get(outsideAPI+":80", "others.example.org", "/"), "403 tulle: ExternalService tulle-system/others does not admit the service account shop/web"},
		{"what another may call, in TLS", o.tls(outsideAPI+":443", "others.example.org"), no},
		{"TLS of the sidecar", o.get(outsideEvil+":8080", "secure.example.org", "/"), "200 " + outsideAPI + " for secure.example.org in TLS"},
		{"TLS with another authority", o.get(outsideEvil+":8080", "wrong-ca.example.org", "/"), "503"},
		{"TLS with another name", o.get(outsideEvil+":8080", "wrong-name.example.org", "/"), "503"},
	})
	began := time.Now()
	check([]call{{"a server that speaks first, by address", o.hear("192.0.2.10:5432"), outsideDB}})
	if took := time.Since(began); took > 700*time.Millisecond {
		t.Errorf("the server's greeting took %v: its first bytes are waited for", took)
	}

	// One that may call, later.
	h.builder.Apply(external("tulle-system", "others", pick("others.example.org")))
	eventually(t, "the others' admittance", func() bool {
		return strings.HasPrefix(o.get(outsideAPI+":80", "others.example.org", "/"), "200") && strings.HasPrefix(o.tls(outsideAPI+":443", "others.example.org"), "200")
	})

	h.egress(mesh.AllowAny)
	eventually(t, "AllowAny", func() bool { return o.hear(outsideEvil+":22") == outsideEvil })
	h.builder.Apply(external("shop", "api", func(e *mesh.External) { pick("api.example.org")(e); e.Resolution = mesh.ResolveNone }))
	eventually(t, "where the application sends it", func() bool {
		return strings.HasPrefix(o.get(outsideEvil+":80", "api.example.org", "/"), "200 "+outsideEvil)
	})
	check([]call{
		{"a Host that nobody named", o.get(outsideEvil+":80", "evil.example.org", "/"), "200 " + outsideEvil},
		{"a server name that nobody named", o.tls(outsideEvil+":443", "evil.example.org"), "200 " + outsideEvil},
		{"TLS where the application sends it", o.tls(outsideEvil+":443", "api.example.org"), "200 " + outsideEvil},
		{"below a wildcard", o.tls(outsideEvil+":443", "a.example.com"), "200 " + outsideEvil},
		{"HTTP below a wildcard", o.get(outsideEvil+":80", "a.example.com", "/"), "200 " + outsideEvil},
		{"a tunnel", o.raw(outsideEvil+":80", "CONNECT evil.example.org:443 HTTP/1.1", "Host: evil.example.org:443"), "HTTP/1.1 200"},
		{"a tunnel to a host that is named", o.raw(outsideEvil+":80", "CONNECT api.example.org:80 HTTP/1.1", "Host: api.example.org:80"), "HTTP/1.1 200"},
		{"TLS of the sidecar", o.get(outsideEvil+":8080", "secure.example.org", "/"), "200 " + outsideAPI + " for secure.example.org in TLS"},
		{"TLS of the sidecar, by a fully qualified name", o.get(outsideEvil+":8080", "secure.example.org.", "/"), "200 " + outsideAPI + " for secure.example.org. in TLS"},
		{"TLS with another authority", o.get(outsideEvil+":8080", "wrong-ca.example.org", "/"), "503"},
		{"a server that speaks first, by address", o.hear("192.0.2.10:5432"), outsideDB},
	})
	if n := h.metric("tulle_xds_nacks_total"); n != 0 {
		t.Errorf("Envoy refused %v responses", n)
	}
}
