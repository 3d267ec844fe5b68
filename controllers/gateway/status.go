package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

const (
	// itself is the parent of a finding about the Gateway and none of its listeners.
	itself = -1
	// typeAttachedRoutes is the type of a finding that is a number and no condition.
	typeAttachedRoutes = "AttachedRoutes"
	// maxMessage bounds a condition's message, in bytes: far below what the API
	// takes, and enough to read.
	maxMessage = 1000
	// maxAddresses is how many the API takes in a Gateway's status.
	maxAddresses = 16
)

// owned are those of the conditions whose types this package writes, sorted by type.
func owned(conditions []metav1.Condition) []metav1.Condition {
	var out []metav1.Condition
	for _, c := range conditions {
		switch c.Type {
		case v1alpha1.ConditionAccepted, v1alpha1.ConditionProgrammed, v1alpha1.ConditionResolvedRefs,
			string(gatewayv1.ListenerConditionConflicted), string(gatewayv1.ListenerConditionOverlappingTLSConfig),
			string(gatewayv1.GatewayConditionInsecureFrontendValidationMode):
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) })
	return out
}

// report writes the Gateway's status if it differs from what follows from what was
// found about its present generation, and from what its objects have come to.
// problem is why it was not given what it should have; nil: it was.
func (c *Controller) report(ctx context.Context, gw *gatewayv1.Gateway, problem error) error {
	found := c.found(gw)
	if len(found) == 0 {
		return nil // the builder tells when there is something
	}
	key := types.NamespacedName{Namespace: gw.Namespace, Name: nameOf(gw)}
	var service corev1.Service
	if err := c.own.Get(ctx, key, &service); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading Service %s: %w", key, err)
	}
	var deployment appsv1.Deployment
	if err := c.own.Get(ctx, key, &deployment); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading Deployment %s: %w", key, err)
	}
	want := statusOf(gw, found, problem, addressesOf(&service), deployment.Status.ReadyReplicas)
	have := gw.Status
	c.note(gw, func(r *record) {
		if r.read == gw.ResourceVersion {
			have = r.wrote
		}
	})
	if stamp(&want, &have, c.now()) {
		return nil
	}
	if err := applyStatus(ctx, c.client.Status(), schema.GroupVersion(gatewayv1.GroupVersion).WithKind(translate.KindGateway), gw, &want); err != nil {
		return fmt.Errorf("writing the status of Gateway %s: %w", client.ObjectKeyFromObject(gw), err)
	}
	c.note(gw, func(r *record) { r.read, r.wrote = gw.ResourceVersion, want })
	return nil
}

// found is what was found about the Gateway's present generation; nothing while that
// is not known.
func (c *Controller) found(gw *gatewayv1.Gateway) []mesh.Finding {
	v := c.findings.Value(findingsKey(client.ObjectKeyFromObject(gw)))
	if v == nil {
		return nil
	}
	for _, f := range v.Findings {
		if f.Generation != gw.Generation {
			return nil
		}
	}
	return v.Findings
}

// statusOf is what a Gateway's status is to be, but for the times of its conditions.
func statusOf(gw *gatewayv1.Gateway, found []mesh.Finding, problem error, addresses []gatewayv1.GatewayStatusAddress, ready int32) gatewayv1.GatewayStatus {
	out := gatewayv1.GatewayStatus{Addresses: addresses, Conditions: conditions(found, itself)}
	accepted := meta.FindStatusCondition(out.Conditions, v1alpha1.ConditionAccepted)
	if why, reason := unaccepted(gw); why != "" {
		out.Conditions = set(out.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse, Reason: reason, Message: why, ObservedGeneration: gw.Generation,
		})
		accepted = meta.FindStatusCondition(out.Conditions, v1alpha1.ConditionAccepted)
	}
	is := meta.FindStatusCondition(out.Conditions, v1alpha1.ConditionProgrammed)
	if is == nil || is.Status == metav1.ConditionTrue {
		out.Conditions = set(out.Conditions, programmed(gw, problem, accepted, addresses, ready))
	}
	for i, l := range gw.Spec.Listeners {
		s := gatewayv1.ListenerStatus{Name: l.Name, SupportedKinds: supportedKinds(l), Conditions: conditions(found, i)}
		for _, f := range found {
			if f.Parent == i && f.Type == typeAttachedRoutes {
				s.AttachedRoutes = int32(min(f.Count, 1<<30))
			}
		}
		if s.Conditions == nil {
			s.Conditions = []metav1.Condition{} // the field is required
		}
		out.Listeners = append(out.Listeners, s)
	}
	return out
}

