package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/anypb"
)

// bare is the least that a control plane can be: a gRPC server over TLS, with default
// options but for windows of a fixed size, that answers the first request of each type
// with one small resource for each name, and passes on what it is told to those who
// have asked for that name. It keeps nothing else, translates nothing, and does not
// look at what is acknowledged. What a stream and a message cost it is what they cost.
// It is this program itself, as a process of its own.
type bare struct {
	traffic      *traffic
	xds, scraped string // addresses
}

// bareWorks are those that can be done to it.
var bareWorks = []string{"connect", "idle", "move"}

// serveBare is the argument that makes this program be it.
const serveBare = "serve-bare"

func (p *bare) start(ctx context.Context, _ *world, scratch string) (*process, error) {
	for _, address := range []*string{&p.xds, &p.scraped} {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		*address = fmt.Sprintf("127.0.0.1:%d", port)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return launch(ctx, scratch, "http://"+p.scraped, nil, self, serveBare, p.xds, p.scraped)
}

func (p *bare) prepare(context.Context, *world) error { return nil }
func (p *bare) address() string                       { return p.xds }

func (p *bare) dial(int) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})), //nolint:gosec // it is this program
		grpc.WithStatsHandler(p.traffic), grpc.WithNoProxy(), grpc.WithStaticStreamWindowSize(receiveWindow), grpc.WithStaticConnWindowSize(receiveWindow),
	}
}

func (p *bare) credentials(ctx context.Context, _ int) (context.Context, error) { return ctx, nil }
func (p *bare) node(i int) *core.Node {
	return &core.Node{Id: fmt.Sprintf("pod-%05d.%s", i, namespace)}
}

func (p *bare) begin(s *sidecar) error {
	for _, url := range []string{urlCluster, urlListener} {
		if err := s.ask(url); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(s.calls))
	for _, i := range s.calls {
		names = append(names, serviceName(i))
	}
	return s.ask(urlEndpoints, names...)
}

func (p *bare) follow(*sidecar, *discovery.DeltaDiscoveryResponse) error { return nil }
func (p *bare) complete(*sidecar) error                                  { return nil }
func (p *bare) endpoints(service int) slot                               { return slot{urlEndpoints, serviceName(service)} }
func (p *bare) added(int, string) (slot, string)                         { return slot{}, "" }
func (p *bare) policies() bool                                           { return false }
func (p *bare) metrics() (string, string)                                { return "http://" + p.scraped, "" }

// assignment is about as many bytes as the endpoints of a service that Tulle sends.
const assignment = 350

// tell has the control plane hear of an endpoint's new address, which it is told by
// nobody else.
func (p *bare) tell(ctx context.Context, service int, address string) error {
	content := address + strings.Repeat(" ", assignment-len(address))
	response, err := ask(ctx, http.MethodPost, "http://"+p.scraped+"/"+serviceName(service), strings.NewReader(content))
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// bareServer answers, and passes on.
type bareServer struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	lock  sync.Mutex
	asked map[string][]chan<- *discovery.DeltaDiscoveryResponse // by name: of streams that are up, or were
}

// DeltaAggregatedResources answers the first request of each type, and sends what
// the stream has asked for and is told.
func (s *bareServer) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, send := stream.Context(), make(chan *discovery.DeltaDiscoveryResponse, 16)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case r := <-send:
				if stream.Send(r) != nil {
					return
				}
			}
		}
	}()
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		answer := &discovery.DeltaDiscoveryResponse{TypeUrl: r.GetTypeUrl(), Nonce: "1"}
		if len(r.GetResourceNamesSubscribe()) == 0 {
			answer.Resources = []*discovery.Resource{{Name: "one", Version: "1"}}
		}
		s.lock.Lock()
		for _, name := range r.GetResourceNamesSubscribe() {
			s.asked[name] = append(s.asked[name], send)
			answer.Resources = append(answer.Resources, &discovery.Resource{Name: name, Version: "1"})
		}
		s.lock.Unlock()
		select {
		case send <- answer:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ServeHTTP passes on to who asked for it what it is told of the name that is the
// path.
func (s *bareServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name := r.URL.Path[1:]
	told := &discovery.DeltaDiscoveryResponse{TypeUrl: urlEndpoints, Nonce: "2", Resources: []*discovery.Resource{
		{Name: name, Version: "2", Resource: &anypb.Any{TypeUrl: urlEndpoints, Value: content}},
	}}
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, send := range s.asked[name] {
		select {
		case send <- told:
		default: // its stream has ended
		}
	}
}

// runBare serves on two addresses: streams; and that it is ready, and what it is told.
func runBare(ctx context.Context, xds, ready string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", xds)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.StaticStreamWindowSize(receiveWindow), grpc.StaticConnWindowSize(receiveWindow), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
	})))
	streams := &bareServer{asked: map[string][]chan<- *discovery.DeltaDiscoveryResponse{}}
	discovery.RegisterAggregatedDiscoveryServiceServer(server, streams)
	context.AfterFunc(ctx, server.Stop)
	go func() {
		_ = http.ListenAndServe(ready, streams) //nolint:gosec // until this process ends
	}()
	return server.Serve(l)
}
