package status

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// patience is how long a write may take on a machine that is busy.
const patience = 30 * time.Second

// eventually polls the API server, which has no other way to tell a test.
func eventually(t *testing.T, what string, holds func(ctx context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, patience, true, holds); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestStatusOnARealAPIServer(t *testing.T) {
	config := apitest.Start(t)
	t.Run("findings of the test's making", func(t *testing.T) { followsFindings(t, config) })
	t.Run("findings of the builder", func(t *testing.T) { followsTheBuilder(t, config) })
}

// newManager is a manager that has not been started, and a client without a
// cache.
func newManager(t *testing.T, config *rest.Config) (manager.Manager, client.Client) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	direct, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme: scheme, Cache: observe.CacheOptions(), Metrics: server.Options{BindAddress: "0"}, Logger: testr.New(t),
		// The names of controllers are unique to a process, and this is the
		// second manager of the test's.
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return mgr, direct
}

// run runs something until the test ends, and waits for its end.
func run(t *testing.T, what func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- what(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func creating(t *testing.T, c client.Client) func(client.Object) {
	return func(o client.Object) {
		t.Helper()
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatalf("creating %T %s: %v", o, o.GetName(), err)
		}
	}
}

func followsFindings(t *testing.T, config *rest.Config) {
	mgr, direct := newManager(t, config)
	create := creating(t, direct)
	b := newBuilder()
	metrics := prometheus.NewRegistry()
	c := New(Options{Findings: b, Registerer: metrics})
	if err := c.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	run(t, mgr.Start)

	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	policy := &v1alpha1.MeshPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"},
		Spec:       v1alpha1.MeshPolicySpec{MTLS: &v1alpha1.MTLS{Mode: v1alpha1.MTLSStrict}},
	}
	create(policy)
	config1 := &v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	create(config1)
	status := func(ctx context.Context, conditionType string) (*metav1.Condition, error) {
		err := direct.Get(ctx, client.ObjectKeyFromObject(policy), policy)
		return meta.FindStatusCondition(policy.Status.Conditions, conditionType), err
	}
	at := func(f mesh.Finding, generation int64) mesh.Finding {
		f.Generation = generation
		return f
	}

	t.Run("a MeshConfig is accepted", func(t *testing.T) {
		eventually(t, "Accepted", func(ctx context.Context) (bool, error) {
			err := direct.Get(ctx, client.ObjectKeyFromObject(config1), config1)
			a := meta.FindStatusCondition(config1.Status.Conditions, v1alpha1.ConditionAccepted)
			return a != nil && a.Status == metav1.ConditionTrue && a.ObservedGeneration == 1, err
		})
	})
	t.Run("a finding becomes a condition", func(t *testing.T) {
		b.find(theKey, at(good, 1), at(finding(v1alpha1.ConditionResolvedRefs, true, "ResolvedRefs", "all there"), 1))
		eventually(t, "Accepted", func(ctx context.Context) (bool, error) {
			a, err := status(ctx, v1alpha1.ConditionAccepted)
			return a != nil && a.Status == metav1.ConditionTrue && a.ObservedGeneration == 1 && !a.LastTransitionTime.IsZero(), err
		})
		if meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.ConditionResolvedRefs) == nil {
			t.Errorf("got %+v, want ResolvedRefs too", policy.Status.Conditions)
		}
	})
	t.Run("another's condition stays, and ours goes when there is nothing to say", func(t *testing.T) {
		policy.Status.Conditions = append(policy.Status.Conditions, metav1.Condition{
			Type: "Example", Status: "True", Reason: "Example", LastTransitionTime: metav1.Now(),
		})
		if err := direct.Status().Update(t.Context(), policy, client.FieldOwner("another")); err != nil {
			t.Fatal(err)
		}
		b.find(theKey, at(bad, 1))
		eventually(t, "Accepted is False", func(ctx context.Context) (bool, error) {
			a, err := status(ctx, v1alpha1.ConditionAccepted)
			return a != nil && a.Status == metav1.ConditionFalse, err
		})
		if meta.FindStatusCondition(policy.Status.Conditions, "Example") == nil || len(policy.Status.Conditions) != 2 {
			t.Errorf("got %+v, want Accepted and Example", policy.Status.Conditions)
		}
	})
	t.Run("it is told as an event", func(t *testing.T) {
		eventually(t, "the event", func(ctx context.Context) (bool, error) {
			var list eventsv1.EventList
			if err := direct.List(ctx, &list, client.InNamespace("shop")); err != nil {
				return false, err
			}
			for _, e := range list.Items {
				if e.Regarding.Name == "p" && e.Regarding.Kind == "MeshPolicy" && e.Type == corev1.EventTypeWarning && e.Reason == "Invalid" {
					return true, nil
				}
			}
			return false, nil
		})
	})
	t.Run("what has not changed is not written", func(t *testing.T) {
		before := policyWrites(t, metrics)
		version := policy.ResourceVersion
		for range 20 {
			b.find(theKey, at(bad, 1))
		}
		// What follows in the same queue is written after all of those.
		policy.Spec.MTLS.Mode = v1alpha1.MTLSPermissive
		if err := direct.Update(t.Context(), policy); err != nil {
			t.Fatal(err)
		}
		b.find(theKey, at(good, 2))
		eventually(t, "generation 2 is accepted", func(ctx context.Context) (bool, error) {
			a, err := status(ctx, v1alpha1.ConditionAccepted)
			return a != nil && a.Status == metav1.ConditionTrue && a.ObservedGeneration == 2, err
		})
		// A write is counted when its answer has come, which may be after others
		// have seen it.
		eventually(t, "the write is counted", func(context.Context) (bool, error) {
			return policyWrites(t, metrics) > before, nil
		})
		if got := policyWrites(t, metrics) - before; got != 1 {
			t.Errorf("%v writes since version %s, want 1", got, version)
		}
	})
	t.Run("a deleted object is forgotten", func(t *testing.T) {
		if err := direct.Delete(t.Context(), policy); err != nil {
			t.Fatal(err)
		}
		eventually(t, "no subscription", func(context.Context) (bool, error) { return b.subscriptions() == 0, nil })
	})
}

