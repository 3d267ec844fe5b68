package status

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Authority is what there is to say about the certificate authority.
type Authority struct {
	// Current says that it is as it ought to be. Where it is not, it is on the
	// way to that, or needs somebody's help.
	Current, NeedsHelp bool
	Reason, Message    string
}

// AuthorityChanged takes note that there is something else to say about the
// certificate authority.
func (c *Controller) AuthorityChanged() {
	c.enqueue([]object{{kindConfig, mesh.Name{Name: v1alpha1.MeshConfigName}}})
}

// addAuthority adds what there is to say about the certificate authority; a
// leader that does not know yet leaves what was said.
func (c *Controller) addAuthority(o object, generation int64, have state, want *state) {
	if c.ca == nil || o.kind != kindConfig || o.name.Name != v1alpha1.MeshConfigName {
		return
	}
	a, ok := c.ca()
	if !ok {
		if held := meta.FindStatusCondition(have.conditions, v1alpha1.ConditionAuthorityCurrent); held != nil {
			want.conditions = append(want.conditions, *held)
		}
		return
	}
	is := metav1.Condition{
		Type: v1alpha1.ConditionAuthorityCurrent, Status: metav1.ConditionFalse,
		ObservedGeneration: generation, Reason: a.Reason, Message: cut(a.Message),
	}
	if a.Current {
		is.Status = metav1.ConditionTrue
	}
	want.conditions = append(want.conditions, is)
}

// tellAuthority makes an event of each step of a rotation.
func (c *Controller) tellAuthority(obj runtime.Object, is metav1.Condition, was *metav1.Condition) {
	if was == nil && is.Status == metav1.ConditionTrue || was != nil && was.Reason == is.Reason {
		return
	}
	severity := corev1.EventTypeNormal
	if a, ok := c.ca(); ok && a.NeedsHelp && a.Reason == is.Reason {
		severity = corev1.EventTypeWarning
	}
	c.events.Eventf(obj, nil, severity, is.Reason, "Rotate", "%s", is.Message)
}
