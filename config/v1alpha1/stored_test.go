package v1alpha1_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

// TestWhatIsStoredStaysReadable stores objects under the CRDs of testdata/stored,
// which are older ones, and installs today's over them, as an upgrade does.
func TestWhatIsStoredStaysReadable(t *testing.T) {
	older := filepath.Join("testdata", "stored")
	crds, err := filepath.Glob(filepath.Join(older, "mesh.tulle.dev_*.yaml")) // a newer kind has none
	if err != nil || len(crds) == 0 {
		t.Fatalf("there are no older CRDs: %v", err)
	}
	config := apitest.StartWith(t, func(e *envtest.Environment) { e.CRDDirectoryPaths = crds })
	content, err := os.ReadFile(filepath.Join(older, "objects.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var objects []map[string]any
	if err := yaml.UnmarshalStrict(content, &objects); err != nil || len(objects) == 0 {
		t.Fatalf("reading the objects: %v", err)
	}
	client := dynamic.NewForConfigOrDie(config)
	of := func(o *unstructured.Unstructured) dynamic.ResourceInterface {
		r := client.Resource(v1alpha1.GroupVersion().WithResource(plurals()[o.GetKind()]))
		if o.GetNamespace() == "" {
			return r
		}
		return r.Namespace(o.GetNamespace())
	}
	var stored []*unstructured.Unstructured
	for _, o := range objects {
		object := &unstructured.Unstructured{Object: o}
		created, err := of(object).Create(t.Context(), object, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
		if err != nil {
			t.Fatalf("storing %s %s: %v", object.GetKind(), object.GetName(), err)
		}
		stored = append(stored, created)
	}

	root, err := apitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{filepath.Join(root, "deploy", "crds")}}); err != nil {
		t.Fatalf("installing today's CRDs: %v", err)
	}
	kinds := map[string]func() any{
		"MeshPolicy":   func() any { return &v1alpha1.MeshPolicy{} },
		"TrafficSplit": func() any { return &v1alpha1.TrafficSplit{} },
		"MeshConfig":   func() any { return &v1alpha1.MeshConfig{} },
	}
	for _, old := range stored {
		name := old.GetKind() + " " + old.GetName()
		now, err := of(old).Get(t.Context(), old.GetName(), metav1.GetOptions{})
		if err != nil {
			t.Errorf("reading %s: %v", name, err)
			continue
		}
		for path, was := range leaves(old.Object["spec"]) {
			if is, ok := leaves(now.Object["spec"])[path]; !ok || !cmp.Equal(was, is) {
				t.Errorf("%s had %s: %v, and has %v", name, path, was, is)
			}
		}
		raw, err := json.Marshal(now.Object)
		if err != nil {
			t.Fatal(err)
		}
		strict := json.NewDecoder(bytes.NewReader(raw))
		strict.DisallowUnknownFields()
		if err := strict.Decode(kinds[old.GetKind()]()); err != nil {
			t.Errorf("%s cannot be read by the control plane: %v", name, err)
		}
		// A change of something else validates the whole again.
		patch := []byte(`{"metadata":{"labels":{"touched":"yes"}}}`)
		if _, err := of(old).Patch(t.Context(), old.GetName(), types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Errorf("changing %s: %v", name, err)
		}
	}
}

// leaves are the values in an object by the path that leads to them.
func leaves(value any) map[string]any {
	out := map[string]any{}
	var walk func(path string, value any)
	walk = func(path string, value any) {
		switch v := value.(type) {
		case map[string]any:
			for k, inner := range v {
				walk(path+"."+k, inner)
			}
		default:
			out[path] = value
		}
	}
	walk("spec", value)
	return out
}