// followsTheBuilder goes the whole way of an object: observed, built, written.
func followsTheBuilder(t *testing.T, config *rest.Config) {
	mgr, direct := newManager(t, config)
	create := creating(t, direct)
	b := build.New(build.Options{Config: &mesh.Config{}})
	status := New(Options{Findings: b})
	observer := observe.New(observe.Options{Applier: b, OnKind: status.WatchKind, Log: testr.New(t)})
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
	if err := status.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	run(t, b.Run)
	run(t, mgr.Start)

	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "calls"}})
	policy := &v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "calls", Name: "p"}, Spec: v1alpha1.MeshPolicySpec{
		TargetRefs: []v1alpha1.TargetRef{{Name: "web"}},
		Traffic:    &v1alpha1.Traffic{Timeout: &metav1.Duration{Duration: time.Second}},
	}}
	create(policy)
	is := func(conditionType string, status metav1.ConditionStatus) {
		t.Helper()
		eventually(t, conditionType+" is "+string(status), func(ctx context.Context) (bool, error) {
			err := direct.Get(ctx, client.ObjectKeyFromObject(policy), policy)
			c := meta.FindStatusCondition(policy.Status.Conditions, conditionType)
			return c != nil && c.Status == status && c.ObservedGeneration == policy.Generation, err
		})
	}
	is(v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse)
	is(v1alpha1.ConditionAccepted, metav1.ConditionTrue)

	create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "calls", Name: "web"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
	is(v1alpha1.ConditionResolvedRefs, metav1.ConditionTrue)

	policy.Spec.TargetRefs = nil
	if err := direct.Update(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	is(v1alpha1.ConditionAccepted, metav1.ConditionTrue)
	if c := meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.ConditionResolvedRefs); c != nil {
		t.Errorf("it refers to nothing any more, and its status still says %+v", c)
	}
	t.Run("an external service, and a younger one for the same host", func(t *testing.T) { followsExternals(t, direct) })
	t.Run("a route, of a kind that was installed meanwhile", func(t *testing.T) { followsARoute(t, config, direct) })
}

