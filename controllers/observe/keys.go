package observe

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// NewKeysCache is a cache of the ConfigMaps that have keys of issuers of tokens, and of
// no others: by this name the control plane may see them. It is one of its own since
// other ConfigMaps are seen, too, where deploy/gateways allows it.
func NewKeysCache(config *rest.Config, o cache.Options) (cache.Cache, error) {
	o.DefaultTransform = cache.TransformStripManagedFields()
	o.ReaderFailOnMissingInformer = true
	o.ByObject = map[client.Object]cache.ByObject{
		&corev1.ConfigMap{}: {Field: fields.OneTermEqualSelector(metav1.ObjectNameField, mesh.JWKSConfigMap)},
	}
	keys, err := cache.New(config, o)
	if err != nil {
		return nil, fmt.Errorf("making a cache of keys: %w", err)
	}
	return keys, nil
}

// keysHandler is for ConfigMaps of keys, of which a namespace has one.
type keysHandler struct{ *Observer }

// OnAdd applies a ConfigMap.
func (h keysHandler) OnAdd(obj any, _ bool) {
	if c, ok := obj.(*corev1.ConfigMap); ok && c.Name == mesh.JWKSConfigMap {
		h.deliver(mesh.Put(keys(c)))
	}
}

// OnUpdate applies a ConfigMap's new form.
func (h keysHandler) OnUpdate(_, obj any) { h.OnAdd(obj, false) }

// OnDelete applies that a ConfigMap is gone.
func (h keysHandler) OnDelete(obj any) {
	n, err := toolscache.DeletionHandlingObjectToName(obj)
	if err != nil {
		h.log.Error(err, "a deleted ConfigMap of keys has no name")
		return
	}
	h.deliver(mesh.Delete(mesh.KindKeys, mesh.Name{Name: n.Namespace}))
}
