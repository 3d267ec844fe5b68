package observe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// model applies changes as the builder does, and keeps what it was given.
type model struct {
	mu      sync.Mutex
	mesh    *mesh.Snapshot
	batches [][]mesh.Change
	facts   []mesh.Fact // of the last batch
}

func newModel() *model { return &model{mesh: mesh.New(&mesh.Config{})} }

func (m *model) Apply(cs ...mesh.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batches = append(m.batches, cs)
	m.mesh, m.facts = m.mesh.Apply(cs...)
}

// view is for reading after every goroutine has come to rest.
func (m *model) view() *mesh.View { return mesh.NewView(m.mesh) }

// stubInformers hands out one informer by kind, whose registration the test
// completes, and whose events it makes.
type stubInformers struct {
	cache.Informers
	byKind  map[string]*stubInformer
	missing string
	ready   bool
}

func newStubInformers() *stubInformers { return &stubInformers{byKind: map[string]*stubInformer{}} }

func (s *stubInformers) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	kind := kindOf(obj)
	if kind == s.missing {
		return nil, fmt.Errorf("mapping: %w", &apimeta.NoKindMatchError{GroupKind: schema.GroupKind{Kind: kind}})
	}
	s.byKind[kind] = &stubInformer{done: make(chan struct{})}
	if s.ready {
		close(s.byKind[kind].done)
	}
	return s.byKind[kind], nil
}

// keys hands out informers of another cache, which are complete at once.
func (s *stubInformers) keys() *stubInformers {
	return &stubInformers{byKind: map[string]*stubInformer{}, ready: true}
}

func (s *stubInformers) of(obj any) toolscache.ResourceEventHandler {
	return s.byKind[kindOf(obj)].handler
}

func (s *stubInformers) add(objs ...client.Object) {
	for _, o := range objs {
		s.of(o).OnAdd(o, true)
	}
}

func (s *stubInformers) complete(but ...string) {
	for kind, i := range s.byKind {
		if !i.HasSynced() && (len(but) == 0 || but[0] != kind) {
			close(i.done)
		}
	}
}

type stubInformer struct {
	cache.Informer
	handler toolscache.ResourceEventHandler
	done    chan struct{}
}

func (i *stubInformer) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	i.handler = h
	return i, nil
}
func (i *stubInformer) HasSyncedChecker() toolscache.DoneChecker { return i }
func (i *stubInformer) Name() string                             { return "stub" }
func (i *stubInformer) Done() <-chan struct{}                    { return i.done }
func (i *stubInformer) HasSynced() bool {
	select {
	case <-i.done:
		return true
	default:
		return false
	}
}

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }

func newService(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: named(name), Spec: corev1.ServiceSpec{ClusterIP: ip}}
}

// watching is an observer on stub informers, which runs in a synctest bubble.
func watching(t *testing.T) (*Observer, *stubInformers, *model) {
	t.Helper()
	m, in := newModel(), newStubInformers()
	o := New(Options{Applier: m, Log: logr.Discard()})
	if err := o.Watch(t.Context(), in, in.keys()); err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := o.Start(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	return o, in, m
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestNothingIsAppliedBeforeEveryKindIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, in, m := watching(t)
		in.add(newService("web", "10.96.0.1"), &v1alpha1.MeshPolicy{ObjectMeta: named("p")})
		in.complete("MeshPolicy")
		synctest.Wait()
		if isClosed(o.Synced()) || len(m.batches) != 0 {
			t.Fatal("applied while MeshPolicies may be missing: what they refuse would be let in")
		}
		if err := o.Ready(nil); err == nil || !strings.Contains(err.Error(), "MeshPolicy") || strings.Contains(err.Error(), "Pod") {
			t.Errorf("readiness says %v, want it to name MeshPolicy alone", err)
		}
		in.complete()
		synctest.Wait()
		if !isClosed(o.Synced()) {
			t.Fatal("every kind is complete")
		}
		if err := o.Ready(nil); err != nil {
			t.Errorf("readiness says %v", err)
		}
		if len(m.batches) != 1 {
			t.Errorf("the initial state came in %d batches, want 1", len(m.batches))
		}
		if _, ok := m.view().Policy(mesh.Name{Namespace: "shop", Name: "p"}); !ok {
			t.Error("the policy is missing from the initial state")
		}
		if got := m.mesh.Config().TrustDomain; got != "cluster.local" {
			t.Errorf("trust domain %q: the initial state has the configuration's defaults", got)
		}
	})
}

