package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// installed is the cluster with Tulle in it; nil where KUBECONFIG names none.
// It is set once, before any test runs.
var installed *kube.Cluster

func TestMain(m *testing.M) { os.Exit(install(m)) }

func install(m *testing.M) int {
	kube.Quiet()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	c, err := kube.Connect(ctx)
	if errors.Is(err, kube.ErrNoCluster) {
		fmt.Println("No cluster, so that every test is skipped:", err)
		return m.Run()
	}
	if err == nil && os.Getenv("TULLE_E2E_INSTALLED") == "" {
		err = c.Install(ctx, "../deploy/overlays/default")
	} else if err == nil {
		err = c.Installed(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "installing Tulle:", err)
		return 1
	}
	installed = c
	return m.Run()
}

// cluster is the cluster, or the end of the test.
func cluster(t *testing.T) *kube.Cluster {
	t.Helper()
	if installed == nil {
		t.Fatal("KUBECONFIG names no cluster; run: make e2e")
	}
	return installed
}

// space is a namespace of a test.
type space struct {
	t    *testing.T
	c    *kube.Cluster
	name string
}

// newSpace makes a namespace for a test, in the mesh or not. It is deleted when
// the test ends, without waiting for it; if the test failed, what there is to
// know of it is written first.
func newSpace(t *testing.T, purpose string, meshed bool) *space {
	t.Helper()
	c := cluster(t)
	s := &space{t: t, c: c, name: fmt.Sprintf("e2e-%s-%04x", purpose, rand.N(1<<16))}
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}}
	if meshed {
		n.Labels = map[string]string{"mesh.tulle.dev/inject": "enabled"}
	}
	if _, err := c.Client.CoreV1().Namespaces().Create(t.Context(), n, metav1.CreateOptions{}); err != nil {
		t.Fatalf("creating namespace %s: %v", s.name, err)
	}
	t.Cleanup(s.end)
	return s
}

// on is the same namespace, for a subtest: its complaints go to that.
func (s *space) on(t *testing.T) *space { return &space{t: t, c: s.c, name: s.name} }

// end runs when the test's own context is over.
func (s *space) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.t.Failed() {
		s.describe(ctx)
	}
	if os.Getenv("TULLE_E2E_KEEP") != "" {
		return
	}
	if err := s.c.Client.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{}); err != nil {
		s.t.Errorf("deleting namespace %s: %v", s.name, err)
	}
}

// describe writes the namespace's pods, warnings and proxies' last words.
func (s *space) describe(ctx context.Context) {
	pods, err := s.c.Client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.t.Logf("describing %s: %v", s.name, err)
		return
	}
	events, err := s.c.Client.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err == nil {
		for _, e := range events.Items {
			s.t.Logf("event in %s: %s %s: %s", s.name, e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		s.t.Logf("pod %s/%s: %s, ready %t", s.name, p.Name, p.Status.Phase, kube.PodReady(p))
		if log, err := s.c.Logs(ctx, kube.Proxy(p), time.Time{}); err == nil {
			s.t.Logf("last of its proxy's log:\n%s", lastLines(log, 15))
		}
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition, or ends the test.
func eventually(t *testing.T, atMost time.Duration, what string, check func(context.Context) error) {
	t.Helper()
	must(t, kube.Eventually(t.Context(), atMost, what, check))
}

// figure writes a measured figure where it is easily found.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("figure: "+format, args...)
}

// apply applies objects of the mesh API to the namespace, each given as its
// kind, name and the YAML of its spec, and waits until proxies run it.
func (s *space) apply(kind, name, spec string) {
	s.t.Helper()
	must(s.t, s.c.Apply(s.t.Context(), s.object(kind, name, spec)))
	eventually(s.t, 20*time.Second, kind+" "+name, func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind(kind), s.name, name, "Programmed", "True")
	})
}

// remove deletes an object that apply made.
func (s *space) remove(kind, name string) {
	s.t.Helper()
	must(s.t, s.c.Delete(s.t.Context(), s.object(kind, name, "{}")))
}

func (s *space) object(kind, name, spec string) string {
	var indented strings.Builder
	for line := range strings.Lines(strings.TrimSpace(spec)) {
		indented.WriteString("  " + line)
	}
	return fmt.Sprintf("apiVersion: mesh.tulle.dev/v1alpha1\nkind: %s\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n%s\n",
		kind, name, s.name, indented.String())
}

// strict accepts nothing but mesh mTLS in the namespace.
func (s *space) strict() {
	s.t.Helper()
	s.apply("MeshPolicy", "strict", "mtls: {mode: Strict}")
}
