package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Roots are the roots of trust; a ca.Authority has them.
type Roots interface {
	// Roots returns root certificates in PEM, which are not modified.
	Roots() []byte
	// Bundle is the same as proxies get it.
	Bundle() *mesh.TrustBundle
	// Notify has f called after each change, without locks. f does not block.
	Notify(f func())
}

// Options say what is spread where.
type Options struct {
	Roots Roots
	// Applier takes the trust bundle of the mesh's model.
	Applier mesh.Applier
	// Namespace is that of the control planes. Webhooks that call another
	// Service are left alone.
	Namespace string
}

// concurrency is how many namespaces are written to at a time, when the roots
// change.
const concurrency = 4

// The label that the manifests give to all that they consist of. There is a
// webhook configuration for each revision of the control plane.
const (
	labelPartOf = "app.kubernetes.io/part-of"
	partOfTulle = "tulle"
)

// Spread is what writes the roots into the cluster.
type Spread struct {
	bundles    *bundleReconciler
	mutating   *webhookReconciler[*admissionv1.MutatingWebhookConfiguration]
	validating *webhookReconciler[*admissionv1.ValidatingWebhookConfiguration]
}

// Behind names the namespaces and webhook configurations that do not have the
// present roots, sorted. It is for the leader: elsewhere nobody may have written
// them yet.
func (s *Spread) Behind(ctx context.Context) ([]string, error) {
	behind, err := s.bundles.behind(ctx)
	for _, list := range []func(context.Context) ([]string, error){s.mutating.behind, s.validating.behind} {
		names, failed := list(ctx)
		behind, err = append(behind, names...), errors.Join(err, failed)
	}
	slices.Sort(behind)
	return behind, err
}

// SetupWithManager puts the roots into the mesh's model, now and whenever they
// change, and adds the controllers that write them into the cluster. The
// controllers need leader election, and have a cache of their own, which holds
// nothing but the names of namespaces and the objects that are written to.
func SetupWithManager(mgr manager.Manager, opts Options) (*Spread, error) {
	if opts.Roots == nil || opts.Applier == nil || opts.Namespace == "" {
		return nil, errors.New("set up trust: an option is missing")
	}
	Publish(opts.Roots, opts.Applier)
	objects, err := newCache(mgr)
	if err != nil {
		return nil, fmt.Errorf("set up trust: %w", err)
	}
	if err := mgr.Add(objects); err != nil {
		return nil, fmt.Errorf("set up trust: %w", err)
	}
	bundles := &bundleReconciler{reader: objects, writer: mgr.GetClient(), roots: opts.Roots}
	err = add(mgr, "trust-bundle", bundles,
		source.Kind(objects, namespaceMeta(), forNamespace()),
		source.Kind(objects, &corev1.ConfigMap{}, forConfigMap()),
		onChange(opts.Roots, bundles.namespaces))
	if err != nil {
		return nil, err
	}
	mutating := &webhookReconciler[*admissionv1.MutatingWebhookConfiguration]{
		reader: objects, writer: mgr.GetClient(), roots: opts.Roots, namespace: opts.Namespace,
		empty: &admissionv1.MutatingWebhookConfiguration{}, list: &admissionv1.MutatingWebhookConfigurationList{}, configs: mutatingConfigs,
	}
	validating := &webhookReconciler[*admissionv1.ValidatingWebhookConfiguration]{
		reader: objects, writer: mgr.GetClient(), roots: opts.Roots, namespace: opts.Namespace,
		empty: &admissionv1.ValidatingWebhookConfiguration{}, list: &admissionv1.ValidatingWebhookConfigurationList{}, configs: validatingConfigs,
	}
	if err := add(mgr, "trust-mutating-webhook", mutating,
		source.Kind(objects, mutating.empty, forObject[*admissionv1.MutatingWebhookConfiguration]()), onChange(opts.Roots, mutating.all)); err != nil {
		return nil, err
	}
	err = add(mgr, "trust-validating-webhook", validating,
		source.Kind(objects, validating.empty, forObject[*admissionv1.ValidatingWebhookConfiguration]()), onChange(opts.Roots, validating.all))
	return &Spread{bundles, mutating, validating}, err
}

// Publish puts the roots into the mesh's model, now and whenever they change.
func Publish(roots Roots, to mesh.Applier) {
	var order sync.Mutex // so that an older state never follows a newer one
	publish := func() {
		order.Lock()
		defer order.Unlock()
		to.Apply(mesh.Put(roots.Bundle()))
	}
	roots.Notify(publish)
	publish()
}

// newCache returns a cache that holds, of all the cluster's ConfigMaps and
// webhook configurations, only those that Tulle writes to.
//
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=list;watch
func newCache(mgr manager.Manager) (cache.Cache, error) {
	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{labelPartOf: partOfTulle})}
	objects, err := cache.New(mgr.GetConfig(), cache.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.ConfigMap{}:                           {Field: fields.OneTermEqualSelector(metav1.ObjectNameField, ConfigMapName)},
			&admissionv1.MutatingWebhookConfiguration{}:   ours,
			&admissionv1.ValidatingWebhookConfiguration{}: ours,
		},
		DefaultTransform:            cache.TransformStripManagedFields(),
		ReaderFailOnMissingInformer: true,
	})
	if err != nil {
		return nil, fmt.Errorf("make a cache: %w", err)
	}
	return objects, nil
}

// add adds a controller that runs on the leader; its caches are filled before,
// so that a new leader takes over at once.
func add(mgr manager.Manager, name string, r reconcile.Reconciler, sources ...source.Source) error {
	yes := true
	c, err := controller.New(name, mgr, controller.Options{
		Reconciler: r, MaxConcurrentReconciles: concurrency, NeedLeaderElection: &yes, EnableWarmup: &yes,
	})
	if err != nil {
		return fmt.Errorf("set up controller %s: %w", name, err)
	}
	for _, s := range sources {
		if err := c.Watch(s); err != nil {
			return fmt.Errorf("set up controller %s: %w", name, err)
		}
	}
	return nil
}

// onChange is a source that asks for all of the requests whenever the roots
// change.
func onChange(roots Roots, requests func(context.Context) ([]reconcile.Request, error)) source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		changed := make(chan struct{}, 1)
		roots.Notify(func() {
			select {
			case changed <- struct{}{}:
			default: // one that is still to be looked at covers this one
			}
		})
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-changed:
				}
				// It fails only when the cache ends, or before it has begun; then
				// its first events ask for the same.
				all, err := requests(ctx)
				if err != nil {
					continue
				}
				for _, r := range all {
					queue.Add(r)
				}
			}
		}()
		return nil
	})
}
