package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/tulle-mesh/tulle/controllers/status"
	"github.com/tulle-mesh/tulle/xds/server"
)

// wireServer serves proxies, once all that the cluster holds was built into a
// mesh: a proxy is never told of a part of it.
func (p *controlPlane) wireServer(ctx context.Context) error {
	clientset, err := kubernetes.NewForConfig(p.manager.GetConfig())
	if err != nil {
		return fmt.Errorf("making a client for tokens: %w", err)
	}
	s, err := server.New(server.Options{
		Builder: p.builder,
		Tokens:  server.NewVerifier(clientset),
		TLS:     p.certificates.ServingTLS(),
		Replica: p.options.pod,
		Log:     p.log.WithName("xds"), Metrics: metrics.Registry,
	})
	if err != nil {
		return err
	}
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
	return p.manager.Add(debugServer(p.options.debug, p.options.pprof, s.Debug()))
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

func (p *controlPlane) wireStatus(context.Context) error {
	return status.New(status.Options{Findings: p.builder, Registerer: metrics.Registry}).SetupWithManager(p.manager)
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
