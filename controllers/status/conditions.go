package status

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// maxMessage bounds a condition's message, in bytes. An event's note, which
// says the same, may have 1024 by its API.
const maxMessage = 1000

// owned reports whether the package writes conditions of the type.
func owned(conditionType string) bool {
	return conditionType == v1alpha1.ConditionAccepted || conditionType == v1alpha1.ConditionResolvedRefs
}

// evaluated reports whether the findings are about the generation.
func evaluated(found []mesh.Finding, generation int64) bool {
	for _, f := range found {
		if f.Generation != generation {
			return false
		}
	}
	return len(found) > 0
}

// desired makes one condition of each type that something was found about,
// sorted by type. Where several findings say that one is False, the first gives
// the reason, and all their messages are kept, as far as they fit.
func desired(found []mesh.Finding) []metav1.Condition {
	var out []metav1.Condition
	for _, f := range found {
		if !owned(f.Type) {
			continue
		}
		i := slices.IndexFunc(out, func(c metav1.Condition) bool { return c.Type == f.Type })
		if i < 0 {
			out = append(out, condition(f))
			continue
		}
		switch is := &out[i]; {
		case f.OK:
		case is.Status == metav1.ConditionTrue:
			*is = condition(f)
		default:
			is.Message = cut(is.Message + "; " + f.Message)
		}
	}
	slices.SortFunc(out, func(a, b metav1.Condition) int {
		if a.Type < b.Type {
			return -1
		}
		return 1 // types differ
	})
	return out
}

func condition(f mesh.Finding) metav1.Condition {
	status := metav1.ConditionFalse
	if f.OK {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{
		Type: f.Type, Status: status, Reason: f.Reason, Message: cut(f.Message), ObservedGeneration: f.Generation,
	}
}

// cut shortens a message to what fits, at the end of a character.
func cut(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	const more = " …"
	end := 0
	for i := range message {
		if i > maxMessage-len(more) {
			break
		}
		end = i
	}
	return message[:end] + more
}

// merge gives each wanted condition the time of its last transition: what it
// was where the status stays the same, else now. changed reports whether the
// object's own conditions differ in anything that we write; turned are those
// that are False and were not, or were for another reason.
func merge(have, want []metav1.Condition, now time.Time) (out []metav1.Condition, changed bool, turned []metav1.Condition) {
	for _, w := range want {
		w.LastTransitionTime = metav1.NewTime(now)
		h := find(have, w.Type)
		if h != nil && h.Status == w.Status {
			w.LastTransitionTime = h.LastTransitionTime
		}
		if h == nil || h.Status != w.Status || h.Reason != w.Reason || h.Message != w.Message || h.ObservedGeneration != w.ObservedGeneration {
			changed = true
		}
		if w.Status == metav1.ConditionFalse && (h == nil || h.Status != w.Status || h.Reason != w.Reason) {
			turned = append(turned, w)
		}
		out = append(out, w)
	}
	for _, h := range have {
		if owned(h.Type) && find(want, h.Type) == nil {
			changed = true // it is to go
		}
	}
	return out, changed, turned
}

func find(in []metav1.Condition, conditionType string) *metav1.Condition {
	for i := range in {
		if in[i].Type == conditionType {
			return &in[i]
		}
	}
	return nil
}

// conditionsOf is the object's status, as the API server has it.
func conditionsOf(obj client.Object) []metav1.Condition {
	switch o := obj.(type) {
	case *v1alpha1.MeshPolicy:
		return o.Status.Conditions
	case *v1alpha1.TrafficSplit:
		return o.Status.Conditions
	case *v1alpha1.MeshConfig:
		return o.Status.Conditions
	}
	return nil
}

// configFindings is what there is to say about a MeshConfig. The API server has
// checked all of it but what an older CRD may have let pass: the name.
func configFindings(c *v1alpha1.MeshConfig) []mesh.Finding {
	f := mesh.Finding{
		Kind: mesh.KindConfig, Object: mesh.Name{Name: c.Name}, Generation: c.Generation,
		Type: v1alpha1.ConditionAccepted, OK: true, Reason: v1alpha1.ReasonAccepted, Message: "the object holds",
	}
	if c.Name != v1alpha1.MeshConfigName {
		f.OK, f.Reason = false, v1alpha1.ReasonInvalid
		f.Message = fmt.Sprintf("there is one MeshConfig, named %s, and this one is ignored: write metadata.name: %[1]s", v1alpha1.MeshConfigName)
	}
	return []mesh.Finding{f}
}
