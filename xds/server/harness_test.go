package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// harness is a server with a real builder, on loopback.
type harness struct {
	t          testing.TB
	api        *apiServer
	builder    *countingBuilder
	server     *Server
	registry   *prometheus.Registry
	address    string
	roots      *x509.CertPool
	rootPEM    []byte
	issuer     atomic.Int64  // of certificates
	genuine    bool          // identities get a certificate that is one
	drain      time.Duration // of Envoy's; 0: its default
	proxyGroup uint32        // that Envoy runs as; 0: the test's
	root       *x509.Certificate
	key        *ecdsa.PrivateKey // of root, and of all that it signed
	keyPEM     []byte
	stop       context.CancelFunc
	stopped    chan struct{}
}

// countingBuilder is a builder that knows what is subscribed to.
type countingBuilder struct {
	*build.Builder
	lock  sync.Mutex
	keys  map[build.Subscriber]map[build.Key]bool
	asked int // how often Subscribe was called
}

func (b *countingBuilder) Subscribe(s build.Subscriber, keys ...build.Key) {
	b.lock.Lock()
	b.asked++
	if b.keys[s] == nil {
		b.keys[s] = map[build.Key]bool{}
	}
	for _, k := range keys {
		b.keys[s][k] = true
	}
	b.lock.Unlock()
	b.Builder.Subscribe(s, keys...)
}

func (b *countingBuilder) Unsubscribe(s build.Subscriber, keys ...build.Key) {
	b.lock.Lock()
	for _, k := range keys {
		delete(b.keys[s], k)
	}
	if len(b.keys[s]) == 0 {
		delete(b.keys, s)
	}
	b.lock.Unlock()
	b.Builder.Unsubscribe(s, keys...)
}

func (b *countingBuilder) calls() int {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.asked
}

func (b *countingBuilder) subscribers() int {
	b.lock.Lock()
	defer b.lock.Unlock()
	return len(b.keys)
}

// wanted reports whether a stream, or what is remembered of one, subscribes to such a key.
func (b *countingBuilder) wanted(such func(build.Key) bool) bool {
	b.lock.Lock()
	defer b.lock.Unlock()
	for _, keys := range b.keys {
		for k := range keys {
			if such(k) {
				return true
			}
		}
	}
	return false
}

func newHarness(t testing.TB, change func(*Options)) *harness {
	t.Helper()
	h := &harness{t: t, api: newAPIServer(t), registry: prometheus.NewRegistry(), stopped: make(chan struct{})}
	h.builder = &countingBuilder{keys: map[build.Subscriber]map[build.Key]bool{}, Builder: build.New(build.Options{
		Config: &mesh.Config{TrustDomain: "test.mesh", RootNamespace: "tulle-system"},
		Issue: func(_ context.Context, identity string) (build.Certificate, error) {
			version := fmt.Sprintf("issuer-%d.%s", h.issuer.Load(), identity)
			if h.genuine {
				chain, err := h.signed(identity)
				return build.Certificate{Chain: chain, Key: h.keyPEM, Version: version}, err
			}
			return build.Certificate{Chain: []byte("chain of " + identity), Key: []byte("key"), Version: version}, nil
		},
		OnBuilt: func() { h.server.Built() }, Metrics: h.registry,
		Log: testr.NewWithInterface(t, testr.Options{}),
	})}
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	o := Options{
		Builder: h.builder, Tokens: h.api.tokens(), TLS: h.certificate(), Replica: "tulled-0",
		Log: testr.NewWithInterface(t, testr.Options{}), Metrics: h.registry,
	}
	if change != nil {
		change(&o)
	}
	var err error
	if h.server, err = New(o); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = h.builder.Run(ctx) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = l.Addr().String()
	go func() {
		defer close(h.stopped)
		if err := h.server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
		running.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-h.stopped
		if n := h.builder.subscribers(); n > 0 {
			t.Errorf("%d streams have ended and still subscribe", n)
		}
	})
	h.builder.Apply(mesh.Put(workload("web")), mesh.Put(workload("api")), mesh.Put(service("db", "10.96.0.1")), mesh.Put(slice("db", "10.244.9.1")))
	return h
}

// certificate is the server's, and makes its own root the one to trust.
func (h *harness) certificate() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"tulled.tulle-system.svc"},
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		h.t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(raw)
	if err != nil {
		h.t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	h.rootPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
	h.keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey})
	h.root, h.key = parsed, key
	h.roots = x509.NewCertPool()
	h.roots.AddCert(parsed)
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}}
}

