package status

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// builder is a Findings of the test's making.
type builder struct {
	mu         sync.Mutex
	values     map[build.Key]*build.Value
	subscribed map[build.Key]build.Subscriber
}

func newBuilder() *builder {
	return &builder{values: map[build.Key]*build.Value{}, subscribed: map[build.Key]build.Subscriber{}}
}

func (b *builder) Subscribe(s build.Subscriber, keys ...build.Key) {
	b.mu.Lock()
	var there []build.Key
	for _, k := range keys {
		b.subscribed[k] = s
		if b.values[k] != nil {
			there = append(there, k)
		}
	}
	b.mu.Unlock()
	if len(there) > 0 {
		s.Changed(there)
	}
}

func (b *builder) Unsubscribe(_ build.Subscriber, keys ...build.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		delete(b.subscribed, k)
	}
}

func (b *builder) Value(k build.Key) *build.Value {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.values[k]
}

func (b *builder) find(k build.Key, found ...mesh.Finding) {
	b.mu.Lock()
	b.values[k] = &build.Value{Findings: found}
	s := b.subscribed[k]
	b.mu.Unlock()
	if s != nil {
		s.Changed([]build.Key{k})
	}
}

func (b *builder) subscriptions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subscribed)
}

// cached is a reader that has one object, or none.
type cached struct {
	client.Reader
	policy *v1alpha1.MeshPolicy
}

func (c *cached) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	if c.policy == nil || client.ObjectKeyFromObject(c.policy) != key {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "meshpolicies"}, key.Name)
	}
	c.policy.DeepCopyInto(into.(*v1alpha1.MeshPolicy))
	return nil
}

// written is a writer that keeps what is applied.
type written struct {
	client.SubResourceWriter
	applied []runtime.ApplyConfiguration
	err     error
}

func (w *written) Apply(_ context.Context, obj runtime.ApplyConfiguration, _ ...client.SubResourceApplyOption) error {
	if w.err == nil {
		w.applied = append(w.applied, obj)
	}
	return w.err
}

type fixture struct {
	*Controller
	builder  *builder
	cache    *cached
	api      *written
	recorder *events.FakeRecorder
	metrics  *prometheus.Registry
	acks     *verdicts
	clock    time.Time
}

// verdicts are Acknowledgements of the test's making: one for all objects.
type verdicts struct {
	known bool
	is    acks.Verdict
}

func (v *verdicts) Verdict(mesh.Ref) (acks.Verdict, bool) { return v.is, v.known }
func (*verdicts) Notify(func([]mesh.Ref))                 {}

func setUp() *fixture {
	f := &fixture{
		builder: newBuilder(), cache: &cached{}, api: &written{},
		recorder: events.NewFakeRecorder(100), metrics: prometheus.NewRegistry(),
		acks: &verdicts{}, clock: time.Unix(1000, 0),
	}
	f.Controller = New(Options{
		Findings: f.builder, Acknowledgements: f.acks, Registerer: f.metrics, Now: func() time.Time { return f.clock },
	})
	f.reader, f.writer, f.events = f.cache, f.api, f.recorder
	f.cache.policy = &v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "p", UID: "1", Generation: 2, ResourceVersion: "10",
	}}
	return f
}

var (
	thePolicy = object{translate.KindPolicy, mesh.Name{Namespace: "shop", Name: "p"}}
	theKey    = translate.FindingsKey(translate.KindPolicy, thePolicy.name)
	good      = finding(v1alpha1.ConditionAccepted, true, "Accepted", "holds")
	bad       = finding(v1alpha1.ConditionAccepted, false, "Invalid", "write this instead")
)

func (f *fixture) reconcile(t *testing.T) {
	t.Helper()
	if _, err := f.Reconcile(t.Context(), thePolicy); err != nil {
		t.Fatal(err)
	}
}

