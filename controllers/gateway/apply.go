package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/webhook"
)

// provide gives a Gateway what it is to have, where that is not so already. A mistake
// is the Gateway's author's to mend.
func (c *Controller) provide(ctx context.Context, gw *gatewayv1.Gateway) error {
	s := c.settings()
	var err error
	if s.Revision, err = c.revision(ctx, gw); err != nil {
		return err
	}
	want, err := Objects(gw, s)
	if err != nil {
		return err
	}
	scaled, err := scalingOf(gw)
	if err != nil {
		return err
	}
	have, complete, err := c.have(ctx, gw, want)
	if err != nil {
		return err
	}
	mark, err := fingerprint(want, have, scaled)
	if err != nil {
		return err
	}
	if !complete || c.applied(gw) != mark {
		for _, o := range want {
			if err := c.apply(ctx, o, scaled); err != nil {
				return err
			}
		}
		log.FromContext(ctx).V(1).Info("gateway applied", "gateway", client.ObjectKeyFromObject(gw))
		c.note(gw, func(r *record) { r.applied = mark })
	}
	return c.release(ctx, gw, want)
}

// revision is that of the control plane that is to serve the Gateway: what its label
// says, or its namespace's; "" is the default one.
func (c *Controller) revision(ctx context.Context, gw *gatewayv1.Gateway) (string, error) {
	revision := gw.Labels[webhook.LabelRevision]
	if revision == "" {
		namespace := namespaceMeta()
		if err := c.own.Get(ctx, client.ObjectKey{Name: gw.Namespace}, namespace); client.IgnoreNotFound(err) != nil {
			return "", fmt.Errorf("reading the labels of namespace %s: %w", gw.Namespace, err)
		}
		revision = namespace.Labels[webhook.LabelRevision]
	}
	if revision == "" {
		return "", nil
	}
	if err := webhook.ValidRevision(revision); err != nil {
		return "", mistakef("the label %s: %v", webhook.LabelRevision, err)
	}
	return revision, nil
}

// have is what there is of what is wanted, in the same order, and whether it is all
// there. An object of one of the names that is not the Gateway's is a mistake: it is
// never taken over.
func (c *Controller) have(ctx context.Context, gw *gatewayv1.Gateway, want []client.Object) (have []client.Object, complete bool, err error) {
	complete = true
	for _, o := range want {
		kind := o.GetObjectKind().GroupVersionKind()
		is := o.DeepCopyObject().(client.Object)
		if err := c.readable(ctx, o); err != nil {
			return nil, false, err
		}
		err := c.own.Get(ctx, client.ObjectKeyFromObject(o), is)
		if apierrors.IsNotFound(err) {
			complete = false
			anybodys := &metav1.PartialObjectMetadata{}
			anybodys.SetGroupVersionKind(kind)
			err = c.direct.Get(ctx, client.ObjectKeyFromObject(o), anybodys)
			is = anybodys
			if apierrors.IsNotFound(err) {
				continue
			}
		}
		if err != nil {
			return nil, false, fmt.Errorf("reading %s %s: %w", kind.Kind, client.ObjectKeyFromObject(o), err)
		}
		if !metav1.IsControlledBy(is, gw) {
			return nil, false, mistakef("there is a %s %s already, which is not this Gateway's: delete it, or give the Gateway another name", kind.Kind, o.GetName())
		}
		have = append(have, is)
	}
	return have, complete, nil
}

// readable is a mistake where the control plane may not list what there is of the object's
// kind, as with a role of an older version: the cache would be waited for, by all workers.
func (c *Controller) readable(ctx context.Context, o client.Object) error {
	if synced, err := c.synced(ctx, o); synced || err != nil {
		return err
	}
	kind := o.GetObjectKind().GroupVersionKind()
	some := &metav1.PartialObjectMetadataList{}
	some.SetGroupVersionKind(kind)
	if err := c.direct.List(ctx, some, client.InNamespace(o.GetNamespace()), client.Limit(1)); apierrors.IsForbidden(err) {
		return mistakef("the control plane may not read a %s: have whoever runs the mesh apply deploy/gateways of its version: %v", kind.Kind, err)
	}
	return nil // then it is about to be read
}

// synced reports whether it is known what there is of the object's kind.
func (c *Controller) synced(ctx context.Context, o client.Object) (bool, error) {
	informer, err := c.own.GetInformer(ctx, o, cache.BlockUntilSynced(false))
	if err != nil {
		return false, fmt.Errorf("reading what Gateways have: %w", err)
	}
	return informer.HasSynced(), nil
}

