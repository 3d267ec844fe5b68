package explain

import (
	"bufio"
	"bytes"
	"context"
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
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// lab is what stands around Envoys: who signs and calls, and who is called.
type lab struct {
	t         *testing.T
	key       *ecdsa.PrivateKey
	ca        *x509.Certificate
	callers   map[string]tls.Certificate // by identity
	hellos    map[string][]byte          // first bytes of TLS, by the name it asks for
	app       net.Addr
	yes, no   net.Addr           // authorizers
	clusters  []*cluster.Cluster // besides those that all have
	secrets   []*envoytls.Secret
	addresses byte // the second byte of the addresses of this process's listeners
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, callers: map[string]tls.Certificate{}, hellos: map[string][]byte{}, addresses: byte(10 + os.Getpid()%200)}
	l.key, l.ca = l.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	for _, id := range identities {
		l.callers[id] = l.identity(id)
	}
	for _, name := range askedNames {
		l.hellos[name] = hello(t, name)
	}
	l.app = l.serve("200 OK")
	l.yes, l.no = l.serve("200 OK"), l.serve("403 Forbidden")
	l.secrets = []*envoytls.Secret{
		l.certificate(translate.SecretWorkload, l.identity("spiffe://cluster.local/ns/shop/sa/web")),
		l.certificate(translate.PrefixEnded+endedSecret.String(), l.identity("https://web.example")),
		{Name: translate.SecretRoots, Type: &envoytls.Secret_ValidationContext{ValidationContext: &envoytls.CertificateValidationContext{TrustedCa: block("CERTIFICATE", l.ca.Raw)}}},
	}
	return l
}

func (l *lab) sign(c *x509.Certificate, by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	l.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	c.Subject = pkix.Name{CommonName: fmt.Sprint(c.SerialNumber)}
	parent := l.ca
	if by == nil {
		by, parent = key, c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		l.t.Fatal(err)
	}
	return key, out
}

func (l *lab) identity(id string) tls.Certificate {
	u, err := url.Parse(id)
	if err != nil {
		l.t.Fatal(err)
	}
	key, c := l.sign(&x509.Certificate{URIs: []*url.URL{u}}, l.key)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

// certificate is the secret with a certificate and its key.
func (l *lab) certificate(name string, c tls.Certificate) *envoytls.Secret {
	l.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		l.t.Fatal(err)
	}
	return &envoytls.Secret{Name: name, Type: &envoytls.Secret_TlsCertificate{TlsCertificate: &envoytls.TlsCertificate{
		CertificateChain: block("CERTIFICATE", c.Certificate[0]), PrivateKey: block("PRIVATE KEY", key),
	}}}
}

func block(kind string, der []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})}}
}

// serve answers requests with the status, and with what it sees of them, and anything
// else with some "T", whatever is strange about them.
func (l *lab) serve(status string) net.Addr { return l.serveAs(status, "", nil) }

