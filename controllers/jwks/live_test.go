package jwks

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// A policy and what the MeshConfig allows are followed on a real API server.
func TestKeysFollowPolicies(t *testing.T) {
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
	keys := keySet(t, "live")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, keys) }))
	defer server.Close()
	create := func(o client.Object) {
		t.Helper()
		if err := direct.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"tulle-system", "shop"} {
		create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme: scheme, Cache: observe.CacheOptions(), Metrics: metricsserver.Options{BindAddress: "0"}, Logger: testr.New(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := observe.NewKeysCache(config, cache.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stored.GetInformer(t.Context(), &corev1.ConfigMap{}); err != nil {
		t.Fatal(err)
	}
	if err := mgr.Add(stored); err != nil {
		t.Fatal(err)
	}
	if err := SetupWithManager(mgr, Options{Keys: stored, Namespace: "tulle-system", Log: testr.New(t), Registerer: prometheus.NewRegistry()}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	policy := named("a", server.URL)
	create(policy)
	until := func(what string, holds func(text string, ok bool) bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			var m corev1.ConfigMap
			if err := direct.Get(t.Context(), client.ObjectKey{Namespace: "tulle-system", Name: mesh.JWKSName}, &m); client.IgnoreNotFound(err) != nil {
				t.Fatal(err)
			}
			text, ok := m.Data[mesh.FetchedKey(server.URL)]
			if holds(text, ok) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not yet: %s; there is %q", what, text)
			}
		}
	}
	until("that it is not allowed", func(text string, _ bool) bool { return strings.Contains(text, "jwks.allowHTTP") })
	create(&v1alpha1.MeshConfig{
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec:       v1alpha1.MeshConfigSpec{JWKS: v1alpha1.JWKSFetching{AllowedRanges: []string{"127.0.0.0/8"}, AllowHTTP: true}},
	})
	until("the keys", func(text string, _ bool) bool {
		return strings.Contains(text, `"live"`) && !strings.Contains(text, "problem")
	})
	if err := direct.Delete(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	until("their end", func(_ string, ok bool) bool { return !ok })
}
