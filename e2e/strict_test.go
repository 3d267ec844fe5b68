package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

func TestStrictResetsACallerOutsideTheMesh(t *testing.T) {
	s := newSpace(t, "strict", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "server"}, app{name: "client"})
	outside.deploy(app{name: "client"})
	from := outside.in("client")
	// Before, under the default Permissive, it is answered.
	outside.callUntil(from, answered(200), "http", s.url("server"))
	s.strict()
	ip := s.running("server").Status.PodIP
	for _, args := range [][]string{
		{"plain", ip + ":8080"},
		{"http", s.url("server")},
		{"tcp", s.host("server") + ":9001"},
		{"greet", s.host("server") + ":3306"},
		{"tls", s.host("server") + ":8443"},
	} {
		outside.callUntil(from, fails("reset", "eof"), args...)
	}
	outside.callUntil(from, fails("reset"), "plain", ip+":8080")
	if err := works(s.call(s.in("client"), "http", s.url("server"))); err != nil {
		t.Errorf("a caller in the mesh: %v", err)
	}
}

func TestOnePortMayBePermissiveInAStrictWorkload(t *testing.T) {
	s := newSpace(t, "perport", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "server"})
	outside.deploy(app{name: "client"})
	s.apply("MeshPolicy", "ports", `
selector: {matchLabels: {app: server}}
mtls: {mode: Strict, ports: [{port: 9001, mode: Permissive}]}`)
	from := outside.in("client")
	outside.callUntil(from, fails("reset"), "plain", s.running("server").Status.PodIP+":8080")
	outside.callUntil(from, works, "tcp", s.host("server")+":9001")
}

func TestTheServersLogNamesTheCaller(t *testing.T) {
	s := newSpace(t, "log", true)
	s.deploy(app{name: "server"}, app{name: "client"})
	s.strict()
	marker := fmt.Sprintf("/marker-%d", time.Now().UnixNano())
	s.callUntil(s.in("client"), answered(200), "http", s.url("server")+marker)
	var line string
	eventually(t, 30*time.Second, "the access log", func(ctx context.Context) error {
		log, err := s.c.Logs(ctx, kube.Proxy(s.running("server")), time.Time{})
		if err != nil {
			return err
		}
		for l := range strings.Lines(log) {
			if strings.Contains(l, marker) {
				line = l
				return nil
			}
		}
		return errors.New("no line names " + marker)
	})
	var fields map[string]any
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		t.Fatalf("not JSON: %s: %v", line, err)
	}
	for _, who := range []string{"client", "server"} {
		if want := fmt.Sprintf(`"spiffe://cluster.local/ns/%s/sa/%s"`, s.name, who); !strings.Contains(line, want) {
			t.Errorf("the line does not name the %s %s: %s", who, want, line)
		}
	}
}

// The capture looks at the links of all pods of the node. That it finds the
// words of a caller outside the mesh shows that it looks at the right ones.
func TestNothingPassesInTheClearUnderStrict(t *testing.T) {
	s := newSpace(t, "clear", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "server"}, app{name: "client"})
	outside.deploy(app{name: "server"}, app{name: "client"})
	s.strict()
	watcher := outside.watcher(t)
	secret, open := "the-secret-of-the-mesh", "an-open-word"
	s.callUntil(s.in("client"), answered(200), "http", s.url("server"))
	outside.callUntil(outside.in("client"), answered(200), "http", outside.url("server"))

	var (
		capture report.Capture
		done    = make(chan error, 1)
	)
	go func() {
		done <- s.c.Echo(t.Context(), watcher, &capture, "capture", "--duration", "6s", secret, open)
	}()
	begun := time.Now()
	for time.Since(begun) < 4*time.Second {
		for _, args := range [][]string{
			{"http", s.url("server") + "/" + secret},
			{"http", s.url("server") + "/" + secret, "--h2c"},
			{"http", s.url("server") + ":8888/" + secret},
		} {
			if err := works(s.call(s.in("client"), args...)); err != nil {
				t.Errorf("%v: %v", args, err)
			}
		}
		if err := works(outside.call(outside.in("client"), "http", outside.url("server")+"/"+open)); err != nil {
			t.Errorf("outside the mesh: %v", err)
		}
	}
	must(t, <-done)
	figure(t, "capture: %d packets on %d links, %d began with a TLS record, %d with the word sent outside the mesh, %d with that sent inside",
		capture.Packets, len(capture.Links), capture.TLS, capture.Found[open], capture.Found[secret])
	if capture.Found[secret] > 0 {
		t.Error("a word that was sent within the mesh passed in the clear")
	}
	if capture.Found[open] == 0 || capture.TLS < 10 {
		t.Error("the capture saw neither plaintext outside the mesh nor TLS in it: it proves nothing")
	}
}

