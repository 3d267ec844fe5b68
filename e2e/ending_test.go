package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// ending is a server that ends as its arguments say, with ten seconds for it.
func ending(replicas int32, annotations map[string]string, args ...string) app {
	return app{name: "server", replicas: replicas, pod: func(p *corev1.PodTemplateSpec) {
		p.Annotations = annotations
		p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](10)
		p.Spec.Containers[0].Args = append([]string{"serve"}, args...)
	}}
}

// noSleep leaves out the sleep that injection gives an application.
var noSleep = map[string]string{"mesh.tulle.dev/prestop-sleep": "0"}

// patch changes a Deployment and waits until that is done.
func (s *space) patch(deployment, patch string) {
	s.t.Helper()
	_, err := s.c.Client.AppsV1().Deployments(s.name).Patch(s.t.Context(), deployment, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	must(s.t, err)
	must(s.t, s.c.Deployed(s.t.Context(), s.name, rollout))
}

// rolls replaces every pod of a Deployment, one after the other.
func (s *space) rolls(deployment string) {
	s.t.Helper()
	s.patch(deployment, fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"e2e.tulle.dev/rolled":"%d"}}}}}`, time.Now().UnixNano()))
}

// scales changes how many pods "server" has.
func (s *space) scales(replicas int) {
	s.t.Helper()
	s.patch("server", fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas))
}

// deletes deletes one pod of "server", which is replaced.
func (s *space) deletes() {
	s.t.Helper()
	p := s.running("server")
	must(s.t, s.c.Client.CoreV1().Pods(s.name).Delete(s.t.Context(), p.Name, metav1.DeleteOptions{}))
	must(s.t, s.c.Deployed(s.t.Context(), s.name, rollout))
}

// ended waits until the last of a namespace's deleted pods is gone.
func (s *space) ended(namespace string) {
	s.t.Helper()
	eventually(s.t, rollout, "the end of every pod that is deleted", func(ctx context.Context) error {
		pods, err := s.c.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp != nil {
				return fmt.Errorf("%s is ending", p.Name)
			}
		}
		return nil
	})
}

// underLoad has a client call "server" while pods end, until the last of them
// is gone, and fails the test if a call fails. No such test is parallel: two of
// them have more than two cores can do, and take longer than one after the other.
func (s *space) underLoad(from kube.Pod, loads map[string][]string, step func()) {
	s.t.Helper()
	for _, args := range loads { // what is fetched by the first call is there
		s.callUntil(from, works, args[:2]...)
	}
	running := map[string]*loading{}
	for name, args := range loads {
		running[name] = s.startLoad(from, args...)
	}
	begin := time.Now()
	step()
	s.ended(s.name)
	took := time.Since(begin)
	for name, l := range running {
		r := l.stop()
		if late := r.Start.Sub(begin); late > 10*time.Second {
			s.t.Errorf("%s: pods ended for %v before the first call", name, late)
		}
		noFailure(s, r)
		figure(s.t, "%s, %.0f s of it with pods that end: %d calls to %d pods, %d failed %v, p99 %.1f ms from when due and %.1f ms (at most %.1f) from when sent, %d sent again by the client",
			name, took.Seconds(), r.Requests, len(r.Pods), r.Failed, r.Failures, r.Latency.P99, r.Service.P99, r.Service.Max, r.ClientRetries)
	}
}

// everyForm is a load of each protocol, 200 calls a second of HTTP and gRPC
// each. A connection of TCP ends with the server that it leads to, so that TCP
// is called on new ones.
func (s *space) everyForm() map[string][]string {
	return map[string][]string{
		"HTTP/1": {"http", s.url("server"), "--rate", "200", "--connections", "16", "--new-connection-share", "0.25"},
		"gRPC":   {"grpc", s.host("server") + ":9000", "--rate", "200"},
		"TCP":    {"tcp", s.host("server") + ":9001", "--rate", "20", "--new-connection-share", "1"},
	}
}

func TestEndingOfAGracefulApplicationCostsNoCall(t *testing.T) {
	s := newSpace(t, "ending", true)
	s.deploy(app{name: "client"}, ending(3, nil, "--grace=5s"))
	from := s.in("client")
	s.underLoad(from, s.everyForm(), func() {
		s.rolls("server")
		s.scales(1)
		s.scales(3)
		s.deletes()
	})
}

// Without a sleep the application is told to stop some 30 ms after the deletion
// and closes its ports, while callers may still be hearing of it.
func TestEndingOfAGracefulApplicationThatDoesNotSleepCostsNoCall(t *testing.T) {
	s := newSpace(t, "ending", true)
	s.deploy(app{name: "client"}, ending(3, noSleep, "--grace=5s"))
	loads := s.everyForm()
	delete(loads, "TCP") // a connection that is accepted and closed is nobody's to try again
	s.underLoad(s.in("client"), loads, func() {
		s.rolls("server")
		s.deletes()
	})
}

func TestEndingOfAnApplicationThatExitsAtOnceCostsNoCall(t *testing.T) {
	s := newSpace(t, "ending", true)
	s.deploy(app{name: "client"}, ending(3, nil, "--grace=0s"))
	from := s.in("client")
	loads := s.everyForm()
	loads["HTTP/1 that takes 300 ms"] = []string{"http", s.url("server") + "/sleep?for=300ms", "--rate", "50", "--connections", "32"}
	s.underLoad(from, loads, func() {
		s.rolls("server")
		s.deletes()
	})
}

// Who calls a pod by its own address does not see the endpoint leave: the pod's
// proxy tells him.
func TestEndingTellsWhoIsConnectedToGoElsewhere(t *testing.T) {
	outside, s := newSpace(t, "outside", false), newSpace(t, "ending", true)
	outside.deploy(app{name: "client"})
	s.deploy(ending(1, map[string]string{"mesh.tulle.dev/prestop-sleep": "8"}))
	from, pod := outside.in("client"), s.running("server")
	loads := []*loading{
		outside.startLoad(from, "http", "http://"+pod.Status.PodIP+":8080", "--rate", "50", "--duration", "6s"),
		outside.startLoad(from, "grpc", pod.Status.PodIP+":9000", "--rate", "50", "--duration", "6s"),
	}
	stats := func(ctx context.Context) (map[string]int, error) {
		body, err := s.c.Admin(ctx, s.name, pod.Name, "/stats?filter=total_listeners_draining|http.inbound-plain.downstream_cx_(active|drain_close)")
		if err != nil {
			return nil, err
		}
		out := map[string]int{}
		for line := range strings.Lines(string(body)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if out[name], err = strconv.Atoi(value); err != nil {
				return nil, fmt.Errorf("reading %q: %w", line, err)
			}
		}
		return out, nil
	}
	until := func(what string, done func(map[string]int) bool) {
		t.Helper()
		eventually(t, 20*time.Second, what, func(ctx context.Context) error {
			got, err := stats(ctx)
			if err == nil && !done(got) {
				err = fmt.Errorf("there are %v", got)
			}
			return err
		})
	}
	until("the clients' connections", func(got map[string]int) bool {
		if n := got["listener_manager.total_listeners_draining"]; n > 0 {
			t.Fatalf("%d listeners drain before the pod is deleted", n)
		}
		return got["http.inbound-plain.downstream_cx_active"] >= 2
	})
	deleted := time.Now()
	must(t, s.c.Client.CoreV1().Pods(s.name).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}))
	until("connections that are told to end", func(got map[string]int) bool {
		return got["listener_manager.total_listeners_draining"] == 1 && got["http.inbound-plain.downstream_cx_drain_close"] >= 2
	})
	figure(t, "clients outside of the mesh were told to go elsewhere within %.0f ms of the deletion", float64(time.Since(deleted).Microseconds())/1000)
	for _, l := range loads {
		noFailure(outside, l.wait())
	}
}

// One of two pods has no port open, as one has that starts, crashed, or closed
// its port to end.
func TestACallThatASidecarCannotHandOnGoesToAnotherPod(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "unreached", true)
	closed := app{name: "closed", label: "server", noService: true, pod: func(p *corev1.PodTemplateSpec) {
		p.Spec.Containers[0].Args = []string{"serve", "--http=", "--grpc="}
		p.Spec.Containers[0].ReadinessProbe = nil
	}}
	// Each of the two Deployments has to have its own pods.
	closed.version = "closed"
	s.deploy(app{name: "client"}, app{name: "server", version: "open"}, closed)
	s.service("both", map[string]string{"app": "server"})
	from := s.in("client")
	for name, args := range map[string][]string{
		"HTTP/1": {"http", s.url("both")},
		"gRPC":   {"grpc", s.host("both") + ":9000"},
	} {
		s.callUntil(from, works, args...)
		r := s.load(from, append(args, "--rate", "200", "--duration", "5s")...)
		noFailure(s, r)
		figure(t, "%s with one pod of two closed: %d calls, %d failed, p99 %.1f ms", name, r.Requests, r.Failed, r.Latency.P99)
	}
	r := s.call(from, "http", s.url("both")+"/status/503")
	if r.Status != 503 || r.Headers.Get("X-Version") != "open" {
		t.Errorf("the application's own 503 came as %d with %v", r.Status, r.Headers)
	}
}
