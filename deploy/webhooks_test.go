package deploy_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

const (
	namespaceWebhook = "namespace.inject.mesh.tulle.dev"
	podWebhook       = "pod.inject.mesh.tulle.dev"
	// By those that name a revision: of a namespace, of a pod that opts in
	// there, and of a pod that names it itself.
	namespaceRevision = "namespace.revision.inject.mesh.tulle.dev"
	podRevision       = "pod.revision.inject.mesh.tulle.dev"
	ownRevision       = "own.revision.inject.mesh.tulle.dev"
	validateWebhook   = "validate.mesh.tulle.dev"
)

// recorder is a webhook server that allows everything and remembers which of the
// webhooks were called.
type recorder struct {
	server *httptest.Server
	mu     sync.Mutex
	called []string
}

func newRecorder(t *testing.T) *recorder {
	r := &recorder{}
	r.server = httptest.NewTLSServer(r)
	t.Cleanup(r.server.Close)
	return r
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	review := &admissionv1.AdmissionReview{}
	if err := json.NewDecoder(request.Body).Decode(review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.called = append(r.called, strings.TrimPrefix(request.URL.Path, "/"))
	r.mu.Unlock()
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	w.Header().Set("Content-Type", "application/json")
	// The API server reports an answer that it could not read.
	_ = json.NewEncoder(w).Encode(review)
}

// take returns the webhooks that were called since the last time.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	called := r.called
	r.called = nil
	return called
}

// redirect makes a webhook's client configuration lead to the recorder, after a
// look at where it would have led to.
func (r *recorder) redirect(t *testing.T, configuration *admissionregistrationv1.WebhookClientConfig, to, webhook, path string) {
	t.Helper()
	service := configuration.Service
	if service == nil || service.Namespace != "tulle-system" || service.Name != to || *service.Port != 443 || *service.Path != path {
		t.Errorf("webhook %s leads to %v, not to %s.tulle-system:443%s", webhook, service, to, path)
	}
	url := r.server.URL + "/" + webhook
	*configuration = admissionregistrationv1.WebhookClientConfig{
		URL:      &url,
		CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw}),
	}
}

