package trust

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/go-logr/logr/testr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// testRoots are roots that a test changes.
type testRoots struct {
	mu     sync.Mutex
	pem    string
	notify []func()
}

func (r *testRoots) Roots() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return []byte(r.pem)
}

func (r *testRoots) Bundle() *mesh.TrustBundle { return &mesh.TrustBundle{PEM: r.Roots()} }

func (r *testRoots) Notify(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notify = append(r.notify, f)
}

func (r *testRoots) set(pem string) {
	r.mu.Lock()
	r.pem = pem
	notify := r.notify
	r.mu.Unlock()
	for _, f := range notify {
		f()
	}
}

var service = types.NamespacedName{Namespace: "tulle-system", Name: "tulled"}

// writes counts what a fake cluster is written.
type writes struct{ create, update, remove int }

func fakeCluster(t *testing.T, objects ...client.Object) (client.Client, *writes) {
	t.Helper()
	w := &writes{}
	return fake.NewClientBuilder().WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			w.create++
			return c.Create(ctx, o, opts...)
		},
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			w.update++
			return c.Update(ctx, o, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			w.remove++
			return c.Delete(ctx, o, opts...)
		},
	}).Build(), w
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func bundle(namespace string, change func(*corev1.ConfigMap)) *corev1.ConfigMap {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: ConfigMapName, Labels: map[string]string{managedBy: managedByTulle},
	}, Data: Data([]byte("roots"))}
	change(c)
	return c
}

func TestBundleIsWrittenOnlyWhereItDiffers(t *testing.T) {
	yes := true
	terminating := namespace("shop")
	terminating.Finalizers, terminating.DeletionTimestamp = []string{"test/keep"}, &metav1.Time{}
	*terminating.DeletionTimestamp = metav1.Now()
	for _, c := range []struct {
		name    string
		objects []client.Object
		want    writes
	}{
		{"absent", []client.Object{namespace("shop")}, writes{create: 1}},
		{"as it ought to be", []client.Object{namespace("shop"), bundle("shop", func(*corev1.ConfigMap) {})}, writes{}},
		{"other roots", []client.Object{namespace("shop"), bundle("shop", func(c *corev1.ConfigMap) { c.Data[RootsPEM] = "old" })}, writes{update: 1}},
		{"key removed", []client.Object{namespace("shop"), bundle("shop", func(c *corev1.ConfigMap) { delete(c.Data, TokenSDS) })}, writes{update: 1}},
		{"key added", []client.Object{namespace("shop"), bundle("shop", func(c *corev1.ConfigMap) { c.Data["more"] = "x" })}, writes{update: 1}},
		{"binary key added", []client.Object{namespace("shop"), bundle("shop", func(c *corev1.ConfigMap) { c.BinaryData = map[string][]byte{"more": {1}} })}, writes{update: 1}},
		{"label removed", []client.Object{namespace("shop"), bundle("shop", func(c *corev1.ConfigMap) { c.Labels = nil })}, writes{update: 1}},
		{"others' label", []client.Object{namespace("shop"), bundle("shop", func(c *corev1.ConfigMap) { c.Labels["team"] = "x" })}, writes{}},
		{"immutable", []client.Object{namespace("shop"), bundle("shop", func(c *corev1.ConfigMap) { c.Immutable = &yes })}, writes{remove: 1}},
		{"namespace is going", []client.Object{terminating}, writes{}},
		{"namespace is gone", nil, writes{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster, done := fakeCluster(t, c.objects...)
			r := &bundleReconciler{reader: cluster, writer: cluster, roots: &testRoots{pem: "roots"}}
			request := reconcile.Request{NamespacedName: types.NamespacedName{Name: "shop"}}
			ctx := log.IntoContext(t.Context(), testr.New(t))
			if _, err := r.Reconcile(ctx, request); err != nil {
				t.Fatal(err)
			}
			if *done != c.want {
				t.Errorf("writes %+v, want %+v", *done, c.want)
			}
			if c.want.create+c.want.update+c.want.remove == 0 {
				return
			}
			// Once more: the immutable one is created again, and all are still.
			for range 2 {
				if _, err := r.Reconcile(ctx, request); err != nil {
					t.Fatal(err)
				}
			}
			got := &corev1.ConfigMap{}
			if err := cluster.Get(t.Context(), types.NamespacedName{Namespace: "shop", Name: ConfigMapName}, got); err != nil {
				t.Fatal(err)
			}
			if r.fill(got) || got.Immutable != nil {
				t.Errorf("the bundle is still not as it ought to be: %v", got.Data)
			}
			if total := done.create + done.update + done.remove; total > 2 {
				t.Errorf("writes go on: %+v", *done)
			}
		})
	}
}

