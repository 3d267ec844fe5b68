package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// talking is an application at the pod's address that says what it was asked in, speaks
// WebSocket to who asks for it, and gRPC.
func talking(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", "10.244.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Upgrade") == "websocket":
			c, both, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(c, both)
		case r.Header.Get("Content-Type") == "application/grpc":
			w.Header().Set("Trailer", "Grpc-Status")
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = io.Copy(w, r.Body)
			w.Header().Set("Grpc-Status", "0")
		default:
			for _, name := range []string{"X-Forwarded-For", "X-Request-Id", "X-Envoy-Force-Trace"} {
				w.Header().Set("Got-"+name, strings.Join(r.Header.Values(name), ","))
			}
			fmt.Fprintf(w, "%s %s", r.Proto, r.Header.Get("X-Forwarded-Proto"))
		}
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
}

// ends has a sidecar of the workload web end TLS, beside the entities.
func ends(t *testing.T, o *outside, es ...mesh.Change) *harness {
	t.Helper()
	h := newHarness(t, nil)
	h.genuine, h.proxyGroup = true, proxyGroup
	h.builder.Apply(append(es, mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}), mesh.Put(endsTLS()), mesh.Put(operatorsCertificate(t, 1)))...)
	h.sidecar()
	eventually(t, "that TLS ends", func() bool { return o.calls(&tls.Config{}).ask() == 200 })
	return h
}

// member is TLS as a workload of the mesh speaks it, friendOfIt.
func (h *harness) member(protocols ...string) *tls.Config {
	h.t.Helper()
	chain, err := h.signed(friendOfIt)
	if err != nil {
		h.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, h.keyPEM)
	if err != nil {
		h.t.Fatal(err)
	}
	return &tls.Config{NextProtos: protocols, Certificates: []tls.Certificate{pair}}
}

