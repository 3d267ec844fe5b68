package trust

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// webhookReconciler keeps the roots in the caBundle of a webhook configuration,
// by which the API server verifies whom it calls. Manifests leave it out: who
// writes them cannot know it. To write those of mutation is a permission that
// comes with each revision's own (deploy/control-plane).
//
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations;validatingwebhookconfigurations,verbs=list;watch
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=validatingwebhookconfigurations,resourceNames=tulle,verbs=update
type webhookReconciler[T client.Object] struct {
	reader    client.Reader
	writer    client.Writer
	roots     Roots
	namespace string
	empty     T
	list      client.ObjectList
	configs   func(T) []*admissionv1.WebhookClientConfig
}

func forObject[T client.Object]() handler.TypedEventHandler[T, reconcile.Request] {
	return &handler.TypedEnqueueRequestForObject[T]{}
}

// all asks for every configuration of ours.
func (r *webhookReconciler[T]) all(ctx context.Context) (requests []reconcile.Request, err error) {
	list := r.list.DeepCopyObject().(client.ObjectList)
	if err := r.reader.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list webhook configurations: %w", err)
	}
	err = meta.EachListItem(list, func(o runtime.Object) error {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o.(client.Object))})
		return nil
	})
	return requests, err
}

// behind names the configurations that do not have the present roots.
func (r *webhookReconciler[T]) behind(ctx context.Context) (out []string, err error) {
	list := r.list.DeepCopyObject().(client.ObjectList)
	if err := r.reader.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list webhook configurations: %w", err)
	}
	err = meta.EachListItem(list, func(o runtime.Object) error {
		if c := o.DeepCopyObject().(T); r.fill(c) {
			out = append(out, "webhook configuration "+c.GetName())
		}
		return nil
	})
	return out, err
}

// Reconcile writes the configuration if a webhook that calls us has another
// caBundle.
func (r *webhookReconciler[T]) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	current := r.empty.DeepCopyObject().(T)
	if err := r.reader.Get(ctx, request.NamespacedName, current); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !r.fill(current) {
		return reconcile.Result{}, nil
	}
	err := r.writer.Update(ctx, current)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil // the event that the cache has not seen yet asks again
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("caBundle of %T %s: %w", current, request.Name, err)
	}
	log.FromContext(ctx).Info("updated the webhooks' caBundle", "configuration", request.Name)
	return reconcile.Result{}, nil
}

// controlPlane reports whether the Service is that of a revision.
func controlPlane(service string) bool {
	return service == "tulled" || strings.HasPrefix(service, "tulled-")
}

// fill sets the caBundle of those webhooks that call a control plane, and reports
// whether one had another.
func (r *webhookReconciler[T]) fill(configuration T) (changed bool) {
	roots := r.roots.Roots()
	for _, c := range r.configs(configuration) {
		if c.Service == nil || c.Service.Namespace != r.namespace || !controlPlane(c.Service.Name) {
			continue
		}
		if !bytes.Equal(c.CABundle, roots) {
			c.CABundle, changed = bytes.Clone(roots), true
		}
	}
	return changed
}

func mutatingConfigs(m *admissionv1.MutatingWebhookConfiguration) (configs []*admissionv1.WebhookClientConfig) {
	for i := range m.Webhooks {
		configs = append(configs, &m.Webhooks[i].ClientConfig)
	}
	return configs
}

func validatingConfigs(v *admissionv1.ValidatingWebhookConfiguration) (configs []*admissionv1.WebhookClientConfig) {
	for i := range v.Webhooks {
		configs = append(configs, &v.Webhooks[i].ClientConfig)
	}
	return configs
}
