package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// InjectPath is where the API server asks for pods' injection.
const InjectPath = "/inject"

// Injector is [Inject] as an admission handler.
//
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get
type Injector struct {
	// Settings returns those of this moment.
	Settings func() Settings
	// Namespaces reads namespaces from the API server itself: a cache may not
	// have the label yet for which the API server sends us the first pod, and
	// that pod would run outside of the mesh.
	Namespaces client.Reader
	Log        logr.Logger
}

var _ admission.Handler = (*Injector)(nil)

// Handle injects the pod of a request, or refuses it with the reason.
func (i *Injector) Handle(ctx context.Context, request admission.Request) admission.Response {
	if request.Operation != admissionv1.Create || request.SubResource != "" || request.Kind.Kind != "Pod" {
		return admission.Allowed("")
	}
	var pod corev1.Pod
	if err := json.Unmarshal(request.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("reading the pod: %w", err))
	}
	if pod.Namespace == "" {
		pod.Namespace = request.Namespace
	}
	if pod.UID == "" {
		// The API server has not given it one, nor maybe a name: the request tells it from
		// others. The patch is of two pods that both have it.
		pod.UID = request.UID
	}
	log := i.Log.WithValues("namespace", pod.Namespace, "pod", nameOf(&pod))

	var namespace corev1.Namespace
	if err := i.Namespaces.Get(ctx, client.ObjectKey{Name: pod.Namespace}, &namespace); err != nil {
		log.Error(err, "refusing a pod whose namespace cannot be read")
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("reading the labels of the namespace %s: %w", pod.Namespace, err))
	}
	out, warnings, err := Inject(&pod, namespace.Labels, i.Settings())
	if err != nil {
		log.Info("pod refused", "reason", err.Error())
		return admission.Denied("Tulle cannot put this pod into the mesh: " + err.Error()).WithWarnings(warnings...)
	}
	if out == &pod {
		return admission.Allowed("").WithWarnings(warnings...)
	}
	log.V(1).Info("pod injected")
	return patch(&pod, out).WithWarnings(warnings...)
}

// patch is the difference between two pods. Both are written by us, so that
// fields of a newer API server, which our types do not know, are in neither and
// stay as they are.
func patch(before, after *corev1.Pod) admission.Response {
	old, err := json.Marshal(before)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("writing the pod as it was: %w", err))
	}
	fresh, err := json.Marshal(after)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("writing the injected pod: %w", err))
	}
	return admission.PatchResponseFromRaw(old, fresh)
}

// nameOf is the pod's name, or what it will begin with.
func nameOf(pod *corev1.Pod) string {
	if pod.Name != "" {
		return pod.Name
	}
	return pod.GenerateName + "*"
}
