package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/bootstrap"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

const gatewayPort = 15443

// meant is the server name that stands for what is called.
func meant(object string, port int, host string) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s|%d|%s", object, port, host)))
	return hex.EncodeToString(sum[:16])
}

// around is a workload that goes round its sidecar to the gateway, with a certificate of its
// own: over TLS that asks for a name and a protocol.
func (h *harness) around(o *outside, identity, name, protocol string, talk func(net.Conn) (string, error)) string {
	h.t.Helper()
	chain, err := h.signed(identity)
	if err != nil {
		h.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, h.keyPEM)
	if err != nil {
		h.t.Fatal(err)
	}
	return o.exchange(fmt.Sprint("127.0.0.1:", gatewayPort), func(c net.Conn) (string, error) {
		s := tls.Client(c, &tls.Config{
			ServerName: name, NextProtos: []string{protocol}, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13,
			InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
				leaf, err := x509.ParseCertificate(raw[0])
				if err == nil && (len(leaf.URIs) != 1 || leaf.URIs[0].Path != "/ns/egress/sa/exit-tulle") {
					err = fmt.Errorf("the gateway is %v", leaf.URIs)
				}
				return err
			},
		})
		if err := s.HandshakeContext(h.t.Context()); err != nil {
			return "", err
		}
		return talk(s)
	})
}

func hears(c net.Conn) (string, error) {
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func asks(host string) func(net.Conn) (string, error) {
	return func(c net.Conn) (string, error) {
		if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
			return "", err
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(r.Body)
		return fmt.Sprintf("%d %s", r.StatusCode, strings.TrimSpace(string(b))), err
	}
}

// throughTLS speaks TLS with a server beyond the connection.
func throughTLS(name string) func(net.Conn) (string, error) {
	return func(c net.Conn) (string, error) {
		return asks(name)(tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}))
	}
}

// http2 asks for a host in HTTP/2, in the clear, as gRPC does.
func (o *outside) http2(address, host string) string {
	return o.exchange(address, func(c net.Conn) (string, error) {
		protocols := &http.Protocols{}
		protocols.SetUnencryptedHTTP2(true)
		client := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
		r, err := http.NewRequestWithContext(o.t.Context(), http.MethodGet, "http://"+host, nil)
		if err != nil {
			return "", err
		}
		answer, err := client.RoundTrip(r)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		return fmt.Sprintf("%s %d %s", answer.Proto, answer.StatusCode, b), err
	})
}

// kept is a connection that is used again and again.
type kept struct {
	net.Conn
	in   *bufio.Reader
	name string
}

func (o *outside) keep(address, name string) *kept {
	o.t.Helper()
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { c.Close() })
	s := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	return &kept{Conn: s, in: bufio.NewReader(s), name: name}
}

// asks reports whether the server that is meant answers over the connection.
func (k *kept) asks() bool {
	if k.SetDeadline(time.Now().Add(10*time.Second)) != nil {
		return false
	}
	if _, err := fmt.Fprintf(k, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", k.name); err != nil {
		return false
	}
	r, err := http.ReadResponse(k.in, nil)
	if err != nil {
		return false
	}
	b, err := io.ReadAll(r.Body)
	return err == nil && strings.HasPrefix(string(b), outsideAPI)
}

