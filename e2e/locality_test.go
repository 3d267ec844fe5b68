package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// placeNode says where the node of a pod is, until the test ends. Labels that it had
// before are put back.
func (s *space) placeNode(of *corev1.Pod, region, zone string) {
	s.t.Helper()
	nodes := s.c.Client.CoreV1().Nodes()
	node, err := nodes.Get(s.t.Context(), of.Spec.NodeName, metav1.GetOptions{})
	must(s.t, err)
	before := map[string]any{}
	for _, l := range []string{corev1.LabelTopologyRegion, corev1.LabelTopologyZone} {
		before[l] = nil
		if v, ok := node.Labels[l]; ok {
			before[l] = v
		}
	}
	label := func(ctx context.Context, labels map[string]any) error {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
		if err != nil {
			return err
		}
		_, err = nodes.Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := label(ctx, before); err != nil {
			s.t.Errorf("putting the labels of node %s back: %v", node.Name, err)
		}
	})
	must(s.t, label(s.t.Context(), map[string]any{corev1.LabelTopologyRegion: region, corev1.LabelTopologyZone: zone}))
}

// endpointsIn makes, or replaces, the EndpointSlice of a Service in a zone: the ready
// pods of the workload app, or none where that is empty.
func (s *space) endpointsIn(service, zone, app string) {
	s.t.Helper()
	ctx, api := s.t.Context(), s.c.Client.DiscoveryV1().EndpointSlices(s.name)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service + "-" + zone, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}},
		Endpoints:   []discoveryv1.Endpoint{},
	}
	if app != "" {
		pods, err := s.c.Client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		must(s.t, err)
		for _, p := range pods.Items {
			if strings.Contains(p.Status.PodIP, ":") {
				slice.AddressType = discoveryv1.AddressTypeIPv6
			}
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{p.Status.PodIP}, Zone: ptr.To(zone),
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: s.name, Name: p.Name},
			})
		}
	}
	old, err := api.Get(ctx, slice.Name, metav1.GetOptions{})
	if err != nil {
		_, err = api.Create(ctx, slice, metav1.CreateOptions{})
		must(s.t, err)
		return
	}
	old.Endpoints = slice.Endpoints
	_, err = api.Update(ctx, old, metav1.UpdateOptions{})
	must(s.t, err)
}

// A Service that asks for the client's zone, or a policy that does, is answered by pods
// of that zone, by others while those are gone or fail, and by the former again.
func TestPodsOfTheClientsZoneAreCalledFirst(t *testing.T) {
	s := newSpace(t, "locality", true)
	s.deploy(
		app{name: "client"}, app{name: "near", version: "near", replicas: 2, noService: true},
		app{name: "far", replicas: 2, noService: true}, app{name: "farther", noService: true},
	)
	s.strict()
	s.service("web", nil)
	s.endpointsIn("web", "a", "near")
	s.endpointsIn("web", "b", "far")
	s.endpointsIn("web", "c", "farther")
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("web"))
	s.placeNode(s.running("client"), "r", "a")

	calls := []string{"http", s.url("web"), "--rate", "100", "--duration", "1s"}
	shares := func() map[string]int {
		r := s.load(from, calls...)
		noFailure(s, r)
		out := map[string]int{}
		for pod, n := range r.Pods {
			who, _, _ := strings.Cut(pod, "-")
			out[who] += n
		}
		return out
	}
	only := func(when string, apps ...string) {
		t.Helper()
		var got map[string]int
		eventually(t, 30*time.Second, when, func(context.Context) error {
			got = shares()
			if len(got) != len(apps) {
				return fmt.Errorf("answered by %v, want %v", got, apps)
			}
			for _, a := range apps {
				if got[a] == 0 {
					return fmt.Errorf("answered by %v, want %v", got, apps)
				}
			}
			return nil
		})
		figure(t, "%s: %v", when, got)
	}
	only("nobody asks for zones", "near", "far", "farther")

	services := s.c.Client.CoreV1().Services(s.name)
	_, err := services.Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"trafficDistribution":"PreferSameZone"}}`), metav1.PatchOptions{})
	must(t, err)
	only("the Service asks for the zone", "near")
	load := s.startLoad(from, "http", s.url("web"), "--rate", "50", "--duration", "8s", "--new-connection-share", "0.3")
	s.endpointsIn("web", "a", "")
	only("the zone has no pods", "far", "farther")
	s.endpointsIn("web", "a", "near")
	only("it has some again", "near")
	noFailure(s, load.wait())

	// They are killed at once, with their proxies, which tell nobody.
	load = s.startLoad(from, "http", s.url("web"), "--timeline", "--rate", "200", "--connections", "16", "--new-connection-share", "0.3", "--duration", "8s")
	time.Sleep(2 * time.Second)
	killed := time.Now()
	must(t, s.c.Client.CoreV1().Pods(s.name).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}, metav1.ListOptions{LabelSelector: "app=near"}))
	died := load.wait()
	figure(t, "all pods of the zone killed at %d rps: %d of %d calls failed, their last answer came after %.0f ms, and no call took longer than %.0f ms",
		200, died.Failed, died.Requests, lastOf(died, "near", killed, died.End), died.Latency.Max)
	if died.Failed > died.Requests/100 {
		t.Errorf("%d of %d calls failed as the zone's pods were killed: %v", died.Failed, died.Requests, died.Failures)
	}
	s.endpointsIn("web", "a", "near")
	only("the zone's pods were replaced", "near")

	// A policy of the Service's namespace has the last word, here for a shorter time
	// that failing pods are left out.
	s.apply("MeshPolicy", "zone", `
targetRefs: [{name: web}]
traffic:
  outlierDetection: {consecutive5xx: 3, interval: 500ms, baseEjectionTime: 8s, maxEjectionPercent: 100}
  loadBalancer: {locality: {prefer: SameZone, overprovisioningFactor: 100}}
`)
	only("a policy asks for the zone", "near")
	near, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=near"})
	must(t, err)
	fail := func(on bool) {
		for _, p := range near.Items {
			pod := s.in("near")
			pod.Name = p.Name
			s.toggle(pod, "fail", on)
		}
	}
	fail(true)
	eventually(t, 30*time.Second, "that others answer while the zone's pods fail", func(context.Context) error {
		if r := s.load(from, calls...); r.Failed > 0 {
			return fmt.Errorf("%d of %d failed; answered by %v", r.Failed, r.Requests, r.Pods)
		}
		return nil
	})
	fail(false)
	only("the zone's pods are well again", "near")
	s.apply("MeshPolicy", "zone", "targetRefs: [{name: web}]\ntraffic: {loadBalancer: {locality: {prefer: None}}}")
	only("a policy wants no preference", "near", "far", "farther")
}
