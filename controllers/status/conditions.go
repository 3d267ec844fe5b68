package status

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
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
	switch conditionType {
	case v1alpha1.ConditionAccepted, v1alpha1.ConditionProgrammed, v1alpha1.ConditionResolvedRefs, v1alpha1.ConditionAuthorityCurrent:
		return true
	}
	return false
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

// desired makes one condition of each type that something was found about. Where several findings say that one is False, the first gives
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
	return out
}

// state is what we write of an object's status.
type state struct {
	conditions []metav1.Condition // sorted by type
	proxies    *v1alpha1.ProxyCounts
}

// difference says how two states differ.
type difference uint8

const (
	none    difference = iota
	numbers            // how many proxies there are, and how far they are
	verdict            // what there is to say about the object
)

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
// was where the status stays the same, else now. It returns, too, how the wanted
// state differs from what the object has, and which conditions are of another
// status or for another reason than they were, or of another generation.
func merge(have, want state, now time.Time) (out state, d difference, turned []metav1.Condition) {
	slices.SortFunc(want.conditions, func(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) })
	out.proxies = want.proxies
	if !reflect.DeepEqual(have.proxies, want.proxies) {
		d = numbers
	}
	for _, w := range want.conditions {
		w.LastTransitionTime = metav1.NewTime(now)
		h := meta.FindStatusCondition(have.conditions, w.Type)
		if h != nil && h.Status == w.Status {
			w.LastTransitionTime = h.LastTransitionTime
		}
		switch {
		case h == nil || h.Status != w.Status || h.Reason != w.Reason || h.ObservedGeneration != w.ObservedGeneration:
			d = verdict
			turned = append(turned, w)
		case h.Message != w.Message && w.Type == v1alpha1.ConditionAuthorityCurrent,
			h.Message != w.Message && w.Type == v1alpha1.ConditionProgrammed && w.Reason != v1alpha1.ReasonRejected:
			d = max(d, numbers)
		case h.Message != w.Message:
			d = verdict
		}
		out.conditions = append(out.conditions, w)
	}
	for _, h := range have.conditions {
		if owned(h.Type) && meta.FindStatusCondition(want.conditions, h.Type) == nil {
			d = verdict // it is to go
		}
	}
	return out, d, turned
}

// statesOf is the object's status, as the API server has it: one state, or one for each
// part of an object whose status is shared.
func statesOf(obj client.Object, found []mesh.Finding) (out []state, stale bool) {
	if s, ok := sharesOf(obj, found); ok {
		return sharedStates(s, partsOf(found))
	}
	var s state
	switch o := obj.(type) {
	case *v1alpha1.MeshPolicy:
		s = state{o.Status.Conditions, o.Status.Proxies}
	case *v1alpha1.TrafficSplit:
		s = state{o.Status.Conditions, o.Status.Proxies}
	case *v1alpha1.ExternalService:
		s = state{o.Status.Conditions, o.Status.Proxies}
	case *v1alpha1.MeshConfig:
		s = state{o.Status.Conditions, o.Status.Proxies}
	}
	return []state{s}, false
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