// inHTTP2 speaks HTTP/2 on the connection.
func (c *caller) inHTTP2(t *testing.T) *http.ClientConn {
	t.Helper()
	transport := &http.Transport{
		Protocols:      new(http.Protocols),
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c.Conn, nil },
	}
	transport.Protocols.SetHTTP2(true)
	client, err := transport.NewClientConn(t.Context(), "https", endedName+":443")
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// second speaks HTTP/2 within TLS.
func (c *caller) second(t *testing.T, contentType, body string) (status, text, trailer string) {
	t.Helper()
	if c == nil {
		return "no connection", "", ""
	}
	client := c.inHTTP2(t)
	r, err := http.NewRequest(http.MethodPost, "https://"+endedName+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Te", "trailers")
	answer, err := client.RoundTrip(r)
	if err != nil {
		return err.Error(), "", ""
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error(), "", ""
	}
	return answer.Status[:3], string(all), answer.Trailer.Get("Grpc-Status")
}

func TestProtocolsInTLSThatEndsAtTheSidecar(t *testing.T) {
	o := newOutside(t)
	talking(t)
	h := ends(t, o)
	client := func() *tls.Config { return &tls.Config{} }
	second := func() *tls.Config { return &tls.Config{NextProtos: []string{"h2"}} }
	member := func() *tls.Config { return h.member(translate.ALPNHTTP) }
	for what, by := range map[string]func() *tls.Config{"a client": client, "a caller in mesh mTLS": member} {
		c := o.calls(by())
		fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", endedName)
		all, err := io.ReadAll(c)
		if head, body, _ := strings.Cut(string(all), "\r\n\r\n"); err != nil || !strings.HasPrefix(head, "HTTP/1.1 200") && !strings.HasPrefix(head, "HTTP/1.0 200") || body != "HTTP/1.1 https" {
			t.Errorf("HTTP/1.0 of %s: %q, %v", what, all, err)
		}
		c = o.calls(by())
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", endedName)
		r, err := http.ReadResponse(c.in, nil)
		if err != nil || r.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("WebSocket of %s: %v, %v", what, r, err)
		}
		fmt.Fprint(c, "ping")
		said := make([]byte, 4)
		if _, err := io.ReadFull(c.in, said); err != nil || string(said) != "ping" {
			t.Errorf("WebSocket of %s: %q, %v", what, said, err)
		}
	}
	// The application is spoken to in HTTP/1.1 by clients, and by callers of the mesh in what
	// they speak.
	if status, said, _ := o.calls(second()).second(t, "text/plain", ""); status != "200" || said != "HTTP/1.1 https" {
		t.Errorf("HTTP/2: %s, %s", status, said)
	}
	if status, said, trailer := o.calls(member()).second(t, "application/grpc", "mesh"); status != "200" || said != "mesh" || trailer != "0" {
		t.Errorf("gRPC in mesh mTLS: %s, %s, %s", status, said, trailer)
	}
	h.builder.Apply(mesh.Put(&mesh.Service{
		Name: mesh.Name{Namespace: "shop", Name: "web"}, Selector: map[string]string{"app": "web"},
		Ports: []mesh.ServicePort{{Name: "grpc", Port: 80, Target: 8080, Protocol: mesh.GRPC}},
	}))
	eventually(t, "gRPC", func() bool {
		status, said, trailer := o.calls(second()).second(t, "application/grpc", "client")
		return status == "200" && said == "client" && trailer == "0"
	})

	// All of it is counted where `tulle status` looks.
	admin, err := net.Dial("tcp", "127.0.0.1:15000")
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	fmt.Fprint(admin, "GET /stats?filter=^http.inbound-tls.downstream_rq_total$ HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(admin), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r.Body)
	n := 0
	if _, scan := fmt.Sscanf(string(text), "http.inbound-tls.downstream_rq_total: %d", &n); err != nil || scan != nil || n < 4 {
		t.Errorf("counted: %q, %v, %v", text, err, scan)
	}
}

// The sidecar is the first that looks into what a client sends: what only proxies say, the
// client's words are not taken for.
func TestClientsWhoseTLSEndsAreNotBelieved(t *testing.T) {
	o := newOutside(t)
	talking(t)
	ends(t, o)
	c := o.calls(&tls.Config{})
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: http\r\nX-Request-Id: mine\r\nX-Envoy-Force-Trace: 1\r\n\r\n", endedName)
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(r.Body)
	if err != nil || string(said) != "HTTP/1.1 https" {
		t.Errorf("the application is told of %q, %v", said, err)
	}
	peer, _, _ := net.SplitHostPort(c.LocalAddr().String())
	if got, want := r.Header.Get("Got-X-Forwarded-For"), "198.51.100.7,"+peer; got != want {
		t.Errorf("X-Forwarded-For is %q, want %q", got, want)
	}
	if got := r.Header.Get("Got-X-Request-Id"); got == "mine" || got == "" {
		t.Errorf("X-Request-Id is %q", got)
	}
	if got := r.Header.Get("Got-X-Envoy-Force-Trace"); got != "" {
		t.Errorf("X-Envoy-Force-Trace is %q", got)
	}
}

// What the mtls section says of the port is about callers in mesh mTLS alone.
func TestModesBesideTLSThatEnds(t *testing.T) {
	for mode, want := range map[mesh.MTLSMode]bool{mesh.MTLSStrict: true, mesh.MTLSPermissive: true, mesh.MTLSDisabled: false} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			o := newOutside(t)
			hearing(t, "10.244.0.1:8080", "10.244.0.1:8443")
			modes := &mesh.Policy{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "modes"}}, MTLS: &mesh.MTLS{Mode: mesh.MTLSPermissive, Ports: map[uint16]mesh.MTLSMode{8443: mode}}}
			h := ends(t, o, mesh.Put(modes))
			member := o.calls(h.member(translate.ALPNHTTP))
			known := member != nil && member.ask() == 200 && member.ConnectionState().PeerCertificates[0].SerialNumber.Int64() != 1
			if known != want {
				t.Errorf("mesh mTLS is taken: %t, want %t", known, want)
			}
			if got := o.calls(&tls.Config{}).ask(); got != 200 {
				t.Errorf("a client gets %d", got)
			}
			c := o.dial(endedAt)
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
			if got, _ := io.ReadAll(c); len(got) > 0 {
				t.Errorf("HTTP in the clear is answered: %q", got)
			}
		})
	}
}
