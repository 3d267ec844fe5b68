package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/ca/secret"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/gateway"
	"github.com/tulle-mesh/tulle/controllers/jwks"
	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/controllers/replicas"
	"github.com/tulle-mesh/tulle/controllers/status"
	"github.com/tulle-mesh/tulle/controllers/trust"
	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/server"
	"github.com/tulle-mesh/tulle/xds/translate"
)

const (
	// caSecret holds the built-in authority.
	caSecret = "tulle-ca"
	// allReplicas is the Service behind which are those of all revisions.
	allReplicas = "tulled-replicas"
)

// controlPlane is the parts, as they are wired.
type controlPlane struct {
	options      options
	log          logr.Logger
	manager      ctrl.Manager
	authority    *ca.Authority
	certificates *ca.Certificates
	builder      *build.Builder
	observer     *observe.Observer
	tokens       *server.Tokens
	server       *server.Server
	status       *status.Controller
	gateways     *gateway.Controller
	preview      *replicas.Preview
	serving      atomic.Bool // proxies, on the xDS address
}

// run is the control plane, until the context ends.
func run(ctx context.Context, o options, log logr.Logger) error {
	p := &controlPlane{options: o, log: log}
	for _, step := range []func(context.Context) error{
		p.startManager, p.openAuthority, p.wireBuilder, p.wireObserver, p.wireTrust, p.wireKeys, p.wireWebhooks, p.wireServer, p.wirePreview, p.wireStatus, p.wireGateways, p.wireHealth,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := metrics.Registry.Register(buildInfo(o.revision)); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	log.Info("starting", "version", version, "revision", o.revision)
	return p.manager.Start(ctx)
}

// forever is longer than any process lives.
const forever = 100 * 365 * 24 * time.Hour

func (p *controlPlane) startManager(context.Context) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install,
	} {
		if err := add(scheme); err != nil {
			return fmt.Errorf("building the scheme: %w", err)
		}
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	config.QPS, config.Burst = 50, 100
	lease, err := newLease(config, p.options.namespace, p.options.pod, p.log.WithName("lease"))
	if err != nil {
		return err
	}
	p.manager, err = ctrl.NewManager(config, ctrl.Options{
		Scheme:  scheme,
		Cache:   observe.CacheOptions(),
		Metrics: metricsserver.Options{BindAddress: p.options.metrics},
		// A leader whose API server is away as it takes office waits for it, and
		// serves its proxies meanwhile: the process must not end for that.
		Controller:             ctrlconfig.Controller{CacheSyncTimeout: forever},
		HealthProbeBindAddress: p.options.health,
		LeaderElection:         true,
		LeaderElectionID:       leaseName, // in messages and metrics; the lock is lease
		// The process ends with the manager, so the next leader need not wait.
		LeaderElectionReleaseOnCancel:       true,
		LeaderElectionResourceLockInterface: lease,
		WebhookServer: ctrlwebhook.NewServer(ctrlwebhook.Options{
			Port: p.options.webhookPort,
			TLSOpts: []func(*tls.Config){func(c *tls.Config) {
				c.MinVersion = tls.VersionTLS12
				c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return p.certificates.GetCertificate(h) }
			}},
		}),
	})
	if err != nil {
		return fmt.Errorf("making the manager: %w", err)
	}
	return nil
}

func (p *controlPlane) openAuthority(ctx context.Context) error {
	direct, err := client.NewWithWatch(p.manager.GetConfig(), client.Options{Scheme: p.manager.GetScheme()})
	if err != nil {
		return fmt.Errorf("making a client for the authority's Secret: %w", err)
	}
	p.authority, err = ca.Open(ctx, ca.AuthorityOptions{
		Store: secret.New(direct, types.NamespacedName{Namespace: p.options.namespace, Name: caSecret}),
		Log:   p.log.WithName("ca"), Registerer: metrics.Registry,
	})
	if err != nil {
		return err
	}
	p.certificates, err = ca.NewCertificates(ca.Options{
		Issuer: p.authority,
		ServingNames: slices.Concat(
			ca.ServingNames(p.ownService().Name, p.options.namespace),
			ca.ServingNames(allReplicas, p.options.namespace),
		),
		OnRenew: func(identity string) {
			p.builder.Invalidate(build.Key{Type: translate.Secret, Name: translate.SecretWorkload, For: identity})
		},
		Log: p.log.WithName("ca"), Registerer: metrics.Registry,
	})
	if err != nil {
		return err
	}
	for _, r := range []runnable{p.authority.Run, p.certificates.Run} {
		if err := p.manager.Add(r); err != nil {
			return fmt.Errorf("adding the authority: %w", err)
		}
	}
	return nil
}

