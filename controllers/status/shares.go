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

// conditionSharedProgrammed is the condition Programmed as it stands on a route and on a
// BackendTLSPolicy: there the Gateway API wants types of others to say whose they are.
const conditionSharedProgrammed = "mesh.tulle.dev/Programmed"

// shares is the part of a status that controllers share, each with entries of its own for
// each of several parts of the object: a route's parents, a policy's ancestors. Parts have
// numbers, which findings name (mesh.Finding.Parent).
type shares interface {
	// ours is how many entries are ours.
	ours() int
	// entry are the conditions of our entry for the part; nil: there is none.
	entry(part int) []metav1.Condition
	// replace puts entries of ours for the parts in the place of those that there are.
	replace(parts []int, conditions [][]metav1.Condition)
}

// sharesOf is an object's; false for one whose status is all ours.
func sharesOf(obj client.Object, found []mesh.Finding) (shares, bool) {
	if refs, status, ok := routeOf(obj); ok {
		return routeShares{refs, status}, true
	}
	if p, ok := obj.(*gatewayv1.BackendTLSPolicy); ok {
		return policyShares{ancestors(found), &p.Status}, true
	}
	return nil, false
}

// routeShares are of a route, whose parts are its parentRefs.
type routeShares struct {
	refs   []gatewayv1.ParentReference
	status *gatewayv1.RouteStatus
}

func isOursParent(p gatewayv1.RouteParentStatus) bool {
	return p.ControllerName == v1alpha1.ControllerName
}

func (s routeShares) ours() int { return number(s.status.Parents, isOursParent) }

func (s routeShares) entry(part int) []metav1.Condition {
	for _, p := range s.status.Parents {
		if isOursParent(p) && sameParent(p.ParentRef, s.refs[part]) {
			return p.Conditions
		}
	}
	return nil
}

func (s routeShares) replace(parts []int, conditions [][]metav1.Condition) {
	s.status.Parents = slices.DeleteFunc(s.status.Parents, isOursParent)
	for k, i := range parts {
		s.status.Parents = append(s.status.Parents, gatewayv1.RouteParentStatus{
			ParentRef: s.refs[i], ControllerName: v1alpha1.ControllerName, Conditions: conditions[k],
		})
	}
	if s.status.Parents == nil {
		s.status.Parents = []gatewayv1.RouteParentStatus{} // the field is required
	}
}

// maxAncestors is how many entries the API takes, those of all controllers.
const maxAncestors = 16

// policyShares are of a BackendTLSPolicy, whose parts are what was found out about.
type policyShares struct {
	refs   map[int]gatewayv1.ParentReference
	status *gatewayv1.PolicyStatus
}

// ancestors are the parts of a policy, as its status names them.
func ancestors(found []mesh.Finding) map[int]gatewayv1.ParentReference {
	out := map[int]gatewayv1.ParentReference{}
	for _, f := range found {
		if f.Parent < 0 {
			continue
		}
		kind, group := gatewayv1.Kind("Gateway"), gatewayv1.Group(gatewayv1.GroupName)
		if f.Ancestor.Kind == mesh.KindService {
			kind, group = "Service", ""
		}
		namespace := gatewayv1.Namespace(f.Ancestor.Name.Namespace)
		out[f.Parent] = gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &namespace, Name: gatewayv1.ObjectName(f.Ancestor.Name.Name)}
	}
	return out
}

func isOursAncestor(p gatewayv1.PolicyAncestorStatus) bool {
	return p.ControllerName == v1alpha1.ControllerName
}

func (s policyShares) ours() int { return number(s.status.Ancestors, isOursAncestor) }

func (s policyShares) entry(part int) []metav1.Condition {
	for _, p := range s.status.Ancestors {
		if isOursAncestor(p) && sameParent(p.AncestorRef, s.refs[part]) {
			return p.Conditions
		}
	}
	return nil
}

func (s policyShares) replace(parts []int, conditions [][]metav1.Condition) {
	s.status.Ancestors = slices.DeleteFunc(s.status.Ancestors, isOursAncestor)
	for k, i := range parts {
		if len(s.status.Ancestors) == maxAncestors {
			break
		}
		s.status.Ancestors = append(s.status.Ancestors, gatewayv1.PolicyAncestorStatus{
			AncestorRef: s.refs[i], ControllerName: v1alpha1.ControllerName, Conditions: conditions[k],
		})
	}
	if s.status.Ancestors == nil {
		s.status.Ancestors = []gatewayv1.PolicyAncestorStatus{} // the field is required
	}
}

func number[T any](in []T, is func(T) bool) (n int) {
	for _, x := range in {
		if is(x) {
			n++
		}
	}
	return n
}

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

// partsOf are the parts that something was found about: they are ours to speak of.
func partsOf(found []mesh.Finding) []int {
	var out []int
	for _, f := range found {
		if f.Parent >= 0 {
			out = append(out, f.Parent)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// sharedStates are the states of an object's parts, as the API server has them. stale
// reports that there is one more, of a part that is no more.
func sharedStates(in shares, parts []int) (out []state, stale bool) {
	have := in.ours()
	for _, i := range parts {
		var s state
		if conditions := in.entry(i); conditions != nil {
			have--
			s.conditions = renamed(conditions, conditionSharedProgrammed, v1alpha1.ConditionProgrammed)
		}
		out = append(out, s)
	}
	return out, have != 0
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

// writeShared replaces our entries of an object's status, and leaves those of other
// controllers. The list is one to the API server, so that it must be of the version
// that was read.
func (c *Controller) writeShared(ctx context.Context, obj client.Object, found []mesh.Finding, want []state) error {
	next := obj.DeepCopyObject().(client.Object)
	conditions := make([][]metav1.Condition, 0, len(want))
	for _, w := range want {
		conditions = append(conditions, renamed(w.conditions, v1alpha1.ConditionProgrammed, conditionSharedProgrammed))
	}
	s, _ := sharesOf(next, found)
	s.replace(partsOf(found), conditions)
	return c.writer.Patch(ctx, next, client.MergeFromWithOptions(obj, client.MergeFromWithOptimisticLock{}), client.FieldOwner(fieldOwner))
}

// about are the findings about one part.
func about(found []mesh.Finding, part int) []mesh.Finding {
	return slices.DeleteFunc(slices.Clone(found), func(f mesh.Finding) bool { return f.Parent != part })
}
