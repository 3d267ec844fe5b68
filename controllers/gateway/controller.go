package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	ctrlmanager "sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// These are of a ClusterRole of their own, deploy/gateways, which an installation without
// gateways does not have, and besides those that it has. Certificates are in Secrets of the type kubernetes.io/tls, of any
// namespace; the observer watches those and no others.
//
// +kubebuilder:rbac:groups="",resources=secrets,verbs=list;watch
//
// BackendTLSPolicies, and Gateways that verify their clients, name ConfigMaps of any
// namespace; of each the observer keeps ca.crt.
//
// +kubebuilder:rbac:groups="",resources=configmaps,verbs=list;watch
//
// get is for finding out whether an object that is to be made is somebody else's
// already, and delete for a Gateway that is given another class, or has no autoscaler any
// more. patch of a class is for its finalizer.
//
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=gatewayclasses,verbs=patch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=gateways/status;gatewayclasses/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=services,verbs=get;create;patch;delete
// +kubebuilder:rbac:groups="",resources=serviceaccounts,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=autoscaling,resources=horizontalpodautoscalers,verbs=get;list;watch;create;patch;delete

const (
	// fieldOwner is under whose name objects and status are applied, but for the
	// number of replicas.
	fieldOwner = "tulle-gateway"
	// workers write at once. A write is a wait for the API server.
	workers = 4
	// defaultDelay is long enough for what one change of the mesh finds about a
	// Gateway to settle, and short for a person.
	defaultDelay = 50 * time.Millisecond
	// again is when a Gateway is looked at again whose objects the API server
	// refused: what is in the way may be of a kind that is not watched.
	again = 30 * time.Second
)

// Findings is where findings come from: a *build.Builder.
type Findings interface {
	// Subscribe has the targets built, and the subscriber told of every value.
	Subscribe(s build.Subscriber, keys ...build.Key)
	// Unsubscribe ends that.
	Unsubscribe(s build.Subscriber, keys ...build.Key)
	// Value is what was built, or nil.
	Value(k build.Key) *build.Value
}

// Options of a Controller.
type Options struct {
	Findings Findings // required
	// Settings returns those of this moment, as injection has them; required. The
	// revision is the Gateway's to say.
	Settings func() webhook.Settings
	// Delay between a finding and its write, so that a burst is one write;
	// 50 ms when 0.
	Delay time.Duration
	// Now is the clock of conditions' transition times; time.Now when nil.
	Now func() time.Time
}

// Controller keeps what Gateways are given, and the status of Gateways and
// GatewayClasses.
type Controller struct {
	findings Findings
	settings func() webhook.Settings
	delay    time.Duration
	now      func() time.Time

	client client.Client // reads from the manager's cache
	direct client.Reader // reads from the API server
	cache  cache.Cache   // the manager's
	// own holds what Gateways were given and nothing else; the manager's cache holds
	// Services cut down. It has all namespaces, too, with nothing but their labels.
	own cache.Cache

	gateways, classes controller.Controller

	mu                     sync.Mutex
	queue                  workqueue.TypedRateLimitingInterface[reconcile.Request] // nil before the start
	hasGateway, hasClasses bool                                                    // kinds of the API server
	known                  map[types.NamespacedName]*record
}

var _ build.Subscriber = (*Controller)(nil)

// record is what was last done about a Gateway.
type record struct {
	uid types.UID
	// applied is the fingerprint of what was applied, and of what there was then.
	applied string
	// read is the resource version of the Gateway that led to the last write of its
	// status, and wrote that status. As long as the cache still has that version, it
	// lags behind the write.
	read  string
	wrote gatewayv1.GatewayStatus
}

// New makes a Controller.
func New(o Options) *Controller {
	c := &Controller{
		findings: o.Findings, settings: o.Settings, delay: cmp.Or(o.Delay, defaultDelay), now: o.Now,
		known: map[types.NamespacedName]*record{},
	}
	if c.now == nil {
		c.now = time.Now
	}
	return c
}

