package status

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// +kubebuilder:rbac:groups=mesh.tulle.dev,resources=meshpolicies;trafficsplits;externalservices;meshconfigs,verbs=list;watch
// +kubebuilder:rbac:groups=mesh.tulle.dev,resources=meshpolicies/status;trafficsplits/status;externalservices/status;meshconfigs/status,verbs=patch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=httproutes/status;grpcroutes/status;tlsroutes/status;tcproutes/status;backendtlspolicies/status,verbs=patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

const (
	// fieldOwner is under whose name conditions are applied.
	fieldOwner = "tulle-status"
	// kindConfig is the kind that the builder finds nothing about.
	kindConfig = "MeshConfig"
	// workers write at once. A write is a wait for the API server.
	workers = 4
	// defaultDelay is long enough for what one change of the mesh finds about
	// an object and its neighbours to settle, and short for a person.
	defaultDelay = 50 * time.Millisecond
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

// Recorder makes events about objects: a manager's GetEventRecorder.
type Recorder interface {
	// Eventf makes one event; related may be nil.
	Eventf(regarding, related runtime.Object, eventtype, reason, action, note string, args ...any)
}

// Options of a Controller.
type Options struct {
	Findings Findings // required
	// Acknowledgements tells what proxies run; nil leaves the condition
	// Programmed out.
	Acknowledgements Acknowledgements
	// Authority tells of the certificate authority; false while that is not
	// known. Nil leaves the condition AuthorityCurrent out.
	Authority func() (Authority, bool)
	// Registerer gets the metrics; nil for none.
	Registerer prometheus.Registerer
	// Delay between a finding and its write, so that a burst is one write;
	// 50 ms when 0.
	Delay time.Duration
	// Now is the clock of conditions' transition times; time.Now when nil.
	Now func() time.Time
}

// Controller keeps the status of all MeshPolicies, TrafficSplits, ExternalServices and
// MeshConfigs, and of routes and BackendTLSPolicies, as far as they are Tulle's.
type Controller struct {
	findings Findings
	acks     Acknowledgements // may be nil
	ca       func() (Authority, bool)
	delay    time.Duration
	now      func() time.Time
	writes   *prometheus.CounterVec

	reader client.Reader
	writer client.SubResourceWriter
	cache  cache.Cache
	watch  func(source.TypedSource[object]) error
	events Recorder

	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[object] // nil before the start
	known map[object]*record
}

var _ build.Subscriber = (*Controller)(nil)

// object names an object that has a status.
type object struct {
	kind string
	name mesh.Name
}

func (o object) key() types.NamespacedName {
	return types.NamespacedName{Namespace: o.name.Namespace, Name: o.name.Name}
}

func (o object) String() string { return o.kind + " " + strings.TrimPrefix(o.name.String(), "/") }

// target is what the builder finds something about; ok is false for kinds that
// it finds nothing about.
func (o object) target() (k build.Key, ok bool) {
	return translate.FindingsKey(o.kind, o.name), o.kind != kindConfig
}

// record is what was last done about an object.
type record struct {
	uid types.UID
	// read is the resource version of the object that led to the last write,
	// and wrote the state of that write. As long as the cache still has that
	// version, it lags behind the write.
	read    string
	wrote   []state
	written time.Time // by the clock of Options.Now
	// lags is since when an object that is programmed, as its status says, is
	// not.
	lags map[int]time.Time // of each part, or of 0
}

// New makes a Controller.
func New(o Options) *Controller {
	c := &Controller{
		findings: o.Findings,
		acks:     o.Acknowledgements,
		ca:       o.Authority,
		delay:    o.Delay,
		now:      o.Now,
		known:    map[object]*record{},
		writes: promauto.With(o.Registerer).NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_status_writes_total",
			Help: "Writes of objects' status to the API server, by kind of object.",
		}, []string{"kind"}),
	}
	for kind := range kinds() {
		c.writes.WithLabelValues(kind) // so that all are there from the beginning
	}
	if c.delay == 0 {
		c.delay = defaultDelay
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.acks != nil {
		c.acks.Notify(c.acknowledged)
	}
	return c
}

