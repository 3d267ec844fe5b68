package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const injectLabel = "mesh.tulle.dev/inject"

func TestAPodGetsItsProxyBeforeItsApplication(t *testing.T) {
	s := newSpace(t, "inject", true)
	s.deploy(app{name: "server"})
	p := s.running("server")

	var names []string
	for _, c := range p.Spec.InitContainers {
		names = append(names, c.Name)
	}
	if got := strings.Join(names, " "); got != "tulle-init tulle-proxy" {
		t.Fatalf("init containers %q, want tulle-init and tulle-proxy", got)
	}
	proxy := p.Spec.InitContainers[1]
	if ptr.Deref(proxy.RestartPolicy, "") != corev1.ContainerRestartPolicyAlways {
		t.Error("the proxy is not a native sidecar")
	}
	if c := proxy.SecurityContext; c == nil || c.Capabilities == nil || len(c.Capabilities.Add) > 0 || !ptr.Deref(c.RunAsNonRoot, false) || !ptr.Deref(c.ReadOnlyRootFilesystem, false) {
		t.Errorf("the proxy's security context: %+v", proxy.SecurityContext)
	}
	status := p.Status.InitContainerStatuses[1]
	if !ptr.Deref(status.Started, false) || status.State.Running == nil {
		t.Fatalf("the proxy has not started: %+v", status)
	}
	application := p.Status.ContainerStatuses[0].State.Running
	if application == nil || application.StartedAt.Before(&status.State.Running.StartedAt) {
		t.Errorf("application started %v, proxy %v", application, status.State.Running)
	}
	if p.Annotations["mesh.tulle.dev/status"] == "" || p.Labels["mesh.tulle.dev/proxy"] != "sidecar" {
		t.Errorf("annotations %v and labels %v do not say that it is injected", p.Annotations, p.Labels)
	}
}

// The Job's first act is a call through its proxy, and it is not tried again:
// so the proxy was ready first. That it completes says that the proxy ends.
func TestAJobCallsAtOnceAndCompletes(t *testing.T) {
	s := newSpace(t, "job", true)
	s.deploy(app{name: "server"})
	s.strict()
	start := time.Now()
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "batch"},
		Spec: batchv1.JobSpec{
			BackoffLimit: ptr.To[int32](0),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "batch"}},
				Spec: corev1.PodSpec{
					RestartPolicy: corev1.RestartPolicyNever,
					Containers:    []corev1.Container{{Name: "app", Image: image, Args: []string{"job", s.url("server")}}},
				},
			},
		},
	}
	_, err := s.c.Client.BatchV1().Jobs(s.name).Create(t.Context(), job, metav1.CreateOptions{})
	must(t, err)
	eventually(t, time.Minute, "the Job's end", func(ctx context.Context) error {
		job, err := s.c.Client.BatchV1().Jobs(s.name).Get(ctx, "batch", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range job.Status.Conditions {
			switch {
			case c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue:
				t.Fatalf("the Job failed: %s", c.Message)
			case c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue:
				return nil
			}
		}
		return fmt.Errorf("active %d", job.Status.Active)
	})
	figure(t, "a Job of one call with a proxy beside it: %.1f s from creation to Complete", time.Since(start).Seconds())
}

func TestAPodsLabelHasTheLastWordOnInjection(t *testing.T) {
	out := newSpace(t, "optout", true)
	out.deploy(app{name: "plain", pod: func(p *corev1.PodTemplateSpec) { p.Labels[injectLabel] = "disabled" }})
	if n := len(out.running("plain").Spec.InitContainers); n != 0 {
		t.Errorf("%d init containers in a pod labelled %s=disabled", n, injectLabel)
	}
	in := newSpace(t, "optin", false)
	in.deploy(app{name: "meshed", pod: func(p *corev1.PodTemplateSpec) { p.Labels[injectLabel] = "enabled" }})
	if n := len(in.running("meshed").Spec.InitContainers); n != 2 {
		t.Errorf("%d init containers in a pod labelled %s=enabled, want 2", n, injectLabel)
	}
}

func TestAHostNetworkPodIsLeftAlone(t *testing.T) {
	s := newSpace(t, "hostnet", true)
	pod := barePod("host")
	pod.Spec.HostNetwork = true
	pod.Spec.Containers[0].Ports = nil
	created, err := s.c.Client.CoreV1().Pods(s.name).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	must(t, err)
	if n := len(created.Spec.InitContainers); n != 0 {
		t.Errorf("%d init containers in a hostNetwork pod", n)
	}
}

