package status

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func findingsAbout(ancestors ...mesh.Ref) []mesh.Finding {
	out := []mesh.Finding{{Parent: -1}}
	for i, a := range ancestors {
		out = append(out, mesh.Finding{Parent: i, Ancestor: a, Type: v1alpha1.ConditionAccepted, OK: true, Reason: v1alpha1.ReasonAccepted})
	}
	return out
}

// Ancestors come and go, and with them the numbers of the others.
func TestAncestorsKeepTheirConditionsWhateverTheirNumber(t *testing.T) {
	gateway := mesh.Ref{Kind: mesh.KindGateway, Name: mesh.Name{Namespace: "edge", Name: "front"}}
	service := mesh.Ref{Kind: mesh.KindService, Name: mesh.Name{Namespace: "shop", Name: "front"}}
	p := &gatewayv1.BackendTLSPolicy{}
	was := findingsAbout(service)
	s, ok := sharesOf(p, was)
	if !ok {
		t.Fatal("a BackendTLSPolicy's status counts as all ours")
	}
	s.replace(partsOf(was), [][]metav1.Condition{{{Type: v1alpha1.ConditionAccepted, Reason: "Old"}}})

	is := findingsAbout(gateway, service)
	s, _ = sharesOf(p, is)
	states, stale := sharedStates(s, partsOf(is))
	if len(states) != 2 || states[0].conditions != nil || len(states[1].conditions) != 1 || states[1].conditions[0].Reason != "Old" || stale {
		t.Errorf("with a gateway before it: %+v, stale: %t", states, stale)
	}
	is = findingsAbout(gateway)
	s, _ = sharesOf(p, is)
	if _, stale := sharedStates(s, partsOf(is)); !stale {
		t.Error("an ancestor that is no more is not noticed")
	}
	s.replace(partsOf(is), [][]metav1.Condition{nil})
	if a := p.Status.Ancestors; len(a) != 1 || *a[0].AncestorRef.Kind != "Gateway" || *a[0].AncestorRef.Namespace != "edge" {
		t.Errorf("the status has %+v, want the gateway alone", a)
	}
}

func TestEntriesOfOtherControllersStay(t *testing.T) {
	p := &gatewayv1.BackendTLSPolicy{}
	const others = 10
	for i := range others {
		p.Status.Ancestors = append(p.Status.Ancestors, gatewayv1.PolicyAncestorStatus{ControllerName: gatewayv1.GatewayController(fmt.Sprint("example.org/", i))})
	}
	var ancestors []mesh.Ref
	for i := range maxAncestors {
		ancestors = append(ancestors, mesh.Ref{Kind: mesh.KindGateway, Name: mesh.Name{Namespace: "edge", Name: fmt.Sprint(i)}})
	}
	found := findingsAbout(ancestors...)
	s, _ := sharesOf(p, found)
	s.replace(partsOf(found), make([][]metav1.Condition, len(ancestors)))
	if n := len(p.Status.Ancestors); n != maxAncestors || s.ours() != maxAncestors-others {
		t.Errorf("%d entries, of which %d are ours; want %d, as many as the API takes, and all of the others'", n, s.ours(), maxAncestors)
	}
}