// SetupWithManager has the manager run the controller wherever it is the
// leader.
func (c *Controller) SetupWithManager(mgr manager.Manager) error {
	c.reader = mgr.GetClient()
	c.writer = mgr.GetClient().Status()
	c.events = mgr.GetEventRecorder("tulle")
	c.cache = mgr.GetCache()
	ctl, err := controller.NewTyped("status", mgr, controller.TypedOptions[object]{
		Reconciler:              c,
		MaxConcurrentReconciles: workers,
	})
	if err != nil {
		return fmt.Errorf("making the status controller: %w", err)
	}
	c.watch = ctl.Watch
	for _, s := range []source.TypedSource[object]{
		source.TypedFunc[object](c.attach),
		source.TypedKind(mgr.GetCache(), &v1alpha1.MeshPolicy{}, enqueue[*v1alpha1.MeshPolicy](translate.KindPolicy)),
		source.TypedKind(mgr.GetCache(), &v1alpha1.TrafficSplit{}, enqueue[*v1alpha1.TrafficSplit](translate.KindSplit)),
		source.TypedKind(mgr.GetCache(), &v1alpha1.ExternalService{}, enqueue[*v1alpha1.ExternalService](translate.KindExternal)),
		source.TypedKind(mgr.GetCache(), &v1alpha1.MeshConfig{}, enqueue[*v1alpha1.MeshConfig](kindConfig)),
	} {
		if err := ctl.Watch(s); err != nil {
			return fmt.Errorf("watching for the status controller: %w", err)
		}
	}
	return nil
}

// WatchKind has the controller care for a kind of the Gateway API, once the API server
// has it. Kinds that have no status are not cared for.
func (c *Controller) WatchKind(obj client.Object) error {
	var s source.TypedSource[object]
	switch o := obj.(type) {
	case *gatewayv1.HTTPRoute:
		s = source.TypedKind(c.cache, o, enqueue[*gatewayv1.HTTPRoute](translate.KindHTTPRoute))
	case *gatewayv1.GRPCRoute:
		s = source.TypedKind(c.cache, o, enqueue[*gatewayv1.GRPCRoute](translate.KindGRPCRoute))
	case *gatewayv1.BackendTLSPolicy:
		s = source.TypedKind(c.cache, o, enqueue[*gatewayv1.BackendTLSPolicy](translate.KindBackendTLS))
	case *gatewayv1.TLSRoute:
		s = source.TypedKind(c.cache, o, enqueue[*gatewayv1.TLSRoute](translate.KindTLSRoute))
	case *gatewayv1.TCPRoute:
		s = source.TypedKind(c.cache, o, enqueue[*gatewayv1.TCPRoute](translate.KindTCPRoute))
	default:
		return nil
	}
	if err := c.watch(s); err != nil {
		return fmt.Errorf("watching %T for the status controller: %w", obj, err)
	}
	return nil
}

func enqueue[T client.Object](kind string) handler.TypedEventHandler[T, object] {
	return handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, o T) []object {
		return []object{{kind, mesh.Name{Namespace: o.GetNamespace(), Name: o.GetName()}}}
	})
}

func (c *Controller) attach(_ context.Context, q workqueue.TypedRateLimitingInterface[object]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = q
	return nil
}

// Changed takes note that findings have changed; it is the builder's to call.
func (c *Controller) Changed(keys []build.Key) {
	objects := make([]object, 0, len(keys))
	for _, k := range keys {
		if kind, n, ok := translate.FindingsOf(k); ok {
			objects = append(objects, object{kind, n})
		}
	}
	c.enqueue(objects)
}

// acknowledged takes note that what proxies run of objects has changed.
func (c *Controller) acknowledged(refs []mesh.Ref) {
	objects := make([]object, 0, len(refs))
	for _, r := range refs {
		if r.Kind == mesh.KindConfig {
			r.Name.Name = v1alpha1.MeshConfigName
		}
		for kind, of := range kinds() {
			if of == r.Kind {
				objects = append(objects, object{kind, r.Name})
			}
		}
	}
	c.enqueue(objects)
}

// ref is what the object is to the mesh; false for a MeshConfig that is not the
// one that counts.
func (o object) ref() (mesh.Ref, bool) {
	if o.kind == kindConfig {
		return mesh.Ref{Kind: mesh.KindConfig}, o.name.Name == v1alpha1.MeshConfigName
	}
	return mesh.Ref{Kind: kinds()[o.kind], Name: o.name}, true
}

// kinds are those of the objects whose status the package writes.
func kinds() map[string]mesh.Kind {
	out := translate.RouteKinds()
	out[translate.KindPolicy], out[translate.KindSplit], out[kindConfig] = mesh.KindPolicy, mesh.KindSplit, mesh.KindConfig
	out[translate.KindBackendTLS], out[translate.KindExternal] = mesh.KindBackendTLS, mesh.KindExternal
	return out
}

func (c *Controller) enqueue(objects []object) {
	c.mu.Lock()
	q := c.queue
	c.mu.Unlock()
	if q == nil {
		return
	}
	for _, o := range objects {
		q.AddAfter(o, c.delay)
	}
}

