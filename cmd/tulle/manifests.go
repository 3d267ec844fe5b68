package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/deploy"
)

// fieldManager is under whose name objects are applied.
const fieldManager = "tulle-install"

// overlays are the names of the overlays that this program has.
func overlays() []string {
	entries, err := deploy.Files.ReadDir("overlays")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// images replace those of the manifests; empty ones stay.
type images struct{ tulled, init, proxy, cni string }

// render builds an overlay as `kubectl kustomize` does, sorted in the order in
// which its objects are to be applied.
func render(overlay string, i images, replicas int32) ([]*unstructured.Unstructured, error) {
	if !slices.Contains(overlays(), overlay) {
		return nil, fmt.Errorf("unknown overlay %q: want one of %s", overlay, strings.Join(overlays(), ", "))
	}
	disk := filesys.MakeFsInMemory()
	err := fs.WalkDir(deploy.Files, ".", func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := deploy.Files.ReadFile(file)
		if err != nil {
			return err
		}
		return disk.WriteFile(path.Join("/deploy", file), content)
	})
	if err != nil {
		return nil, fmt.Errorf("unpacking the manifests: %w", err)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(disk, path.Join("/deploy/overlays", overlay))
	if err != nil {
		return nil, fmt.Errorf("building the overlay %s: %w", overlay, err)
	}
	var out []*unstructured.Unstructured
	for _, r := range built.Resources() {
		raw, err := r.MarshalJSON()
		o := &unstructured.Unstructured{}
		if err == nil {
			err = o.UnmarshalJSON(raw)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the overlay %s: %w", overlay, err)
		}
		if err := customize(o, i, replicas); err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	slices.SortStableFunc(out, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return out, nil
}

// rank is the order of applying: what others need comes first, and webhooks
// last, so that nothing waits for them meanwhile.
func rank(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "Namespace":
		return 0
	case "CustomResourceDefinition":
		return rankCRD
	case "Deployment", "DaemonSet":
		return 3
	case "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration":
		return 4
	}
	return 2
}

// customize sets images and replicas of the control plane and the plugin.
func customize(o *unstructured.Unstructured, i images, replicas int32) error {
	workload := o.GetKind() + " " + o.GetName()
	if workload != "Deployment tulled" && workload != "DaemonSet tulle-cni" {
		return nil
	}
	containers, found, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
	if err != nil || !found || len(containers) == 0 {
		return fmt.Errorf("reading the containers of %s: %w", workload, errors.Join(err, errors.New("there are none")))
	}
	container, ok := containers[0].(map[string]any)
	if !ok {
		return fmt.Errorf("reading the containers of %s: one is no object", workload)
	}
	image := i.cni
	if o.GetKind() == "Deployment" {
		image = i.tulled
		args, _, err := unstructured.NestedStringSlice(container, "args")
		if err != nil {
			return fmt.Errorf("reading the arguments of %s: %w", workload, err)
		}
		for flag, image := range map[string]string{"--proxy-image=": i.proxy, "--init-image=": i.init} {
			at := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, flag) })
			if image != "" && at >= 0 {
				args[at] = flag + image
			}
		}
		if err := unstructured.SetNestedStringSlice(container, args, "args"); err != nil {
			return err
		}
		if replicas > 0 {
			if err := unstructured.SetNestedField(o.Object, int64(replicas), "spec", "replicas"); err != nil {
				return err
			}
		}
	}
	if image != "" {
		container["image"] = image
	}
	return unstructured.SetNestedSlice(o.Object, containers, "spec", "template", "spec", "containers")
}

// manifest is the objects as YAML documents.
func manifest(objects []*unstructured.Unstructured) ([]byte, error) {
	var out []byte
	for _, o := range objects {
		document, err := yaml.Marshal(o.Object)
		if err != nil {
			return nil, fmt.Errorf("writing %s: %w", describe(o), err)
		}
		out = append(append(out, "---\n"...), document...)
	}
	return out, nil
}

func describe(o *unstructured.Unstructured) string {
	name := o.GetName()
	if ns := o.GetNamespace(); ns != "" {
		name = ns + "/" + name
	}
	return o.GetKind() + " " + name
}

// objects changes objects of any kind.
type objects struct {
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func (c *cluster) objects() (*objects, error) {
	d, err := dynamic.NewForConfig(c.config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	found, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return &objects{d, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found))}, nil
}

func (c *objects) of(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // a CRD that was just applied
		mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("finding the kind of %s: %w", describe(o), err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace()), nil
	}
	return c.dynamic.Resource(mapping.Resource), nil
}

// apply applies the object by server-side apply.
func (c *objects) apply(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := c.of(o)
	if err != nil {
		return err
	}
	// What `kubectl apply -k` owns of the same manifests is taken over.
	if _, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
		return fmt.Errorf("applying %s: %w", describe(o), err)
	}
	return nil
}

// remove deletes the object; false when there was none.
func (c *objects) remove(ctx context.Context, o *unstructured.Unstructured) (bool, error) {
	r, err := c.of(o)
	if meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("deleting %s: %w", describe(o), err)
	}
	return true, nil
}