// What a cache that is behind leads to is no failure.
func TestBundleToleratesACacheThatIsBehind(t *testing.T) {
	status := func(reason metav1.StatusReason, code int32, causes ...metav1.StatusCause) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Reason: reason, Code: code, Details: &metav1.StatusDetails{Causes: causes},
		}}
	}
	terminating := metav1.StatusCause{Type: corev1.NamespaceTerminatingCause}
	for _, c := range []struct {
		name     string
		there    bool
		err      error
		tolerate bool
	}{
		{"created meanwhile", false, status(metav1.StatusReasonAlreadyExists, 409), true},
		{"namespace is going", false, status(metav1.StatusReasonForbidden, 403, terminating), true},
		{"namespace is gone", false, status(metav1.StatusReasonNotFound, 404), true},
		{"forbidden", false, status(metav1.StatusReasonForbidden, 403), false},
		{"changed meanwhile", true, status(metav1.StatusReasonConflict, 409), true},
		{"deleted meanwhile", true, status(metav1.StatusReasonNotFound, 404), true},
		{"away", true, status(metav1.StatusReasonServiceUnavailable, 503), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects := []client.Object{namespace("shop")}
			if c.there {
				objects = append(objects, bundle("shop", func(c *corev1.ConfigMap) { c.Data = nil }))
			}
			cluster := fake.NewClientBuilder().WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
				Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return c.err },
				Update: func(context.Context, client.WithWatch, client.Object, ...client.UpdateOption) error { return c.err },
			}).Build()
			r := &bundleReconciler{reader: cluster, writer: cluster, roots: &testRoots{pem: "roots"}}
			_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "shop"}})
			if (err == nil) != c.tolerate {
				t.Errorf("Reconcile says %v", err)
			}
		})
	}
}

func webhookOf(name string, bundle string) admissionv1.WebhookClientConfig {
	return admissionv1.WebhookClientConfig{
		Service:  &admissionv1.ServiceReference{Namespace: service.Namespace, Name: name},
		CABundle: []byte(bundle),
	}
}

func TestCABundleIsWrittenToOurWebhooksAlone(t *testing.T) {
	url := "https://elsewhere.example"
	cluster, done := fakeCluster(t, &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "tulle"},
		Webhooks: []admissionv1.MutatingWebhook{
			{Name: "a.mesh.tulle.dev", ClientConfig: webhookOf("tulled", "")},
			{Name: "b.mesh.tulle.dev", ClientConfig: webhookOf("tulled-canary", "old")},
			{Name: "c.example.org", ClientConfig: webhookOf("other", "theirs")},
			{Name: "d.example.org", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}},
		},
	})
	r := &webhookReconciler[*admissionv1.MutatingWebhookConfiguration]{
		reader: cluster, writer: cluster, roots: &testRoots{pem: "roots"}, namespace: service.Namespace,
		empty: &admissionv1.MutatingWebhookConfiguration{}, configs: mutatingConfigs,
	}
	request := reconcile.Request{NamespacedName: types.NamespacedName{Name: "tulle"}}
	ctx := log.IntoContext(t.Context(), testr.New(t))
	for range 3 {
		if _, err := r.Reconcile(ctx, request); err != nil {
			t.Fatal(err)
		}
	}
	if *done != (writes{update: 1}) {
		t.Errorf("writes %+v, want one update", *done)
	}
	got := &admissionv1.MutatingWebhookConfiguration{}
	if err := cluster.Get(t.Context(), request.NamespacedName, got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"roots", "roots", "theirs", ""} {
		if b := string(got.Webhooks[i].ClientConfig.CABundle); b != want {
			t.Errorf("webhook %d has the caBundle %q, want %q", i, b, want)
		}
	}
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "absent"}}); err != nil {
		t.Errorf("a configuration that is not installed: %v", err)
	}
}