// Reconcile writes the object's conditions if they differ from what was found
// about its present generation. Where that is not known yet it does nothing:
// the builder tells when it is.
func (c *Controller) Reconcile(ctx context.Context, o object) (reconcile.Result, error) {
	obj, err := emptyObject(o.kind)
	if err != nil {
		return reconcile.Result{}, reconcile.TerminalError(err)
	}
	switch err := c.reader.Get(ctx, o.key(), obj); {
	case apierrors.IsNotFound(err):
		c.forget(o)
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("reading %s: %w", o, err)
	}
	c.attend(o, obj)
	found := c.foundAbout(o, obj)
	if !evaluated(found, obj.GetGeneration()) {
		return reconcile.Result{}, nil
	}
	have, stale := c.remembered(o, obj, found)
	a := c.assess(o, obj, have, found)
	if rest := c.rest(o); a.differs == numbers && !stale && rest > 0 {
		a.differs, a.again = none, rest
	}
	if a.differs == none && !stale {
		return reconcile.Result{RequeueAfter: a.again}, nil
	}
	switch err := c.write(ctx, o, obj, found, a.want); {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		// It is gone, or another one of the same name is there, or another
		// version: the cache will say so.
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("writing the status of %s: %w", o, err)
	}
	for _, t := range a.turned {
		c.tell(obj, t.is, t.was)
	}
	return reconcile.Result{RequeueAfter: a.again}, nil
}

// assessment is what an object's status should be: of the object itself, or of each of
// its parts.
type assessment struct {
	want    []state
	differs difference // from what it is
	turned  []turn
	again   time.Duration // when to look again; 0: when something has changed
}

// turn is a condition that is another than it was; was may be nil.
type turn struct {
	is  metav1.Condition
	was *metav1.Condition
}

func (c *Controller) assess(o object, obj client.Object, have []state, found []mesh.Finding) assessment {
	var a assessment
	_, shared := sharesOf(obj, found)
	for i, has := range have {
		here := found
		if shared {
			here = about(found, partsOf(found)[i])
		}
		wanted := state{conditions: desired(here)}
		c.addAuthority(o, obj.GetGeneration(), has, &wanted)
		a.again = max(a.again, c.addProgrammed(o, i, obj.GetGeneration(), has, &wanted))
		if shared {
			wanted.proxies = nil // there is no place for numbers
		}
		want, differs, turned := merge(has, wanted, c.now())
		a.want, a.differs = append(a.want, want), max(a.differs, differs)
		for _, t := range turned {
			a.turned = append(a.turned, turn{t, meta.FindStatusCondition(has.conditions, t.Type)})
		}
	}
	return a
}

// tell makes an event of a condition that is another than it was; was may be
// nil.
func (c *Controller) tell(obj runtime.Object, is metav1.Condition, was *metav1.Condition) {
	lost := was != nil && was.Status == metav1.ConditionTrue && was.ObservedGeneration == is.ObservedGeneration
	switch {
	case is.Status == metav1.ConditionTrue && is.Type == v1alpha1.ConditionProgrammed:
		c.events.Eventf(obj, nil, corev1.EventTypeNormal, is.Reason, "Program", "generation %d: %s", is.ObservedGeneration, is.Message)
	case is.Type == v1alpha1.ConditionAuthorityCurrent:
		c.tellAuthority(obj, is, was)
	case is.Status == metav1.ConditionTrue:
	case is.Reason == v1alpha1.ReasonNotAccepted, is.Reason == v1alpha1.ReasonPending && !lost:
		// The one is said by another condition, the other is as it should be.
	case was != nil && was.Status == is.Status && was.Reason == is.Reason: // it was told of the generation before
	default:
		c.events.Eventf(obj, nil, corev1.EventTypeWarning, is.Reason, "Evaluate", "%s is %s: %s", is.Type, is.Status, is.Message)
	}
}

// addProgrammed adds what proxies run, and returns when to look again; 0: when
// something has changed.
func (c *Controller) addProgrammed(o object, part int, generation int64, have state, want *state) time.Duration {
	if c.acks == nil {
		return 0
	}
	held := meta.FindStatusCondition(have.conditions, v1alpha1.ConditionProgrammed)
	ref, counted := o.ref()
	v, ok := c.acks.Verdict(ref)
	if !ok || !counted {
		if held != nil && counted { // a new leader knows nothing yet
			want.conditions, want.proxies = append(want.conditions, *held), have.proxies
		}
		return 0
	}
	accepted := meta.FindStatusCondition(want.conditions, v1alpha1.ConditionAccepted)
	is := programmed(v, generation, accepted == nil || accepted.Status == metav1.ConditionTrue)
	want.proxies = counts(v)
	var again time.Duration
	behind := is.Reason == v1alpha1.ReasonPending || is.Reason == v1alpha1.ReasonUnknown
	lags := behind && held != nil && held.Status == metav1.ConditionTrue && held.ObservedGeneration == generation
	if since := c.lagging(o, part, lags); lags && since < steady {
		is, want.proxies, again = *held, have.proxies, steady-since
	}
	want.conditions = append(want.conditions, is)
	return again
}

