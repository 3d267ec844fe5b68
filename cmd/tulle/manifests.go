package main

import (
	"bytes"
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
	"github.com/tulle-mesh/tulle/webhook"
)

// fieldManager is under whose name objects are applied.
const fieldManager = "tulle-install"

// The overlay that makes a revision, and the name that it gives to it.
const (
	overlayRevision = "revision"
	revisionInFiles = "canary"
)

// overlays are the names of the overlays that a mesh can be installed by.
func overlays() []string {
	entries, err := deploy.Files.ReadDir("overlays")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if e.Name() != overlayRevision {
			names = append(names, e.Name())
		}
	}
	return names
}

// images replace those of the manifests; empty ones stay.
type images struct{ tulled, init, proxy, cni string }

// installation says what is installed.
type installation struct {
	overlay string
	// revision is that of the control plane; the default one's need not be there.
	revision string
	images   images
	replicas int32 // 0: as the manifests say
}

// named reports whether it is a revision beside the default one.
func (i installation) named() bool { return i.revision != webhook.DefaultRevision }

// ofControlPlane reports whether the object is one of the revision's alone, and not
// one of what there is once.
func (i installation) ofControlPlane(o *unstructured.Unstructured) bool {
	return o.GetLabels()[webhook.LabelRevision] == i.revision
}

// render builds an installation as `kubectl kustomize` does: what there is once, and
// the control plane of the revision, sorted in the order in which the objects are
// to be applied.
func (i installation) render() ([]*unstructured.Unstructured, error) {
	if !slices.Contains(overlays(), i.overlay) {
		return nil, fmt.Errorf("unknown overlay %q: want one of %s", i.overlay, strings.Join(overlays(), ", "))
	}
	if err := webhook.ValidRevision(i.revision); err != nil {
		return nil, fmt.Errorf("--revision: %w", err)
	}
	disk, err := i.unpack()
	if err != nil {
		return nil, err
	}
	folders := []string{i.overlay}
	if i.named() {
		folders = append(folders, overlayRevision)
	}
	var out []*unstructured.Unstructured
	for _, folder := range folders {
		built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(disk, path.Join("/deploy/overlays", folder))
		if err != nil {
			return nil, fmt.Errorf("building the overlay %s: %w", folder, err)
		}
		for _, r := range built.Resources() {
			raw, err := r.MarshalJSON()
			o := &unstructured.Unstructured{}
			if err == nil {
				err = o.UnmarshalJSON(raw)
			}
			if err != nil {
				return nil, fmt.Errorf("reading the overlay %s: %w", folder, err)
			}
			if o.GetLabels()[webhook.LabelRevision] != "" && !i.ofControlPlane(o) {
				continue
			}
			if err := i.customize(o); err != nil {
				return nil, err
			}
			out = append(out, o)
		}
	}
	slices.SortStableFunc(out, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return out, nil
}

// unpack writes the manifests where kustomize reads them, with the revision's
// name in place of that which the overlay has.
func (i installation) unpack() (filesys.FileSystem, error) {
	disk := filesys.MakeFsInMemory()
	err := fs.WalkDir(deploy.Files, ".", func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := deploy.Files.ReadFile(file)
		if err != nil {
			return err
		}
		if i.named() && path.Dir(file) == path.Join("overlays", overlayRevision) {
			content = bytes.ReplaceAll(content, []byte(revisionInFiles), []byte(i.revision))
		}
		return disk.WriteFile(path.Join("/deploy", file), content)
	})
	if err != nil {
		return nil, fmt.Errorf("unpacking the manifests: %w", err)
	}
	return disk, nil
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
func (i installation) customize(o *unstructured.Unstructured) error {
	workload := o.GetKind() + " " + o.GetName()
	plane := workload == "Deployment "+webhook.ServiceOf(i.revision)
	if !plane && workload != "DaemonSet tulle-cni" {
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
	image := i.images.cni
	if plane {
		image = i.images.tulled
		if err := i.setArguments(container); err != nil {
			return fmt.Errorf("setting the arguments of %s: %w", workload, err)
		}
		if i.replicas > 0 {
			if err := unstructured.SetNestedField(o.Object, int64(i.replicas), "spec", "replicas"); err != nil {
				return err
			}
		}
	}
	if image != "" {
		container["image"] = image
	}
	return unstructured.SetNestedSlice(o.Object, containers, "spec", "template", "spec", "containers")
}

// setArguments sets what injected pods get.
func (i installation) setArguments(container map[string]any) error {
	args, _, err := unstructured.NestedStringSlice(container, "args")
	if err != nil {
		return err
	}
	for flag, image := range map[string]string{"--proxy-image=": i.images.proxy, "--init-image=": i.images.init} {
		at := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, flag) })
		if image != "" && at >= 0 {
			args[at] = flag + image
		}
	}
	// The overlay cni says it by a patch of its own.
	if i.named() && i.overlay == "cni" {
		args = append(args, "--redirection="+string(webhook.RedirectionCNI))
	}
	return unstructured.SetNestedStringSlice(container, args, "args")
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
	namespace string // of objects that name none
	dynamic   dynamic.Interface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
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
	return &objects{c.namespace, d, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found))}, nil
}

// of is where the object is. One of a namespaced kind that names no namespace is
// given the default one.
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
		if o.GetNamespace() == "" {
			o.SetNamespace(c.namespace)
		}
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
