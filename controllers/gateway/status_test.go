package gateway

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func finding(parent int, conditionType string, ok bool, reason string) mesh.Finding {
	return mesh.Finding{Generation: 1, Parent: parent, Type: conditionType, OK: ok, Reason: reason, Message: "because " + reason}
}

func attached(parent, count int) mesh.Finding {
	return mesh.Finding{Generation: 1, Parent: parent, Type: typeAttachedRoutes, Count: count}
}

// goodFindings are those of a Gateway with one listener.
func goodFindings() []mesh.Finding {
	return []mesh.Finding{
		finding(itself, "Accepted", true, "Accepted"), finding(0, "Accepted", true, "Accepted"), finding(0, "Programmed", true, "Programmed"),
		finding(0, "ResolvedRefs", true, "ResolvedRefs"), finding(0, "Conflicted", false, "NoConflicts"), attached(0, 3),
	}
}

func words(conditions []metav1.Condition) string {
	var out []string
	for _, c := range conditions {
		out = append(out, fmt.Sprintf("%s=%s/%s@%d", c.Type, c.Status, c.Reason, c.ObservedGeneration))
	}
	return strings.Join(out, " ")
}

func ip(value string) []gatewayv1.GatewayStatusAddress {
	return []gatewayv1.GatewayStatusAddress{{Type: new(gatewayv1.IPAddressType), Value: value}}
}

func TestProgrammedTellsWhatIsMissing(t *testing.T) {
	good := ip("10.0.0.1")
	for name, c := range map[string]struct {
		change    func(*gatewayv1.Gateway)
		found     []mesh.Finding
		problem   error
		addresses []gatewayv1.GatewayStatusAddress
		ready     int32
		want      string
	}{
		"all there":           {found: goodFindings(), addresses: good, ready: 1, want: "Accepted=True/Accepted@1 Programmed=True/Programmed@1"},
		"no address":          {found: goodFindings(), ready: 1, want: "Accepted=True/Accepted@1 Programmed=False/AddressNotAssigned@1"},
		"no pod":              {found: goodFindings(), addresses: good, want: "Accepted=True/Accepted@1 Programmed=False/Pending@1"},
		"objects are refused": {found: goodFindings(), problem: errors.New("x"), addresses: good, ready: 1, want: "Accepted=True/Accepted@1 Programmed=False/Invalid@1"},
		"not accepted": {
			found: []mesh.Finding{finding(itself, "Accepted", false, "ListenersNotValid")}, addresses: good, ready: 1,
			want: "Accepted=False/ListenersNotValid@1 Programmed=False/Invalid@1",
		},
		"findings have the last word on False": {
			found: append(goodFindings(), finding(itself, "Programmed", false, "NoResources")), addresses: good, ready: 1,
			want: "Accepted=True/Accepted@1 Programmed=False/NoResources@1",
		},
		"an address is asked for": {
			change: func(gw *gatewayv1.Gateway) { gw.Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Value: "192.0.2.1"}} },
			found:  goodFindings(), addresses: good, ready: 1, want: "Accepted=True/Accepted@1 Programmed=False/AddressNotUsable@1",
		},
		"any address is asked for": {
			change: func(gw *gatewayv1.Gateway) {
				gw.Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Type: new(gatewayv1.IPAddressType)}}
			},
			found: goodFindings(), addresses: good, ready: 1, want: "Accepted=True/Accepted@1 Programmed=True/Programmed@1",
		},
		"a name is asked for": {
			change: func(gw *gatewayv1.Gateway) {
				gw.Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Type: new(gatewayv1.HostnameAddressType), Value: "example.org"}}
			},
			found: goodFindings(), addresses: good, ready: 1, want: "Accepted=False/UnsupportedAddress@1 Programmed=False/Invalid@1",
		},
		"parameters": {
			change: func(gw *gatewayv1.Gateway) {
				gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Kind: "ConfigMap", Name: "x"}}
			},
			found: goodFindings(), addresses: good, ready: 1, want: "Accepted=False/InvalidParameters@1 Programmed=False/Invalid@1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType))
			if c.change != nil {
				c.change(gw)
			}
			got := statusOf(gw, c.found, c.problem, c.addresses, c.ready)
			if words(got.Conditions) != c.want {
				t.Errorf("got  %s\nwant %s", words(got.Conditions), c.want)
			}
		})
	}
}

