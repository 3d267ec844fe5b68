package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/ca/certmanager"
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
)

// allReplicas is the Service behind which are those of all revisions.
const allReplicas = "tulled-replicas"

// controlPlane is the parts, as they are wired.
type controlPlane struct {
	options      options
	log          logr.Logger
	manager      ctrl.Manager
	authority    *ca.Authority
	certificates *ca.Certificates
	rotator      *ca.Rotator
	followed     toolscache.ResourceEventHandlerRegistration // what sets the terms
	terms        atomic.Pointer[ca.Settings]                 // what the MeshConfig says of the authority; nil: there is none
	spread       *trust.Spread
	gatherer     *replicas.Gatherer
	builder      *build.Builder
	observer     *observe.Observer
	tokens       *server.Tokens
	server       *server.Server
	status       *status.Controller
	gateways     *gateway.Controller
	preview      *replicas.Preview
	serving      atomic.Bool // proxies, on the xDS address
	clock        *clock
	keys         cache.Cache // of issuers of tokens
	garbage      *garbage    // the process's
}

// run is the control plane, until the context ends.
func run(ctx context.Context, o options, log logr.Logger) error {
	p := &controlPlane{options: o, log: log, garbage: newGarbage()}
	for _, step := range []func(context.Context) error{
		p.startManager, p.openAuthority, p.wireBuilder, p.wireObserver, p.wireTrust, p.wireKeys, p.wireWebhooks, p.wireServer, p.wirePreview, p.wireStatus, p.wireRotation, p.wireGateways, p.wireHealth,
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
		clientgoscheme.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install, certmanager.AddToScheme,
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
	if p.clock, err = newClock(p.log.WithName("clock"), metrics.Registry); err != nil {
		return err
	}
	config.Wrap(p.clock.listening)
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
				c.MinVersion = tls.VersionTLS13
				c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return p.certificates.GetCertificate(h) }
			}},
		}),
	})
	if err != nil {
		return fmt.Errorf("making the manager: %w", err)
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

// wireObserver also has certificates and their authority follow the MeshConfig.
func (p *controlPlane) wireObserver(ctx context.Context) error {
	p.observer = observe.New(observe.Options{
		Applier: p.builder, RootNamespace: p.options.namespace, Log: p.log.WithName("observe"),
		May: p.mayWatch,
		OnKind: func(o client.Object) error { // called when all is wired
			return errors.Join(p.status.WatchKind(o), p.gateways.WatchKind(o))
		},
	})
	var err error
	p.keys, err = observe.NewKeysCache(p.manager.GetConfig(), cache.Options{
		HTTPClient: p.manager.GetHTTPClient(), Scheme: p.manager.GetScheme(), Mapper: p.manager.GetRESTMapper(),
	})
	if err != nil {
		return err
	}
	if err := p.manager.Add(runnable(p.keys.Start)); err != nil { // by itself it would be the leader's
		return fmt.Errorf("adding the cache of keys: %w", err)
	}
	if err := p.observer.SetupWithManager(ctx, p.manager, p.keys); err != nil {
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
			p.setTerms(c)
		}
	}
	p.followed, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    follow,
		UpdateFunc: func(_, obj any) { follow(obj) },
		DeleteFunc: func(any) {
			p.certificates.SetLifetime(0)
			p.setTerms(nil)
		},
	})
	if err != nil {
		return fmt.Errorf("watching the MeshConfig: %w", err)
	}
	return nil
}

// mayWatch asks for one of the permissions of deploy/gateways.
func (p *controlPlane) mayWatch(ctx context.Context, resource string) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "watch", Resource: resource}},
	}
	err := p.manager.GetClient().Create(ctx, review)
	return err == nil && review.Status.Allowed, err
}

func (p *controlPlane) wireTrust(context.Context) error {
	var err error
	p.spread, err = trust.SetupWithManager(p.manager, trust.Options{
		Roots: roots{p.authority}, Applier: p.builder, Namespace: p.options.namespace,
	})
	return err
}

func (p *controlPlane) wireKeys(context.Context) error {
	return jwks.SetupWithManager(p.manager, jwks.Options{
		Keys: p.keys, Namespace: p.options.namespace, Log: p.log.WithName("jwks"), Registerer: metrics.Registry,
	})
}

func (p *controlPlane) wireWebhooks(context.Context) error {
	s := p.manager.GetWebhookServer()
	injector := &webhook.Injector{Settings: p.injection().settings, Namespaces: p.manager.GetAPIReader(), Log: p.log.WithName("inject")}
	counted, err := webhook.Counted(metrics.Registry, map[string]admission.Handler{
		webhook.InjectPath: p.whenComplete(injector), webhook.ValidatePath: webhook.Validator{Namespace: p.options.namespace, Preview: p.dryRun},
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
