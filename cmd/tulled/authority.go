package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/ca/certmanager"
	"github.com/tulle-mesh/tulle/ca/secret"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/status"
	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

const (
	// caSecret holds the built-in authority.
	caSecret = "tulle-ca"
	// broughtSecret is where an operator brings an intermediate.
	broughtSecret = "tulle-ca-issuer"
	// serviceAccount is that of the control plane, in the manifests.
	serviceAccount = "tulled"
)

func (p *controlPlane) openAuthority(ctx context.Context) error {
	direct, err := client.NewWithWatch(p.manager.GetConfig(), client.Options{Scheme: p.manager.GetScheme()})
	if err != nil {
		return fmt.Errorf("making a client for the authority's Secret: %w", err)
	}
	log := p.log.WithName("ca")
	remote, err := certmanager.New(certmanager.Options{
		Client: direct, Namespace: p.options.namespace, Replica: p.options.pod, Alive: p.alive,
		Log: log.WithName("certmanager"), Registerer: metrics.Registry, Now: p.clock.Now,
	})
	if err != nil {
		return fmt.Errorf("making the requester of certificates: %w", err)
	}
	p.authority, err = ca.Open(ctx, ca.AuthorityOptions{
		Store: secret.New(direct, types.NamespacedName{Namespace: p.options.namespace, Name: caSecret}),
		Log:   log, Registerer: metrics.Registry, Now: p.clock.Now, Remote: remote,
	})
	if err != nil {
		return err
	}
	p.certificates, err = ca.NewCertificates(ca.Options{
		Issuer: p.authority, ServingNames: p.servingNames(),
		OnRenew: func(identity string) {
			p.builder.Invalidate(build.Key{Type: translate.Secret, Name: translate.SecretWorkload, For: identity})
		},
		Pods: func(identity string) []string { return p.server.PodsOf(identity) },
		Log:  log, Registerer: metrics.Registry, Now: p.clock.Now,
	})
	if err != nil {
		return err
	}
	p.rotator = ca.NewRotator(ca.RotatorOptions{
		Authority: p.authority, Settings: p.settings, ServingNames: p.servingNames(),
		Brought:    secret.NewSource(direct, types.NamespacedName{Namespace: p.options.namespace, Name: broughtSecret}),
		Live:       live{p},
		Spread:     func(ctx context.Context) ([]string, error) { return p.spread.Behind(ctx) },
		SpreadTime: p.options.rootSpreadTime,
		Namespace:  p.options.namespace, ServiceAccount: serviceAccount,
		Changed: func() { p.status.AuthorityChanged() },
		Log:     log,
	})
	for _, r := range []runnable{p.authority.Run, p.certificates.Run, remote.Run} {
		if err := p.manager.Add(r); err != nil {
			return fmt.Errorf("adding the authority: %w", err)
		}
	}
	return nil
}

// alive reports whether a replica's pod is there.
func (p *controlPlane) alive(pod string) bool {
	_, ok := p.builder.Snapshot().Workload(mesh.Name{Namespace: p.options.namespace, Name: pod})
	return ok || pod == p.options.pod
}

func (p *controlPlane) servingNames() []string {
	return slices.Concat(
		ca.ServingNames(p.ownService().Name, p.options.namespace),
		ca.ServingNames(allReplicas, p.options.namespace),
	)
}

// wireRotation has the leader rotate, once it knows the mesh.
func (p *controlPlane) wireRotation(context.Context) error {
	return p.manager.Add(leading(func(ctx context.Context) error {
		// Without the MeshConfig it would rotate by itself what is Manual.
		if !p.complete(ctx) || !toolscache.WaitForCacheSync(ctx.Done(), p.followed.HasSynced) {
			return nil
		}
		return p.rotator.Run(ctx)
	}))
}

// roots are the authority's, as the model has them.
type roots struct{ *ca.Authority }

// Bundle is what proxies are to trust.
func (r roots) Bundle() *mesh.TrustBundle {
	b := r.Authority.Bundle()
	return &mesh.TrustBundle{PEM: b.Roots, Issuer: b.Issuer, Generation: b.Sequence}
}