// serveAs says its name besides, in the last line of what it sees and after the "T", and may
// have clients speak TLS.
func (l *lab) serveAs(status, name string, secure *tls.Config) net.Addr {
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { at.Close() })
	go func() {
		for {
			c, err := at.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				said := name
				if secure != nil {
					secured := tls.Server(c, secure)
					if secured.Handshake() != nil {
						return
					}
					c, said = secured, name+" by "+secured.ConnectionState().ServerName
				}
				in := bufio.NewReader(c)
				for {
					first, err := in.Peek(1)
					if err != nil {
						return
					}
					if first[0] < ' ' {
						_, _ = io.WriteString(c, "TTTTT"+said+"\n")
						// What is not read before the end would take back what was written.
						_ = c.SetReadDeadline(time.Now().Add(time.Second))
						_, _ = io.Copy(io.Discard, in)
						return
					}
					seen := ""
					for line := "-"; line != "\r\n"; {
						if line, err = in.ReadString('\n'); err != nil {
							return
						}
						if seen == "" || strings.HasPrefix(line, "x-beta:") || strings.HasPrefix(line, "host:") {
							seen += strings.TrimRight(line, "\r\n") + "\t"
						}
					}
					answer := "HTTP/1.1 " + status + "\r\nx-app: 1\r\nx-seen: " + seen + said + "\r\ncontent-length: 0\r\n\r\n"
					if _, err := io.WriteString(c, answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return at.Addr()
}

// hello is what a client of TLS says first.
func hello(t *testing.T, name string) []byte {
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(theirs, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		theirs.Close()
	}()
	out := make([]byte, 4096)
	n, err := ours.Read(out)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	return out[:n]
}

func any1(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	out, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// socketAddress is where a mesh's Envoy listens.
func socketAddress(host string, port uint16) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func socketAddresses(hosts []string, ports []uint16) (out []*core.Address) {
	for _, h := range hosts {
		for _, p := range ports {
			out = append(out, socketAddress(h, p))
		}
	}
	return out
}

// host is the address of the i-th mesh's workload.
func (l *lab) host(i int) string { return fmt.Sprintf("127.%d.%d.%d", l.addresses, 1+i/200, 1+i%200) }

// port6 is the port of the i-th mesh's workload by IPv6, of which there is one address.
func (l *lab) port6(i int) uint16 { return uint16(12000 + int(l.addresses)*50 + i) }

// endedSecret is that of the certificate with which the workload ends TLS of clients.
var endedSecret = mesh.Name{Namespace: "shop", Name: "web"}

// listener is the inbound listener that is translated for the workload, as far as it is
// not about the network of a pod, at the i-th address.
func (l *lab) listener(i int, s *mesh.Snapshot, w *mesh.Workload) *listener.Listener {
	l.t.Helper()
	v := mesh.NewView(s)
	at := socketAddresses([]string{l.host(i)}, []uint16{portOpen, portHTTP, portTCP, portOther})
	return l.settled(built[*listener.Listener](v, translate.Listener, translate.ListenerInbound, translate.ForInbound(s.Profile(w), false)), fmt.Sprint("mesh-", i), translate.SecretWorkload,
		func(name string) *route.RouteConfiguration {
			return built[*route.RouteConfiguration](v, translate.Route, name, s.Profile(w))
		}, append(at, socketAddress("::1", l.port6(i)))...)
}

func (l *lab) unmarshal(from *anypb.Any, to proto.Message) {
	l.t.Helper()
	if err := from.UnmarshalTo(to); err != nil {
		l.t.Fatal(err)
	}
}

func static(name string, at net.Addr) *cluster.Cluster {
	a := at.(*net.TCPAddr)
	return &cluster.Cluster{
		Name: name, ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		LoadAssignment: &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{LbEndpoints: []*endpoint.LbEndpoint{{
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: socketAddress(a.IP.String(), uint16(a.Port))}},
		}}}}},
	}
}

// run has one Envoy listen for all of the listeners. It ends with what is returned.
func (l *lab) run(listeners []*listener.Listener) (stop func()) {
	l.t.Helper()
	envoy := os.Getenv("ENVOY")
	if envoy == "" {
		l.t.Fatal("ENVOY does not name the Envoy binary; run: make test")
	}
	layer, err := structpb.NewStruct(map[string]any{"re2.max_program_size.error_level": 1000}) // as in xds/bootstrap
	if err != nil {
		l.t.Fatal(err)
	}
	b := &bootstrap.Bootstrap{
		LayeredRuntime: &bootstrap.LayeredRuntime{Layers: []*bootstrap.RuntimeLayer{{Name: "static", LayerSpecifier: &bootstrap.RuntimeLayer_StaticLayer{StaticLayer: layer}}}},
		StaticResources: &bootstrap.Bootstrap_StaticResources{
			Listeners: listeners, Secrets: l.secrets,
			Clusters: append(l.clusters, static(translate.ClusterInbound, l.app), static(fmt.Sprintf("%s|%d|http1", translate.ClusterInbound, endedTarget), l.app), static(fmt.Sprintf("%s|%d|same", translate.ClusterInbound, endedTarget), l.app), static("h1|auth/yes|80", l.yes), static("h1|auth/no|80", l.no), translate.Build(translate.Key{Type: translate.Cluster, Name: translate.ClusterBlackhole}, mesh.NewView(mesh.New(&mesh.Config{}))).Message.(*cluster.Cluster)),
		},
	}
	j, err := protojson.Marshal(b)
	if err != nil {
		l.t.Fatal(err)
	}
	file := filepath.Join(l.t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, j, 0o600); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, envoy, "-c", file, "-l", "error", "--use-dynamic-base-id", "--concurrency", "1")
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	end := listeners[len(listeners)-1].GetAddress().GetSocketAddress()
	last := net.JoinHostPort(end.GetAddress(), fmt.Sprint(end.GetPortValue()))
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", last)
		if err == nil {
			c.Close()
			return func() { cancel(); <-ended }
		}
		select {
		case <-ended:
			l.t.Fatalf("Envoy does not run: %s", words.String())
		default:
		}
		if time.Now().After(deadline) {
			cancel()
			l.t.Fatalf("Envoy does not listen: %v", err)
		}
	}
}

