package observe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Informers list and watch, and never get one object by name.
//
// +kubebuilder:rbac:groups="",resources=services;pods;nodes,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=configmaps;secrets,resourceNames=tulle-jwks,verbs=list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch
// +kubebuilder:rbac:groups=networking.k8s.io,resources=servicecidrs,verbs=list;watch
// +kubebuilder:rbac:groups=mesh.tulle.dev,resources=meshpolicies;trafficsplits;externalservices;meshconfigs,verbs=list;watch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=httproutes;grpcroutes;tlsroutes;tcproutes;backendtlspolicies;referencegrants;gateways;gatewayclasses,verbs=list;watch

// lookEvery is how often kinds that are missing are looked for.
const lookEvery = 10 * time.Second

// Options of an Observer.
type Options struct {
	// Applier is given the changes; required.
	Applier mesh.Applier
	// RootNamespace is where policies for the whole mesh live;
	// DefaultRootNamespace when empty.
	RootNamespace string
	// May reports whether this control plane may watch a resource: "secrets", before
	// which kinds of gateways are as if missing, and "configmaps", before which
	// BackendTLSPolicy is, and every ConfigMap. nil: it may.
	May func(ctx context.Context, resource string) (bool, error)
	// OnKind is told of each kind of the Gateway API that is watched, as soon as the
	// API server has it; may be nil.
	OnKind func(client.Object) error
	Log    logr.Logger
}

// Observer watches the cluster and tells an Applier what changes in the mesh.
type Observer struct {
	applier mesh.Applier
	root    string
	may     func(context.Context, string) (bool, error)
	onKind  func(client.Object) error
	log     logr.Logger
	watches []watch

	informers cache.Informers
	// api is asked which kinds there are; nil: each that is missing is tried, for which a
	// mapper makes its table of all kinds of all groups anew.
	api discovery.ServerResourcesInterfaceWithContext
	// missing are kinds whose CRDs the cluster does not have yet, and arrived those
	// that are watched and not yet told of. After the start they are await's.
	missing map[mesh.Kind]client.Object
	arrived []client.Object
	bundles bool // ConfigMaps are watched

	synced chan struct{}
	// open is set, with mu held, when the initial state has been applied.
	open atomic.Bool
	mu   sync.Mutex
	held []mesh.Change // what was seen before that
	from sources
}

// watch is the handler of one kind at its informer.
type watch struct {
	kind         string
	registration toolscache.ResourceEventHandlerRegistration
}

// New makes an Observer that is not attached to anything yet.
func New(o Options) *Observer {
	root := o.RootNamespace
	if root == "" {
		root = DefaultRootNamespace
	}
	onKind := o.OnKind
	if onKind == nil {
		onKind = func(client.Object) error { return nil }
	}
	may := o.May
	if may == nil {
		may = func(context.Context, string) (bool, error) { return true, nil }
	}
	return &Observer{applier: o.Applier, root: root, may: may, onKind: onKind, log: o.Log, synced: make(chan struct{})}
}

// SetupWithManager attaches the observer to the manager's cache, which must
// have been made with [CacheOptions], and to a [NewKeysCache], and has the manager run it on every
// replica, leader or not. It asks the API server which kinds it has, until the context ends.
func (o *Observer) SetupWithManager(ctx context.Context, mgr manager.Manager, keys cache.Informers) error {
	api, err := discovery.NewDiscoveryClientForConfig(mgr.GetConfig()) // which has a time-out, as its requests have no context
	if err != nil {
		return fmt.Errorf("making a client that asks for kinds: %w", err)
	}
	o.api = api
	if err := o.Watch(ctx, mgr.GetCache(), keys); err != nil {
		return err
	}
	return mgr.Add(o)
}

