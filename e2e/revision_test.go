package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// label sets, or takes away by "null", a label of the namespace.
func (s *space) label(key, value string) {
	s.t.Helper()
	if value != "null" {
		value = `"` + value + `"`
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, key, value)
	_, err := s.c.Client.CoreV1().Namespaces().Patch(s.t.Context(), s.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	must(s.t, err)
}

// servedBy complains unless every running pod's proxy connects to that revision.
func (s *space) servedBy(revision string) func(context.Context) error {
	return func(ctx context.Context) error {
		pods, err := s.c.Client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp == nil && !strings.Contains(p.Annotations["mesh.tulle.dev/status"], `"revision":"`+revision+`"`) {
				return fmt.Errorf("%s is not of revision %s: %s", p.Name, revision, p.Annotations["mesh.tulle.dev/status"])
			}
		}
		return nil
	}
}

// A new version of the control plane is tried on one namespace, and taken back,
// while others call it. (TULLE_E2E_CANARY_PROXY gives the canary another Envoy.)
func TestANamespaceMovesToAnotherRevisionAndBack(t *testing.T) {
	tulle := cli(t)
	ok := func(args ...string) {
		t.Helper()
		if out, code := tulle(args...); code != 0 {
			t.Fatalf("tulle %v ends with %d:\n%s", args, code, out)
		}
	}
	install := []string{"install", "--revision", "canary", "--replicas", "1"}
	if image := os.Getenv("TULLE_E2E_CANARY_PROXY"); image != "" {
		install = append(install, "--proxy-image", image)
	}
	ok(install...)
	callers, s := newSpace(t, "revision-callers", true), newSpace(t, "revision", true)
	t.Cleanup(func() { tulle("uninstall", "--revision", "canary", "--force") })
	callers.deploy(app{name: "client"})
	s.deploy(app{name: "client"}, ending(2, nil, "--grace=5s"))
	s.strict()
	must(t, s.servedBy("default")(t.Context()))
	from := callers.in("client")
	loads := map[string][]string{
		"HTTP/1": {"http", s.url("server"), "--rate", "100", "--connections", "8"},
		"gRPC":   {"grpc", s.host("server") + ":9000", "--rate", "100"},
	}
	move := func(to, label string) {
		s.label("mesh.tulle.dev/revision", label)
		ok("restart", "-n", s.name)
		must(t, s.c.Deployed(t.Context(), s.name, rollout))
		eventually(t, time.Minute, "that every pod is of revision "+to, s.servedBy(to))
	}
	s.underLoad(from, loads, func() {
		move("canary", "canary")
		must(t, s.moved(from))
		// With nobody but the canary left, it serves its pods and leads. (The
		// caller has no control plane then, so its servers stay as they are.)
		must(t, scaleControlPlane(t.Context(), s.c, 0))
		p := s.running("client")
		must(t, s.c.Client.CoreV1().Pods(s.name).Delete(t.Context(), p.Name, metav1.DeleteOptions{}))
		must(t, s.c.Deployed(t.Context(), s.name, rollout))
		s.deniesNoMore(from)
		must(t, scaleControlPlane(t.Context(), s.c, 2))
		move("default", "null")
		must(t, s.moved(from))
	})
	s.label("mesh.tulle.dev/revision", "canary")
	ok("restart", "-n", s.name)
	must(t, s.c.Deployed(t.Context(), s.name, rollout))
	if out, code := tulle("uninstall", "--revision", "canary"); code != 1 {
		t.Errorf("a revision that has proxies is removed (%d):\n%s", code, out)
	}
	s.label("mesh.tulle.dev/revision", "null")
	ok("restart", "-n", s.name)
	must(t, s.c.Deployed(t.Context(), s.name, rollout))
	eventually(t, time.Minute, "that the revision is not needed any more", func(context.Context) error {
		if out, code := tulle("uninstall", "--revision", "canary"); code != 0 {
			return fmt.Errorf("uninstall ends with %d: %s", code, out)
		}
		return nil
	})
	s.refusedWithoutRevision(tulle)
}

// moved applies a policy and sees that it holds on every pod of the namespace, and
// that its status counts them, whoever serves them.
func (s *space) moved(from kube.Pod) error {
	s.t.Helper()
	s.apply("MeshPolicy", "deny", denying("/refused"))
	for range 4 {
		if err := answered(403)(s.call(from, "http", s.url("server")+"/refused")); err != nil {
			return err
		}
	}
	return nil
}

// deniesNoMore takes the policy away, of which validation is not asked.
func (s *space) deniesNoMore(from kube.Pod) {
	s.t.Helper()
	must(s.t, s.c.Delete(s.t.Context(), s.object("MeshPolicy", "deny", denying("/refused"))))
	s.callUntil(from, answered(200), "http", s.url("server")+"/refused")
}

// refusedWithoutRevision names a revision that nobody is: no pod starts outside of
// the mesh for that.
func (s *space) refusedWithoutRevision(tulle func(...string) (string, int)) {
	s.t.Helper()
	s.label("mesh.tulle.dev/revision", "nobody")
	pod := s.running("server")
	eventually(s.t, 20*time.Second, "that a pod is refused", func(ctx context.Context) error {
		fresh := pod.DeepCopy()
		fresh.ObjectMeta = metav1.ObjectMeta{GenerateName: "nobody-", Namespace: s.name, Labels: map[string]string{"app": "other"}}
		fresh.Spec.InitContainers, fresh.Spec.NodeName = nil, ""
		_, err := s.c.Client.CoreV1().Pods(s.name).Create(ctx, fresh, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), "no control plane of the revision nobody") {
			return fmt.Errorf("creating a pod: %v", err)
		}
		return nil
	})
	if out, code := tulle("check"); code != 2 || !strings.Contains(out, "names the revision nobody, which is not installed: "+s.name) {
		s.t.Errorf("check ends with %d:\n%s", code, out)
	}
	s.label("mesh.tulle.dev/revision", "null")
}
