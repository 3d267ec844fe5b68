package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/webhook"
)

// labelled reads every namespace with the same labels, or fails.
type labelled struct {
	client.Reader
	labels map[string]string
	err    error
}

func (l labelled) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	object.SetLabels(l.labels)
	return l.err
}

func inject(t *testing.T, namespaces labelled, pod string, change func(*admission.Request)) admission.Response {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(pod))
	if err != nil {
		t.Fatal(err)
	}
	request := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		Operation: admissionv1.Create,
		Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Namespace: "shop",
		Object:    runtime.RawExtension{Raw: raw},
	}}
	change(&request)
	i := &webhook.Injector{Settings: settings, Namespaces: namespaces, Log: logr.Discard()}
	return i.Handle(t.Context(), request)
}

func plain(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("testdata/plain/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func meshed() labelled { return labelled{labels: map[string]string{webhook.LabelInject: "enabled"}} }

func unchanged(*admission.Request) {}

func TestAPodWhoseNamespaceCannotBeReadWaits(t *testing.T) {
	response := inject(t, labelled{err: errors.New("the API server is away")}, plain(t), unchanged)
	if response.Allowed || response.Result.Code != http.StatusInternalServerError {
		t.Errorf("allowed %t, %v; want status 500", response.Allowed, response.Result)
	}
}

func TestFieldsOfANewerAPIServerStay(t *testing.T) {
	pod := strings.Replace(plain(t), "image: example.com/app:1", "image: example.com/app:1\n    fieldOfTheFuture: {a: 1}", 1)
	response := inject(t, meshed(), pod, unchanged)
	if !response.Allowed || len(response.Patches) == 0 {
		t.Fatalf("allowed %t, %d patches", response.Allowed, len(response.Patches))
	}
	for _, p := range response.Patches {
		sleep := p.Operation == "add" && p.Path == "/spec/containers/0/lifecycle"
		if p.Operation == "remove" || strings.HasPrefix(p.Path, "/spec/containers") && !sleep {
			t.Errorf("the patch touches what is not Tulle's: %s %s", p.Operation, p.Path)
		}
	}
}

func TestARequestThatNamesTheNamespaceForThePod(t *testing.T) {
	pod := strings.Replace(plain(t), "namespace: shop", "", 1)
	response := inject(t, meshed(), pod, func(r *admission.Request) { r.Namespace = "kube-system" })
	if !response.Allowed || len(response.Patches) != 0 {
		t.Errorf("allowed %t, %d patches; want a pod of kube-system left alone", response.Allowed, len(response.Patches))
	}
}

func TestOnlyNewPodsAreInjected(t *testing.T) {
	for name, change := range map[string]func(*admission.Request){
		"an update":       func(r *admission.Request) { r.Operation = admissionv1.Update },
		"a subresource":   func(r *admission.Request) { r.SubResource = "eviction" },
		"a kind not ours": func(r *admission.Request) { r.Kind.Kind = "Deployment" },
	} {
		response := inject(t, meshed(), plain(t), change)
		if !response.Allowed || len(response.Patches) != 0 {
			t.Errorf("%s: allowed %t, %d patches", name, response.Allowed, len(response.Patches))
		}
	}
}

func TestARefusalSaysWhy(t *testing.T) {
	var pod corev1.Pod
	if err := yaml.Unmarshal([]byte(plain(t)), &pod); err != nil {
		t.Fatal(err)
	}
	pod.Annotations = map[string]string{webhook.AnnotationProxyCPU: "lots"}
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	response := inject(t, meshed(), string(raw), unchanged)
	if response.Allowed || response.Result.Code != http.StatusForbidden || !strings.Contains(response.Result.Message, `mesh.tulle.dev/proxy-cpu is "lots"`) {
		t.Errorf("allowed %t, %v", response.Allowed, response.Result)
	}
}