// Watch attaches the observer to the informers, once, for those who run a cache
// without a manager. It fails where the API server cannot be reached or lacks a
// kind, of which only ServiceCIDR (Kubernetes 1.33) and those of the Gateway API may
// be missing.
func (o *Observer) Watch(ctx context.Context, informers, keys cache.Informers) error {
	for obj, h := range map[client.Object]keysHandler{&corev1.ConfigMap{}: {o, false}, &corev1.Secret{}: {o, true}} {
		if err := o.watch(ctx, keys, obj, h); err != nil {
			return err
		}
	}
	for _, obj := range []client.Object{&v1alpha1.MeshConfig{}, &networkingv1.ServiceCIDR{}} {
		if err := o.watch(ctx, informers, obj, sourceHandler{o, obj}); err != nil {
			return err
		}
	}
	nodes := nodeHandler{entityHandler{o, mesh.KindNode}, sourceHandler{o, &corev1.Node{}}}
	if err := o.watch(ctx, informers, &corev1.Node{}, nodes); err != nil {
		return err
	}
	for kind, obj := range map[mesh.Kind]client.Object{
		mesh.KindService:  &corev1.Service{},
		mesh.KindSlice:    &discoveryv1.EndpointSlice{},
		mesh.KindWorkload: &corev1.Pod{},
		mesh.KindPolicy:   &v1alpha1.MeshPolicy{},
		mesh.KindSplit:    &v1alpha1.TrafficSplit{},
		mesh.KindExternal: &v1alpha1.ExternalService{},
	} {
		if err := o.watch(ctx, informers, obj, entityHandler{o, kind}); err != nil {
			return err
		}
	}
	o.informers, o.missing = informers, map[mesh.Kind]client.Object{
		mesh.KindHTTPRoute: &gatewayv1.HTTPRoute{},
		mesh.KindGRPCRoute: &gatewayv1.GRPCRoute{},
		mesh.KindTLSRoute:  &gatewayv1.TLSRoute{},            // v1 is of Gateway API 1.5
		mesh.KindTCPRoute:  &gatewayv1.TCPRoute{},            // v1 is of Gateway API 1.6
		mesh.KindGrant:     &gatewayv1beta1.ReferenceGrant{}, // v1 is of Gateway API 1.5
		mesh.KindGateway:   &gatewayv1.Gateway{},
		mesh.KindClass:     &gatewayv1.GatewayClass{},

		mesh.KindBackendTLS: &gatewayv1.BackendTLSPolicy{}, // v1 is of Gateway API 1.4
	}
	return o.watchMissing(ctx)
}

// watchMissing attaches to the kinds that are there by now.
func (o *Observer) watchMissing(ctx context.Context) error {
	served := o.served(ctx)
	for kind, obj := range o.missing {
		if !served(obj) {
			continue
		}
		resource := map[mesh.Kind]string{mesh.KindGateway: "secrets", mesh.KindClass: "secrets", mesh.KindBackendTLS: "configmaps"}[kind]
		if resource != "" {
			switch may, err := o.may(ctx, resource); {
			case err != nil:
				return fmt.Errorf("asking whether %s may be watched: %w", resource, err)
			case !may:
				continue
			}
		}
		switch err := o.watch(ctx, o.informers, obj, entityHandler{o, kind}); {
		case apimeta.IsNoMatchError(err):
			continue
		case err != nil:
			return err
		}
		for kind, obj := range needed(kind) {
			if err := o.watch(ctx, o.informers, obj, entityHandler{o, kind}); err != nil {
				return err
			}
		}
		delete(o.missing, kind)
		o.arrived = append(o.arrived, obj)
	}
	return o.watchBundles(ctx)
}

// served reports whether the API server has a kind, as far as it is known. It asks once for
// each version of the group.
func (o *Observer) served(ctx context.Context) func(client.Object) bool {
	known := map[metav1.GroupVersion]func(kind string) bool{}
	return func(obj client.Object) bool {
		version := versionOf(obj)
		if known[version] == nil {
			known[version] = o.kinds(ctx, version)
		}
		return known[version](kindOf(obj))
	}
}

// kinds reports which kinds a version has; all, to be tried, where that cannot be said.
func (o *Observer) kinds(ctx context.Context, version metav1.GroupVersion) func(string) bool {
	if o.api == nil {
		return func(string) bool { return true }
	}
	list, err := o.api.ServerResourcesForGroupVersionWithContext(ctx, version.String())
	if err != nil {
		return func(string) bool { return !apierrors.IsNotFound(err) }
	}
	return func(kind string) bool {
		return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Kind == kind })
	}
}

