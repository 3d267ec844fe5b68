package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

// ValidatePath is where the API server asks about mesh objects.
const ValidatePath = "/validate"

// DryRunPrefix begins the warnings that are a preview.
const DryRunPrefix = "dry run: "

// Validator is [Validate] as an admission handler.
type Validator struct {
	// Namespace is Tulle's own, where policies are about the whole mesh.
	Namespace string
	// Preview says, in warnings, what the object would change, to somebody who may
	// write in its namespace; it is asked in a dry run alone. May be nil.
	Preview func(ctx context.Context, namespace string, raw []byte) []string
}

var _ admission.Handler = Validator{}

// Handle refuses an object that cannot be understood, as the API server itself
// would: 422 Invalid, with a cause for each field.
func (v Validator) Handle(ctx context.Context, request admission.Request) admission.Response {
	if request.Operation != admissionv1.Create && request.Operation != admissionv1.Update || request.SubResource != "" {
		return admission.Allowed("")
	}
	object := empty(request.Kind.Kind)
	if object == nil || request.Kind.Group != v1alpha1.Group {
		return admission.Allowed("")
	}
	if err := json.Unmarshal(request.Object.Raw, object); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("reading the %s: %w", request.Kind.Kind, err))
	}
	// What is on its way out must be able to lose its finalizers, however bad
	// it is.
	if object.GetDeletionTimestamp() != nil {
		return admission.Allowed("")
	}
	warnings, problems := Validate(object, v.Namespace)
	if len(problems) == 0 {
		if request.DryRun != nil && *request.DryRun && v.Preview != nil {
			for _, sentence := range v.Preview(ctx, request.Namespace, request.Object.Raw) {
				warnings = append(warnings, DryRunPrefix+sentence)
			}
		}
		return admission.Allowed("").WithWarnings(warnings...)
	}
	kind := schema.GroupKind{Group: request.Kind.Group, Kind: request.Kind.Kind}
	status := apierrors.NewInvalid(kind, request.Name, problems).Status()
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Result:   &status,
		Warnings: warnings,
	}}
}

// empty returns an object to read a request into, nil for a kind that is not
// the mesh's.
func empty(kind string) client.Object {
	switch kind {
	case "MeshPolicy":
		return &v1alpha1.MeshPolicy{}
	case "TrafficSplit":
		return &v1alpha1.TrafficSplit{}
	case "ExternalService":
		return &v1alpha1.ExternalService{}
	case "MeshConfig":
		return &v1alpha1.MeshConfig{}
	}
	return nil
}