// connection is one that is kept for the next request of the same caller.
type connection struct {
	net.Conn
	in *bufio.Reader
}

// connections are those that are kept, by who has them.
type connections map[string]*connection

func (k connections) close() {
	for _, c := range k {
		c.Close()
	}
}

// dial opens a connection as the request's caller to the i-th mesh.
func (l *lab) dial(i int, r Request, name string) (*connection, error) {
	host := l.host(i)
	if r.Peer.Is6() {
		host = "::1"
	}
	return l.connect(net.JoinHostPort(host, fmt.Sprint(r.Port)), r, name)
}

func (l *lab) connect(to string, r Request, name string) (*connection, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: r.Peer.AsSlice()}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", to)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		l.t.Fatal(err)
	}
	secure := func(config *tls.Config) error {
		config.InsecureSkipVerify = true
		secured := tls.Client(c, config)
		if err := secured.Handshake(); err != nil {
			c.Close()
			return err
		}
		c = secured
		return nil
	}
	if r.Identity != "" {
		alpn := translate.ALPNHTTP
		if r.HTTP == nil || r.Unseen || r.SNI != "" {
			alpn = translate.ALPNTCP
		}
		if err := secure(&tls.Config{Certificates: []tls.Certificate{l.callers[r.Identity]}, NextProtos: []string{alpn}, ServerName: name}); err != nil {
			return nil, fmt.Errorf("mesh mTLS: %s", err) // whatever it is
		}
	}
	if r.HTTP != nil && r.SNI != "" {
		if err := secure(&tls.Config{ServerName: r.SNI}); err != nil {
			return nil, err
		}
	}
	return &connection{c, bufio.NewReader(c)}, nil
}

// ask sends the request and reports whether it reached the application, and how it
// was answered: with what status, and on what the application and a route have to say.
func (c *connection) ask(l *lab, r Request) (reached bool, answer string, err error) {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if r.HTTP == nil {
		first := []byte("\x00\x01 neither HTTP nor TLS\r\n")
		if r.SNI != "" {
			first = l.hellos[r.SNI]
		}
		if _, err := c.Write(first); err != nil {
			return false, "", err
		}
		b, err := c.in.ReadByte()
		if err != nil || b != 'T' {
			return false, fmt.Sprint("byte ", b, " ", err), err
		}
		line, _ := c.in.ReadString('\n')
		return true, strings.Trim(line, "T\n"), nil
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nhost: %s\r\n", r.HTTP.Method, r.HTTP.Path, r.HTTP.Host)
	for _, h := range r.HTTP.Headers {
		fmt.Fprintf(&text, "%s: %s\r\n", h.Name, h.Value)
	}
	text.WriteString("content-length: 0\r\n\r\n")
	if _, err := io.WriteString(c, text.String()); err != nil {
		return false, "", err
	}
	status, err := c.in.ReadString('\n')
	if err != nil {
		return false, "", err
	}
	length, closes := 0, false
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return false, "", err
		}
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "x-seen: ") || strings.HasPrefix(line, "x-route: ") {
			status = strings.TrimSpace(status) + "\n" + line
		}
		line = strings.ToLower(line)
		if line == "" {
			break
		}
		if n, ok := strings.CutPrefix(line, "content-length: "); ok {
			_, _ = fmt.Sscan(n, &length)
		}
		closes = closes || line == "connection: close"
		reached = reached || line == "x-app: 1" && strings.Contains(status, " 200 ")
	}
	if r.HTTP.Method != "HEAD" {
		if _, err := c.in.Discard(length); err != nil {
			return reached, status, err
		}
	}
	if closes {
		err = io.EOF
	}
	return reached, strings.TrimSpace(status), err
}