// model is what the mesh's model is after all changes.
type model struct{ history []*mesh.Snapshot }

func (m *model) Apply(changes ...mesh.Change) {
	last := mesh.New(&mesh.Config{})
	if n := len(m.history); n > 0 {
		last = m.history[n-1]
	}
	next, _ := last.Apply(changes...)
	m.history = append(m.history, next)
}

func TestRootsArePublishedToTheMeshNowAndOnChange(t *testing.T) {
	roots, to := &testRoots{pem: "first"}, &model{}
	Publish(roots, to)
	roots.set("second")
	if len(to.history) != 2 {
		t.Fatalf("%d changes, want 2", len(to.history))
	}
	for i, want := range []string{"first", "second"} {
		if got := string(mesh.NewView(to.history[i]).Trust().PEM); got != want {
			t.Errorf("change %d publishes %q, want %q", i, got, want)
		}
	}
}

func TestWhoDoesNotHaveThePresentRootsIsNamed(t *testing.T) {
	going := namespace("going")
	now := metav1.Now()
	going.DeletionTimestamp, going.Finalizers = &now, []string{"kubernetes"}
	hook := &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "tulle"},
		Webhooks: []admissionv1.ValidatingWebhook{{Name: "v.tulle.dev", ClientConfig: admissionv1.WebhookClientConfig{
			Service: &admissionv1.ServiceReference{Namespace: service.Namespace, Name: service.Name}, CABundle: []byte("old"),
		}}},
	}
	cluster, _ := fakeCluster(
		t, namespace("has"), namespace("old"), namespace("none"), going, hook, bundle("has", func(*corev1.ConfigMap) {}),
		bundle("old", func(c *corev1.ConfigMap) { c.Data[RootsPEM] = "old" }),
	)
	roots := &testRoots{pem: "roots"}
	s := &Spread{
		bundles: &bundleReconciler{reader: cluster, writer: cluster, roots: roots},
		mutating: &webhookReconciler[*admissionv1.MutatingWebhookConfiguration]{
			reader: cluster, writer: cluster, roots: roots, namespace: service.Namespace, empty: &admissionv1.MutatingWebhookConfiguration{},
			list: &admissionv1.MutatingWebhookConfigurationList{}, configs: mutatingConfigs,
		},
		validating: &webhookReconciler[*admissionv1.ValidatingWebhookConfiguration]{
			reader: cluster, writer: cluster, roots: roots, namespace: service.Namespace, empty: &admissionv1.ValidatingWebhookConfiguration{},
			list: &admissionv1.ValidatingWebhookConfigurationList{}, configs: validatingConfigs,
		},
	}
	behind, err := s.Behind(t.Context())
	if want := []string{"namespace none", "namespace old", "webhook configuration tulle"}; err != nil || !slices.Equal(behind, want) {
		t.Errorf("behind are %q (%v), want %q", behind, err, want)
	}
	for _, name := range []string{"old", "none"} {
		if _, err := s.bundles.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.validating.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "tulle"}}); err != nil {
		t.Fatal(err)
	}
	if behind, err := s.Behind(t.Context()); err != nil || len(behind) > 0 {
		t.Errorf("behind are %q still (%v)", behind, err)
	}
}