// unaccepted is what makes a Gateway one that is not accepted, beside what was found:
// what it asks of the machinery around it.
func unaccepted(gw *gatewayv1.Gateway) (why, reason string) {
	for _, a := range gw.Spec.Addresses {
		if a.Type != nil && *a.Type != gatewayv1.IPAddressType {
			return fmt.Sprintf("spec.addresses has one of type %s, which Tulle cannot ask for: take it out", *a.Type), string(gatewayv1.GatewayReasonUnsupportedAddress)
		}
	}
	if i := gw.Spec.Infrastructure; i != nil && i.ParametersRef != nil {
		return "Tulle has no parameters for a Gateway: take out spec.infrastructure.parametersRef, and write annotations", string(gatewayv1.GatewayReasonInvalidParameters)
	}
	return "", ""
}

// programmed is whether calls can come through, as far as the Gateway's objects tell.
func programmed(gw *gatewayv1.Gateway, problem error, accepted *metav1.Condition, addresses []gatewayv1.GatewayStatusAddress, ready int32) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionFalse, ObservedGeneration: gw.Generation}
	asked := slices.IndexFunc(gw.Spec.Addresses, func(a gatewayv1.GatewaySpecAddress) bool { return a.Value != "" })
	switch {
	case accepted == nil || accepted.Status != metav1.ConditionTrue:
		c.Reason, c.Message = string(gatewayv1.GatewayReasonInvalid), "the Gateway is not accepted as it is written: see the condition Accepted"
	case problem != nil:
		c.Reason, c.Message = string(gatewayv1.GatewayReasonInvalid), cut(problem.Error())
	case asked >= 0:
		c.Reason = string(gatewayv1.GatewayReasonAddressNotUsable)
		c.Message = fmt.Sprintf("spec.addresses asks for %s, and addresses are assigned by the cluster: take it out", gw.Spec.Addresses[asked].Value)
	case len(addresses) == 0:
		c.Reason, c.Message = string(gatewayv1.GatewayReasonAddressNotAssigned), fmt.Sprintf("the Service %s has no address yet", nameOf(gw))
	case ready == 0:
		c.Reason, c.Message = string(gatewayv1.GatewayReasonPending), fmt.Sprintf("no pod of the Deployment %s is ready yet", nameOf(gw))
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(gatewayv1.GatewayReasonProgrammed), "there is an address, and a proxy that is ready"
	}
	return c
}

// conditions are one of each type that something was found about. Where several
// findings speak of one type, one that says that it is not as it should be gives the
// reason, and all such messages are kept, as far as they fit.
func conditions(found []mesh.Finding, parent int) []metav1.Condition {
	var out []metav1.Condition
	for _, f := range found {
		if f.Parent != parent || f.Type == typeAttachedRoutes {
			continue
		}
		is := metav1.Condition{Type: f.Type, Status: metav1.ConditionFalse, Reason: f.Reason, Message: cut(f.Message), ObservedGeneration: f.Generation}
		if f.OK {
			is.Status = metav1.ConditionTrue
		}
		switch was := meta.FindStatusCondition(out, f.Type); {
		case was == nil || good(*was) && !good(is):
			out = set(out, is)
		case !good(*was) && !good(is):
			was.Message = cut(was.Message + "; " + f.Message)
		}
	}
	return owned(out)
}

// good reports whether a condition is as it should be.
func good(c metav1.Condition) bool {
	bad := c.Type == string(gatewayv1.ListenerConditionConflicted) || c.Type == string(gatewayv1.ListenerConditionOverlappingTLSConfig) ||
		c.Type == string(gatewayv1.GatewayConditionInsecureFrontendValidationMode)
	return (c.Status == metav1.ConditionTrue) != bad
}

