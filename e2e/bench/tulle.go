package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strconv"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tulle is Tulle's own control plane. Its sidecars authenticate with their pods'
// tokens, and ask for routes by original destination, as Envoy does when an
// application calls.
type tulle struct {
	program string
	traffic *traffic

	xds, probes, scraped, debug string // addresses
	tokens                      []string
	roots                       *x509.CertPool
}

func (p *tulle) start(ctx context.Context, w *world, scratch string) (*process, error) {
	var ports [5]string
	for i := range ports {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		ports[i] = strconv.Itoa(port)
	}
	p.xds, p.scraped, p.probes, p.debug = "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[1], "127.0.0.1:"+ports[2], "127.0.0.1:"+ports[3]
	return launch(ctx, scratch, "http://"+p.probes+"/readyz", []string{"KUBECONFIG=" + w.kubeconfig, "POD_NAME=tulled", "POD_NAMESPACE=" + meshNamespace},
		p.program, "--xds-address="+p.xds, "--metrics-address="+p.scraped, "--health-address="+p.probes,
		"--debug-address="+p.debug, "--webhook-port="+ports[4], "--pprof")
}

func (p *tulle) prepare(ctx context.Context, w *world) error {
	p.tokens = make([]string, len(w.pods))
	all, each := errgroup.WithContext(ctx)
	all.SetLimit(writers)
	for i, pod := range w.pods {
		all.Go(func() (err error) {
			p.tokens[i], err = w.token(each, pod, "tulle")
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	for {
		bundle, err := w.client.CoreV1().ConfigMaps(namespace).Get(ctx, "tulle-trust", metav1.GetOptions{})
		if err == nil {
			p.roots = x509.NewCertPool()
			p.roots.AppendCertsFromPEM([]byte(bundle.Data["ca.crt"]))
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the trust bundle: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *tulle) address() string { return p.xds }

func (p *tulle) dial(int) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: p.roots, ServerName: "tulled.tulle-system.svc", MinVersion: tls.VersionTLS13})),
		grpc.WithStatsHandler(p.traffic), grpc.WithNoProxy(), grpc.WithStaticStreamWindowSize(receiveWindow), grpc.WithStaticConnWindowSize(receiveWindow), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30)),
	}
}

func (p *tulle) credentials(ctx context.Context, i int) (context.Context, error) {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+p.tokens[i]), nil
}

func (p *tulle) node(i int) *core.Node {
	return &core.Node{Id: fmt.Sprintf("pod-%05d.%s", i, namespace)}
}

func (p *tulle) begin(s *sidecar) error {
	names := make([]string, 0, len(s.calls)+1)
	names = append(names, "inbound")
	for _, i := range s.calls {
		names = append(names, destination(i))
	}
	for _, ask := range []struct {
		url   string
		names []string
	}{{urlCluster, nil}, {urlListener, nil}, {urlSecret, []string{"workload", "roots"}}, {urlScope, nil}, {urlRoute, names}} {
		if err := s.ask(ask.url, ask.names...); err != nil {
			return err
		}
	}
	// What it knew before the stream is named again.
	var known []string
	for name := range s.subscribed[urlEndpoints] {
		known = append(known, name)
	}
	if len(known) == 0 {
		return nil
	}
	return s.ask(urlEndpoints, known...)
}

func (p *tulle) follow(s *sidecar, r *discovery.DeltaDiscoveryResponse) error {
	if r.GetTypeUrl() != urlCluster {
		return nil
	}
	return s.follow(r)
}

func (p *tulle) complete(s *sidecar) error {
	for _, i := range s.calls {
		if name := p.endpoints(i).name; s.versions[urlEndpoints][name] == "" {
			return fmt.Errorf("the endpoints of %s", name)
		}
	}
	return nil
}

func (p *tulle) endpoints(service int) slot {
	return slot{urlEndpoints, fmt.Sprintf("svc|%s/%s|%d", namespace, serviceName(service), servicePort)}
}

// destination is what routes and scopes are named by.
func destination(service int) string { return clusterIP(service) + ":" + strconv.Itoa(servicePort) }

// added is the scope of a service, by which sidecars know that it is there.
func (p *tulle) added(service int, _ string) (slot, string) {
	return slot{urlScope, destination(service)}, destination(service)
}

func (p *tulle) policies() bool { return true }

func (p *tulle) metrics() (string, string) {
	return "http://" + p.scraped + "/metrics", "tulle_xds_streams"
}
