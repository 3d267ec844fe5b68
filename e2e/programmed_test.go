package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// freeze stops the pod's proxy, as though its node had no time for it, until
// thaw is called or the test ends. The cluster's processes are this machine's.
func freeze(t *testing.T, pod *corev1.Pod) (thaw func()) {
	t.Helper()
	process := proxyProcess(t, pod)
	must(t, process.Signal(syscall.SIGSTOP))
	thaw = sync.OnceFunc(func() {
		if err := process.Signal(syscall.SIGCONT); err != nil {
			t.Errorf("thawing the proxy of %s: %v", pod.Name, err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// proxyProcess finds the pod's Envoy by the node id in its arguments.
func proxyProcess(t *testing.T, pod *corev1.Pod) *os.Process {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	id := fmt.Appendf(nil, `"id":"%s.%s"`, pod.Name, pod.Namespace)
	for _, file := range files {
		arguments, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(arguments, id) || !bytes.HasPrefix(arguments, []byte("/usr/local/bin/envoy")) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		must(t, err)
		process, err := os.FindProcess(pid)
		must(t, err)
		return process
	}
	t.Fatalf("no process on this machine is the proxy of %s/%s", pod.Namespace, pod.Name)
	return nil
}

// programmed is an error unless an object's Programmed has the status.
func (s *space) programmed(kind, name, status string) func(context.Context) error {
	return func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind(kind), s.name, name, "Programmed", status)
	}
}

// denying refuses a path to whoever calls the server.
func denying(path string) string {
	return "selector: {matchLabels: {app: server}}\nauthorization: {rules: [{name: refused, action: Deny, to: [{paths: [" + path + "]}]}]}"
}

// Nobody waits for more than the condition: the very next call is treated as
// the policy says.
func TestProgrammedMeansThatTheNextCallIsTreatedSo(t *testing.T) {
	s := newSpace(t, "programmed", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 2})
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server")+"/a")
	var slowest time.Duration
	for i := range 20 {
		refused, allowed := "/a", "/b"
		if i%2 == 1 {
			refused, allowed = allowed, refused
		}
		start := time.Now()
		s.apply("MeshPolicy", "deny", denying(refused))
		slowest = max(slowest, time.Since(start))
		for range 2 { // one for each server
			if err := answered(403)(s.call(from, "http", s.url("server")+refused)); err != nil {
				t.Errorf("change %d: a call that is refused: %v", i, err)
			}
			if err := answered(200)(s.call(from, "http", s.url("server")+allowed)); err != nil {
				t.Errorf("change %d: a call that is allowed: %v", i, err)
			}
		}
	}
	figure(t, "slowest of 20 changes, from its apply until it is seen to be programmed: %v", slowest)
}

func TestAFrozenProxyKeepsAnObjectFromBeingProgrammed(t *testing.T) {
	noLeftovers(t)
	s := newSpace(t, "frozen", true)
	s.deploy(app{name: "server", replicas: 2})
	s.apply("MeshPolicy", "deny", denying("/a"))
	pod := s.running("server")
	thaw := freeze(t, pod)
	must(t, s.c.Apply(t.Context(), s.object("MeshPolicy", "deny", denying("/b"))))
	eventually(t, 20*time.Second, "that the policy is not programmed", s.programmed("MeshPolicy", "deny", "False"))
	names := func(ctx context.Context) error {
		err := s.programmed("MeshPolicy", "deny", "True")(ctx)
		if err == nil {
			return fmt.Errorf("it is programmed, and the proxy of %s is frozen", pod.Name)
		}
		if want := s.name + "/" + pod.Name; !strings.Contains(err.Error(), want) {
			return fmt.Errorf("the condition does not name %s: %w", want, err)
		}
		return nil
	}
	eventually(t, 20*time.Second, "that the condition names the frozen pod", names)

	// The control plane that knew what the proxy holds is gone.
	must(t, scaleControlPlane(t.Context(), s.c, 0))
	must(t, scaleControlPlane(t.Context(), s.c, 2))
	must(t, s.c.Apply(t.Context(), s.object("MeshPolicy", "deny", denying("/c"))))
	eventually(t, 20*time.Second, "that a new control plane names it, too", names)

	start := time.Now()
	thaw()
	eventually(t, time.Minute, "that it is programmed when the proxy is back", s.programmed("MeshPolicy", "deny", "True"))
	figure(t, "programmed %v after the proxy was thawed, which had lost its stream", time.Since(start))
}

func TestARefusedConfigurationIsToldInEnvoysWords(t *testing.T) {
	noLeftovers(t)
	s := newSpace(t, "refused", true)
	s.deploy(app{name: "server"})
	s.apply("MeshPolicy", "deny", denying("/a"))
	config := "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {accessLog: {fields: {what: %s}}}\n"
	must(t, s.c.Apply(t.Context(), fmt.Sprintf(config, `"%NOT_A_COMMAND(x)%"`)))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, s.c.Delete(ctx, fmt.Sprintf(config, "x")))
	})
	eventually(t, 20*time.Second, "the refusal", func(ctx context.Context) error {
		err := s.c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "Programmed", "True")
		if err == nil || !strings.Contains(err.Error(), "NOT_A_COMMAND") || !strings.Contains(err.Error(), "Rejected") {
			return fmt.Errorf("it says: %w", err)
		}
		return nil
	})
	// What is refused changes nothing, neither for traffic nor for others.
	must(t, s.programmed("MeshPolicy", "deny", "True")(t.Context()))
	must(t, s.c.Apply(t.Context(), fmt.Sprintf(config, `"%REQ(:path)%"`)))
	eventually(t, 20*time.Second, "that it is programmed when it is mended", func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "Programmed", "True")
	})
}
