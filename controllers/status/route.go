package status

import (
	"context"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// conditionRouteProgrammed is the condition Programmed as it stands on a route: there
// the Gateway API wants types of others to say whose they are.
const conditionRouteProgrammed = "mesh.tulle.dev/Programmed"

// routeOf is what routes have in common; false for other objects.
func routeOf(obj client.Object) (refs []gatewayv1.ParentReference, status *gatewayv1.RouteStatus, ok bool) {
	switch r := obj.(type) {
	case *gatewayv1.HTTPRoute:
		return r.Spec.ParentRefs, &r.Status.RouteStatus, true
	case *gatewayv1.GRPCRoute:
		return r.Spec.ParentRefs, &r.Status.RouteStatus, true
	case *gatewayv1.TLSRoute:
		return r.Spec.ParentRefs, &r.Status.RouteStatus, true
	case *gatewayv1.TCPRoute:
		return r.Spec.ParentRefs, &r.Status.RouteStatus, true
	}
	return nil, nil, false
}

// parentsOf are the indexes of a route's parents that something was found about: they
// are ours to speak of.
func parentsOf(found []mesh.Finding) []int {
	var out []int
	for _, f := range found {
		if f.Parent >= 0 {
			out = append(out, f.Parent)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// routeStates are the states of a route's parents, as the API server has them. stale
// reports that there is one more, of a parent that was taken out.
func routeStates(refs []gatewayv1.ParentReference, parents []int, status *gatewayv1.RouteStatus) (out []state, stale bool) {
	have := 0
	for _, p := range status.Parents {
		if p.ControllerName == v1alpha1.ControllerName {
			have++
		}
	}
	for _, i := range parents {
		var s state
		if k := entry(status, refs[i]); k >= 0 {
			have--
			s.conditions = renamed(status.Parents[k].Conditions, conditionRouteProgrammed, v1alpha1.ConditionProgrammed)
		}
		out = append(out, s)
	}
	return out, have != 0
}

// entry is the index of our entry about the parent; -1: there is none.
func entry(status *gatewayv1.RouteStatus, ref gatewayv1.ParentReference) int {
	return slices.IndexFunc(status.Parents, func(p gatewayv1.RouteParentStatus) bool {
		return p.ControllerName == v1alpha1.ControllerName && sameParent(p.ParentRef, ref)
	})
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	return a.Name == b.Name && equal(a.Group, b.Group) && equal(a.Kind, b.Kind) && equal(a.Namespace, b.Namespace) &&
		equal(a.SectionName, b.SectionName) && equal(a.Port, b.Port)
}

func equal[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func renamed(in []metav1.Condition, from, to string) []metav1.Condition {
	out := slices.Clone(in)
	for i := range out {
		if out[i].Type == from {
			out[i].Type = to
		}
	}
	return out
}

// writeRoute replaces our entries of a route's status, and leaves those of other
// controllers. The list is one to the API server, so that it must be of the version
// that was read.
func (c *Controller) writeRoute(ctx context.Context, obj client.Object, parents []int, want []state) error {
	next := obj.DeepCopyObject().(client.Object)
	refs, status, _ := routeOf(next)
	status.Parents = slices.DeleteFunc(status.Parents, func(p gatewayv1.RouteParentStatus) bool {
		return p.ControllerName == v1alpha1.ControllerName
	})
	for k, i := range parents {
		status.Parents = append(status.Parents, gatewayv1.RouteParentStatus{
			ParentRef: refs[i], ControllerName: v1alpha1.ControllerName,
			Conditions: renamed(want[k].conditions, v1alpha1.ConditionProgrammed, conditionRouteProgrammed),
		})
	}
	if status.Parents == nil {
		status.Parents = []gatewayv1.RouteParentStatus{} // the field is required
	}
	return c.writer.Patch(ctx, next, client.MergeFromWithOptions(obj, client.MergeFromWithOptimisticLock{}), client.FieldOwner(fieldOwner))
}

// about are the findings about one parent.
func about(found []mesh.Finding, parent int) []mesh.Finding {
	return slices.DeleteFunc(slices.Clone(found), func(f mesh.Finding) bool { return f.Parent != parent })
}