// watcher is a pod in the node's own network that may look at packets.
func (s *space) watcher(t *testing.T) kube.Pod {
	t.Helper()
	pod := barePod("watcher")
	pod.Spec.HostNetwork = true
	c := &pod.Spec.Containers[0]
	c.Ports = nil
	c.Args = []string{"serve", "--http=", "--grpc=", "--tcp=127.0.0.1:0", "--greet=", "--tls="}
	c.SecurityContext = &corev1.SecurityContext{
		RunAsUser:    ptr.To[int64](0),
		RunAsNonRoot: ptr.To(false),
		Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_RAW", "NET_ADMIN"}},
	}
	_, err := s.c.Client.CoreV1().Pods(s.name).Create(t.Context(), pod, metav1.CreateOptions{})
	must(t, err)
	return s.in("watcher")
}

func TestProbesTellTheTruthUnderStrict(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "probes", true)
	s.strict()
	get := func(port string, scheme corev1.URIScheme) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString(port), Scheme: scheme}}
	}
	cases := []struct {
		name, toggle string
		probe        corev1.ProbeHandler
	}{
		{"http", "ready", get("http", corev1.URISchemeHTTP)},
		{"https", "ready", get("tls", corev1.URISchemeHTTPS)},
		{"grpc", "ready", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9000}}},
		{"tcp", "greet", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("greet")}}},
	}
	var apps []app
	for _, c := range cases {
		apps = append(apps, app{name: c.name, pod: func(p *corev1.PodTemplateSpec) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: c.probe, PeriodSeconds: 1, FailureThreshold: 1}
		}})
	}
	s.deploy(apps...)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := s.on(t)
			pod := s.in(c.name)
			for _, ready := range []bool{false, true} {
				s.toggle(pod, c.toggle, ready)
				start := time.Now()
				s.podUntil(pod, fmt.Sprintf("the pod's readiness to be %t", ready), func(p *corev1.Pod) error {
					if kube.PodReady(p) != ready {
						return fmt.Errorf("it is %t", !ready)
					}
					return nil
				})
				figure(t, "%s probe toggled to %t: the pod's status says so after %.1f s", c.name, ready, time.Since(start).Seconds())
			}
		})
	}
}

func TestAClosedPortEndsTheContainerUnderStrict(t *testing.T) {
	s := newSpace(t, "liveness", true)
	s.strict()
	s.deploy(app{name: "server", pod: func(p *corev1.PodTemplateSpec) {
		c := &p.Spec.Containers[0]
		greet := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("greet")}}
		c.StartupProbe = &corev1.Probe{ProbeHandler: greet, PeriodSeconds: 1, FailureThreshold: 30}
		c.LivenessProbe = &corev1.Probe{ProbeHandler: greet, PeriodSeconds: 1, FailureThreshold: 2}
	}})
	pod := s.in("server")
	restarts := func(want int32) func(*corev1.Pod) error {
		return func(p *corev1.Pod) error {
			if n := p.Status.ContainerStatuses[0].RestartCount; n != want || !kube.PodReady(p) {
				return fmt.Errorf("%d restarts, ready %t", n, kube.PodReady(p))
			}
			return nil
		}
	}
	s.podUntil(pod, "no restart while the port is open", restarts(0))
	s.toggle(pod, "greet", false)
	s.podUntil(pod, "one restart, after which the port is open", restarts(1))
}

// toggle switches what a workload's program does, from beside it.
func (s *space) toggle(pod kube.Pod, what string, to bool) {
	s.t.Helper()
	url := fmt.Sprintf("http://127.0.0.1:8080/toggle/%s?to=%t", what, to)
	must(s.t, answered(200)(s.call(pod, "http", url)))
}

// podUntil waits until judge has no complaint about the pod.
func (s *space) podUntil(pod kube.Pod, what string, judge func(*corev1.Pod) error) {
	s.t.Helper()
	eventually(s.t, 20*time.Second, what, func(ctx context.Context) error {
		p, err := s.c.Client.CoreV1().Pods(s.name).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return judge(p)
	})
}
