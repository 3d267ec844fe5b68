package e2e

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// rollout is how long a Deployment may take: a machine that is busy and slow
// takes half a minute for a pod.
const rollout = 3 * time.Minute

// image is the program that every pod of a test runs.
const image = "localhost/tulle-echo:dev"

// app is a workload of a test: a Deployment, a service account of the same
// name, and a Service that has all its ports.
type app struct {
	name     string
	version  string
	label    string // label "app"; the name, where empty
	replicas int32
	pod      func(*corev1.PodTemplateSpec) // last word on the pod
	// noService leaves the Service out.
	noService bool
}

func (a app) selector() map[string]string {
	m := map[string]string{"app": a.name}
	if a.label != "" {
		m["app"] = a.label
	}
	if a.version != "" {
		m["version"] = a.version
	}
	return m
}

// ports are the ports of every workload's Service. "plain" and "raw" declare
// nothing, so that proxies have to look at the first bytes.
func ports() []corev1.ServicePort {
	port := func(name string, port int32, target int) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromInt(target)}
	}
	return []corev1.ServicePort{
		port("http", 80, 8080),
		port("grpc", 9000, 9000),
		port("tcp-echo", 9001, 9001),
		port("tcp-greet", 3306, 3306),
		port("tls-own", 8443, 8443),
		port("plain", 8888, 8080),
		port("raw", 8889, 9001),
	}
}

// deploy creates workloads and waits until they are ready.
func (s *space) deploy(apps ...app) {
	s.t.Helper()
	s.create(apps...)
	must(s.t, s.c.Deployed(s.t.Context(), s.name, rollout))
}

// create creates workloads.
func (s *space) create(apps ...app) {
	s.t.Helper()
	ctx := s.t.Context()
	for _, a := range apps {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: a.name}}
		_, err := s.c.Client.CoreV1().ServiceAccounts(s.name).Create(ctx, account, metav1.CreateOptions{})
		must(s.t, err)
		_, err = s.c.Client.AppsV1().Deployments(s.name).Create(ctx, a.deployment(), metav1.CreateOptions{})
		must(s.t, err)
		if !a.noService {
			s.service(a.name, a.selector())
		}
	}
}

// service creates a Service with all ports; edits have the last word.
func (s *space) service(name string, selector map[string]string, edits ...func(*corev1.Service)) *corev1.Service {
	s.t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: selector, Ports: ports()},
	}
	for _, edit := range edits {
		edit(service)
	}
	created, err := s.c.Client.CoreV1().Services(s.name).Create(s.t.Context(), service, metav1.CreateOptions{})
	must(s.t, err)
	return created
}

func headless(service *corev1.Service) { service.Spec.ClusterIP = corev1.ClusterIPNone }

func (a app) deployment() *appsv1.Deployment {
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: a.selector()},
		Spec: corev1.PodSpec{
			ServiceAccountName:            a.name,
			TerminationGracePeriodSeconds: ptr.To[int64](3),
			Containers:                    []corev1.Container{echoContainer(a.version, "serve", "--grace=2s")},
		},
	}
	template.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt(8080)}},
		PeriodSeconds: 1,
	}
	if a.pod != nil {
		a.pod(&template)
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: a.name},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(max(a.replicas, 1)),
			Selector: &metav1.LabelSelector{MatchLabels: a.selector()},
			Template: template,
		},
	}
}

// echoContainer is the container "app".
func echoContainer(version string, args ...string) corev1.Container {
	return corev1.Container{
		Name:  "app",
		Image: image,
		Args:  args,
		Env:   []corev1.EnvVar{{Name: "VERSION", Value: version}},
		Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 8080},
			{Name: "grpc", ContainerPort: 9000},
			{Name: "tcp", ContainerPort: 9001},
			{Name: "greet", ContainerPort: 3306},
			{Name: "tls", ContainerPort: 8443},
		},
	}
}

// in is the container "app" of a ready pod of a workload.
func (s *space) in(app string) kube.Pod {
	s.t.Helper()
	p, err := s.c.App(s.t.Context(), s.name, app)
	must(s.t, err)
	return p
}

// running is a ready pod of a workload.
func (s *space) running(app string) *corev1.Pod {
	s.t.Helper()
	p, err := s.c.RunningPod(s.t.Context(), s.name, app)
	must(s.t, err)
	return p
}

// host is the name of a Service in DNS.
func (s *space) host(service string) string { return service + "." + s.name + ".svc.cluster.local" }

