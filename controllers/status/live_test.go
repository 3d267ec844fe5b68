package status

import (
	"context"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
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
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	direct, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	create := func(o client.Object) {
		t.Helper()
		if err := direct.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	mgr, err := manager.New(config, manager.Options{Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, Logger: testr.New(t)})
	if err != nil {
		t.Fatal(err)
	}
	b := newBuilder()
	metrics := prometheus.NewRegistry()
	c := New(Options{Findings: b, Registerer: metrics})
	if err := c.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the manager: %v", err)
		}
	})

	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	policy := &v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"},
		Spec: v1alpha1.MeshPolicySpec{MTLS: &v1alpha1.MTLS{Mode: v1alpha1.MTLSStrict}}}
	create(policy)
	config1 := &v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	create(config1)
	status := func(ctx context.Context, conditionType string) (*metav1.Condition, error) {
		err := direct.Get(ctx, client.ObjectKeyFromObject(policy), policy)
		return find(policy.Status.Conditions, conditionType), err
	}
	at := func(f mesh.Finding, generation int64) mesh.Finding {
		f.Generation = generation
		return f
	}

	t.Run("a MeshConfig is accepted", func(t *testing.T) {
		eventually(t, "Accepted", func(ctx context.Context) (bool, error) {
			err := direct.Get(ctx, client.ObjectKeyFromObject(config1), config1)
			a := find(config1.Status.Conditions, v1alpha1.ConditionAccepted)
			return a != nil && a.Status == metav1.ConditionTrue && a.ObservedGeneration == 1, err
		})
	})
	t.Run("a finding becomes a condition", func(t *testing.T) {
		b.find(theKey, at(good, 1), at(finding(v1alpha1.ConditionResolvedRefs, true, "ResolvedRefs", "all there"), 1))
		eventually(t, "Accepted", func(ctx context.Context) (bool, error) {
			a, err := status(ctx, v1alpha1.ConditionAccepted)
			return a != nil && a.Status == metav1.ConditionTrue && a.ObservedGeneration == 1 && !a.LastTransitionTime.IsZero(), err
		})
		if find(policy.Status.Conditions, v1alpha1.ConditionResolvedRefs) == nil {
			t.Errorf("got %+v, want ResolvedRefs too", policy.Status.Conditions)
		}
	})
	t.Run("another's condition stays, and ours goes when there is nothing to say", func(t *testing.T) {
		policy.Status.Conditions = append(policy.Status.Conditions, metav1.Condition{
			Type: "Programmed", Status: "True", Reason: "Programmed", LastTransitionTime: metav1.Now(),
		})
		if err := direct.Status().Update(t.Context(), policy, client.FieldOwner("another")); err != nil {
			t.Fatal(err)
		}
		b.find(theKey, at(bad, 1))
		eventually(t, "Accepted is False", func(ctx context.Context) (bool, error) {
			a, err := status(ctx, v1alpha1.ConditionAccepted)
			return a != nil && a.Status == metav1.ConditionFalse, err
		})
		if find(policy.Status.Conditions, "Programmed") == nil || len(policy.Status.Conditions) != 2 {
			t.Errorf("got %+v, want Accepted and Programmed", policy.Status.Conditions)
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