// redirectAll replaces the applied configurations by ones that lead to the
// recorder and are the same otherwise.
func (r *recorder) redirectAll(t *testing.T, clients kubernetes.Interface) {
	t.Helper()
	for name, c := range map[string]struct{ service, mark string }{"tulle": {"tulled", ""}, "tulle-canary": {"tulled-canary", "canary:"}} {
		mutating, err := clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range mutating.Webhooks {
			r.redirect(t, &mutating.Webhooks[i].ClientConfig, c.service, c.mark+mutating.Webhooks[i].Name, "/inject")
		}
		if _, err := clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(t.Context(), mutating, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	validating, err := clients.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), "tulle", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range validating.Webhooks {
		r.redirect(t, &validating.Webhooks[i].ClientConfig, "tulled", validating.Webhooks[i].Name, "/validate")
	}
	if _, err := clients.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), validating, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func testWebhooks(t *testing.T, config *rest.Config) {
	clients := kubernetes.NewForConfigOrDie(config)
	// Without the Service nobody is called at its address, which leads nowhere
	// here, in the moment before the redirected configurations are seen.
	if err := clients.CoreV1().Services("tulle-system").Delete(t.Context(), "tulled", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	record := newRecorder(t)
	record.redirectAll(t, clients)
	createNamespace(t, config, "meshed", map[string]string{"mesh.tulle.dev/inject": "enabled"})
	createNamespace(t, config, "plain", nil)
	createNamespace(t, config, "canary", map[string]string{"mesh.tulle.dev/inject": "enabled", "mesh.tulle.dev/revision": "canary"})
	createNamespace(t, config, "default-named", map[string]string{"mesh.tulle.dev/inject": "enabled", "mesh.tulle.dev/revision": "default"})
	createNamespace(t, config, "canary-plain", map[string]string{"mesh.tulle.dev/revision": "canary"})
	createNamespace(t, config, "nobodys", map[string]string{"mesh.tulle.dev/inject": "enabled", "mesh.tulle.dev/revision": "nobody"})
	createNamespace(t, config, "off", map[string]string{"mesh.tulle.dev/inject": "disabled"})
	createNamespace(t, config, "kube-node-lease-like", map[string]string{"mesh.tulle.dev/inject": "enabled"})
	// Even where somebody labels a namespace that must be left alone.
	for _, name := range []string{"kube-system", "kube-node-lease", "tulle-system"} {
		label := []byte(`{"metadata":{"labels":{"mesh.tulle.dev/inject":"enabled","pod-security.kubernetes.io/enforce":"privileged"}}}`)
		if _, err := clients.CoreV1().Namespaces().Patch(t.Context(), name, "application/merge-patch+json", label, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	waitForWebhooks(t, clients, record)

	for _, c := range []struct {
		namespace, podLabel, revision string
		want                          []string
	}{
		{"meshed", "", "", []string{namespaceWebhook}},
		{"meshed", "enabled", "", []string{namespaceWebhook}},
		{"meshed", "disabled", "", nil},
		{"kube-node-lease-like", "", "", []string{namespaceWebhook}},
		{"plain", "", "", nil},
		{"plain", "disabled", "", nil},
		{"plain", "enabled", "", []string{podWebhook}},
		{"off", "", "", nil},
		{"off", "enabled", "", []string{podWebhook}},
		{"kube-system", "", "", nil},
		{"kube-system", "enabled", "", nil},
		{"kube-node-lease", "enabled", "", nil},
		{"tulle-system", "", "", nil},
		{"tulle-system", "enabled", "", nil},
		{"canary", "", "", []string{"canary:" + namespaceRevision}},
		{"canary", "disabled", "", nil},
		{"canary", "", "default", []string{ownRevision}},
		{"meshed", "", "canary", []string{"canary:" + ownRevision}},
		{"meshed", "disabled", "canary", nil},
		{"default-named", "", "", []string{namespaceRevision}},
		{"canary-plain", "", "", nil},
		{"canary-plain", "enabled", "", []string{"canary:" + podRevision}},
		{"canary-plain", "enabled", "default", []string{ownRevision}},
		{"plain", "enabled", "canary", []string{"canary:" + ownRevision}},
		{"kube-system", "enabled", "canary", nil},
	} {
		t.Run("pod in "+c.namespace+" labelled "+c.podLabel+" "+c.revision, func(t *testing.T) {
			if err := createPod(t, clients, podIn(c.namespace, c.podLabel, c.revision)); err != nil {
				t.Fatal(err)
			}
			if got := record.take(); !slices.Equal(got, c.want) {
				t.Errorf("called %v, want %v", got, c.want)
			}
		})
	}
	t.Run("no pod of the mesh without a proxy", func(t *testing.T) {
		testMeshed(t, clients)
		record.take()
	})
	t.Run("objects of the mesh", func(t *testing.T) { testValidation(t, config, record) })
	t.Run("fail closed, for what they are about alone", func(t *testing.T) { testFailClosed(t, config, record) })
}

func testValidation(t *testing.T, config *rest.Config, record *recorder) {
	api := meshClient(t, config)
	policy := strictPolicy()
	if err := api.Create(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	if got := record.take(); !slices.Equal(got, []string{validateWebhook}) {
		t.Errorf("a create called %v", got)
	}
	policy.Spec.MTLS.Mode = v1alpha1.MTLSPermissive
	if err := api.Update(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	if got := record.take(); !slices.Equal(got, []string{validateWebhook}) {
		t.Errorf("an update called %v", got)
	}
	if err := api.Status().Update(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	if err := api.Delete(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	if got := record.take(); len(got) > 0 {
		t.Errorf("an update of status and a delete called %v", got)
	}
}

// testFailClosed takes the webhook server away.
func testFailClosed(t *testing.T, config *rest.Config, record *recorder) {
	clients, api := kubernetes.NewForConfigOrDie(config), meshClient(t, config)
	kept := strictPolicy()
	kept.Name = "kept"
	if err := api.Create(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	record.server.Close()

	wantRefusal := func(what, webhook string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), `failed calling webhook "`+webhook+`"`) {
			t.Errorf("%s while the control plane is away: %v", what, err)
		}
	}
	wantRefusal("a pod of a meshed namespace", namespaceWebhook, createPod(t, clients, podIn("meshed", "", "")))
	wantRefusal("a pod that opts in", podWebhook, createPod(t, clients, podIn("plain", "enabled", "")))
	wantRefusal("a policy", validateWebhook, api.Create(t.Context(), strictPolicy()))

	for _, c := range []struct{ namespace, podLabel string }{
		{"plain", ""}, {"meshed", "disabled"}, {"off", ""}, {"kube-system", "enabled"}, {"tulle-system", "enabled"},
	} {
		if err := createPod(t, clients, podIn(c.namespace, c.podLabel, "")); err != nil {
			t.Errorf("a pod in %s labelled %q: %v", c.namespace, c.podLabel, err)
		}
	}
	if err := api.Delete(t.Context(), kept); err != nil {
		t.Errorf("deleting a policy while the control plane is away: %v", err)
	}
	configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: "meshed"}}
	if err := api.Create(t.Context(), configMap); err != nil {
		t.Errorf("a ConfigMap of a meshed namespace: %v", err)
	}
}

// waitForWebhooks waits until the API server has seen the redirected
// configurations and the new namespaces.
func waitForWebhooks(t *testing.T, clients kubernetes.Interface, record *recorder) {
	t.Helper()
	eventually(t, "the injection webhooks are called", func() bool {
		return createPod(t, clients, podIn("meshed", "", "")) == nil && slices.Equal(record.take(), []string{namespaceWebhook}) &&
			createPod(t, clients, podIn("plain", "enabled", "")) == nil && slices.Equal(record.take(), []string{podWebhook}) &&
			createPod(t, clients, podIn("canary", "", "")) == nil && slices.Equal(record.take(), []string{"canary:" + namespaceRevision})
	})
	eventually(t, "pods without a proxy are refused", func() bool {
		pod := podIn("nobodys", "", "")
		pod.Spec.InitContainers = nil
		return createPod(t, clients, pod) != nil
	})
	for _, namespace := range []string{"kube-system", "kube-node-lease", "tulle-system"} {
		eventually(t, "pod security has seen the label of "+namespace, func() bool {
			return createPod(t, clients, podIn(namespace, "", "")) == nil
		})
	}
	record.take()
}

// eventually waits for a condition of the API server's caches, which nothing
// announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true,
		func(context.Context) (bool, error) { return condition(), nil })
	if err != nil {
		t.Fatalf("waiting until %s: %v", what, err)
	}
}

// createPod asks for a pod without keeping it.
func createPod(t *testing.T, clients kubernetes.Interface, pod *corev1.Pod) error {
	t.Helper()
	_, err := clients.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// podIn is a pod with a proxy, as injection would have given it one, and with the
// labels that are not empty.
func podIn(namespace, inject, revision string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "example", Namespace: namespace, Labels: map[string]string{}},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "tulle-proxy", Image: "localhost/envoy:1"}},
			Containers:     []corev1.Container{{Name: "app", Image: "localhost/app:1"}},
		},
	}
	for label, value := range map[string]string{"mesh.tulle.dev/inject": inject, "mesh.tulle.dev/revision": revision} {
		if value != "" {
			pod.Labels[label] = value
		}
	}
	return pod
}

