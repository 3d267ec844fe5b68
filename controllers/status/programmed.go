package status

import (
	"fmt"
	"math"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Acknowledgements is where it comes from what proxies have acknowledged: a
// *replicas.Gatherer of controllers/replicas.
type Acknowledgements interface {
	// Verdict is what all proxies make of an object; false while it is not known.
	Verdict(r mesh.Ref) (acks.Verdict, bool)
	// Notify has the function called with objects whose verdict is another.
	Notify(func([]mesh.Ref))
}

// steady is how long an object that is programmed everywhere may not be,
// before its status says so: proxies connect anew, endpoints come and go, and
// each time an acknowledgement is under way for a moment. It is also how often
// mere numbers are written.
const steady = 10 * time.Second

// programmed is the condition that follows from the verdict, for an object of
// the generation.
func programmed(v acks.Verdict, generation int64, accepted bool) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionFalse, ObservedGeneration: generation}
	switch {
	case v.Rejected > 0:
		c.Reason = v1alpha1.ReasonRejected
		c.Message = fmt.Sprintf("%d of %d proxies refused it and go on with what they had", v.Rejected, v.Concerned)
		if r := v.Refusal; r != nil {
			c.Message += fmt.Sprintf("; that of pod %s refused %s: %s", r.Pod, r.Resource, r.Words)
		}
	case !accepted:
		c.Reason, c.Message = v1alpha1.ReasonNotAccepted, "the object is not in force as it is written: see the condition Accepted"
	case len(v.Missing) > 0:
		c.Status, c.Reason = metav1.ConditionUnknown, v1alpha1.ReasonUnknown
		c.Message = fmt.Sprintf("no report of control plane replica %s: what its proxies run is not known", strings.Join(v.Missing, ", "))
	case v.Generation != generation:
		c.Reason, c.Message = v1alpha1.ReasonPending, fmt.Sprintf("generation %d has not reached all control plane replicas yet", generation)
	case v.Programmed < v.Concerned:
		c.Reason = v1alpha1.ReasonPending
		c.Message = fmt.Sprintf("%d of %d proxies have acknowledged it; waiting for %s", v.Programmed, v.Concerned, list(v.Waiting, v.Concerned-v.Programmed))
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, v1alpha1.ReasonProgrammed, "every proxy that it concerns has acknowledged it"
		if v.Concerned == 0 {
			c.Message = "it concerns no running proxy"
		}
	}
	c.Message = cut(c.Message)
	return c
}

// list names a few pods, of so many.
func list(pods []string, of int) string {
	out := strings.Join(pods, ", ")
	if more := of - len(pods); more > 0 {
		return fmt.Sprintf("%s and %d more", out, more)
	}
	return out
}

func counts(v acks.Verdict) *v1alpha1.ProxyCounts {
	return &v1alpha1.ProxyCounts{
		Concerned: count(v.Concerned), Programmed: count(v.Programmed), Rejected: count(v.Rejected),
	}
}

func count(n int) int32 { return int32(min(n, math.MaxInt32)) }