func TestChangesDuringTheInitialListsAreKeptInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, in, m := watching(t)
		in.add(newService("a", "10.96.0.1"), newService("b", "10.96.0.2"))
		h := in.of(&corev1.Service{})
		h.OnUpdate(newService("a", "10.96.0.1"), newService("a", "10.96.0.9"))
		h.OnDelete(newService("b", "10.96.0.2"))
		in.complete()
		synctest.Wait()
		v := m.view()
		if s, ok := v.Service(mesh.Name{Namespace: "shop", Name: "a"}); !ok || s.Addresses[0].String() != "10.96.0.9" {
			t.Errorf("got %+v, want the later state", s)
		}
		if _, ok := v.Service(mesh.Name{Namespace: "shop", Name: "b"}); ok {
			t.Error("the service was deleted before the initial state was applied")
		}
	})
}

func TestLaterChangesAreAppliedAsTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, in, m := watching(t)
		in.complete()
		synctest.Wait()
		pod := &corev1.Pod{ObjectMeta: named("p"), Status: corev1.PodStatus{PodIP: "10.0.0.1"}}
		in.of(pod).OnAdd(pod, false)
		if _, ok := m.mesh.Workload(mesh.Name{Namespace: "shop", Name: "p"}); !ok {
			t.Error("the pod is not in the mesh")
		}
		in.of(pod).OnUpdate(pod, pod.DeepCopy())
		if len(m.facts) != 0 {
			t.Errorf("an update that changes nothing changed %v", m.facts)
		}
		in.of(pod).OnDelete(toolscache.DeletedFinalStateUnknown{Key: "shop/p", Obj: pod})
		if _, ok := m.mesh.Workload(mesh.Name{Namespace: "shop", Name: "p"}); ok {
			t.Error("a pod whose deletion was missed is still in the mesh")
		}
	})
}

func TestConfigurationFollowsAllItsSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, in, m := watching(t)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.0.0/24"}}
		in.add(node)
		in.complete()
		synctest.Wait()
		same(t, m.mesh.Config().PodRanges, nets("10.244.0.0/24"))

		mc := &v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
		mc.Spec.ClusterRanges.Pods = []string{"10.0.0.0/24"}
		in.of(mc).OnAdd(mc, false)
		same(t, m.mesh.Config().PodRanges, nets("10.0.0.0/24", "10.244.0.0/24"))

		before := len(m.batches)
		in.of(node).OnUpdate(node, node.DeepCopy())
		if len(m.batches) != before {
			t.Error("a node's heartbeat reached the mesh")
		}
		in.of(node).OnDelete(node)
		in.of(mc).OnDelete(mc)
		same(t, m.mesh.Config().PodRanges, nets())
	})
}

func TestConcurrentEventsLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, in, m := watching(t)
		const n = 200
		pods := in.of(&corev1.Pod{})
		services := in.of(&corev1.Service{})
		var wg sync.WaitGroup
		for _, h := range []func(int){
			func(i int) { pods.OnAdd(&corev1.Pod{ObjectMeta: named(fmt.Sprint("p", i))}, true) },
			func(i int) { services.OnAdd(newService(fmt.Sprint("s", i), ""), true) },
		} {
			wg.Go(func() {
				for i := range n {
					h(i)
					if i == n/2 {
						time.Sleep(time.Second) // of the bubble's clock: the completion below comes in between
					}
				}
			})
		}
		synctest.Wait()
		in.complete()
		wg.Wait()
		v := m.view()
		for i := range n {
			if _, ok := m.mesh.Workload(mesh.Name{Namespace: "shop", Name: fmt.Sprint("p", i)}); !ok {
				t.Errorf("pod %d is lost", i)
			}
			if _, ok := v.Service(mesh.Name{Namespace: "shop", Name: fmt.Sprint("s", i)}); !ok {
				t.Errorf("service %d is lost", i)
			}
		}
	})
}

func TestOnlyServiceCIDRMayBeMissing(t *testing.T) {
	for missing, fails := range map[string]bool{"ServiceCIDR": false, "MeshPolicy": true} {
		in := newStubInformers()
		in.missing = missing
		err := New(Options{Applier: newModel(), Log: logr.Discard()}).Watch(t.Context(), in, in.keys())
		if fails != (err != nil) {
			t.Errorf("without %s: %v", missing, err)
		}
		if fails && !strings.Contains(err.Error(), "apply Tulle's CRDs first") {
			t.Errorf("the error does not say what to do: %v", err)
		}
	}
}