// SetupWithManager has the manager run the controller wherever it is the leader.
// It does nothing until WatchKind was told of both kinds.
func (c *Controller) SetupWithManager(mgr ctrlmanager.Manager) error {
	c.client, c.direct, c.cache = mgr.GetClient(), mgr.GetAPIReader(), mgr.GetCache()
	var err error
	if c.own, err = newCache(mgr); err != nil {
		return err
	}
	if err := mgr.Add(c.own); err != nil {
		return fmt.Errorf("adding the cache of gateways' objects: %w", err)
	}
	c.gateways, err = controller.New("gateway", mgr, controller.Options{Reconciler: c, MaxConcurrentReconciles: workers})
	if err != nil {
		return fmt.Errorf("making the gateway controller: %w", err)
	}
	if err := c.gateways.Watch(source.Func(c.attach)); err != nil {
		return fmt.Errorf("making the gateway controller: %w", err)
	}
	c.classes, err = controller.New("gatewayclass", mgr, controller.Options{
		Reconciler: &classReconciler{client: mgr.GetClient(), now: c.now},
	})
	if err != nil {
		return fmt.Errorf("making the gatewayclass controller: %w", err)
	}
	return nil
}

// newCache is Controller.own.
func newCache(mgr ctrlmanager.Manager) (cache.Cache, error) {
	objects, err := cache.New(mgr.GetConfig(), cache.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
		DefaultLabelSelector: labels.SelectorFromSet(labels.Set{labelManager: manager}),
		DefaultTransform:     cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{namespaceMeta(): {
			Label: labels.Everything(),
			Transform: func(o any) (any, error) {
				if n, ok := o.(*metav1.PartialObjectMetadata); ok {
					n.Annotations, n.ManagedFields = nil, nil
				}
				return o, nil
			},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("making the cache of gateways' objects: %w", err)
	}
	return objects, nil
}

func namespaceMeta() *metav1.PartialObjectMetadata {
	n := &metav1.PartialObjectMetadata{}
	n.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return n
}

// WatchKind has the controller begin once it was told of both kinds that it is about,
// which is when the API server has them. Other kinds are not cared for.
func (c *Controller) WatchKind(obj client.Object) error {
	c.mu.Lock()
	switch obj.(type) {
	case *gatewayv1.Gateway:
		c.hasGateway = true
	case *gatewayv1.GatewayClass:
		c.hasClasses = true
	default:
		c.mu.Unlock()
		return nil
	}
	both := c.hasGateway && c.hasClasses
	c.mu.Unlock()
	if !both {
		return nil
	}
	if err := c.classes.Watch(source.Kind[client.Object](c.cache, &gatewayv1.GatewayClass{}, &handler.EnqueueRequestForObject{})); err != nil {
		return fmt.Errorf("watching for the gatewayclass controller: %w", err)
	}
	toClass := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		gw, ok := o.(*gatewayv1.Gateway)
		if !ok {
			return nil
		}
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: string(gw.Spec.GatewayClassName)}}}
	})
	if err := c.classes.Watch(source.Kind[client.Object](c.cache, &gatewayv1.Gateway{}, toClass)); err != nil {
		return fmt.Errorf("watching for the gatewayclass controller: %w", err)
	}
	ofClass := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		return c.list(ctx, func(gw *gatewayv1.Gateway) bool { return string(gw.Spec.GatewayClassName) == o.GetName() })
	})
	ofNamespace := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		return c.list(ctx, func(*gatewayv1.Gateway) bool { return true }, client.InNamespace(o.GetName()))
	})
	all := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		return c.list(ctx, func(*gatewayv1.Gateway) bool { return true })
	})
	ofOwner := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetLabels()[labelGateway]}}}
	})
	sources := []source.Source{
		source.Kind[client.Object](c.cache, &gatewayv1.Gateway{}, &handler.EnqueueRequestForObject{}),
		source.Kind[client.Object](c.cache, &gatewayv1.GatewayClass{}, ofClass),
		source.Kind[client.Object](c.cache, &v1alpha1.MeshConfig{}, all),
		source.Kind[client.Object](c.own, namespaceMeta(), ofNamespace),
	}
	for _, o := range kindsGiven() {
		sources = append(sources, source.Kind(c.own, o, ofOwner))
	}
	for _, s := range sources {
		if err := c.gateways.Watch(s); err != nil {
			return fmt.Errorf("watching for the gateway controller: %w", err)
		}
	}
	return nil
}

