package trust

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	managedBy      = "app.kubernetes.io/managed-by"
	managedByTulle = "tulle"
)

// bundleReconciler keeps the ConfigMap of a namespace as it ought to be. Its
// requests name namespaces.
//
// Listing and watching objects of one name is allowed by that name; creating
// cannot be restricted so.
//
// +kubebuilder:rbac:groups="",resources=configmaps,resourceNames=tulle-trust,verbs=list;watch;update;delete
// +kubebuilder:rbac:groups="",resources=configmaps,verbs=create
type bundleReconciler struct {
	reader client.Reader // namespaces' metadata, and the ConfigMaps
	writer client.Writer
	roots  Roots
}

// forNamespace turns an event of a namespace into a request.
func forNamespace() handler.TypedEventHandler[*metav1.PartialObjectMetadata, reconcile.Request] {
	return handler.TypedEnqueueRequestsFromMapFunc(
		func(_ context.Context, n *metav1.PartialObjectMetadata) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: n.GetName()}}}
		})
}

// forConfigMap turns an event of a ConfigMap into one for its namespace.
func forConfigMap() handler.TypedEventHandler[*corev1.ConfigMap, reconcile.Request] {
	return handler.TypedEnqueueRequestsFromMapFunc(
		func(_ context.Context, c *corev1.ConfigMap) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: c.GetNamespace()}}}
		})
}

// namespaceMeta is a namespace of which nothing but its metadata is wanted.
func namespaceMeta() *metav1.PartialObjectMetadata {
	n := &metav1.PartialObjectMetadata{}
	n.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return n
}

// Reconcile writes the ConfigMap of the namespace, if it differs from what it
// ought to be. Where the cache was behind, nothing is lost by going on: the
// event that it has not seen yet asks again.
func (r *bundleReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	namespace := namespaceMeta()
	if err := r.reader.Get(ctx, types.NamespacedName{Name: request.Name}, namespace); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !namespace.GetDeletionTimestamp().IsZero() {
		return reconcile.Result{}, nil
	}
	name := types.NamespacedName{Namespace: request.Name, Name: ConfigMapName}
	current := &corev1.ConfigMap{}
	err := r.reader.Get(ctx, name, current)
	switch {
	case apierrors.IsNotFound(err):
		err = r.create(ctx, name)
	case err == nil:
		err = r.repair(ctx, current)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("trust bundle %s: %w", name, err)
	}
	return reconcile.Result{}, nil
}

func (r *bundleReconciler) create(ctx context.Context, name types.NamespacedName) error {
	wanted := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
	r.fill(wanted)
	err := r.writer.Create(ctx, wanted)
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err),
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // it is there, or its namespace is going
	case err != nil:
		return fmt.Errorf("create: %w", err)
	}
	log.FromContext(ctx).V(1).Info("created the trust bundle", "namespace", name.Namespace)
	return nil
}

// repair writes the ConfigMap again if somebody has changed it or the roots are
// others. An immutable one can only be replaced.
func (r *bundleReconciler) repair(ctx context.Context, current *corev1.ConfigMap) error {
	immutable := current.Immutable != nil && *current.Immutable
	if !r.fill(current) && !immutable {
		return nil
	}
	if immutable {
		own := client.Preconditions{UID: &current.UID}
		if err := r.writer.Delete(ctx, current, own); client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete an immutable one: %w", err)
		}
		return nil // the deletion's event has it created again
	}
	err := r.writer.Update(ctx, current)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	log.FromContext(ctx).V(1).Info("updated the trust bundle", "namespace", current.Namespace)
	return nil
}

// fill makes the ConfigMap what it ought to be, and reports whether it was not.
// Labels and annotations of others stay.
func (r *bundleReconciler) fill(c *corev1.ConfigMap) (changed bool) {
	wanted := Data(r.roots.Roots())
	if !maps.Equal(c.Data, wanted) || len(c.BinaryData) > 0 {
		c.Data, c.BinaryData, changed = wanted, nil, true
	}
	if c.Labels[managedBy] != managedByTulle {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[managedBy], changed = managedByTulle, true
	}
	return changed
}

// namespaces asks for all namespaces.
func (r *bundleReconciler) namespaces(ctx context.Context) ([]reconcile.Request, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := r.reader.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	requests := make([]reconcile.Request, 0, len(list.Items))
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: list.Items[i].GetName()}})
	}
	return requests, nil
}

// behind names the namespaces whose ConfigMap does not have the present roots.
func (r *bundleReconciler) behind(ctx context.Context) ([]string, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := r.reader.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	wanted := Data(r.roots.Roots())
	var out []string
	for i := range list.Items {
		n := &list.Items[i]
		if !n.GetDeletionTimestamp().IsZero() {
			continue
		}
		current := &corev1.ConfigMap{}
		err := r.reader.Get(ctx, types.NamespacedName{Namespace: n.GetName(), Name: ConfigMapName}, current)
		if client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("trust bundle of namespace %s: %w", n.GetName(), err)
		}
		if err != nil || !maps.Equal(current.Data, wanted) {
			out = append(out, "namespace "+n.GetName())
		}
	}
	return out, nil
}