// supportedKinds are those of routes that a listener can have, as its author allows.
func supportedKinds(l gatewayv1.Listener) []gatewayv1.RouteGroupKind {
	var can []gatewayv1.Kind
	switch l.Protocol {
	case gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType:
		can = []gatewayv1.Kind{"HTTPRoute", "GRPCRoute"}
	case gatewayv1.TLSProtocolType:
		can = []gatewayv1.Kind{"TLSRoute"}
	case gatewayv1.TCPProtocolType:
		can = []gatewayv1.Kind{"TCPRoute"}
	default: // none
	}
	out := []gatewayv1.RouteGroupKind{} // also where there is none: that says something
	add := func(k gatewayv1.Kind) {
		if slices.Contains(can, k) && !slices.ContainsFunc(out, func(o gatewayv1.RouteGroupKind) bool { return o.Kind == k }) {
			out = append(out, gatewayv1.RouteGroupKind{Group: new(gatewayv1.Group(gatewayv1.GroupName)), Kind: k})
		}
	}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		for _, k := range can {
			add(k)
		}
		return out
	}
	for _, k := range l.AllowedRoutes.Kinds {
		if k.Group == nil || *k.Group == gatewayv1.GroupName {
			add(k.Kind)
		}
	}
	return out
}

// addressesOf is where a Service is reached from outside, as a load balancer has told;
// and until one does, which on a cluster without load balancers is for ever, where it
// is reached within the cluster.
func addressesOf(s *corev1.Service) []gatewayv1.GatewayStatusAddress {
	var out []gatewayv1.GatewayStatusAddress
	add := func(value string) {
		kind := gatewayv1.HostnameAddressType
		if _, err := netip.ParseAddr(value); err == nil {
			kind = gatewayv1.IPAddressType
		}
		if value != "" && value != corev1.ClusterIPNone && len(out) < maxAddresses {
			out = append(out, gatewayv1.GatewayStatusAddress{Type: &kind, Value: value})
		}
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, i := range s.Status.LoadBalancer.Ingress {
			add(i.IP)
			add(i.Hostname)
		}
	}
	if len(out) == 0 {
		for _, ip := range s.Spec.ClusterIPs {
			add(ip)
		}
	}
	return out
}

// stamp gives the conditions of the wanted status the times of their last
// transitions, and reports whether there is nothing to write.
func stamp(want, have *gatewayv1.GatewayStatus, now time.Time) bool {
	want.Conditions = since(want.Conditions, have.Conditions, now)
	same := gatewayv1.GatewayStatus{Addresses: have.Addresses, Conditions: owned(have.Conditions)}
	for _, h := range have.Listeners {
		h.Conditions = owned(h.Conditions)
		same.Listeners = append(same.Listeners, h)
	}
	for i := range want.Listeners {
		w := &want.Listeners[i]
		var was []metav1.Condition
		for _, h := range have.Listeners {
			if h.Name == w.Name {
				was = h.Conditions
			}
		}
		w.Conditions = since(w.Conditions, was, now)
	}
	byName := func(a, b gatewayv1.ListenerStatus) int { return strings.Compare(string(a.Name), string(b.Name)) }
	other := gatewayv1.GatewayStatus{Addresses: want.Addresses, Conditions: want.Conditions, Listeners: slices.SortedFunc(slices.Values(want.Listeners), byName)}
	slices.SortFunc(same.Listeners, byName)
	return equality.Semantic.DeepEqual(same, other)
}

// since gives each condition the time of its last transition: what it was where the
// status stays the same, else now.
func since(want, have []metav1.Condition, now time.Time) []metav1.Condition {
	for i := range want {
		w := &want[i]
		w.LastTransitionTime = metav1.NewTime(now)
		if h := meta.FindStatusCondition(have, w.Type); h != nil && h.Status == w.Status {
			w.LastTransitionTime = h.LastTransitionTime
		}
	}
	return want
}

// set puts a condition in the place of the one of its type, and sorts them.
func set(in []metav1.Condition, c metav1.Condition) []metav1.Condition {
	if is := meta.FindStatusCondition(in, c.Type); is != nil {
		*is = c
		return in
	}
	in = append(in, c)
	slices.SortFunc(in, func(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) })
	return in
}

// cut shortens a message to what fits, at the end of a character.
func cut(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	const more = " …"
	return strings.ToValidUTF8(message[:maxMessage-len(more)], "") + more
}