// kindsGiven are the kinds of what a Gateway is given, empty.
func kindsGiven() []client.Object {
	return []client.Object{
		&corev1.ServiceAccount{}, &appsv1.Deployment{}, &corev1.Service{}, &policyv1.PodDisruptionBudget{}, &autoscalingv2.HorizontalPodAutoscaler{},
	}
}

// list are the requests of Gateways. It fails only where the cache ends.
func (c *Controller) list(ctx context.Context, wanted func(*gatewayv1.Gateway) bool, options ...client.ListOption) []reconcile.Request {
	var all gatewayv1.GatewayList
	if err := c.cache.List(ctx, &all, options...); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range all.Items {
		if gw := &all.Items[i]; wanted(gw) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(gw)})
		}
	}
	return out
}

func (c *Controller) attach(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = q
	return nil
}

// Changed takes note that findings have changed; it is the builder's to call.
func (c *Controller) Changed(keys []build.Key) {
	c.mu.Lock()
	q := c.queue
	c.mu.Unlock()
	if q == nil {
		return
	}
	for _, k := range keys {
		if kind, n, ok := translate.FindingsOf(k); ok && kind == translate.KindGateway {
			q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: n.Namespace, Name: n.Name}}, c.delay)
		}
	}
}

func findingsKey(n types.NamespacedName) build.Key {
	return translate.FindingsKey(translate.KindGateway, mesh.Name{Namespace: n.Namespace, Name: n.Name})
}

// Reconcile gives a Gateway what it is to have, and writes its status once something
// was found about its present generation.
func (c *Controller) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	var gw gatewayv1.Gateway
	switch err := c.client.Get(ctx, r.NamespacedName, &gw); {
	case apierrors.IsNotFound(err):
		c.forget(r.NamespacedName) // its objects go by their owner reference
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("reading Gateway %s: %w", r, err)
	case gw.DeletionTimestamp != nil:
		return reconcile.Result{}, nil
	}
	var class gatewayv1.GatewayClass
	switch err := c.client.Get(ctx, types.NamespacedName{Name: string(gw.Spec.GatewayClassName)}, &class); {
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil // what it was given stays, until it is known whose it is
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("reading GatewayClass %s: %w", gw.Spec.GatewayClassName, err)
	case !ours(&class):
		c.forget(r.NamespacedName)
		return reconcile.Result{}, c.release(ctx, &gw, nil)
	case refusal(&class) != "":
		return reconcile.Result{}, nil
	}
	c.remember(&gw)
	var result reconcile.Result
	problem := c.provide(ctx, &gw)
	switch m := mistake(""); {
	case problem == nil:
	case errors.As(problem, &m):
		result.RequeueAfter = again
	default:
		return result, problem
	}
	return result, c.report(ctx, &gw, problem)
}

// remember subscribes to what is found about the Gateway, if that is not done yet.
func (c *Controller) remember(gw *gatewayv1.Gateway) {
	key := client.ObjectKeyFromObject(gw)
	c.mu.Lock()
	r, ok := c.known[key]
	if !ok || r.uid != gw.UID {
		c.known[key] = &record{uid: gw.UID}
	}
	c.mu.Unlock()
	if !ok {
		c.findings.Subscribe(c, findingsKey(key))
	}
}

func (c *Controller) forget(key types.NamespacedName) {
	c.mu.Lock()
	_, ok := c.known[key]
	delete(c.known, key)
	c.mu.Unlock()
	if ok {
		c.findings.Unsubscribe(c, findingsKey(key))
	}
}
