package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/cmd/tulle-cni/plugin"
)

func TestThePodsSandboxIsFoundByItsUID(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, age time.Duration) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	of := func(uid, netns string) string {
		return `{"kind":"cniCacheV1","containerId":"c","netns":"` + netns + `","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_UID","` + uid + `"]],` +
			`"capabilityArgs":{"dns":{"Servers":["10.96.0.10"]},"io.kubernetes.cri.pod-annotations":{"a":"b"}},"result":{}}`
	}
	write("pods-1-eth0", of("one", "/run/netns/old"), time.Hour)
	write("pods-2-eth0", of("one", "/run/netns/new"), time.Minute)
	write("pods-3-eth0", of("two", "/run/netns/two"), 0)
	write("pods-4-eth0", "half of it", 0)
	write("pods-5-eth0", `{"netns":"/run/netns/three","cniArgs":[["K8S_POD_NAME","one"]]}`, 0)

	r, err := find(dir, "one")
	if err != nil || r.Netns != "/run/netns/new" || len(r.CapabilityArgs.DNS.Servers) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := find(dir, "three"); err == nil || !strings.Contains(err.Error(), "delete the pod") {
		t.Errorf("the error is %v", err)
	}
	if _, err := find(filepath.Join(dir, "none"), "one"); err == nil {
		t.Error("a folder that is not there is no error")
	}
}

func TestOnlyPodsThatWaitAreMended(t *testing.T) {
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	ended := func(code int32) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}
	}
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	for _, c := range []struct {
		name        string
		state, last corev1.ContainerState
		change      func(*corev1.Pod)
		want        bool
	}{
		{"the check runs", running, corev1.ContainerState{}, nil, true},
		{"it failed", ended(1), corev1.ContainerState{}, nil, true},
		{"it failed and is to be tried again", waiting, ended(1), nil, true},
		{"it has not begun", corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}}, corev1.ContainerState{}, nil, false},
		{"it ended well", ended(0), corev1.ContainerState{}, nil, false},
		{"the pod redirects itself", running, corev1.ContainerState{}, func(p *corev1.Pod) { p.Annotations = nil }, false},
		{"the pod is ending", running, corev1.ContainerState{}, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, false},
		{"it is on the node's network", running, corev1.ContainerState{}, func(p *corev1.Pod) { p.Spec.HostNetwork = true }, false},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{plugin.Annotation: "--service=10.96.0.0/16"}}}
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: checkContainer, State: c.state, LastTerminationState: c.last}}
		if c.change != nil {
			c.change(p)
		}
		if got := waits(p); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