// policyWrites is tulle_status_writes_total{kind="MeshPolicy"}.
func policyWrites(t *testing.T, metrics prometheus.Gatherer) float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if l := m.GetLabel()[0]; family.GetName() == "tulle_status_writes_total" && l.GetName() == "kind" && l.GetValue() == translate.KindPolicy {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (f *fixture) count(t *testing.T, writes, warnings int) {
	t.Helper()
	if len(f.api.applied) != writes {
		t.Errorf("%d writes, want %d", len(f.api.applied), writes)
	}
	if got := policyWrites(t, f.metrics); got != float64(writes) {
		t.Errorf("the metric counts %v writes, want %d", got, writes)
	}
	if len(f.recorder.Events) != warnings {
		t.Errorf("%d events, want %d", len(f.recorder.Events), warnings)
	}
}

func TestNothingIsWrittenBeforeTheGenerationWasEvaluated(t *testing.T) {
	f := setUp()
	f.reconcile(t)
	f.count(t, 0, 0)
	old := good
	old.Generation = 1
	f.builder.find(theKey, old)
	f.reconcile(t)
	f.count(t, 0, 0)
	f.builder.find(theKey, good)
	f.reconcile(t)
	f.count(t, 1, 0)
}

func TestNothingIsWrittenTwice(t *testing.T) {
	f := setUp()
	f.builder.find(theKey, good)
	f.reconcile(t)
	f.reconcile(t) // the cache has not seen the write
	f.count(t, 1, 0)
	f.cache.policy.ResourceVersion = "11" // now it has
	f.cache.policy.Status.Conditions = desired([]mesh.Finding{good})
	f.reconcile(t)
	f.count(t, 1, 0)
}

func TestTurningFalseIsOneWarning(t *testing.T) {
	f := setUp()
	f.builder.find(theKey, good)
	f.reconcile(t)
	f.builder.find(theKey, bad)
	f.reconcile(t)
	f.reconcile(t)
	f.count(t, 2, 1)
	if got := <-f.recorder.Events; !strings.Contains(got, "Warning Invalid") || !strings.Contains(got, "write this instead") {
		t.Errorf("got event %q", got)
	}
}

func TestAnObjectOfTheSameNameIsAnother(t *testing.T) {
	f := setUp()
	f.builder.find(theKey, good)
	f.reconcile(t)
	f.cache.policy.UID = "2" // deleted and made again, with an equal resource version to make it hard
	f.reconcile(t)
	f.count(t, 2, 0)
}

func TestGoneObjectIsForgotten(t *testing.T) {
	f := setUp()
	f.reconcile(t)
	if f.builder.subscriptions() != 1 {
		t.Fatal("not subscribed")
	}
	f.cache.policy = nil
	f.reconcile(t)
	f.reconcile(t)
	if f.builder.subscriptions() != 0 || len(f.known) != 0 {
		t.Error("the object is gone, and its findings are still made")
	}
}

func TestWriteToAGoneObjectIsNoError(t *testing.T) {
	gr := schema.GroupResource{Resource: "meshpolicies"}
	for _, err := range []error{apierrors.NewNotFound(gr, "p"), apierrors.NewConflict(gr, "p", nil)} {
		f := setUp()
		f.builder.find(theKey, bad)
		f.api.err = err
		f.reconcile(t)
		f.count(t, 0, 0)
	}
}

func TestFailedWriteIsTriedAgain(t *testing.T) {
	f := setUp()
	f.builder.find(theKey, bad)
	f.api.err = apierrors.NewServiceUnavailable("down")
	if _, err := f.Reconcile(t.Context(), thePolicy); err == nil || !strings.Contains(err.Error(), "MeshPolicy shop/p") {
		t.Errorf("got %v, want an error that names the object", err)
	}
	f.api.err = nil
	f.reconcile(t)
	f.count(t, 1, 1)
}

func TestBurstOfFindingsIsOneTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp()
		q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[object]())
		defer q.ShutDown()
		f.Changed([]build.Key{theKey}) // before the start: not lost, since nothing is subscribed to yet
		if err := f.attach(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			f.Changed([]build.Key{theKey, {Type: translate.Cluster, Name: "a/b/c"}})
			time.Sleep(100 * time.Microsecond)
		}
		if q.Len() != 0 {
			t.Error("handed out before the burst was over")
		}
		time.Sleep(defaultDelay)
		synctest.Wait()
		if q.Len() != 1 {
			t.Errorf("%d turns, want 1", q.Len())
		}
		if got, _ := q.Get(); got != thePolicy {
			t.Errorf("got %v", got)
		}
	})
}

func TestKeysOfFindingsNameTheirObjects(t *testing.T) {
	if kind, n, ok := translate.FindingsOf(theKey); !ok || (object{kind, n}) != thePolicy {
		t.Errorf("got %v %v, %v", kind, n, ok)
	}
	for _, k := range []build.Key{{Type: translate.Route, Name: "MeshPolicy/a/b"}, {Type: translate.Findings, Name: "junk"}} {
		if kind, n, ok := translate.FindingsOf(k); ok {
			t.Errorf("%v names %v %v", k, kind, n)
		}
	}
	if got := thePolicy.key(); got != (types.NamespacedName{Namespace: "shop", Name: "p"}) {
		t.Errorf("got %v", got)
	}
}
