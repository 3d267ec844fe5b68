package webhook_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/webhook"
)

// validationCase is one of testdata/validation/cases.yaml.
type validationCase struct {
	Case     string               `json:"case"`
	Object   runtime.RawExtension `json:"object"`
	Refused  []string             `json:"refused"`
	Warnings []string             `json:"warnings"`
}

func validationCases(t *testing.T) []validationCase {
	t.Helper()
	raw, err := os.ReadFile("testdata/validation/cases.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var cases []validationCase
	if err := yaml.UnmarshalStrict(raw, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) == 0 {
		t.Fatal("no cases")
	}
	return cases
}

func TestMeshObjectsAreJudged(t *testing.T) {
	for _, c := range validationCases(t) {
		t.Run(c.Case, func(t *testing.T) {
			response := webhook.Validator{Namespace: "tulle-system"}.Handle(t.Context(), requestFor(t, c.Object.Raw, admissionv1.Create))
			var refused []string
			if response.Result != nil && response.Result.Details != nil {
				for _, cause := range response.Result.Details.Causes {
					refused = append(refused, cause.Field+": "+cause.Message)
				}
			}
			match(t, "refused", c.Refused, refused)
			match(t, "warnings", c.Warnings, response.Warnings)
			if response.Allowed != (len(c.Refused) == 0) {
				t.Errorf("allowed: %t", response.Allowed)
			}
			if !response.Allowed && response.Result.Code != http.StatusUnprocessableEntity {
				t.Errorf("status %d, want 422", response.Result.Code)
			}
		})
	}
}

// match wants each text found to have the text that is expected at its place
// in it, somewhere.
func match(t *testing.T, what string, want, got []string) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%s: %d, want %d:\n%s", what, len(got), len(want), strings.Join(got, "\n"))
		return
	}
	for i := range want {
		at, sentence, ok := strings.Cut(want[i], ": ")
		if !ok || !strings.Contains(got[i], at+": ") || !strings.Contains(got[i], sentence) {
			t.Errorf("%s[%d] is\n%s\nwant\n%s", what, i, got[i], want[i])
		}
	}
}

func TestWhatIsBeingDeletedIsNotJudged(t *testing.T) {
	split := v1alpha1.TrafficSplit{Spec: v1alpha1.TrafficSplitSpec{Service: "NO SERVICE"}}
	split.Kind = "TrafficSplit"
	judge := func() admission.Response {
		raw, err := json.Marshal(split)
		if err != nil {
			t.Fatal(err)
		}
		return webhook.Validator{}.Handle(t.Context(), requestFor(t, raw, admissionv1.Update))
	}
	if judge().Allowed {
		t.Error("a bad split was let in")
	}
	now := metav1.Now()
	split.DeletionTimestamp = &now
	if !judge().Allowed {
		t.Error("a bad split cannot lose its finalizers")
	}
}

func TestOtherKindsAreNoneOfOurBusiness(t *testing.T) {
	request := requestFor(t, []byte(`{"kind":"TrafficSplit"}`), admissionv1.Create)
	request.Kind.Group = "split.smi-spec.io"
	if response := (webhook.Validator{}).Handle(t.Context(), request); !response.Allowed {
		t.Errorf("refused: %v", response.Result)
	}
}

// requestFor is what the API server asks about a mesh object.
func TestADryRunIsAnsweredWithAPreview(t *testing.T) {
	asked := 0
	v := webhook.Validator{Preview: func(_ context.Context, _ string, raw []byte) []string {
		asked++
		return []string{"this would change 1 of 2 proxies"}
	}}
	raw := []byte(`{"apiVersion":"mesh.tulle.dev/v1alpha1","kind":"MeshPolicy","metadata":{"name":"p","namespace":"shop"},"spec":{"mtls":{"mode":"Strict"}}}`)
	request := requestFor(t, raw, admissionv1.Create)
	if got := v.Handle(t.Context(), request); !got.Allowed || len(got.Warnings) > 0 || asked > 0 {
		t.Errorf("what is stored is previewed: %+v", got)
	}
	request.DryRun = new(true)
	if got := v.Handle(t.Context(), request); !got.Allowed || !slices.Equal(got.Warnings, []string{"dry run: this would change 1 of 2 proxies"}) {
		t.Errorf("a dry run is answered with %+v", got)
	}
}

func requestFor(t *testing.T, raw []byte, operation admissionv1.Operation) admission.Request {
	t.Helper()
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal(raw, &object); err != nil {
		t.Fatal(err)
	}
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		Operation: operation,
		Kind:      metav1.GroupVersionKind{Group: v1alpha1.Group, Version: v1alpha1.Version, Kind: object.Kind},
		Name:      object.Name,
		Object:    runtime.RawExtension{Raw: raw},
	}}
}
