package observe

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// node converts a Node. One that does not say where it is has no place in the mesh
// (ok is false).
func node(n *corev1.Node) (out *mesh.Node, ok bool) {
	out = &mesh.Node{Name: n.Name, Region: n.Labels[corev1.LabelTopologyRegion], Zone: n.Labels[corev1.LabelTopologyZone]}
	return out, out.Region != "" || out.Zone != ""
}

// nodeHandler is for nodes, which are entities, and of whose ranges the configuration
// is made.
type nodeHandler struct {
	entity entityHandler
	source sourceHandler
}

// OnAdd applies a node.
func (h nodeHandler) OnAdd(obj any, initial bool) {
	h.source.OnAdd(obj, initial)
	h.entity.OnAdd(obj, initial)
}

// OnUpdate applies a node's new form, if it differs: a node's heartbeats are many.
func (h nodeHandler) OnUpdate(before, obj any) {
	h.source.OnUpdate(before, obj)
	if was, is := before.(*corev1.Node), obj.(*corev1.Node); placeOf(was) != placeOf(is) {
		h.entity.OnAdd(obj, false)
	}
}

// OnDelete forgets a node.
func (h nodeHandler) OnDelete(obj any) {
	h.source.OnDelete(obj)
	h.entity.OnDelete(obj)
}

func placeOf(n *corev1.Node) mesh.Node {
	out, _ := node(n)
	return *out
}
