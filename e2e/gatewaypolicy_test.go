package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// A Gateway's policies are those that name it: the mesh's own do not hold there, since its
// callers are nobody in the mesh.
func TestAGatewaysPoliciesAreThoseThatNameIt(t *testing.T) {
	t.Parallel()
	s, outside := newSpace(t, "guarded", true), newSpace(t, "guest", false)
	s.deploy(app{name: "server"})
	outside.deploy(app{name: "client"}, app{name: "other"})
	s.gateway("front", `
  - {name: http, port: 80, protocol: HTTP}
  - {name: api, port: 8080, protocol: HTTP}`)
	s.route("HTTPRoute", "server", "parentRefs: [{name: front}]\nrules: [{backendRefs: [{name: server, port: 80}]}]")
	from, url := outside.in("client"), s.url("front-tulle")
	api := url + ":8080"
	outside.callUntil(from, answered(200), "http", url)
	outside.callUntil(from, answered(200), "http", api)

	// One of the namespace, about workloads: the server takes the gateway's calls alone.
	s.apply("MeshPolicy", "workloads", "authorization: {rules: [{from: [{namespaces: ["+s.name+"]}]}]}\nrateLimit: {rules: [{limit: {requests: 1000, unit: Second}}]}")
	outside.callUntil(from, answered(200), "http", url)

	gateway := "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]\n"
	section := "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front, sectionName: api}]\n"
	s.apply("MeshPolicy", "admin", gateway+"authorization: {rules: [{action: Deny, to: [{paths: [/admin, /admin/*]}]}]}")
	outside.callUntil(from, answered(403), "http", url+"/admin/x")
	for _, path := range []string{"/%61dmin", "/x/../admin", "//admin"} {
		if err := answered(200)(outside.call(from, "http", url+path)); err == nil {
			t.Errorf("spelt %s the path is let in", path)
		}
	}
	outside.callUntil(from, answered(200), "http", url+"/shop")
	pods, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "gateway.networking.k8s.io/gateway-name=front"})
	must(t, err)
	eventually(t, 20*time.Second, "the number of proxies concerned", func(ctx context.Context) error {
		return s.concerned(ctx, "MeshPolicy", "admin", len(pods.Items))
	})

	client, err := s.c.Client.CoreV1().Pods(outside.name).Get(t.Context(), from.Name, metav1.GetOptions{})
	must(t, err)
	s.apply("MeshPolicy", "one", section+"authorization: {rules: [{from: [{ipBlocks: ["+block(client)+"]}]}]}")
	outside.callUntil(outside.in("other"), answered(403), "http", api)
	outside.callUntil(from, answered(200), "http", api)
	outside.callUntil(outside.in("other"), answered(200), "http", url)

	s.apply("MeshPolicy", "limit", section+"rateLimit: {rules: [{limit: {requests: 5, unit: Hour}, perCaller: true}]}")
	// Each of the gateway's pods counts for itself.
	r := outside.load(from, "http", api, "--requests", "24")
	if in := r.Status["200"]; in < 5 || in > 5*len(pods.Items) || in+r.Status["429"] != 24 {
		t.Errorf("over the limit of a caller, 5 at each of %d pods, the answers are %v", len(pods.Items), r.Status)
	}
	r = outside.load(from, "http", url, "--requests", "12")
	s.wantStatuses("at the other listener", r.Status, map[string]int{"200": 12})
}

// concerned is an error unless a status says that it concerns so many proxies.
func (s *space) concerned(ctx context.Context, kind, name string, want int) error {
	o, err := s.c.Get(ctx, kube.MeshKind(kind), s.name, name)
	if err != nil {
		return err
	}
	got, _, err := unstructured.NestedInt64(o.Object, "status", "proxies", "concerned")
	if err != nil {
		return err
	}
	if int(got) != want {
		return fmt.Errorf("it concerns %d proxies, want %d", got, want)
	}
	return nil
}

// block is a pod's address alone.
func block(p *corev1.Pod) string {
	if strings.Contains(p.Status.PodIP, ":") {
		return p.Status.PodIP + "/128"
	}
	return p.Status.PodIP + "/32"
}