func TestListenersHaveTheirOwnConditions(t *testing.T) {
	gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType), listener("tls", 443, gatewayv1.TLSProtocolType))
	found := append(goodFindings(),
		finding(1, "Conflicted", false, "NoConflicts"), finding(1, "Conflicted", true, "HostnameConflict"), finding(1, "Accepted", true, "Accepted"),
		finding(1, "Accepted", false, "UnsupportedValue"), finding(1, "Accepted", false, "UnsupportedProtocol"))
	got := statusOf(gw, found, nil, nil, 0).Listeners
	if len(got) != 2 || got[0].Name != "web" || got[0].AttachedRoutes != 3 || got[1].AttachedRoutes != 0 {
		t.Fatalf("got %+v", got)
	}
	if want := "Accepted=True/Accepted@1 Conflicted=False/NoConflicts@1 Programmed=True/Programmed@1 ResolvedRefs=True/ResolvedRefs@1"; words(got[0].Conditions) != want {
		t.Errorf("got  %s\nwant %s", words(got[0].Conditions), want)
	}
	if want := "Accepted=False/UnsupportedValue@1 Conflicted=True/HostnameConflict@1"; words(got[1].Conditions) != want {
		t.Errorf("got  %s\nwant %s", words(got[1].Conditions), want)
	}
	if m := got[1].Conditions[0].Message; m != "because UnsupportedValue; because UnsupportedProtocol" {
		t.Errorf("got %q", m)
	}
}

// What is lacked on both sides of TLS is told, and the condition that says whom a Gateway lets
// in is gone with what it is about.
func TestCertificatesOfClientsAndForBackendsAreInTheStatus(t *testing.T) {
	gw := edge(listener("tls", 443, gatewayv1.HTTPSProtocolType))
	found := append(goodFindings(),
		finding(itself, "InsecureFrontendValidationMode", true, "ConfigurationChanged"), finding(itself, "ResolvedRefs", false, "InvalidClientCertificateRef"),
		finding(0, "ResolvedRefs", false, "InvalidCertificateRef"), finding(0, "ResolvedRefs", false, "InvalidCACertificateRef"), finding(0, "Accepted", false, "NoValidCACertificate"))
	got := statusOf(gw, found, nil, ip("192.0.2.1"), 1)
	if want := "Accepted=True/Accepted@1 InsecureFrontendValidationMode=True/ConfigurationChanged@1 Programmed=True/Programmed@1 ResolvedRefs=False/InvalidClientCertificateRef@1"; words(got.Conditions) != want {
		t.Errorf("got  %s\nwant %s", words(got.Conditions), want)
	}
	l := got.Listeners[0]
	if want := "Accepted=False/NoValidCACertificate@1 Conflicted=False/NoConflicts@1 Programmed=True/Programmed@1 ResolvedRefs=False/InvalidCertificateRef@1"; words(l.Conditions) != want {
		t.Errorf("got  %s\nwant %s", words(l.Conditions), want)
	}
	if m := meta.FindStatusCondition(l.Conditions, "ResolvedRefs").Message; m != "because InvalidCertificateRef; because InvalidCACertificateRef" {
		t.Errorf("got %q", m)
	}
	later := statusOf(gw, goodFindings(), nil, ip("192.0.2.1"), 1)
	if stamp(&later, &got, time.Now()) {
		t.Error("what is no longer so is taken for the same")
	}
}

