package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/controllers/gateway"
	"github.com/tulle-mesh/tulle/controllers/replicas"
	"github.com/tulle-mesh/tulle/controllers/status"
	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/server"
)

// wireServer serves proxies, once all that the cluster holds was built into a
// mesh: a proxy is never told of a part of it.
func (p *controlPlane) wireServer(ctx context.Context) error {
	clientset, err := kubernetes.NewForConfig(p.manager.GetConfig())
	if err != nil {
		return fmt.Errorf("making a client for tokens: %w", err)
	}
	p.tokens = server.NewVerifier(clientset, p.clock.Now)
	s, err := server.New(server.Options{
		Builder: p.builder,
		Tokens:  p.tokens,
		TLS:     p.certificates.ServingTLS(),
		Replica: p.options.pod, MaxStreamAge: p.options.maxStreamAge, Opened: p.garbage.stream,
		Replicas: func() int { return replicas.Ready(p.builder.Built(), p.ownService(), p.options.pod) },
		Log:      p.log.WithName("xds"), Metrics: metrics.Registry, Now: p.clock.Now,
	})
	if err != nil {
		return err
	}
	p.server = s
	if err := p.manager.Add(runnable(func(ctx context.Context) error {
		if !p.complete(ctx) {
			return nil
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.options.xds)
		if err != nil {
			return fmt.Errorf("listening for proxies: %w", err)
		}
		p.serving.Store(true)
		defer p.serving.Store(false)
		return s.Serve(ctx, l)
	})); err != nil {
		return fmt.Errorf("adding the xDS server: %w", err)
	}
	if err := p.manager.Add(runnable(s.Balance)); err != nil {
		return fmt.Errorf("adding the balancing of streams: %w", err)
	}
	return p.manager.Add(debugServer(p.options.debug, p.options.pprof, map[string]http.Handler{
		"GET /debug/proxies": s.Debug(), "POST /debug/preview": p.previewed(), "POST /debug/explain": p.explained(),
		"GET /debug/ca": p.debugAuthority(),
	}))
}

// ownService is that of this revision, among whose replicas proxies are shared.
func (p *controlPlane) ownService() mesh.Name {
	return mesh.Name{Namespace: p.options.namespace, Name: webhook.ServiceOf(p.options.revision)}
}

// complete waits until the builder has taken in the initial state; false when
// the context ended first.
func (p *controlPlane) complete(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-p.observer.Synced():
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !p.built() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// built reports whether the snapshot has more than the empty mesh of the start.
func (p *controlPlane) built() bool { return p.builder.Snapshot().Config().TrustDomain != "" }

// wireStatus has replicas report to the leader, and the leader write.
func (p *controlPlane) wireStatus(context.Context) error {
	log := p.log.WithName("replicas")
	p.manager.GetWebhookServer().Register(replicas.Path, replicas.Handler(p.server, p.ours, log))
	p.gatherer = replicas.New(replicas.Options{
		Builder: p.builder, Self: p.options.pod, Local: p.server,
		Service:    mesh.Name{Namespace: p.options.namespace, Name: allReplicas},
		Peers:      p.peers(),
		Concerning: server.Concerning, Log: log,
	})
	// A leader whose mesh is not complete would find objects that nobody has.
	if err := p.manager.Add(leading(func(ctx context.Context) error {
		if !p.complete(ctx) {
			return nil
		}
		return p.gatherer.Start(ctx)
	})); err != nil {
		return fmt.Errorf("adding the gathering of acknowledgements: %w", err)
	}
	p.status = status.New(status.Options{Findings: p.builder, Acknowledgements: p.gatherer, Authority: p.aboutAuthority, Registerer: metrics.Registry, Now: p.clock.Now})
	return p.status.SetupWithManager(p.manager)
}

// wireGateways has the leader keep what Gateways are given.
func (p *controlPlane) wireGateways(context.Context) error {
	p.gateways = gateway.New(gateway.Options{Findings: p.builder, Settings: p.injection().settings, Now: p.clock.Now})
	return p.gateways.SetupWithManager(p.manager)
}

// ours reports, as an error, whose token is not that of one of our replicas.
func (p *controlPlane) ours(ctx context.Context, token string) error {
	peer, err := p.tokens.Verify(ctx, token)
	if err != nil {
		return err
	}
	self, ok := p.builder.Snapshot().Workload(mesh.Name{Namespace: p.options.namespace, Name: p.options.pod})
	if !ok {
		return errors.New("this replica does not know its own pod yet")
	}
	if peer.Pod.Namespace != self.Namespace || peer.ServiceAccount != self.ServiceAccount {
		return fmt.Errorf("it is that of service account %s/%s", peer.Pod.Namespace, peer.ServiceAccount)
	}
	return nil
}

// peers is how other replicas are asked. Their certificates are of our own
// authority, whose roots may be others at each connection.
func (p *controlPlane) peers() replicas.Peers {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	name := ca.ServingNames(allReplicas, p.options.namespace)[0]
	return replicas.Peers{
		Port: p.options.webhookPort,
		Token: func() (string, error) {
			token, err := os.ReadFile(p.options.tokenFile)
			return strings.TrimSpace(string(token)), err
		},
		Client: &http.Client{Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				roots := x509.NewCertPool()
				roots.AppendCertsFromPEM(p.authority.Roots())
				d := tls.Dialer{NetDialer: dialer, Config: &tls.Config{
					RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS13, Time: p.clock.Now,
				}}
				return d.DialContext(ctx, network, address)
			},
			MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
		}},
	}
}

// wireHealth makes readiness mean that proxies and admission are served from
// the cluster's whole state.
func (p *controlPlane) wireHealth(context.Context) error {
	for name, check := range map[string]healthz.Checker{
		"observed": p.observer.Ready,
		"xds": func(*http.Request) error {
			if !p.serving.Load() {
				return errors.New("proxies are not served: the initial state is not built yet, or this replica is stopping")
			}
			return nil
		},
		"webhook": p.manager.GetWebhookServer().StartedChecker(),
	} {
		if err := p.manager.AddReadyzCheck(name, check); err != nil {
			return fmt.Errorf("adding the readiness check %s: %w", name, err)
		}
	}
	return p.manager.AddHealthzCheck("alive", healthz.Ping)
}
