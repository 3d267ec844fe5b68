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

// NewKeysCache is a cache of the ConfigMaps and Secrets that have keys of issuers of
// tokens, and of no others: by this name the control plane may see them. It is one of its
// own since other ConfigMaps, and Secrets with certificates, are seen, too, where
// deploy/gateways allows it.
func NewKeysCache(config *rest.Config, o cache.Options) (cache.Cache, error) {
	o.DefaultTransform = cutKeys
	o.ReaderFailOnMissingInformer = true
	named := cache.ByObject{Field: fields.OneTermEqualSelector(metav1.ObjectNameField, mesh.JWKSName)}
	o.ByObject = map[client.Object]cache.ByObject{&corev1.ConfigMap{}: named, &corev1.Secret{}: named}
	keys, err := cache.New(config, o)
	if err != nil {
		return nil, fmt.Errorf("making a cache of keys: %w", err)
	}
	return keys, nil
}

// cutKeys leaves of a Secret what keys are read from: what kubectl noted down has all of it
// again.
func cutKeys(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Secret:
		return &corev1.Secret{ObjectMeta: cutMeta(&o.ObjectMeta), Data: o.Data}, nil
	case client.Object:
		o.SetManagedFields(nil)
	}
	return obj, nil // a tombstone, too
}

// keysHandler is for ConfigMaps or Secrets of keys, of which a namespace has one each.
type keysHandler struct {
	*Observer
	secret bool
}

// OnAdd applies an object.
func (h keysHandler) OnAdd(obj any, _ bool) {
	switch o := obj.(type) {
	case *corev1.ConfigMap:
		if o.Name == mesh.JWKSName {
			h.deliver(mesh.Put(keys(o)))
		}
	case *corev1.Secret:
		if o.Name == mesh.JWKSName {
			h.deliver(mesh.Put(secretKeys(o)))
		}
	}
}

// OnUpdate applies an object's new form.
func (h keysHandler) OnUpdate(_, obj any) { h.OnAdd(obj, false) }

// OnDelete applies that an object is gone.
func (h keysHandler) OnDelete(obj any) {
	n, err := toolscache.DeletionHandlingObjectToName(obj)
	if err != nil {
		h.log.Error(err, "a deleted object with keys has no name")
		return
	}
	h.deliver(mesh.Delete(mesh.KindKeys, mesh.KeysName(n.Namespace, h.secret)))
}
