package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// bare is the least that a control plane can be: a gRPC server over TLS, with
// default options, that answers the first request of each type with one small
// resource, and keeps nothing. What a stream costs it is what a stream costs. It is
// this program itself, as a process of its own.
type bare struct {
	traffic      *traffic
	xds, scraped string // addresses
}

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
		grpc.WithStatsHandler(p.traffic), grpc.WithNoProxy(),
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
	return nil
}

func (p *bare) follow(*sidecar, *discovery.DeltaDiscoveryResponse) error { return nil }
func (p *bare) complete(*sidecar) error                                  { return nil }
func (p *bare) endpoints(int) slot                                       { return slot{} }
func (p *bare) added(int, string) (slot, string)                         { return slot{}, "" }
func (p *bare) policies() bool                                           { return false }
func (p *bare) metrics() (string, string)                                { return "http://" + p.scraped, "" }

// bareServer answers.
type bareServer struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
}

// DeltaAggregatedResources answers the first request of each type.
func (bareServer) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		err = stream.Send(&discovery.DeltaDiscoveryResponse{
			TypeUrl: r.GetTypeUrl(), Nonce: "1", Resources: []*discovery.Resource{{Name: "one", Version: "1"}},
		})
		if err != nil {
			return err
		}
	}
}

// runBare serves on two addresses: streams, and that it is ready.
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
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
	})))
	discovery.RegisterAggregatedDiscoveryServiceServer(server, bareServer{})
	context.AfterFunc(ctx, server.Stop)
	go func() {
		_ = http.ListenAndServe(ready, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) //nolint:gosec // until this process ends
	}()
	return server.Serve(l)
}
