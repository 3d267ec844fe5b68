package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// endpoints waits until a Service has a ready endpoint.
func (s *space) endpoints(service string) {
	s.t.Helper()
	eventually(s.t, 20*time.Second, "endpoints of "+service, func(ctx context.Context) error {
		slices, err := s.c.Client.DiscoveryV1().EndpointSlices(s.name).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
		if err != nil {
			return err
		}
		for _, slice := range slices.Items {
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && *e.Conditions.Ready {
					return nil
				}
			}
		}
		return fmt.Errorf("%d slices, no ready endpoint", len(slices.Items))
	})
}

func (s *space) clusterIP(service string) string {
	s.t.Helper()
	got, err := s.c.Client.CoreV1().Services(s.name).Get(s.t.Context(), service, metav1.GetOptions{})
	must(s.t, err)
	return got.Spec.ClusterIP
}

// scaleControlPlane sets the number of replicas and waits until they are that
// many.
func scaleControlPlane(ctx context.Context, c *kube.Cluster, replicas int32) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"replicas": replicas}})
	if err != nil {
		return err
	}
	_, err = c.Client.AppsV1().Deployments(kube.TulleNamespace).Patch(ctx, "tulled", types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("scaling the control plane: %w", err)
	}
	if replicas > 0 {
		return c.Installed(ctx)
	}
	return kube.Eventually(ctx, time.Minute, "the control plane's end", func(ctx context.Context) error {
		pods, err := c.Client.CoreV1().Pods(kube.TulleNamespace).List(ctx, metav1.ListOptions{LabelSelector: "mesh.tulle.dev/revision=default"})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.Status.Phase == corev1.PodRunning {
				return fmt.Errorf("%s is still there", p.Name)
			}
		}
		return nil
	})
}

func TestCallsGoOnWhileTheControlPlaneIsAway(t *testing.T) {
	s := newSpace(t, "away", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	s.strict()
	s.service("never-used", map[string]string{"app": "server"})
	never := s.address("never-used")
	from := s.in("client")
	known := map[string][]string{
		"HTTP":             {"http", s.url("server")},
		"gRPC":             {"grpc", s.host("server") + ":9000"},
		"client-first TCP": {"tcp", s.host("server") + ":9001"},
		"server-first TCP": {"greet", s.host("server") + ":3306"},
	}
	for _, args := range known {
		s.callUntil(from, works, args...)
	}
	deployment, err := s.c.Client.AppsV1().Deployments(kube.TulleNamespace).Get(t.Context(), "tulled", metav1.GetOptions{})
	must(t, err)
	replicas := *deployment.Spec.Replicas
	restore := func(ctx context.Context) error { return scaleControlPlane(ctx, s.c, replicas) }
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := restore(ctx); err != nil {
			t.Errorf("bringing the control plane back: %v", err)
		}
	})

	load := s.startLoad(from, "http", s.url("server"), "--rate", "50", "--new-connection-share", "0.5")
	must(t, scaleControlPlane(t.Context(), s.c, 0))
	for kind, args := range known {
		if err := works(s.call(from, args...)); err != nil {
			t.Errorf("a known service over %s while the control plane is away: %v", kind, err)
		}
	}
	for kind, args := range map[string][]string{"HTTP": {"http", "http://" + never}, "TCP": {"tcp", never + ":9001"}} {
		r := s.call(from, append(args, "--timeout", "20s")...)
		figure(t, "control plane away, never-used service over %s: status %d, failure %+v, after %.0f ms", kind, r.Status, r.Failure, r.MS)
		if works(r) == nil {
			t.Errorf("a never-used service answered over %s: it was known before, so that this shows nothing", kind)
		}
		if r.MS > 10_000 {
			t.Errorf("a call to a never-used service over %s hung for %.0f ms", kind, r.MS)
		}
	}
	back := time.Now()
	must(t, restore(t.Context()))
	for _, args := range [][]string{{"http", "http://" + never}, {"tcp", never + ":9001"}} {
		// Streams come back with a back-off of some seconds.
		eventually(t, 45*time.Second, "the never-used service", func(context.Context) error { return works(s.call(from, args...)) })
	}
	figure(t, "the never-used service answered %.1f s after the control plane was brought back", time.Since(back).Seconds())
	r := load.stop()
	noFailure(s, r)
	figure(t, "a known service meanwhile: %d requests, %d failed", r.Requests, r.Failed)
}

// A rolling update of the control plane is its everyday absence.
func TestARestartOfTheControlPlaneCostsNoCall(t *testing.T) {
	s := newSpace(t, "restart", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))
	load := s.startLoad(from, "http", s.url("server"), "--rate", "50", "--new-connection-share", "0.5")
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"e2e.tulle.dev/restarted":"%d"}}}}}`, time.Now().UnixNano())
	_, err := s.c.Client.AppsV1().Deployments(kube.TulleNamespace).Patch(t.Context(), "tulled", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	must(t, err)
	must(t, s.c.Installed(t.Context()))
	s.ended(kube.TulleNamespace)
	noFailure(s, load.stop())
	// And the new one is in charge: a policy arrives.
	s.apply("MeshPolicy", "shut", "authorization: {default: Deny}")
	s.callUntil(from, answered(403), "http", s.url("server"))
}

// A proxy that hears from no control plane goes on when every pod that it knows of is
// replaced by another.
func TestCallsFindPodsThatTheProxyWasNotToldOf(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "untold", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 2})
	s.strict()
	from := s.in("client")
	r := s.callUntil(from, answered(200), "http", s.url("server"))
	others := map[string][]string{"TCP": {"tcp", s.host("server") + ":9001"}, "gRPC": {"grpc", s.host("server") + ":9000"}}
	for _, args := range others {
		s.callUntil(from, works, args...)
	}
	heal := dropping(t, proxyProcess(t, s.running("client")), "tcp dport 15010")
	before := map[string]bool{}
	pods, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=server"})
	must(t, err)
	for _, p := range pods.Items {
		before[p.Name] = true
	}
	s.rolls("server")
	s.endpoints("server")
	eventually(t, 30*time.Second, "the old pods' end", func(ctx context.Context) error {
		pods, err := s.c.Client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{LabelSelector: "app=server"})
		for _, p := range pods.Items {
			if before[p.Name] {
				return fmt.Errorf("%s is still there", p.Name)
			}
		}
		return err
	})
	figure(t, "before, %s answered", r.Reply.Pod)
	load := s.load(from, "http", s.url("server"), "--rate", "50", "--connections", "50", "--duration", "15s", "--new-connection-share", "0.3")
	figure(t, "with all pods replaced unknown to the client's proxy: %d requests, %d failed, by %v; p50 %.1f, p99 %.1f ms", load.Requests, load.Failed, load.Pods, load.Service.P50, load.Service.P99)
	noFailure(s, load)
	// Three connections to each have to fail first.
	if load.Service.P50 > 100 {
		t.Errorf("a request took %.0f ms in the middle", load.Service.P50)
	}
	for kind, args := range others { // the first of which find out
		start := time.Now()
		s.callUntil(from, works, args...)
		figure(t, "over %s after %.1f s", kind, time.Since(start).Seconds())
	}
	heal()
	s.apply("MeshPolicy", "shut", "authorization: {default: Deny}")
	s.callUntil(from, answered(403), "http", s.url("server"))
}