// live is what proxies of all replicas have acknowledged.
type live struct{ p *controlPlane }

// Trust is about the roots.
func (l live) Trust(sequence int64) ca.Progress { return l.progress(mesh.KindTrust, sequence) }

// Issuer is about certificates of the present issuer.
func (l live) Issuer(sequence int64) ca.Progress { return l.progress(mesh.KindIssuer, sequence) }

func (l live) progress(kind mesh.Kind, sequence int64) ca.Progress {
	v, ok := l.p.gatherer.Verdict(mesh.Ref{Kind: kind})
	return progress(v, ok, sequence)
}

// progress is what a verdict says of the sequence. Of an earlier one it says
// nothing.
func progress(v acks.Verdict, ok bool, sequence int64) ca.Progress {
	out := ca.Progress{Missing: v.Missing}
	if !ok || v.Generation != sequence {
		return out
	}
	out.Done, out.Concerned, out.Have, out.Waiting = v.Complete(), v.Concerned, v.Programmed, v.Waiting
	if r := v.Refusal; r != nil {
		out.Refusal = fmt.Sprintf("that of pod %s: %s", r.Pod, r.Words)
	}
	return out
}

// settings are what the MeshConfig says of the authority.
func (p *controlPlane) settings() ca.Settings {
	s := p.terms.Load()
	if s == nil {
		s = terms(&v1alpha1.MeshConfig{})
	}
	out := *s
	out.TrustDomain = p.builder.Snapshot().Config().TrustDomain
	return out
}

// setTerms takes in the MeshConfig; nil: there is none.
func (p *controlPlane) setTerms(c *v1alpha1.MeshConfig) {
	var s *ca.Settings
	if c != nil {
		s = terms(c)
	}
	p.terms.Store(s)
	p.rotator.Wake()
}

func terms(c *v1alpha1.MeshConfig) *ca.Settings {
	of := func(a v1alpha1.AuthorityCertificate, lifetime time.Duration) ca.Terms {
		t := ca.Terms{Lifetime: lifetime, Before: ca.DefaultBefore}
		if a.Lifetime != nil {
			t.Lifetime = a.Lifetime.Duration
		}
		switch {
		case a.Rotation == v1alpha1.RotationManual:
			t.Before = 0
		case a.RenewBeforePercentage != nil:
			t.Before = float64(*a.RenewBeforePercentage) / 100
		}
		return t
	}
	s := &ca.Settings{
		Issuer:  of(c.Spec.CA.Issuer, ca.DefaultIssuerLifetime),
		Root:    of(c.Spec.CA.Root, ca.DefaultRootLifetime),
		Request: c.Annotations[v1alpha1.AnnotationRotate],
	}
	if cm := c.Spec.CA.CertManager; cm != nil {
		s.Roots = []byte(cm.Roots)
		s.Signer = &ca.Signer{
			Name: cm.IssuerRef.Name, Kind: cm.IssuerRef.Kind, Group: cm.IssuerRef.Group,
			Signs: ca.Signs(cm.Signs), Roots: ca.RootsID(s.Roots),
		}
	}
	return s
}

// aboutAuthority is what the MeshConfig's status says of it.
func (p *controlPlane) aboutAuthority() (status.Authority, bool) {
	reason, message, ok := p.rotator.Verdict()
	a := status.Authority{Current: reason == ca.ReasonCurrent, Reason: reason, Message: message}
	switch reason {
	case ca.ReasonWaiting, ca.ReasonInvalid, ca.ReasonRefused, ca.ReasonEndsSoon, ca.ReasonUnavailable,
		ca.ReasonPending, ca.ReasonDenied, ca.ReasonFailed:
		a.NeedsHelp = true
	}
	return a, ok
}

// debugAuthority answers the CLI with what may be said of the authority.
func (p *controlPlane) debugAuthority() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		state := struct {
			ca.State
			Now time.Time `json:"now"` // of this replica
		}{p.rotator.State(), p.clock.Now().UTC()}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(state); err != nil {
			p.log.V(1).Info("a reader of the authority's state went away", "error", err.Error())
		}
	})
}
