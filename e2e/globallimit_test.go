package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// rateLimitService names the namespace's Service counter as the mesh's.
func (s *space) rateLimitService(mode string) {
	s.t.Helper()
	must(s.t, s.c.Apply(s.t.Context(), fmt.Sprintf(`
apiVersion: mesh.tulle.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {rateLimitService: {namespace: %s, name: counter, port: 9000, timeout: 2s, failureMode: %s}}`, s.name, mode)))
	eventually(s.t, 30*time.Second, "the MeshConfig", func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "Programmed", "True")
	})
}

// Two pods share a limit, which a service counts that takes mutual TLS alone.
func TestAGlobalLimitIsForAllPods(t *testing.T) {
	noLeftovers(t)
	s := newSpace(t, "global", true)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, s.c.Delete(ctx, "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\n"))
	})
	// Before there are connections: the service is of the listener, whose old ones drain.
	s.rateLimitService("Closed")
	s.deploy(app{name: "server", replicas: 2}, app{name: "counter"}, app{name: "one"}, app{name: "two"})
	s.strict()
	s.apply("MeshPolicy", "limit", limits(`{name: each, global: {descriptors: [{key: who, attribute: Caller}, {key: most, value: "7"}]}}`))
	s.callUntil(s.in("one"), answered(200), "http", s.url("server"))
	got := s.burst("one", 20)
	figure(t, "of 20 further requests of a caller to two pods, which may make 7: %v", got)
	if got["200"] == 0 || got["200"] > 6 || got["200"]+got["429"] != 20 {
		t.Errorf("a caller of two pods is answered with %v, want 200 for what is left of 7, and 429", got)
	}
	s.wantStatuses("the same caller again", s.burst("one", 4), map[string]int{"429": 4})
	s.wantStatuses("another caller", s.burst("two", 12), map[string]int{"200": 7, "429": 5})

	// While it is away the mode decides.
	must(t, s.c.MergePatch(t.Context(), schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, s.name, "counter", `{"spec":{"replicas":0}}`))
	s.callUntil(s.in("one"), answered(503), "http", s.url("server"))
	s.rateLimitService("Open")
	eventually(t, time.Minute, "a request that is let in", func(context.Context) error {
		return answered(200)(s.call(s.in("one"), "http", s.url("server")))
	})
}
