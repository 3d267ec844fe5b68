package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TulleNamespace is where Tulle runs.
const TulleNamespace = "tulle-system"

// MeshKind is a kind of Tulle's API.
func MeshKind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "mesh.tulle.dev", Version: "v1alpha1", Kind: kind}
}

// Install installs Tulle from a kustomization and waits until its control
// plane is available and its webhook answers the API server.
func (c *Cluster) Install(ctx context.Context, dir string) error {
	if err := c.ApplyKustomization(ctx, dir); err != nil {
		return err
	}
	return c.Installed(ctx)
}

// Installed waits until Tulle's control plane is available and its webhook
// answers the API server.
func (c *Cluster) Installed(ctx context.Context) error {
	if err := c.Deployed(ctx, TulleNamespace, 2*time.Minute); err != nil {
		return err
	}
	if err := Eventually(ctx, time.Minute, "the webhooks' certificate", c.webhooksTrusted); err != nil {
		return err
	}
	return Eventually(ctx, time.Minute, "an answer of the webhook", c.webhookAnswers)
}

// webhookAnswers has the API server ask the webhook about an object, without
// creating it: the Service may reach its pods a moment later than they are
// ready.
func (c *Cluster) webhookAnswers(ctx context.Context) error {
	return c.dryRun(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": MeshKind("").GroupVersion().String(),
		"kind":       "MeshPolicy",
		"metadata":   map[string]any{"generateName": "dry-run-", "namespace": TulleNamespace},
		"spec":       map[string]any{"mtls": map[string]any{"mode": "Permissive"}},
	}})
}

// dryRun has the API server do all but create an object.
func (c *Cluster) dryRun(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := c.resource(ctx, o.GroupVersionKind(), o.GetNamespace())
	if err != nil {
		return err
	}
	_, err = r.Create(ctx, o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// webhooksTrusted checks that Tulle's webhooks have a caBundle: without it the
// API server refuses the pods and the objects that they should have seen.
func (c *Cluster) webhooksTrusted(ctx context.Context) error {
	mutating, err := c.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	validating, err := c.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	configs := map[string]admissionv1.WebhookClientConfig{}
	for _, m := range mutating.Items {
		for _, w := range m.Webhooks {
			configs[w.Name] = w.ClientConfig
		}
	}
	for _, v := range validating.Items {
		for _, w := range v.Webhooks {
			configs[w.Name] = w.ClientConfig
		}
	}
	found := false
	for name, config := range configs {
		if config.Service == nil || config.Service.Namespace != TulleNamespace {
			continue
		}
		found = true
		if len(config.CABundle) == 0 {
			return fmt.Errorf("%s has no caBundle yet", name)
		}
	}
	if !found {
		return errors.New("there is no webhook of Tulle")
	}
	return nil
}

// Condition returns an error that says how a condition of an object differs
// from what is wanted at its present generation; nil if it does not. Of a route it is
// the condition of every parent.
func (c *Cluster) Condition(ctx context.Context, gvk schema.GroupVersionKind, namespace, name, condition, want string) error {
	o, err := c.Get(ctx, gvk, namespace, name)
	if err != nil {
		return err
	}
	list, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		return fmt.Errorf("reading the conditions of %s: %w", describe(o), err)
	}
	parents, _, err := unstructured.NestedSlice(o.Object, "status", "parents")
	if err != nil {
		return fmt.Errorf("reading the parents of %s: %w", describe(o), err)
	}
	for _, entry := range parents {
		if m, ok := entry.(map[string]any); ok {
			of, _ := m["conditions"].([]any)
			list = append(list, of...)
		}
	}
	found := false
	for _, entry := range list {
		m, ok := entry.(map[string]any)
		if !ok || m["type"] != condition {
			continue
		}
		found = true
		if at, _ := m["observedGeneration"].(int64); at < o.GetGeneration() {
			return fmt.Errorf("%s of %s is of generation %d, not %d", condition, describe(o), at, o.GetGeneration())
		}
		if m["status"] != want {
			return fmt.Errorf("%s of %s is %v, not %s: %v: %v", condition, describe(o), m["status"], want, m["reason"], m["message"])
		}
	}
	if !found {
		return fmt.Errorf("%s has no condition %s", describe(o), condition)
	}
	return nil
}

// SetLifetime sets how long workload certificates live, mesh-wide, as the only
// field that this program owns of the MeshConfig; "" gives it up again.
func (c *Cluster) SetLifetime(ctx context.Context, lifetime string) error {
	spec := map[string]any{}
	if lifetime != "" {
		spec["certificates"] = map[string]any{"lifetime": lifetime}
	}
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": MeshKind("").GroupVersion().String(),
		"kind":       "MeshConfig",
		"metadata":   map[string]any{"name": "default"},
		"spec":       spec,
	}}
	return c.ApplyObject(ctx, o)
}