// Two real Envoys, a sidecar behind the real redirection and an egress gateway, with the
// control plane that both ask: what an external service says is to leave by the gateway does
// so, for those whom it admits, whatever they say, and not otherwise.
func TestEgressGateway(t *testing.T) {
	o := newOutside(t)
	h := newHarness(t, nil)
	h.genuine, h.proxyGroup, h.drain = true, proxyGroup, time.Second
	h.egress(mesh.AllowAny)
	exit := mesh.Name{Namespace: "egress", Name: "exit"}
	through := func(name mesh.Name, hosts ...string) func(*mesh.External) {
		return func(e *mesh.External) {
			e.Gateway, e.Hosts = &name, hosts
			e.Ports = []mesh.ExternalPort{{Number: 80, Protocol: mesh.HTTP}, {Number: 443, Protocol: mesh.TLS}}
		}
	}
	database := func(e *mesh.External) {
		through(exit, "db.example.org")(e)
		e.Resolution, e.Endpoints = mesh.ResolveStatic, []mesh.ExternalEndpoint{{Address: outsideDB}}
		e.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")}
		e.Ports = []mesh.ExternalPort{{Number: 5432, Protocol: mesh.TCP, Target: 22}}
	}
	only := func(account string, of func(*mesh.External)) func(*mesh.External) {
		return func(e *mesh.External) {
			of(e)
			e.Callers = []mesh.Caller{{ServiceAccounts: []mesh.Name{{Namespace: "shop", Name: account}}}}
		}
	}
	secure := func(host, ca, san string) func(*mesh.External) {
		return func(e *mesh.External) {
			through(exit, host)(e)
			e.Ports = []mesh.ExternalPort{{Number: 8080, Protocol: mesh.HTTP, Target: 443}}
			e.Resolution, e.Endpoints = mesh.ResolveStatic, []mesh.ExternalEndpoint{{Address: outsideAPI}}
			e.TLS = &mesh.Origination{CA: ca, SNI: san}
		}
	}
	gateway := &mesh.Gateway{Meta: mesh.Meta{Name: exit}, Class: "tulle", Listeners: []mesh.Listener{
		{Name: "out", Port: gatewayPort, Protocol: mesh.ListenerEgress}, {Name: "in", Port: 8088, Protocol: mesh.ListenerHTTP},
	}}
	pod := &mesh.Workload{
		Name: mesh.Name{Namespace: "egress", Name: "exit-1"}, UID: "uid-exit-1", ServiceAccount: "exit-tulle", Gateway: "exit",
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.1")},
	}
	// entrance sends what comes in for a host on to an external service.
	entrance := func(to, host string) mesh.Change {
		return mesh.Put(&mesh.Route{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: "egress", Name: to}}, Of: mesh.KindHTTPRoute, Hostnames: []string{host},
			Parents: []mesh.Parent{{Kind: mesh.KindGateway, Name: exit}},
			Rules: []mesh.RouteRule{{Backends: []mesh.RouteBackend{{
				Backend: mesh.Backend{Kind: mesh.BackendExternal, Name: mesh.Name{Namespace: "egress", Name: to}, Port: 8080}, Weight: 1,
			}}}},
		})
	}
	granted := &mesh.Grant{Name: mesh.Name{Namespace: "egress", Name: "all"}, To: []mesh.GrantTo{{Group: "gateway.networking.k8s.io", Kind: "Gateway"}}}
	for _, ns := range []string{"shop", "tulle-system"} {
		granted.From = append(granted.From, mesh.GrantFrom{Group: "mesh.tulle.dev", Kind: "ExternalService", Namespace: ns})
	}
	h.builder.Apply(
		mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}),
		mesh.Put(&mesh.Class{Name: "tulle"}), mesh.Put(gateway), mesh.Put(pod), mesh.Put(granted),
		mesh.Put(&mesh.Service{
			Name: mesh.Name{Namespace: "egress", Name: "exit-tulle"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.9")},
			Ports: []mesh.ServicePort{{Name: "out", Port: gatewayPort, Protocol: mesh.TCP}},
		}),
		mesh.Put(&mesh.Slice{
			Name: mesh.Name{Namespace: "egress", Name: "exit-tulle-1"}, Service: "exit-tulle", Ports: []mesh.SlicePort{{Name: "out", Port: gatewayPort}},
			Endpoints: []mesh.Endpoint{{Address: pod.Addresses[0], Workload: pod.Name.Name, Ready: true}},
		}),
		external("shop", "api", through(exit, "api.example.org", "plain.example.org")),
		external("shop", "database", database),
		external("shop", "mine", only("web", func(e *mesh.External) {
			through(exit, "others.example.org")(e)
			e.Endpoints = []mesh.ExternalEndpoint{{Address: outsideAPI}}
		})),
		external("shop", "theirs", only("api", func(e *mesh.External) {
			database(e)
			e.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.11/32")}
		})),
		external("shop", "their-site", only("api", through(exit, "their-site.example.org"))),
		external("tulle-system", "wild", func(e *mesh.External) {
			through(exit, "*.example.com")(e)
			e.Ports, e.Resolution = append(e.Ports, mesh.ExternalPort{Number: 8081, Protocol: mesh.HTTP}), mesh.ResolveNone
		}),
		external("shop", "secure", secure("secure.example.org", string(o.ca), "api.example.org")),
		external("shop", "wrong-ca", secure("wrong-ca.example.org", string(h.rootPEM), "api.example.org")),
		external("shop", "wrong-name", secure("wrong-name.example.org", string(o.ca), "")),
		external("shop", "lost", through(mesh.Name{Namespace: "egress", Name: "nowhere"}, "lost.example.org")),
		external("egress", "beyond", func(e *mesh.External) {
			secure("beyond.example.org", string(o.ca), "api.example.org")(e)
			e.Gateway, e.Callers = nil, []mesh.Caller{{ServiceAccounts: []mesh.Name{{Namespace: "egress", Name: "exit-tulle"}}}}
		}),
		external("egress", "beyond-others", only("web", func(e *mesh.External) {
			secure("beyond.example.org", string(o.ca), "api.example.org")(e)
			e.Gateway = nil
		})),
		external("egress", "out-others", only("web", secure("out.example.org", string(o.ca), "api.example.org"))),
		external("shop", "itself", func(e *mesh.External) {
			through(exit, "127.0.0.1", "localhost", "this.localhost")(e)
			e.Ports, e.Resolution = []mesh.ExternalPort{{Number: 80, Protocol: mesh.HTTP, Target: 8088}}, mesh.ResolveDNS
		}),
		entrance("beyond", "beyond.example"), entrance("beyond-others", "others.example"), entrance("out-others", "out.example"),
		mesh.Put(&mesh.Policy{
			Meta:    mesh.Meta{Name: mesh.Name{Namespace: "egress", Name: "exit"}},
			Targets: []mesh.Target{{Kind: mesh.KindGateway, Name: exit}},
			Authorization: &mesh.Authorization{Rules: []mesh.Rule{{
				Name: "not-batch", Action: mesh.Deny, From: []mesh.Source{{ServiceAccounts: []mesh.Name{{Namespace: "shop", Name: "batch"}}}},
			}}},
		}),
	)
	other := bootstrap.Defaults()
	other.AdminPort = 0
	stop := h.startAnother(h.api.token(Peer{Pod: pod.Name, UID: pod.UID, ServiceAccount: pod.ServiceAccount}), other)
	h.startEnvoy(h.api.token(peer("web")))
	for _, at := range []string{outsideEvil + ":80", fmt.Sprint("127.0.0.1:", gatewayPort)} {
		eventually(t, at, func() bool {
			c, err := net.DialTimeout("tcp", at, time.Second)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
	const no = "closed"
	type call struct{ what, got, want string }
	check := func(calls ...call) {
		t.Helper()
		for _, c := range calls {
			if c.got != c.want && (c.want == "" || !strings.HasPrefix(c.got, c.want)) {
				t.Errorf("%s: %q, want %q", c.what, c.got, c.want)
			}
		}
	}
	check(
		// To an address that is another's: the gateway looks the name up.
		call{"HTTP by name", o.get(outsideEvil+":80", "api.example.org", "/"), "200 " + outsideAPI + " for api.example.org"},
		call{"HTTP by another name of the object", o.get(outsideEvil+":80", "plain.example.org", "/"), "200 " + outsideAPI + " for plain.example.org"},
		call{"HTTP/2 by name", o.http2(outsideEvil+":80", "plain.example.org"), "HTTP/2.0 200 " + outsideAPI + " for plain.example.org in HTTP/2.0"},
		call{"TLS of the application", o.tls(outsideEvil+":443", "api.example.org"), "200 " + outsideAPI + " for api.example.org in TLS"},
		call{"TLS of the gateway", o.get(outsideEvil+":8080", "secure.example.org", "/"), "200 " + outsideAPI + " for secure.example.org in TLS"},
		call{"TLS of the gateway, of another authority", o.get(outsideEvil+":8080", "wrong-ca.example.org", "/"), "503"},
		call{"TLS of the gateway, of another name", o.get(outsideEvil+":8080", "wrong-name.example.org", "/"), "503"},
		call{"a server that speaks first, by its address", o.hear("192.0.2.10:5432"), outsideDB},
		call{"HTTP below a wildcard", o.get(outsideEvil+":80", "a.example.com", "/"), "200 " + outsideWild + " for a.example.com"},
		call{"HTTP below a wildcard, at another port", o.get(outsideEvil+":8081", "a.example.com:8081", "/"), "200 " + outsideWild + ":8081"},
		call{"HTTP below a wildcard, at a port that Host does not say", o.get(outsideEvil+":8081", "a.example.com", "/"), "200 " + outsideWild + ":8081"},
		call{"TLS below a wildcard", o.tls(outsideEvil+":443", "a.example.com"), "200 " + outsideWild + " for a.example.com in TLS"},
		call{"HTTP below a wildcard, by a fully qualified name", o.get(outsideEvil+":80", "a.example.com.:80", "/"), "200 " + outsideWild},
		call{"HTTP below a wildcard, to a pod by a fully qualified name", o.get(outsideEvil+":80", "pod.example.com.", "/"), "403"},
		call{"HTTP by a fully qualified name", o.get(outsideEvil+":80", "api.example.org.", "/"), "200 " + outsideAPI},
		call{"HTTP below a wildcard, to a pod", o.get(outsideEvil+":80", "pod.example.com", "/"), "403"},
		call{"HTTP below a wildcard, to the gateway itself", o.get(outsideEvil+":80", "loop.example.com", "/"), "403"},
		call{"HTTP below a wildcard, to the node", o.get(outsideEvil+":80", "node.example.com", "/"), "403"},
		call{"TLS below a wildcard, to a pod", o.tls(outsideEvil+":443", "pod.example.com"), no},
		call{"who may", o.get(outsideEvil+":80", "others.example.org", "/"), "200 " + outsideAPI},
		call{"who may not", o.get(outsideEvil+":80", "their-site.example.org", "/"), "403 tulle: ExternalService shop/their-site does not admit the service account shop/web"},
		call{"who may not, by an address", o.hear("192.0.2.11:5432"), no},
		call{"no such gateway", o.get(outsideAPI+":80", "lost.example.org", "/"), "503 tulle: ExternalService shop/lost is called through a gateway alone, and there is no Gateway egress/nowhere"},
		call{"no such gateway, in TLS", o.tls(outsideAPI+":443", "lost.example.org"), no},
		call{"a host that is its own name", o.get(outsideEvil+":80", "localhost", "/"), "503"},
		call{"a host below its own name", o.get(outsideEvil+":80", "this.localhost", "/"), "503"},
		call{"what nothing names", o.get(outsideEvil+":80", "evil.example.org", "/"), "200 " + outsideEvil},
	)

	const trust = "spiffe://test.mesh/ns/"
	site, db, wild := meant("shop/their-site", 80, "their-site.example.org"), meant("shop/theirs", 5432, ""), translate.ALPNTCP+"/"+meant("tulle-system/wild", 443, "*.example.com")
	check(
		call{"round the sidecar: HTTP of those who may", h.around(o, trust+"shop/sa/api", meant("shop/api", 80, "api.example.org"), translate.ALPNHTTP, asks("anything")), "200 " + outsideAPI},
		call{"round the sidecar: a host that is the gateway's own address", h.around(o, trust+"shop/sa/api", meant("shop/itself", 80, "127.0.0.1"), translate.ALPNHTTP, asks("anything")), "503"},
		call{"round the sidecar: HTTP of another account", h.around(o, trust+"shop/sa/web", site, translate.ALPNHTTP, asks("their-site.example.org")), "403 RBAC: access denied"},
		call{"round the sidecar: HTTP of another namespace", h.around(o, trust+"other/sa/web", meant("shop/api", 80, "api.example.org"), translate.ALPNHTTP, asks("api.example.org")), "403 RBAC: access denied"},
		call{"round the sidecar: HTTP of nobody's", h.around(o, trust+"shop/sa/web", "api.example.org", translate.ALPNHTTP, asks("api.example.org")), "404"},
		call{"round the sidecar: another trust domain", h.around(o, "spiffe://other/ns/shop/sa/api", site, translate.ALPNHTTP, asks("their-site.example.org")), no},
		call{"round the sidecar: TCP of those who may", h.around(o, trust+"shop/sa/api", db, translate.ALPNTCP, hears), outsideDB},
		call{"round the sidecar: TCP of another account", h.around(o, trust+"shop/sa/web", db, translate.ALPNTCP, hears), no},
		call{"round the sidecar: TCP as HTTP", h.around(o, trust+"shop/sa/api", db, translate.ALPNHTTP, asks("db.example.org")), no},
		call{"round the sidecar: TLS below a wildcard", h.around(o, trust+"any/sa/any", "a.example.com", wild, throughTLS("a.example.com")), "200 " + outsideWild},
		call{"round the sidecar: TLS to a name that is not below", h.around(o, trust+"any/sa/any", "api.example.org", wild, throughTLS("api.example.org")), no},
		call{"round the sidecar: TLS to a pod", h.around(o, trust+"any/sa/any", "pod.example.com", wild, throughTLS("pod.example.com")), no},
		call{"round the sidecar: HTTP to a name that is not below", h.around(o, trust+"any/sa/any", meant("tulle-system/wild", 80, "*.example.com"), translate.ALPNHTTP, asks("api.example.org")), "404"},
		call{"round the sidecar: whom the Gateway's policy refuses", h.around(o, trust+"shop/sa/batch", meant("shop/api", 80, "api.example.org"), translate.ALPNHTTP, asks("api.example.org")), "403"},
		call{"round the sidecar: TLS to whom the Gateway's policy refuses", h.around(o, trust+"shop/sa/batch", "a.example.com", wild, throughTLS("a.example.com")), no},
	)

	check(
		call{"in by a gateway and out again, in its TLS", o.get("127.0.0.1:8088", "beyond.example", "/"), "200 " + outsideAPI + " for beyond.example in TLS"},
		call{"the same where the gateway may not", o.get("127.0.0.1:8088", "others.example", "/"), "503"},
		call{"the same where others leave by this gateway", o.get("127.0.0.1:8088", "out.example", "/"), "503"},
	)

	// One who may from now on, without a new connection to the gateway.
	h.builder.Apply(external("shop", "their-site", only("web", func(e *mesh.External) {
		through(exit, "their-site.example.org")(e)
		e.Endpoints = []mesh.ExternalEndpoint{{Address: outsideAPI}}
	})))
	eventually(t, "the admittance", func() bool {
		return strings.HasPrefix(o.get(outsideEvil+":80", "their-site.example.org", "/"), "200")
	})

	// What comes besides cuts nobody's connection, and who may no longer loses his.
	with := func(object string, change func(*mesh.External)) func(*mesh.External) {
		return func(e *mesh.External) {
			secure(object, "", "")(e)
			e.Ports, e.TLS = []mesh.ExternalPort{{Number: 443, Protocol: mesh.TLS}}, nil
			change(e)
		}
	}
	h.builder.Apply(external("shop", "long", with("long.example.org", func(*mesh.External) {})))
	var kept *kept
	eventually(t, "a connection that stays", func() bool {
		kept = o.keep(outsideEvil+":443", "long.example.org")
		return kept.asks()
	})
	h.builder.Apply(external("shop", "besides", with("besides.example.org", func(*mesh.External) {})))
	eventually(t, "what comes besides", func() bool {
		return strings.HasPrefix(o.tls(outsideEvil+":443", "besides.example.org"), "200 "+outsideAPI)
	})
	time.Sleep(3 * h.drain) // a connection that is drained has ended by then
	if !kept.asks() {
		t.Error("another external service has cut a connection")
	}
	h.builder.Apply(external("shop", "long", with("long.example.org", func(e *mesh.External) {
		e.Callers = []mesh.Caller{{ServiceAccounts: []mesh.Name{{Namespace: "shop", Name: "api"}}}}
	})))
	eventually(t, "the end of a connection of one who may no longer", func() bool { return !kept.asks() })

	stop()
	check(
		call{"HTTP without the gateway", o.get(outsideAPI+":80", "api.example.org", "/"), "503"},
		call{"TLS without the gateway", o.tls(outsideAPI+":443", "api.example.org"), no},
		call{"TLS below a wildcard without the gateway", o.tls(outsideWild+":443", "a.example.com"), no},
		call{"TCP without the gateway", o.hear("192.0.2.10:5432"), no},
		call{"what nothing names, without the gateway", o.get(outsideEvil+":80", "evil.example.org", "/"), "200 " + outsideEvil},
	)
	h.builder.Apply(mesh.Delete(mesh.KindGateway, exit))
	eventually(t, "the end of the Gateway", func() bool {
		return strings.HasPrefix(o.get(outsideAPI+":80", "api.example.org", "/"), "503 tulle: ExternalService shop/api is called through a gateway alone")
	})
	if n := h.metric("tulle_xds_nacks_total"); n != 0 {
		t.Errorf("Envoy refused %v responses", n)
	}
}
