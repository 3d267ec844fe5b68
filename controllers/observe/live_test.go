package observe_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// patience is how long a change may take on a machine that is busy.
const patience = 30 * time.Second

// meshOf applies changes, and wakes those that wait for a state.
type meshOf struct {
	mu      sync.Mutex
	now     *mesh.Snapshot
	batches int
	changed chan struct{} // closed and replaced at every batch
}

func newMeshOf() *meshOf {
	return &meshOf{now: mesh.New(&mesh.Config{}), changed: make(chan struct{})}
}

func (m *meshOf) Apply(cs ...mesh.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now, _ = m.now.Apply(cs...)
	m.batches++
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *meshOf) state() (*mesh.View, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return mesh.NewView(m.now), m.changed
}

// until waits for the mesh to be as it should.
func (m *meshOf) until(t *testing.T, what string, holds func(*mesh.View) bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		v, changed := m.state()
		if holds(v) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("not seen in %s: %s", patience, what)
		}
	}
}

func scheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func create(t *testing.T, c client.Client, objs ...client.Object) {
	t.Helper()
	for _, o := range objs {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatalf("creating %T %s: %v", o, o.GetName(), err)
		}
	}
}

func shop(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }

func aService(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: shop(name), Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
}

func TestMeshFollowsARealAPIServer(t *testing.T) {
	config := apitest.Start(t)
	s := scheme(t)
	direct, err := client.New(config, client.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	create(t, direct, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	const before = 20
	for i := range before {
		create(t, direct, aService(fmt.Sprint("s", i)))
	}
	policy := &v1alpha1.MeshPolicy{ObjectMeta: shop("strict"), Spec: v1alpha1.MeshPolicySpec{MTLS: &v1alpha1.MTLS{Mode: v1alpha1.MTLSStrict}}}
	create(t, direct, policy)

	mgr, err := manager.New(config, manager.Options{
		Scheme: s, Cache: observe.CacheOptions(), Metrics: server.Options{BindAddress: "0"}, Logger: testr.New(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	m := newMeshOf()
	observer := observe.New(observe.Options{Applier: m, Log: testr.New(t)})
	keys, err := observe.NewKeysCache(mgr.GetConfig(), cache.Options{HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		t.Fatal(err)
	}
	if err := mgr.Add(keys); err != nil {
		t.Fatal(err)
	}
	if err := observer.SetupWithManager(t.Context(), mgr, keys); err != nil {
		t.Fatal(err)
	}
	run(t, mgr)
	select {
	case <-observer.Synced():
	case <-time.After(patience):
		t.Fatalf("not synced: %v", observer.Ready(nil))
	}

	t.Run("the initial state is complete", func(t *testing.T) {
		v, _ := m.state()
		for i := range before {
			if _, ok := v.Service(mesh.Name{Namespace: "shop", Name: fmt.Sprint("s", i)}); !ok {
				t.Errorf("service %d is missing", i)
			}
		}
		if p, ok := v.Policy(mesh.Name{Namespace: "shop", Name: "strict"}); !ok || p.Generation != 1 || p.Created.IsZero() {
			t.Errorf("got policy %+v, %v", p, ok)
		}
		if got := v.Config().ServiceRanges; len(got) == 0 {
			t.Error("the API server's ServiceCIDR is missing")
		}
	})
	t.Run("an update is seen", func(t *testing.T) {
		policy.Spec.MTLS.Mode = v1alpha1.MTLSPermissive
		if err := direct.Update(t.Context(), policy); err != nil {
			t.Fatal(err)
		}
		m.until(t, "the policy's new mode", func(v *mesh.View) bool {
			p, _ := v.Policy(mesh.Name{Namespace: "shop", Name: "strict"})
			return p.MTLS.Mode == mesh.MTLSPermissive && p.Generation == 2
		})
	})
	t.Run("pods and endpoints are seen", func(t *testing.T) {
		pod := &corev1.Pod{ObjectMeta: shop("web-1"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a"}}}}
		create(t, direct, pod)
		pod.Status.PodIPs, pod.Status.PodIP = []corev1.PodIP{{IP: "10.0.0.7"}}, "10.0.0.7"
		if err := direct.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: shop("s0-x"), AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.7"}}},
		}
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: "s0"}
		create(t, direct, slice)
		m.until(t, "the pod's address and the service's endpoint", func(v *mesh.View) bool {
			w, ok := v.Workload(mesh.Name{Namespace: "shop", Name: "web-1"})
			return ok && len(w.Addresses) == 1 && w.UID == string(pod.UID) &&
				len(v.Slices(mesh.Name{Namespace: "shop", Name: "s0"})) == 1
		})
	})
	t.Run("keys of issuers are seen, and no other ConfigMap", func(t *testing.T) {
		keys := &corev1.ConfigMap{ObjectMeta: shop("tulle-jwks"), Data: map[string]string{"a.json": "{}"}}
		create(t, direct, &corev1.ConfigMap{ObjectMeta: shop("others"), Data: map[string]string{"b.json": "{}"}})
		create(t, direct, keys)
		m.until(t, "the key set", func(v *mesh.View) bool { _, ok := v.KeySet("shop", false, "a.json"); return ok })
		if err := direct.Delete(t.Context(), keys); err != nil {
			t.Fatal(err)
		}
		m.until(t, "its end", func(v *mesh.View) bool { _, ok := v.KeySet("shop", false, "a.json"); return !ok })
		v, _ := m.state()
		if _, ok := v.KeySet("shop", false, "b.json"); ok {
			t.Error("a ConfigMap of another name is taken for keys")
		}
	})
	t.Run("keys of issuers in a Secret are seen, and no other Secret", func(t *testing.T) {
		keys := &corev1.Secret{ObjectMeta: shop("tulle-jwks"), Data: map[string][]byte{"a.json": []byte("{}")}}
		create(t, direct, &corev1.Secret{ObjectMeta: shop("others"), Data: map[string][]byte{"b.json": []byte("{}")}})
		create(t, direct, keys)
		m.until(t, "the key set", func(v *mesh.View) bool { _, ok := v.KeySet("shop", true, "a.json"); return ok })
		keys.Data = map[string][]byte{"c.json": []byte("{}")}
		if err := direct.Update(t.Context(), keys); err != nil {
			t.Fatal(err)
		}
		m.until(t, "other keys", func(v *mesh.View) bool { _, ok := v.KeySet("shop", true, "c.json"); return ok })
		if err := direct.Delete(t.Context(), keys); err != nil {
			t.Fatal(err)
		}
		m.until(t, "their end", func(v *mesh.View) bool { _, ok := v.KeySet("shop", true, "c.json"); return !ok })
		v, _ := m.state()
		if _, ok := v.KeySet("shop", true, "b.json"); ok {
			t.Error("a Secret of another name is taken for keys")
		}
	})
	t.Run("the configuration is seen", func(t *testing.T) {
		create(t, direct, &v1alpha1.MeshConfig{
			ObjectMeta: metav1.ObjectMeta{Name: "default"},
			Spec:       v1alpha1.MeshConfigSpec{MTLS: v1alpha1.MeshMTLS{Mode: v1alpha1.MTLSStrict}},
		})
		m.until(t, "Strict as the mesh's default", func(v *mesh.View) bool { return v.Config().MTLS == mesh.MTLSStrict })
		create(t, direct, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "10.9.0.0/24", PodCIDRs: []string{"10.9.0.0/24"}}})
		m.until(t, "the node's range", func(v *mesh.View) bool { return len(v.Config().PodRanges) == 1 })
	})
	t.Run("kinds that come later are seen", func(t *testing.T) {
		crds, err := apitest.GatewayCRDs()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{crds}, ErrorIfPathMissing: true}); err != nil {
			t.Fatal(err)
		}
		create(t, direct, &gatewayv1.HTTPRoute{ObjectMeta: shop("late")}, &gatewayv1beta1.ReferenceGrant{ObjectMeta: shop("late"), Spec: gatewayv1.ReferenceGrantSpec{
			From: []gatewayv1.ReferenceGrantFrom{{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: "far"}}, To: []gatewayv1.ReferenceGrantTo{{Kind: "Service"}},
		}})
		m.until(t, "a route and a grant", func(v *mesh.View) bool {
			_, route := v.Route(mesh.Ref{Kind: mesh.KindHTTPRoute, Name: mesh.Name{Namespace: "shop", Name: "late"}})
			return route && v.Granted(mesh.GrantFrom{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: "far"}, mesh.GrantTo{Kind: "Service", Name: "web"}, "shop")
		})
	})
	t.Run("a deletion is seen", func(t *testing.T) {
		for _, o := range []client.Object{policy, aService("s0")} {
			if err := direct.Delete(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		m.until(t, "the end of both", func(v *mesh.View) bool {
			_, policy := v.Policy(mesh.Name{Namespace: "shop", Name: "strict"})
			_, service := v.Service(mesh.Name{Namespace: "shop", Name: "s0"})
			return !policy && !service
		})
	})
}

// run runs the manager until the test ends, and waits for its end.
func run(t *testing.T, mgr manager.Manager) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := mgr.Start(ctx); err != nil {
			t.Errorf("the manager: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}