// signed is a certificate of an identity, by the root.
func (h *harness) signed(identity string) ([]byte, error) {
	id, err := url.Parse(identity)
	if err != nil {
		return nil, err
	}
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, h.root, h.key.Public(), h.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), err
}

func workload(name string) *mesh.Workload {
	return &mesh.Workload{
		Name: mesh.Name{Namespace: "shop", Name: name}, UID: "uid-" + name, ServiceAccount: name,
		Labels: map[string]string{"app": name}, Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.1")}, Meshed: true,
		Ports: []mesh.ContainerPort{{Name: "http", Port: 8080}},
	}
}

func service(name, ip string) *mesh.Service {
	return &mesh.Service{
		Name: mesh.Name{Namespace: "shop", Name: name}, Addresses: []netip.Addr{netip.MustParseAddr(ip)},
		Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}},
	}
}

func slice(name string, ips ...string) *mesh.Slice {
	s := &mesh.Slice{
		Name: mesh.Name{Namespace: "shop", Name: name + "-1"}, Service: name,
		Ports: []mesh.SlicePort{{Name: "http", Port: 8080}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, mesh.Endpoint{Address: netip.MustParseAddr(ip), Ready: true})
	}
	return s
}

// ads is a hand-made client.
type ads struct {
	t      testing.TB
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	close  func()
	node   string
	got    map[translate.Type]map[string]*discovery.Resource
	count  int                                         // of resources received
	answer func(*discovery.DeltaDiscoveryRequest) bool // changes the answer to a response; false: there is none
}

// connect opens a stream with the token; empty: none.
func (h *harness) connect(token string) *ads {
	h.t.Helper()
	conn, err := grpc.NewClient(h.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: h.roots, ServerName: "tulled.tulle-system.svc", MinVersion: tls.VersionTLS12,
	})))
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	a := &ads{t: h.t, stream: stream, node: "web.shop", got: map[translate.Type]map[string]*discovery.Resource{}}
	a.close = sync.OnceFunc(func() {
		cancel()
		_ = conn.Close()
	})
	h.t.Cleanup(a.close)
	return a
}

func (a *ads) subscribe(t translate.Type, names ...string) {
	a.send(&discovery.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesSubscribe: names})
}

func (a *ads) unsubscribe(t translate.Type, names ...string) {
	a.send(&discovery.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesUnsubscribe: names})
}

func (a *ads) send(r *discovery.DeltaDiscoveryRequest) {
	a.t.Helper()
	if a.node != "" {
		r.Node = &core.Node{Id: a.node}
		a.node = ""
	}
	if err := a.stream.Send(r); err != nil {
		a.t.Logf("sending: %v", err) // Recv tells why
	}
}

// receive takes one response and acknowledges it.
func (a *ads) receive() error {
	r, err := a.stream.Recv()
	if err != nil {
		return err
	}
	t, _ := translate.TypeOf(r.TypeUrl)
	if a.got[t] == nil {
		a.got[t] = map[string]*discovery.Resource{}
	}
	for _, res := range r.Resources {
		a.got[t][res.Name] = res
		a.count++
	}
	for _, name := range r.RemovedResources {
		delete(a.got[t], name)
	}
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	if a.answer == nil || a.answer(answer) {
		a.send(answer)
	}
	return nil
}

// until receives until the condition holds.
func (a *ads) until(what string, done func() bool) {
	a.t.Helper()
	for !done() {
		if err := a.receive(); err != nil {
			a.t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

func (a *ads) has(t translate.Type, name string) func() bool {
	return func() bool { return a.got[t][name] != nil }
}

// ended receives until the stream ends, and returns why.
func (a *ads) ended() error {
	for {
		if err := a.receive(); err != nil {
			return err
		}
	}
}

// start does what a starting proxy does.
func (a *ads) start() {
	a.t.Helper()
	a.subscribe(translate.Cluster)
	a.until("clusters", a.has(translate.Cluster, translate.ClusterAdmin))
	a.subscribe(translate.Listener)
	a.until("the outbound listener", a.has(translate.Listener, translate.ListenerOutbound))
	a.subscribe(translate.Secret, translate.SecretWorkload, translate.SecretRoots)
	a.subscribe(translate.Scope)
	a.subscribe(translate.Route, translate.RouteInbound)
	a.until("readiness", a.has(translate.Listener, translate.ListenerReady))
}

func (h *harness) metric(name string) float64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s did not come about", what)
		}
	}
}