// lagging notes whether a part of the object lags behind its status, and returns for
// how long it has.
func (c *Controller) lagging(o object, part int, lags bool) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.known[o]
	switch {
	case r == nil:
		return 0
	case !lags:
		delete(r.lags, part)
		return 0
	case r.lags == nil:
		r.lags = map[int]time.Time{}
	}
	if _, ok := r.lags[part]; !ok {
		r.lags[part] = c.now()
	}
	return c.now().Sub(r.lags[part])
}

// rest is how long mere numbers wait to be written.
func (c *Controller) rest(o object) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.known[o]; r != nil && !r.written.IsZero() {
		return steady - c.now().Sub(r.written)
	}
	return 0
}

func emptyObject(kind string) (client.Object, error) {
	switch kind {
	case translate.KindPolicy:
		return &v1alpha1.MeshPolicy{}, nil
	case translate.KindSplit:
		return &v1alpha1.TrafficSplit{}, nil
	case translate.KindExternal:
		return &v1alpha1.ExternalService{}, nil
	case kindConfig:
		return &v1alpha1.MeshConfig{}, nil
	case translate.KindHTTPRoute:
		return &gatewayv1.HTTPRoute{}, nil
	case translate.KindGRPCRoute:
		return &gatewayv1.GRPCRoute{}, nil
	case translate.KindBackendTLS:
		return &gatewayv1.BackendTLSPolicy{}, nil
	case translate.KindTLSRoute:
		return &gatewayv1.TLSRoute{}, nil
	case translate.KindTCPRoute:
		return &gatewayv1.TCPRoute{}, nil
	}
	return nil, errors.New("objects of kind " + kind + " have no status of ours")
}

// attend subscribes to what is found about the object, if that is not done yet.
func (c *Controller) attend(o object, obj client.Object) {
	c.mu.Lock()
	r, ok := c.known[o]
	if !ok {
		r = &record{}
		c.known[o] = r
	}
	if r.uid != obj.GetUID() {
		*r = record{uid: obj.GetUID()}
	}
	c.mu.Unlock()
	if k, has := o.target(); has && !ok {
		c.findings.Subscribe(c, k)
	}
}

// remembered returns the states that the object has: the cache's, or our own last
// ones where the cache has not seen them yet; and whether there are more than there
// should be.
func (c *Controller) remembered(o object, obj client.Object, found []mesh.Finding) (have []state, stale bool) {
	c.mu.Lock()
	r := *c.known[o]
	c.mu.Unlock()
	if _, shared := sharesOf(obj, found); r.read != "" && r.read == obj.GetResourceVersion() && (!shared || len(r.wrote) == len(partsOf(found))) {
		return r.wrote, false
	}
	return statesOf(obj, found)
}

func (c *Controller) forget(o object) {
	c.mu.Lock()
	_, ok := c.known[o]
	delete(c.known, o)
	c.mu.Unlock()
	if k, has := o.target(); has && ok {
		c.findings.Unsubscribe(c, k)
	}
}

func (c *Controller) foundAbout(o object, obj client.Object) []mesh.Finding {
	if config, ok := obj.(*v1alpha1.MeshConfig); ok {
		return configFindings(config)
	}
	k, _ := o.target()
	if v := c.findings.Value(k); v != nil {
		return v.Findings
	}
	return nil
}

// write applies the state. The uid makes sure that they go to the object
// that they are about, and to no other of its name.
func (c *Controller) write(ctx context.Context, o object, obj client.Object, found []mesh.Finding, want []state) error {
	var err error
	if _, shared := sharesOf(obj, found); shared {
		err = c.writeShared(ctx, obj, found, want)
	} else {
		err = c.apply(ctx, o, obj, want[0])
	}
	if err != nil {
		return err
	}
	c.writes.WithLabelValues(o.kind).Inc()
	log.FromContext(ctx).V(1).Info("status written", "kind", o.kind, "object", o.name.String())
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.known[o]; ok {
		r.read, r.wrote, r.written = obj.GetResourceVersion(), want, c.now()
	}
	return nil
}

func (c *Controller) apply(ctx context.Context, o object, obj client.Object, want state) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&v1alpha1.MeshPolicyStatus{Conditions: want.conditions, Proxies: want.proxies})
	if err != nil {
		return err
	}
	apply := &unstructured.Unstructured{Object: map[string]any{"status": raw}}
	apply.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind(o.kind))
	apply.SetNamespace(obj.GetNamespace())
	apply.SetName(obj.GetName())
	apply.SetUID(obj.GetUID())
	return c.writer.Apply(ctx, client.ApplyConfigurationFromUnstructured(apply), client.FieldOwner(fieldOwner), client.ForceOwnership)
}