func TestAnAnnotationThatMeansNothingIsRefusedInWords(t *testing.T) {
	s := newSpace(t, "refuse", true)
	for annotation, value := range map[string]string{
		"mesh.tulle.dev/exclude-inbound-ports":  "eighty",
		"mesh.tulle.dev/exclude-outbound-cidrs": "10.0.0.0/99",
		"mesh.tulle.dev/proxy-memory":           "lots",
		"mesh.tulle.dev/exclude-outbound-ports": "70000",
		"mesh.tulle.dev/proxy-log-level":        "shouting",
	} {
		pod := barePod("bad")
		pod.Annotations = map[string]string{annotation: value}
		_, err := s.c.Client.CoreV1().Pods(s.name).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), annotation) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%s: %v; want a refusal that names both", annotation, value, err)
		}
	}
}

func TestProxyAnnotationsArriveInThePod(t *testing.T) {
	s := newSpace(t, "override", true)
	pod := barePod("custom")
	pod.Annotations = map[string]string{
		"mesh.tulle.dev/proxy-memory":      "77Mi",
		"mesh.tulle.dev/proxy-log-level":   "debug",
		"mesh.tulle.dev/proxy-concurrency": "1",
	}
	created, err := s.c.Client.CoreV1().Pods(s.name).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	must(t, err)
	if len(created.Spec.InitContainers) != 2 {
		t.Fatalf("%d init containers, want 2", len(created.Spec.InitContainers))
	}
	proxy := created.Spec.InitContainers[1]
	if got := proxy.Resources.Requests.Memory().String(); got != "77Mi" {
		t.Errorf("memory request %s, want 77Mi", got)
	}
	line := strings.Join(append(proxy.Command, proxy.Args...), " ")
	if !strings.Contains(line, "debug") || !strings.Contains(line, "--concurrency 1") {
		t.Errorf("the proxy is started with %q, want log level debug and concurrency 1", line)
	}
}

// The excluded port is answered by the application itself, though the rest of
// the pod takes nothing but mesh mTLS.
func TestAnExcludedInboundPortGoesRoundTheProxy(t *testing.T) {
	s := newSpace(t, "exclude", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "server", pod: func(p *corev1.PodTemplateSpec) {
		p.Annotations = map[string]string{"mesh.tulle.dev/exclude-inbound-ports": "9001"}
	}})
	outside.deploy(app{name: "client"})
	s.strict()
	ip := s.running("server").Status.PodIP
	from := outside.in("client")
	outside.callUntil(from, fails("reset"), "plain", ip+":8080")
	if err := works(outside.call(from, "tcp", ip+":9001")); err != nil {
		t.Errorf("the excluded port: %v", err)
	}
}

// barePod is a pod that is only looked at.
func barePod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{echoContainer("", "serve")}},
	}
}

// Linux lets one user have so many inotify instances on a node (128 by default), and a
// proxy takes four: more proxies than that are of different users.
func TestANodeHasMoreProxiesThanOneUserCouldHave(t *testing.T) {
	raw, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	must(t, err)
	limit, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	must(t, err)
	const replicas = 34 // 136 instances
	s := newSpace(t, "many", true)
	start := time.Now()
	s.deploy(app{name: "client"}, app{name: "server", replicas: replicas, pod: func(p *corev1.PodTemplateSpec) {
		p.Annotations = map[string]string{"mesh.tulle.dev/proxy-cpu": "1m"}
	}})
	figure(t, "%d proxies began in %.0f s, on a node with %d inotify instances for each user", replicas, time.Since(start).Seconds(), limit)
	pods, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=server"})
	must(t, err)
	users := map[int64]bool{}
	for _, p := range pods.Items {
		proxy := p.Spec.InitContainers[1]
		users[*proxy.SecurityContext.RunAsUser] = true
		if n := p.Status.InitContainerStatuses[1].RestartCount; n > 0 {
			t.Errorf("%s began its proxy %d times", p.Name, n+1)
		}
	}
	if len(users) < replicas*9/10 {
		t.Errorf("%d proxies run as %d users", len(pods.Items), len(users))
	}
	s.strict()
	s.callUntil(s.in("client"), answered(200), "http", s.url("server"))
}