// stubAPI has kinds in versions.
type stubAPI struct {
	discovery.ServerResourcesInterfaceWithContext
	has   map[string][]string
	fails error
	asked []string
}

func (a *stubAPI) ServerResourcesForGroupVersionWithContext(_ context.Context, version string) (*metav1.APIResourceList, error) {
	a.asked = append(a.asked, version)
	if a.fails != nil {
		return nil, a.fails
	}
	if a.has[version] == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, version)
	}
	list := &metav1.APIResourceList{}
	for _, kind := range a.has[version] {
		list.APIResources = append(list.APIResources, metav1.APIResource{Kind: kind})
	}
	return list, nil
}

// To try a kind that is missing costs a table of all kinds of all groups: it is tried when the
// API server says that it has it, or cannot be asked.
func TestKindsOfTheGatewayAPIAreTriedWhenTheyAreServed(t *testing.T) {
	in, api := newStubInformers(), &stubAPI{has: map[string][]string{}}
	o := New(Options{Applier: newModel(), Log: logr.Discard()})
	o.api = api
	watched := func() []string {
		return slices.DeleteFunc([]string{"GRPCRoute", "HTTPRoute", "ReferenceGrant"}, func(kind string) bool { return in.byKind[kind] == nil })
	}
	if err := o.Watch(t.Context(), in, in.keys()); err != nil {
		t.Fatal(err)
	}
	if len(api.asked) != 2 || len(watched()) > 0 {
		t.Errorf("asked for %v, want each of 2 versions once; watched: %v", api.asked, watched())
	}
	api.has[gatewayv1.GroupVersion.String()], api.has[gatewayv1beta1.GroupVersion.String()] = []string{"HTTPRoute", "ReferenceGrant"}, []string{"HTTPRoute", "GRPCRoute"}
	if err := o.watchMissing(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := watched(); !slices.Equal(got, []string{"HTTPRoute"}) {
		t.Errorf("watched: %v, want that which is served in the version in which it is watched", got)
	}
	if _, missing := o.missing[mesh.KindHTTPRoute]; missing || len(o.missing) != 7 {
		t.Errorf("still looked for: %v", o.missing)
	}
	api.fails = apierrors.NewServiceUnavailable("")
	if err := o.watchMissing(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(o.missing) > 0 {
		t.Errorf("not tried: %v", o.missing)
	}
}

func TestKindsAreAskedForByTheirNames(t *testing.T) {
	in := newStubInformers()
	o := New(Options{Applier: newModel(), Log: logr.Discard()})
	o.api = &stubAPI{} // all are missing
	if err := o.Watch(t.Context(), in, in.keys()); err != nil {
		t.Fatal(err)
	}
	s := runtime.NewScheme()
	if err := errors.Join(gatewayv1.Install(s), gatewayv1beta1.Install(s)); err != nil {
		t.Fatal(err)
	}
	for _, obj := range o.missing {
		kinds, _, err := s.ObjectKinds(obj)
		if err != nil || kinds[0] != schema.GroupVersion(versionOf(obj)).WithKind(kindOf(obj)) {
			t.Errorf("%s of %s is asked for, of %v, %v", kindOf(obj), versionOf(obj), kinds, err)
		}
	}
}

func TestObserverThatWatchesNothingIsRefused(t *testing.T) {
	if New(Options{Applier: newModel()}).Start(t.Context()) == nil {
		t.Error("an empty mesh would be served as though it were the cluster")
	}
}

func TestChangesMakeAMeshWithoutACluster(t *testing.T) {
	m := newModel()
	m.Apply(Changes(
		newService("web", "10.96.0.1"),
		&v1alpha1.MeshPolicy{ObjectMeta: named("p")},
		&v1alpha1.TrafficSplit{ObjectMeta: named("s")},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.0.0/24"}},
		&corev1.ConfigMap{ObjectMeta: named("ignored")},
	)...)
	v := m.view()
	_, service := v.Service(mesh.Name{Namespace: "shop", Name: "web"})
	_, policy := v.Policy(mesh.Name{Namespace: "shop", Name: "p"})
	_, split := v.Split(mesh.Name{Namespace: "shop", Name: "s"})
	if !service || !policy || !split {
		t.Errorf("service %v, policy %v, split %v; want all", service, policy, split)
	}
	same(t, m.mesh.Config().PodRanges, nets("10.244.0.0/24"))
	if got := m.mesh.Config().RootNamespace; got != "tulle-system" {
		t.Errorf("root namespace %q", got)
	}
}
