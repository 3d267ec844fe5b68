package webhook_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"
	crwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/webhook"
)

// TestAgainstARealAPIServer has an API server ask, through the webhook
// configurations of deploy, about every case of testdata.
func TestAgainstARealAPIServer(t *testing.T) {
	log.SetLogger(logr.Discard())
	s := startAPIServer(t)
	t.Run("pods", func(t *testing.T) { testPods(t, s) })
	t.Run("objects", func(t *testing.T) { testObjects(t, s) })
}

// apiServer is an API server that asks the test's webhooks.
type apiServer struct {
	client.Client
	warnings *warnings
}

// warnings are what the API server said beside its answers.
type warnings struct {
	mu   sync.Mutex
	said []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, text)
}

// take returns the warnings since the last time.
func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	said := w.said
	w.said = nil
	return said
}

func startAPIServer(t *testing.T) apiServer {
	t.Helper()
	root, err := apitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	var hooks *envtest.WebhookInstallOptions
	config := apitest.StartWith(t, func(e *envtest.Environment) {
		e.WebhookInstallOptions.Paths = []string{
			filepath.Join(root, "deploy", "base", "validation.yaml"), filepath.Join(root, "deploy", "control-plane", "injection.yaml"),
		}
		hooks = &e.WebhookInstallOptions
	})
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	said := &warnings{}
	config = rest.CopyConfig(config)
	config.WarningHandler = said
	config.QPS = -1
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	serveWebhooks(t, hooks, c)
	return apiServer{Client: c, warnings: said}
}

// serveWebhooks answers where envtest told the API server to ask.
func serveWebhooks(t *testing.T, at *envtest.WebhookInstallOptions, namespaces client.Reader) {
	t.Helper()
	server := crwebhook.NewServer(crwebhook.Options{
		Host:    at.LocalServingHost,
		Port:    at.LocalServingPort,
		CertDir: at.LocalServingCertDir,
	})
	server.Register(webhook.InjectPath, &admission.Webhook{Handler: &webhook.Injector{
		Settings:   settings,
		Namespaces: namespaces,
		Log:        logr.Discard(),
	}})
	server.Register(webhook.ValidatePath, &admission.Webhook{Handler: webhook.Validator{Namespace: "tulle-system"}})
	done := make(chan error, 1)
	go func() { done <- server.Start(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("serving webhooks: %v", err)
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for server.StartedChecker()(nil) != nil {
		select {
		case <-tick.C:
		case err := <-done:
			t.Fatalf("serving webhooks: %v", err)
		}
	}
}

// testPods creates every pod of testdata. What the API server stores has what
// the golden has, and the API server's defaults.
func testPods(t *testing.T, s apiServer) {
	cases, err := filepath.Glob("testdata/*/pod.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for i, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			pod := read[corev1.Pod](t, file)
			want, _, refusal := webhook.Inject(pod.DeepCopy(), namespaceOf(t, dir).Labels, settings())
			if pod.Namespace != "kube-system" {
				namespace := namespaceOf(t, dir)
				namespace.Name = fmt.Sprintf("case-%d", i)
				if err := s.Create(t.Context(), &namespace); err != nil {
					t.Fatal(err)
				}
				pod.Namespace = namespace.Name
			}
			if pod.Spec.ServiceAccountName == "" {
				// What the ServiceAccount plugin would do, which the test's API
				// server does not have.
				pod.Spec.ServiceAccountName = "default"
			}
			if _, mirror := pod.Annotations["kubernetes.io/config.mirror"]; mirror {
				t.Logf("the API server takes mirror pods from kubelets alone")
				return
			}
			s.warnings.take()
			err := s.Create(t.Context(), &pod)
			if refusal != nil {
				if err == nil || !strings.Contains(err.Error(), refusal.Error()) {
					t.Errorf("the API server says %v, want %v", err, refusal)
				}
				return
			}
			if filepath.Base(dir) == "pod-security" {
				if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "NET_ADMIN") {
					t.Errorf("the API server says %v, want a refusal by pod security", err)
				}
				if said := s.warnings.take(); !slices.ContainsFunc(said, func(w string) bool { return strings.Contains(w, webhook.LabelInject) }) {
					t.Errorf("the warnings are %q, want ours among them", said)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			stored(t, want, &pod)
		})
	}
}

// stored compares what is Tulle's in two pods.
func stored(t *testing.T, want, got *corev1.Pod) {
	t.Helper()
	if w, g := names(want), names(got); !slices.Equal(w, g) {
		t.Errorf("containers %v, want %v", g, w)
	}
	if w, g := bootstrapOf(want), bootstrapOf(got); w != g {
		t.Errorf("bootstrap\n%s\nwant\n%s", g, w)
	}
	if w, g := want.Annotations[webhook.AnnotationStatus], got.Annotations[webhook.AnnotationStatus]; w != g {
		t.Errorf("the status is %s, want %s", g, w)
	}
	if want.Labels[webhook.LabelProxy] != got.Labels[webhook.LabelProxy] {
		t.Errorf("label %s is %q", webhook.LabelProxy, got.Labels[webhook.LabelProxy])
	}
	for i, c := range want.Spec.Containers {
		w, g := c.ReadinessProbe, got.Spec.Containers[i].ReadinessProbe
		if w == nil || w.HTTPGet == nil {
			continue
		}
		if g == nil || g.HTTPGet == nil || g.HTTPGet.Path != w.HTTPGet.Path || g.HTTPGet.Port != w.HTTPGet.Port {
			t.Errorf("container %s: readiness probe %v, want %v", c.Name, g, w)
		}
	}
}

func names(pod *corev1.Pod) []string {
	var all []string
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		all = append(all, c.Name)
	}
	return all
}

// testObjects creates every object of testdata/validation. One that breaks the
// CRD's own rules as well is refused by those first.
func testObjects(t *testing.T, s apiServer) {
	if err := s.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "objects"}}); err != nil {
		t.Fatal(err)
	}
	for i, c := range validationCases(t) {
		t.Run(c.Case, func(t *testing.T) {
			var object unstructured.Unstructured
			if err := json.Unmarshal(c.Object.Raw, &object.Object); err != nil {
				t.Fatal(err)
			}
			object.SetAPIVersion(v1alpha1.Group + "/" + v1alpha1.Version)
			object.SetName(fmt.Sprintf("case-%d", i))
			object.SetNamespace("objects")
			if object.GetKind() == "MeshConfig" {
				object.SetName(v1alpha1.MeshConfigName)
				object.SetNamespace("")
			}
			s.warnings.take()
			err := s.Create(t.Context(), &object, client.DryRunAll)
			if len(c.Refused) > 0 {
				if !apierrors.IsInvalid(err) {
					t.Errorf("the API server says %v, want Invalid", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			match(t, "warnings", c.Warnings, s.warnings.take())
		})
	}
}