func (p *controlPlane) wireBuilder(context.Context) error {
	p.builder = build.New(build.Options{
		Issue: func(ctx context.Context, identity string) (build.Certificate, error) {
			c, err := p.certificates.Issue(ctx, identity)
			if err != nil {
				return build.Certificate{}, err
			}
			return build.Certificate{Chain: c.Chain, Key: c.Key, Version: c.Version}, nil
		},
		Forget:  p.certificates.Forget,
		OnBuilt: func() { p.server.Built() }, // nothing is built before the manager starts
		Log:     p.log.WithName("build"), Metrics: metrics.Registry,
	})
	return p.manager.Add(runnable(p.builder.Run))
}

// wireObserver also has certificates follow the MeshConfig's lifetime.
func (p *controlPlane) wireObserver(ctx context.Context) error {
	p.observer = observe.New(observe.Options{
		Applier: p.builder, RootNamespace: p.options.namespace, Log: p.log.WithName("observe"),
		Gateways: p.mayServeGateways,
		OnKind: func(o client.Object) error { // called when all is wired
			return errors.Join(p.status.WatchKind(o), p.gateways.WatchKind(o))
		},
	})
	if err := p.observer.SetupWithManager(p.manager); err != nil {
		return err
	}
	informer, err := p.manager.GetCache().GetInformer(ctx, &v1alpha1.MeshConfig{})
	if err != nil {
		return fmt.Errorf("watching the MeshConfig: %w", err)
	}
	follow := func(obj any) {
		if c, ok := obj.(*v1alpha1.MeshConfig); ok && c.Name == v1alpha1.MeshConfigName {
			var lifetime time.Duration // the default's
			if l := c.Spec.Certificates.Lifetime; l != nil {
				lifetime = l.Duration
			}
			p.certificates.SetLifetime(lifetime)
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    follow,
		UpdateFunc: func(_, obj any) { follow(obj) },
		DeleteFunc: func(any) { p.certificates.SetLifetime(0) },
	})
	if err != nil {
		return fmt.Errorf("watching the MeshConfig: %w", err)
	}
	return nil
}

// mayServeGateways asks for one of the permissions of deploy/gateways, which has all.
func (p *controlPlane) mayServeGateways(ctx context.Context) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "watch", Resource: "secrets"}},
	}
	err := p.manager.GetClient().Create(ctx, review)
	return err == nil && review.Status.Allowed, err
}

func (p *controlPlane) wireTrust(context.Context) error {
	return trust.SetupWithManager(p.manager, trust.Options{
		Roots: p.authority, Applier: p.builder, Namespace: p.options.namespace,
	})
}

func (p *controlPlane) wireKeys(context.Context) error {
	return jwks.SetupWithManager(p.manager, jwks.Options{
		Namespace: p.options.namespace, Log: p.log.WithName("jwks"), Registerer: metrics.Registry,
	})
}

func (p *controlPlane) wireWebhooks(context.Context) error {
	s := p.manager.GetWebhookServer()
	injector := &webhook.Injector{Settings: p.injection().settings, Namespaces: p.manager.GetAPIReader(), Log: p.log.WithName("inject")}
	counted, err := webhook.Counted(metrics.Registry, map[string]admission.Handler{
		webhook.InjectPath: p.whenComplete(injector), webhook.ValidatePath: webhook.Validator{Preview: p.dryRun},
	})
	if err != nil {
		return err
	}
	for path, handler := range counted {
		s.Register(path, &admission.Webhook{Handler: handler})
	}
	return nil
}

// injection is where settings of proxies come from, those of gateways too.
func (p *controlPlane) injection() injection {
	return injection{options: p.options, reader: p.manager.GetClient(), builder: p.builder, log: p.log.WithName("inject")}
}

// whenComplete has requests wait for the cluster's initial state. The API server
// may send some before this replica is ready, after a restart of the container;
// what a pod is injected with it keeps for its life.
func (p *controlPlane) whenComplete(next admission.Handler) admission.Handler {
	return admission.HandlerFunc(func(ctx context.Context, r admission.Request) admission.Response {
		if !p.complete(ctx) {
			return admission.Errored(http.StatusServiceUnavailable, errors.New("the control plane is starting: try again"))
		}
		return next.Handle(ctx, r)
	})
}