// url is where a Service's port "http" is.
func (s *space) url(service string) string { return "http://" + s.host(service) }

// call makes one call from a pod.
func (s *space) call(from kube.Pod, args ...string) *report.Call {
	s.t.Helper()
	var r report.Call
	must(s.t, s.c.Echo(s.t.Context(), from, &r, append([]string{"call"}, args...)...))
	return &r
}

// load makes many calls from a pod.
func (s *space) load(from kube.Pod, args ...string) *report.Load {
	s.t.Helper()
	var r report.Load
	must(s.t, s.c.Echo(s.t.Context(), from, &r, append([]string{"load"}, args...)...))
	return &r
}

// loadLasts is how long a load that is not stopped goes on.
const loadLasts = 6 * time.Minute

// loading is a load that runs while the test does other things.
type loading struct {
	s    *space
	end  io.Closer // of the load's standard input
	done chan error
	load report.Load
}

// startLoad has a pod make calls, of a kind and to a target, until the load is
// stopped, or for the --duration that args have.
func (s *space) startLoad(from kube.Pod, args ...string) *loading {
	args = slices.Concat([]string{"load"}, args[:2], []string{"--until-eof", "--duration", loadLasts.String()}, args[2:])
	stdin, end := io.Pipe()
	l := &loading{s: s, end: end, done: make(chan error, 1)}
	go func() {
		defer end.Close() // whoever copies it would wait for ever
		l.done <- s.c.EchoWith(s.t.Context(), from, stdin, &l.load, args...)
	}()
	return l
}

// stop ends the load, and is its report. The test fails if the load was over
// before.
func (l *loading) stop() *report.Load {
	l.s.t.Helper()
	stopped := time.Now()
	must(l.s.t, l.end.Close())
	r := l.wait()
	if r.End.Before(stopped) {
		l.s.t.Errorf("the load was over %v before it was stopped", stopped.Sub(r.End))
	}
	return r
}

// wait is the load's report, when it is over.
func (l *loading) wait() *report.Load {
	l.s.t.Helper()
	must(l.s.t, <-l.done)
	return &l.load
}

// callUntil repeats a call until judge has no complaint: for the first call
// after a change, which takes a moment to arrive.
func (s *space) callUntil(from kube.Pod, judge func(*report.Call) error, args ...string) *report.Call {
	s.t.Helper()
	var last report.Call
	eventually(s.t, 20*time.Second, fmt.Sprintf("call %v from %v", args, from), func(ctx context.Context) error {
		last = report.Call{}
		if err := s.c.Echo(ctx, from, &last, append([]string{"call"}, args...)...); err != nil {
			return err
		}
		return judge(&last)
	})
	return &last
}

// answered complains unless a call has that status.
func answered(status int) func(*report.Call) error {
	return func(r *report.Call) error {
		if r.Failure != nil {
			return fmt.Errorf("failed: %s: %s", r.Failure.Kind, r.Failure.Text)
		}
		if r.Status != status {
			return fmt.Errorf("answered with %d, want %d: %s", r.Status, status, r.Text)
		}
		return nil
	}
}

// fails complains unless a call failed in one of these ways.
func fails(kinds ...string) func(*report.Call) error {
	return func(r *report.Call) error {
		if r.Failure == nil {
			return fmt.Errorf("answered with status %d, want it to fail: %v", r.Status, kinds)
		}
		for _, k := range kinds {
			if r.Failure.Kind == k {
				return nil
			}
		}
		return fmt.Errorf("failed with %s, want one of %v: %s", r.Failure.Kind, kinds, r.Failure.Text)
	}
}

// works complains if a call failed, or was answered with an error.
func works(r *report.Call) error {
	if r.Failure == nil && r.Status >= 400 {
		return fmt.Errorf("answered with %d: %s", r.Status, r.Text)
	}
	if r.Failure != nil {
		return fmt.Errorf("failed: %s: %s", r.Failure.Kind, r.Failure.Text)
	}
	return nil
}

// noFailure fails the test if a load had a failed call.
func noFailure(s *space, l *report.Load) {
	s.t.Helper()
	if l.Failed > 0 {
		s.t.Errorf("%d of %d calls failed: %v; the first at %v: %s", l.Failed, l.Requests, l.Failures, l.FailedAt, l.Example)
	}
	if l.Requests == 0 {
		s.t.Error("the load made no call")
	}
}