// followsExternals has two external services for one host, and a policy about the first.
func followsExternals(t *testing.T, direct client.Client) {
	create := creating(t, direct)
	external := func(name string) *v1alpha1.ExternalService {
		return &v1alpha1.ExternalService{ObjectMeta: metav1.ObjectMeta{Namespace: "calls", Name: name}, Spec: v1alpha1.ExternalServiceSpec{
			Hosts: []string{"api.example.org"}, Ports: []v1alpha1.ExternalPort{{Number: 80, Protocol: v1alpha1.ExternalHTTP}}, Resolution: v1alpha1.ExternalDNS,
		}}
	}
	policy := &v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "calls", Name: "external"}, Spec: v1alpha1.MeshPolicySpec{
		TargetRefs: []v1alpha1.TargetRef{{Group: v1alpha1.Group, Kind: "ExternalService", Name: "a"}},
		Traffic:    &v1alpha1.Traffic{Timeout: &metav1.Duration{Duration: time.Second}},
	}}
	says := func(obj client.Object, conditions *[]metav1.Condition, conditionType, reason string) {
		t.Helper()
		eventually(t, obj.GetName()+" says "+reason, func(ctx context.Context) (bool, error) {
			err := direct.Get(ctx, client.ObjectKeyFromObject(obj), obj)
			c := meta.FindStatusCondition(*conditions, conditionType)
			return c != nil && c.Reason == reason, err
		})
	}
	create(policy)
	says(policy, &policy.Status.Conditions, v1alpha1.ConditionResolvedRefs, v1alpha1.ReasonServiceNotFound)
	a, b := external("a"), external("b")
	create(a)
	says(a, &a.Status.Conditions, v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
	says(policy, &policy.Status.Conditions, v1alpha1.ConditionResolvedRefs, v1alpha1.ReasonResolvedRefs)
	create(b)
	says(b, &b.Status.Conditions, v1alpha1.ConditionAccepted, v1alpha1.ReasonConflicted)
	if err := direct.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	says(b, &b.Status.Conditions, v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
}

// followsARoute has a route to calls/web and to a Service that does not exist, beside
// what another controller has to say about it.
func followsARoute(t *testing.T, config *rest.Config, direct client.Client) {
	crds, err := apitest.GatewayCRDs()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{crds}}); err != nil {
		t.Fatal(err)
	}
	parent := func(name string) gatewayv1.ParentReference {
		return gatewayv1.ParentReference{Group: new(gatewayv1.Group("")), Kind: new(gatewayv1.Kind("Service")), Name: gatewayv1.ObjectName(name)}
	}
	gateway := gatewayv1.ParentReference{Name: "gateway"}
	route := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "calls", Name: "r"}}
	route.Spec.ParentRefs = []gatewayv1.ParentReference{gateway, parent("web"), parent("none")}
	route.Spec.Rules = []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{
		BackendObjectReference: gatewayv1.BackendObjectReference{Name: "web", Port: new(gatewayv1.PortNumber(80))},
	}}}}}
	creating(t, direct)(route)
	route.Status.Parents = []gatewayv1.RouteParentStatus{{ParentRef: gateway, ControllerName: "example.org/another", Conditions: []metav1.Condition{
		{Type: "Accepted", Status: "True", Reason: "Accepted", LastTransitionTime: metav1.Now()},
	}}}
	if err := direct.Status().Update(t.Context(), route); err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		var got string
		eventually(t, want, func(ctx context.Context) (bool, error) {
			got = ""
			err := direct.Get(ctx, client.ObjectKeyFromObject(route), route)
			for _, p := range route.Status.Parents {
				got += string(p.ParentRef.Name)
				for _, c := range p.Conditions {
					if c.ObservedGeneration == route.Generation {
						got += " " + c.Type + "=" + string(c.Status) + "/" + c.Reason
					}
				}
				got += "; "
			}
			return got == want, err
		})
	}
	good := "web Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs; "
	says("gateway; " + good + "none Accepted=False/NoMatchingParent ResolvedRefs=True/ResolvedRefs; ")
	route.Spec.ParentRefs = route.Spec.ParentRefs[:2]
	if err := direct.Update(t.Context(), route); err != nil {
		t.Fatal(err)
	}
	says("gateway; " + good)
	route.Spec.ParentRefs = route.Spec.ParentRefs[:1]
	if err := direct.Update(t.Context(), route); err != nil {
		t.Fatal(err)
	}
	says("gateway; ")
}
