package observe

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Suppose is the change that it would be if the object were put, or deleted. It
// applies nothing. An object of a kind that the mesh is not made of is an error.
func (o *Observer) Suppose(obj client.Object, deleted bool) (mesh.Change, error) {
	if c, ok := obj.(*v1alpha1.MeshConfig); ok {
		o.mu.Lock()
		defer o.mu.Unlock()
		from := o.from
		switch {
		case c.Name != v1alpha1.MeshConfigName: // it is not the one that counts
		case deleted:
			from.config = nil
		default:
			from.config = c
		}
		return mesh.Put(from.mesh(o.root)), nil
	}
	if obj.GetName() == mesh.JWKSName {
		var of *mesh.Keys
		switch c := obj.(type) {
		case *corev1.ConfigMap:
			of = keys(c)
		case *corev1.Secret:
			of = secretKeys(c)
		}
		switch {
		case of != nil && deleted:
			return mesh.Delete(mesh.KindKeys, mesh.KeysName(of.Namespace, of.Secret)), nil
		case of != nil:
			return mesh.Put(of), nil
		}
	}
	c, ok := change(obj)
	switch {
	case !ok:
		return mesh.Change{}, fmt.Errorf("the mesh is not made of objects of kind %s", obj.GetObjectKind().GroupVersionKind().Kind)
	case deleted:
		return mesh.Delete(c.Ref().Kind, c.Ref().Name), nil
	}
	return c, nil
}