func TestSupportedKinds(t *testing.T) {
	kind := func(group, k string) gatewayv1.RouteGroupKind {
		return gatewayv1.RouteGroupKind{Group: new(gatewayv1.Group(group)), Kind: gatewayv1.Kind(k)}
	}
	const api = "gateway.networking.k8s.io"
	for _, c := range []struct {
		protocol gatewayv1.ProtocolType
		allowed  []gatewayv1.RouteGroupKind
		want     string
	}{
		{protocol: "HTTP", want: "HTTPRoute GRPCRoute"},
		{protocol: "HTTPS", want: "HTTPRoute GRPCRoute"},
		{protocol: "TLS", want: "TLSRoute"},
		{protocol: "TCP", want: "TCPRoute"},
		{protocol: "UDP", want: ""},
		{protocol: "mesh.tulle.dev/Egress", want: ""},
		{protocol: "HTTP", allowed: []gatewayv1.RouteGroupKind{{Kind: "HTTPRoute"}, {Kind: "HTTPRoute"}, kind(api, "TCPRoute")}, want: "HTTPRoute"},
		{protocol: "HTTP", allowed: []gatewayv1.RouteGroupKind{kind("example.org", "HTTPRoute")}, want: ""},
	} {
		l := listener("l", 80, c.protocol)
		if c.allowed != nil {
			l.AllowedRoutes = &gatewayv1.AllowedRoutes{Kinds: c.allowed}
		}
		var got []string
		for _, k := range supportedKinds(l) {
			got = append(got, string(k.Kind))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s, %v: got %v, want %s", c.protocol, c.allowed, got, c.want)
		}
	}
}

func TestAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		kind    corev1.ServiceType
		ips     []string
		ingress []corev1.LoadBalancerIngress
		want    string
	}{
		"a load balancer's":           {"LoadBalancer", []string{"10.0.0.1"}, []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}, {Hostname: "lb.example.org"}}, "IPAddress:192.0.2.1 Hostname:lb.example.org"},
		"no load balancer":            {"LoadBalancer", []string{"10.0.0.1", "fd00::1"}, nil, "IPAddress:10.0.0.1 IPAddress:fd00::1"},
		"within the cluster":          {"ClusterIP", []string{"10.0.0.1"}, []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}, "IPAddress:10.0.0.1"},
		"at the nodes":                {"NodePort", []string{"10.0.0.1"}, nil, "IPAddress:10.0.0.1"},
		"no Service":                  {"", nil, nil, ""},
		"one that has nothing to say": {"ClusterIP", []string{"None"}, nil, ""},
	} {
		s := &corev1.Service{Spec: corev1.ServiceSpec{Type: c.kind, ClusterIPs: c.ips}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: c.ingress}}}
		var got []string
		for _, a := range addressesOf(s) {
			got = append(got, string(*a.Type)+":"+a.Value)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %v, want %s", name, got, c.want)
		}
	}
}

func TestTransitions(t *testing.T) {
	gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType))
	first, later := time.Unix(1000, 0), time.Unix(2000, 0)
	have := statusOf(gw, goodFindings(), nil, ip("10.0.0.1"), 0)
	if stamp(&have, &gw.Status, first) {
		t.Fatal("nothing to write at first")
	}
	have.Conditions = append(have.Conditions, metav1.Condition{Type: "Example", Status: "True"})
	same := statusOf(gw, goodFindings(), nil, ip("10.0.0.1"), 0)
	if !stamp(&same, &have, later) {
		t.Errorf("what has not changed is written: %+v", same)
	}
	ready := statusOf(gw, goodFindings(), nil, ip("10.0.0.1"), 1)
	if stamp(&ready, &have, later) {
		t.Error("a pod is ready, and nothing is written")
	}
	for conditionType, want := range map[string]time.Time{"Accepted": first, "Programmed": later} {
		if got := meta.FindStatusCondition(ready.Conditions, conditionType).LastTransitionTime; !got.Time.Equal(want) {
			t.Errorf("%s: got %s, want %s", conditionType, got, want)
		}
	}
	if got := ready.Listeners[0].Conditions[0].LastTransitionTime; !got.Time.Equal(first) {
		t.Errorf("the listener's: got %s, want %s", got, first)
	}
}