// fingerprint tells whether there is something to apply: it is another when something
// else is wanted, and when somebody has changed what there is.
func fingerprint(want, have []client.Object, scaled scaling) (string, error) {
	parts := []any{want, scaled}
	for _, h := range have {
		parts = append(parts, h.GetUID(), h.GetGeneration(), h.GetLabels(), h.GetAnnotations(), h.GetOwnerReferences())
		if s, ok := h.(*corev1.Service); ok { // has no generation
			parts = append(parts, s.Spec)
		}
	}
	raw, err := json.Marshal(parts)
	if err != nil {
		return "", fmt.Errorf("writing down what a Gateway is to have: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

func (c *Controller) applied(gw *gatewayv1.Gateway) string {
	var out string
	c.note(gw, func(r *record) { out = r.applied })
	return out
}

// note reads or writes the Gateway's record.
func (c *Controller) note(gw *gatewayv1.Gateway, f func(*record)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.known[client.ObjectKeyFromObject(gw)]; ok && r.uid == gw.UID {
		f(r)
	}
}

func (c *Controller) apply(ctx context.Context, o client.Object, scaled scaling) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	delete(raw, "status")
	u := &unstructured.Unstructured{Object: raw}
	err = c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(fieldOwner), client.ForceOwnership)
	if err == nil && u.GetKind() == "Deployment" {
		err = c.scale(ctx, u, scaled)
	}
	switch {
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err):
		return mistakef("the API server refuses the %s: %v", u.GetKind(), err)
	case err != nil:
		return fmt.Errorf("applying %s %s: %w", u.GetKind(), client.ObjectKeyFromObject(o), err)
	}
	return nil
}

// release deletes what the Gateway was given and is not to have any more: what remains
// when it comes to be of another class, or has no autoscaler. Of a kind that was not read
// yet the Gateway is looked at again, for each object that it has.
func (c *Controller) release(ctx context.Context, gw *gatewayv1.Gateway, want []client.Object) error {
	for _, of := range []struct {
		kind client.Object
		list client.ObjectList
	}{
		{&corev1.Service{}, &corev1.ServiceList{}},
		{&autoscalingv2.HorizontalPodAutoscaler{}, &autoscalingv2.HorizontalPodAutoscalerList{}},
		{&appsv1.Deployment{}, &appsv1.DeploymentList{}},
		{&policyv1.PodDisruptionBudget{}, &policyv1.PodDisruptionBudgetList{}},
		{&corev1.ServiceAccount{}, &corev1.ServiceAccountList{}},
	} {
		switch synced, err := c.synced(ctx, of.kind); {
		case err != nil:
			return err
		case !synced:
			continue
		}
		list := of.list
		if err := c.own.List(ctx, list, client.InNamespace(gw.Namespace)); err != nil {
			return fmt.Errorf("listing what Gateways of %s have: %w", gw.Namespace, err)
		}
		err := apimeta.EachListItem(list, func(item runtime.Object) error {
			o, ok := item.(client.Object)
			if !ok || o.GetDeletionTimestamp() != nil || !metav1.IsControlledBy(o, gw) {
				return nil
			}
			same := func(w client.Object) bool {
				return reflect.TypeOf(w) == reflect.TypeOf(o) && w.GetName() == o.GetName()
			}
			if slices.ContainsFunc(want, same) {
				return nil
			}
			return client.IgnoreNotFound(c.client.Delete(ctx, o, client.Preconditions{UID: new(o.GetUID())}))
		})
		if err != nil {
			return fmt.Errorf("deleting what Gateway %s had: %w", client.ObjectKeyFromObject(gw), err)
		}
	}
	return nil
}

// applyStatus applies a status to an object of the Gateway API. The uid makes sure
// that it goes to the object that it is about, and to no other of its name.
func applyStatus(ctx context.Context, w client.SubResourceWriter, kind schema.GroupVersionKind, to client.Object, status any) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": raw}}
	u.SetGroupVersionKind(kind)
	u.SetNamespace(to.GetNamespace())
	u.SetName(to.GetName())
	u.SetUID(to.GetUID())
	err = w.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(fieldOwner), client.ForceOwnership)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or another of its name is there: the cache will say so
	}
	return err
}