// testMeshed creates pods without a proxy, which the webhooks here do not give
// them.
func testMeshed(t *testing.T, clients kubernetes.Interface) {
	host := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	windows := func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }
	windowsBySelector := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "windows"} }
	unlabelled := func(p *corev1.Pod) { p.Labels = nil }
	for _, c := range []struct {
		namespace, podLabel, revision string
		change                        func(*corev1.Pod)
		refused                       string // for want of a control plane of this revision
	}{
		{"nobodys", "", "", unlabelled, "nobody"},
		{"nobodys", "disabled", "", nil, ""},
		{"nobodys", "", "", host, ""},
		{"nobodys", "", "", windows, ""},
		{"nobodys", "", "", windowsBySelector, ""},
		{"meshed", "", "", nil, "default"},
		{"meshed", "", "another", nil, "another"},
		{"plain", "", "", unlabelled, ""},
		{"plain", "enabled", "another", nil, "another"},
		{"plain", "", "another", nil, ""},
		{"canary-plain", "enabled", "", nil, "canary"},
		{"kube-system", "enabled", "nobody", nil, ""},
	} {
		pod := podIn(c.namespace, c.podLabel, c.revision)
		pod.Spec.InitContainers = nil
		if c.change != nil {
			c.change(pod)
		}
		err := createPod(t, clients, pod)
		switch {
		case c.refused == "" && err != nil:
			t.Errorf("%+v was refused: %v", c, err)
		case c.refused != "" && (err == nil || !strings.Contains(err.Error(), "no control plane of the revision "+c.refused)):
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func strictPolicy() *v1alpha1.MeshPolicy {
	return &v1alpha1.MeshPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "strict", Namespace: "plain"},
		Spec:       v1alpha1.MeshPolicySpec{MTLS: &v1alpha1.MTLS{Mode: v1alpha1.MTLSStrict}},
	}
}

func meshClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return api
}
