package observe

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func TestRangesAreMergedWithoutCoveringMore(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{nil, nil},
		{[]string{"10.0.0.0/8"}, []string{"10.0.0.0/8"}},
		{[]string{"10.0.0.0/8", "10.0.0.0/8"}, []string{"10.0.0.0/8"}},
		{[]string{"10.1.0.0/16", "10.0.0.0/8"}, []string{"10.0.0.0/8"}},
		{[]string{"10.0.0.0/16", "10.0.0.0/8"}, []string{"10.0.0.0/8"}},
		{[]string{"10.244.1.0/24", "10.244.0.0/24"}, []string{"10.244.0.0/23"}},
		{[]string{"10.244.1.0/24", "10.244.2.0/24"}, []string{"10.244.1.0/24", "10.244.2.0/24"}},
		{[]string{"10.244.3.0/24", "10.244.1.0/24", "10.244.0.0/24", "10.244.2.0/24"}, []string{"10.244.0.0/22"}},
		{[]string{"fd00:1::/64", "fd00::/64", "10.0.0.0/8"}, []string{"10.0.0.0/8", "fd00::/64", "fd00:1::/64"}},
		{[]string{"0.0.0.0/0", "::/0"}, []string{"0.0.0.0/0", "::/0"}},
		{[]string{"0.0.0.0/1", "128.0.0.0/1"}, []string{"0.0.0.0/0"}},
	} {
		same(t, mergeRanges(nets(c.in...)), nets(c.want...))
	}
}

func TestAbsentMeshConfigMeansDefaults(t *testing.T) {
	var none sources
	same(t, none.mesh("tulle-system"), &mesh.Config{
		TrustDomain:         "cluster.local",
		RootNamespace:       "tulle-system",
		MTLS:                mesh.MTLSPermissive,
		Egress:              mesh.AllowAny,
		CertificateLifetime: 24 * time.Hour,
	})
}

func TestMeshConfigAddsToWhatKubernetesTells(t *testing.T) {
	var s sources
	for _, obj := range []any{
		parse[networkingv1.ServiceCIDR](t, `{metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16, "fd00:96::/112"]}}`),
		parse[corev1.Node](t, `{metadata: {name: a}, spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24, "fd00:244::/64"]}}`),
		parse[corev1.Node](t, `{metadata: {name: b}, spec: {podCIDR: 10.244.1.0/24}}`),
		parse[corev1.Node](t, `{metadata: {name: c}}`),
		parse[v1alpha1.MeshConfig](t, `
metadata: {name: default}
spec:
  trustDomain: shop.example
  mtls: {mode: Strict}
  egress: {mode: RegistryOnly}
  certificates: {lifetime: 1m}
  clusterRanges: {services: [10.97.0.0/16], pods: [10.8.3.4/16]}
  accessLog: {mode: JSON, fields: {status: "%RESPONSE_CODE%"}}
`),
		parse[v1alpha1.MeshConfig](t, `{metadata: {name: other}, spec: {trustDomain: other}}`),
	} {
		s.put(obj)
	}
	same(t, s.mesh("tulle-system"), &mesh.Config{
		TrustDomain:         "shop.example",
		RootNamespace:       "tulle-system",
		MTLS:                mesh.MTLSStrict,
		Egress:              mesh.RegistryOnly,
		CertificateLifetime: time.Minute,
		ServiceRanges:       nets("10.96.0.0/15", "fd00:96::/112"),
		PodRanges:           nets("10.8.0.0/16", "10.244.0.0/23", "fd00:244::/64"),
		AccessLog:           map[string]string{"status": "%RESPONSE_CODE%"},
	})
}

func TestDisabledAccessLogIsEmptyAndNotNil(t *testing.T) {
	var s sources
	s.put(parse[v1alpha1.MeshConfig](t, `{metadata: {name: default}, spec: {accessLog: {mode: Disabled}}}`))
	if got := s.mesh("").AccessLog; got == nil || len(got) != 0 {
		t.Errorf("got %v, want an empty map, which turns the log off", got)
	}
}

func TestUnknownModesAreReadAsTheStrictest(t *testing.T) {
	var s sources
	s.put(parse[v1alpha1.MeshConfig](t, `{metadata: {name: default}, spec: {mtls: {mode: New}, egress: {mode: New}}}`))
	if got := s.mesh(""); got.MTLS != mesh.MTLSStrict || got.Egress != mesh.RegistryOnly {
		t.Errorf("got %+v", got)
	}
}

func TestHeartbeatOfANodeChangesNothing(t *testing.T) {
	var s sources
	node := func() *corev1.Node {
		return parse[corev1.Node](t, `{metadata: {name: a}, spec: {podCIDRs: [10.244.0.0/24]}}`)
	}
	if !s.put(node()) {
		t.Error("a new node changes the ranges")
	}
	if s.put(node()) {
		t.Error("the same node once more changes nothing")
	}
	if !s.drop(node(), "a") {
		t.Error("a node that is gone changes the ranges")
	}
	if s.drop(node(), "a") {
		t.Error("a node that is not known changes nothing")
	}
	if got := s.mesh("").PodRanges; len(got) != 0 {
		t.Errorf("got %v after the only node is gone", got)
	}
}

func TestDeletedMeshConfigMeansDefaultsAgain(t *testing.T) {
	var s sources
	mc := parse[v1alpha1.MeshConfig](t, `{metadata: {name: default}, spec: {trustDomain: a}}`)
	s.put(mc)
	if s.drop(mc, "other") {
		t.Error("only the one named default counts")
	}
	s.drop(mc, "default")
	if got := s.mesh("").TrustDomain; got != "cluster.local" {
		t.Errorf("got trust domain %q", got)
	}
}