// versionOf is the version of the Gateway API in which the kind is watched.
func versionOf(obj client.Object) metav1.GroupVersion {
	if _, ok := obj.(*gatewayv1beta1.ReferenceGrant); ok {
		return gatewayv1beta1.GroupVersion
	}
	return gatewayv1.GroupVersion
}

func kindOf(obj any) string {
	name := fmt.Sprintf("%T", obj)
	return name[strings.LastIndexByte(name, '.')+1:]
}

// needed are the kinds that only a kind of the Gateway API needs.
func needed(by mesh.Kind) map[mesh.Kind]client.Object {
	if by == mesh.KindGateway {
		return map[mesh.Kind]client.Object{mesh.KindNamespace: &corev1.Namespace{}, mesh.KindCertificate: &corev1.Secret{}}
	}
	return nil
}

// watchBundles attaches to ConfigMaps once a kind is watched that names some.
func (o *Observer) watchBundles(ctx context.Context) error {
	_, gateways := o.missing[mesh.KindGateway]
	_, policies := o.missing[mesh.KindBackendTLS]
	if o.bundles || gateways && policies {
		return nil
	}
	switch may, err := o.may(ctx, "configmaps"); {
	case err != nil:
		return fmt.Errorf("asking whether configmaps may be watched: %w", err)
	case !may:
		return nil
	}
	if err := o.watch(ctx, o.informers, &corev1.ConfigMap{}, entityHandler{o, mesh.KindBundle}); err != nil {
		return err
	}
	o.bundles = true
	return nil
}

// announce tells of the kinds that were found.
func (o *Observer) announce() error {
	for _, obj := range o.arrived {
		if err := o.onKind(obj); err != nil {
			return err
		}
	}
	o.arrived = nil
	return nil
}

// await looks for the kinds that are missing, until all are there: the CRDs of the
// Gateway API may be installed at any time.
func (o *Observer) await(ctx context.Context) error {
	if err := o.announce(); err != nil || len(o.missing) == 0 {
		return err
	}
	o.log.Info("not all kinds of the Gateway API are there, or deploy/gateways is not applied: they are looked for")
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for len(o.missing) > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := o.watchMissing(ctx); err != nil {
			o.log.Error(err, "looking for kinds of the Gateway API")
		}
		if n := len(o.arrived); n > 0 {
			o.log.Info("the cluster has come to have kinds of the Gateway API", "new", n, "missing", len(o.missing))
		}
		if err := o.announce(); err != nil {
			return err
		}
	}
	return nil
}

func (o *Observer) watch(ctx context.Context, informers cache.Informers, obj client.Object, h toolscache.ResourceEventHandler) error {
	kind := kindOf(obj)
	informer, err := informers.GetInformer(ctx, obj, cache.BlockUntilSynced(false))
	switch {
	case apimeta.IsNoMatchError(err) && kind == "ServiceCIDR":
		o.log.Info("this Kubernetes has no ServiceCIDR: spec.clusterRanges.services of the MeshConfig says what it would")
		return nil
	case apimeta.IsNoMatchError(err):
		return fmt.Errorf("the API server has no kind %s: apply Tulle's CRDs first: %w", kind, err)
	case err != nil:
		return fmt.Errorf("watching %s: %w", kind, err)
	}
	registration, err := informer.AddEventHandler(h)
	if err != nil {
		return fmt.Errorf("handling events of %s: %w", kind, err)
	}
	if !o.open.Load() { // else nobody waits for it
		o.watches = append(o.watches, watch{kind, registration})
	}
	return nil
}

// NeedLeaderElection tells the manager that every replica observes.
func (o *Observer) NeedLeaderElection() bool { return false }

