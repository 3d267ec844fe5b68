package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// fieldManager owns what the demo and the tests apply.
const fieldManager = "tulle-e2e"

// Kustomize renders a directory as "kubectl kustomize" does.
func Kustomize(dir string) (string, error) {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return "", fmt.Errorf("rendering %s: %w", dir, err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		return "", fmt.Errorf("rendering %s: %w", dir, err)
	}
	return string(text), nil
}

// Parse reads the objects of a YAML stream.
func Parse(text string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096)
	for {
		var o unstructured.Unstructured
		if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading YAML: %w", err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, &o)
		}
	}
}

// ApplyKustomization applies a directory as "kubectl apply -k --server-side"
// does.
func (c *Cluster) ApplyKustomization(ctx context.Context, dir string) error {
	text, err := Kustomize(dir)
	if err != nil {
		return err
	}
	return c.Apply(ctx, text)
}

// Apply applies the objects of a YAML stream server-side: first those that
// others need (namespaces, definitions), each kind of object as soon as the
// API server serves it.
func (c *Cluster) Apply(ctx context.Context, text string) error {
	objects, err := Parse(text)
	if err != nil {
		return err
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	for _, o := range objects {
		if err := c.ApplyObject(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// rank puts namespaces and definitions before all else, and what calls into
// pods after them.
func rank(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "Namespace":
		return 0
	case "CustomResourceDefinition":
		return 1
	case "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration":
		return 3
	default:
		return 2
	}
}

// ApplyObject applies one object server-side and puts the server's answer into
// it.
func (c *Cluster) ApplyObject(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := c.resource(ctx, o.GroupVersionKind(), o.GetNamespace())
	if err != nil {
		return err
	}
	name := describe(o)
	o.SetManagedFields(nil)
	applied, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("applying %s: %w", name, err)
	}
	o.Object = applied.Object
	return nil
}

// Get reads one object.
func (c *Cluster) Get(ctx context.Context, gvk schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error) {
	r, err := c.resource(ctx, gvk, namespace)
	if err != nil {
		return nil, err
	}
	return r.Get(ctx, name, metav1.GetOptions{})
}

// MergePatch patches one object.
func (c *Cluster) MergePatch(ctx context.Context, gvk schema.GroupVersionKind, namespace, name, patch string) error {
	r, err := c.resource(ctx, gvk, namespace)
	if err != nil {
		return err
	}
	if _, err := r.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("patching %s %s/%s: %w", gvk.Kind, namespace, name, err)
	}
	return nil
}

// Delete deletes the objects of a YAML stream; those that are gone are fine.
func (c *Cluster) Delete(ctx context.Context, text string) error {
	objects, err := Parse(text)
	if err != nil {
		return err
	}
	for _, o := range objects {
		r, err := c.resource(ctx, o.GroupVersionKind(), o.GetNamespace())
		if err != nil {
			return err
		}
		background := metav1.DeletePropagationBackground
		err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting %s: %w", describe(o), err)
		}
	}
	return nil
}

// resource finds the client for a kind. A kind whose definition was applied a
// moment ago takes a moment to be served.
func (c *Cluster) resource(ctx context.Context, gvk schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	var mapping *meta.RESTMapping
	err := Eventually(ctx, 20*time.Second, "the API server to serve "+gvk.String(), func(context.Context) (err error) {
		mapping, err = c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			c.mapper.Reset()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(mapping.Resource).Namespace(namespace), nil
	}
	return c.Dynamic.Resource(mapping.Resource), nil
}

func describe(o *unstructured.Unstructured) string {
	return strings.TrimPrefix(fmt.Sprintf("%s/%s %s", o.GetNamespace(), o.GetName(), o.GetKind()), "/")
}
