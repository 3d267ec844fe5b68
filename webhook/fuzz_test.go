package webhook_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/webhook"
)

// inMesh answers every question about a namespace: it is in the mesh.
type inMesh struct{ client.Reader }

func (inMesh) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	o.SetLabels(map[string]string{webhook.LabelInject: "enabled"})
	return nil
}

// seeds adds the YAML files of a pattern as JSON.
func seeds(f *testing.F, pattern string, add func([]byte)) {
	f.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		f.Fatalf("no files are %s: %v", pattern, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for document := range strings.SplitSeq(string(content), "\n---\n") {
			raw, err := yaml.YAMLToJSON([]byte(document))
			if err != nil {
				f.Fatal(err)
			}
			add(raw)
		}
	}
}

// Whatever a pod says, it is refused in words, left as it is, or given one proxy; and a
// second injection changes nothing.
func FuzzPods(f *testing.F) {
	seeds(f, "testdata/*/pod.yaml", func(raw []byte) { f.Add(raw) })
	f.Add([]byte(`{"metadata":{"annotations":{"mesh.tulle.dev/status":"{","mesh.tulle.dev/proxy-cpu":"1e99999999"}},"spec":{"containers":[{"name":"tulle-proxy"}]}}`))
	injector := &webhook.Injector{Settings: settings, Namespaces: inMesh{}, Log: logr.Discard()}
	f.Fuzz(func(t *testing.T, raw []byte) {
		response := injector.Handle(t.Context(), admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
			UID: "u", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Namespace: "shop", Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: raw},
		}})
		if !response.Allowed {
			if response.Result == nil || response.Result.Message == "" {
				t.Error("refused without a word")
			}
			return
		}
		var pod corev1.Pod
		if err := json.Unmarshal(raw, &pod); err != nil {
			t.Fatalf("what is no pod is let in: %v", err)
		}
		pod.Namespace = "shop"
		labels := map[string]string{webhook.LabelInject: "enabled"}
		before := pod.DeepCopy()
		once, _, err := webhook.Inject(&pod, labels, settings())
		if err != nil || once == &pod {
			return // the namespace that it named is another
		}
		if d := cmp.Diff(before, &pod); d != "" {
			t.Errorf("the pod that was given is changed:\n%s", d)
		}
		proxies := 0
		for _, c := range slices.Concat(once.Spec.InitContainers, once.Spec.Containers) {
			if c.Name == webhook.ContainerProxy {
				proxies++
				if len(c.VolumeMounts) != 2 {
					t.Errorf("the proxy is %+v", c)
				}
				if user := userOf(t, once); user < 32768 {
					t.Errorf("the proxy runs as %d", user)
				}
			}
		}
		if proxies != 1 {
			t.Errorf("there are %d proxies", proxies)
		}
		twice, _, err := webhook.Inject(once, labels, settings())
		if err != nil {
			t.Fatalf("the injected pod is refused: %v", err)
		}
		if d := cmp.Diff(once, twice); d != "" {
			t.Errorf("a second injection changes it:\n%s", d)
		}
	})
}

// Whatever an object of the mesh says, validation answers, the same each time; and what it
// lets in can be read.
func FuzzObjects(f *testing.F) {
	kinds := []string{"MeshPolicy", "TrafficSplit", "ExternalService", "MeshConfig"}
	seeds(f, "../deploy/samples/*.yaml", func(raw []byte) {
		var o struct{ Kind string }
		if err := json.Unmarshal(raw, &o); err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(max(0, slices.Index(kinds, o.Kind))), raw)
	})
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		name := kinds[int(kind)%len(kinds)]
		request := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
			UID: "u", Name: "a", Namespace: "shop", Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: raw},
			Kind: metav1.GroupVersionKind{Group: "mesh.tulle.dev", Version: "v1alpha1", Kind: name},
		}}
		first := webhook.Validator{}.Handle(t.Context(), request)
		if d := cmp.Diff(first, webhook.Validator{}.Handle(t.Context(), request)); d != "" {
			t.Errorf("the answer is another the second time:\n%s", d)
		}
		switch {
		case !first.Allowed && (first.Result == nil || first.Result.Message == ""):
			t.Error("refused without a word")
		case first.Allowed && !json.Valid(raw):
			t.Error("what is no JSON is let in")
		}
	})
}