// Start waits until every object of every kind's initial list has been seen and
// applies them all as one batch; from then on changes are applied as they come. It
// returns when there is no kind left to look for. A manager calls it.
func (o *Observer) Start(ctx context.Context) error {
	if len(o.watches) == 0 {
		return errors.New("observing the cluster: Watch was not called")
	}
	for _, w := range o.watches {
		select {
		case <-ctx.Done():
			return nil // the manager ends
		case <-w.registration.HasSyncedChecker().Done():
		}
	}
	if err := o.begin(); err != nil {
		return err
	}
	return o.await(ctx)
}

// begin applies the initial state.
func (o *Observer) begin() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open.Load() {
		return errors.New("observing the cluster: started twice")
	}
	initial := append([]mesh.Change{mesh.Put(o.from.mesh(o.root))}, o.held...)
	o.held = nil
	o.applier.Apply(initial...)
	o.open.Store(true)
	close(o.synced)
	o.log.Info("the cluster's initial state is applied", "changes", len(initial))
	return nil
}

// Synced is closed when the initial state of every kind has been applied.
func (o *Observer) Synced() <-chan struct{} { return o.synced }

// Ready is a readiness check (controller-runtime's healthz.Checker) that passes
// once Synced is closed, and until then names the kinds that are missing.
func (o *Observer) Ready(*http.Request) error {
	if o.open.Load() {
		return nil
	}
	var missing []string
	for _, w := range o.watches {
		if !w.registration.HasSynced() {
			missing = append(missing, w.kind)
		}
	}
	if len(missing) == 0 {
		return errors.New("the cluster's initial state is seen and not yet applied")
	}
	return fmt.Errorf("waiting for the initial list of %s", strings.Join(missing, ", "))
}

// deliver applies a change, or keeps it for the initial batch. Each object's
// changes come from one goroutine, so they stay in order.
func (o *Observer) deliver(c mesh.Change) {
	if !o.open.Load() && o.hold(c) {
		return
	}
	o.applier.Apply(c)
}

func (o *Observer) hold(c mesh.Change) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open.Load() {
		return false
	}
	o.held = append(o.held, c)
	return true
}

// reconfigure updates what the configuration is made of. The lock is held while
// it is applied: it is made of several kinds, whose events come from several
// goroutines.
func (o *Observer) reconfigure(update func(*sources) (changed bool)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if update(&o.from) && o.open.Load() {
		o.applier.Apply(mesh.Put(o.from.mesh(o.root)))
	}
}

// entityHandler is for kinds of which each object is an entity of its own.
type entityHandler struct {
	*Observer
	kind mesh.Kind
}

// OnAdd applies an object.
func (h entityHandler) OnAdd(obj any, _ bool) {
	if c, ok := change(obj); ok {
		h.deliver(c)
	}
}

// OnUpdate applies an object's new form. Whether it means something else than
// the old one is for the mesh to tell.
func (h entityHandler) OnUpdate(_, obj any) { h.OnAdd(obj, false) }

// OnDelete applies that an object is gone.
func (h entityHandler) OnDelete(obj any) {
	n, err := toolscache.DeletionHandlingObjectToName(obj)
	if err != nil {
		h.log.Error(err, "a deleted object has no name", "kind", h.kind)
		return
	}
	h.deliver(mesh.Delete(h.kind, mesh.Name{Namespace: n.Namespace, Name: n.Name}))
}

// sourceHandler is for the kinds that the configuration is made of.
type sourceHandler struct {
	*Observer
	of client.Object // of the kind
}

// OnAdd takes note of an object.
func (h sourceHandler) OnAdd(obj any, _ bool) {
	h.reconfigure(func(s *sources) bool { return s.put(obj) })
}

// OnUpdate takes note of an object's new form.
func (h sourceHandler) OnUpdate(_, obj any) { h.OnAdd(obj, false) }

// OnDelete forgets an object.
func (h sourceHandler) OnDelete(obj any) {
	n, err := toolscache.DeletionHandlingObjectToName(obj)
	if err != nil {
		h.log.Error(err, "a deleted object has no name", "kind", fmt.Sprintf("%T", h.of))
		return
	}
	h.reconfigure(func(s *sources) bool { return s.drop(h.of, n.Name) })
}
