package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// probing is a container with a probe, and what the kubelet should make of it.
type probing struct {
	probe corev1.ProbeHandler
	ports []corev1.ContainerPort
	// put says which of the container's probes it is; nil is readiness.
	put func(*corev1.Container, *corev1.Probe)
	// serves is where the container itself serves HTTP; else all are asked of
	// the pod's first one.
	serves string
	want   verdict
}

// verdict is a container's status.
type verdict struct{ ready, started, restarted bool }

var good, bad = verdict{ready: true, started: true}, verdict{started: true}

func httpProbe(path string, port any, edits ...func(*corev1.HTTPGetAction)) corev1.ProbeHandler {
	get := &corev1.HTTPGetAction{Path: path}
	switch p := port.(type) {
	case int:
		get.Port = intstr.FromInt(p)
	case string:
		get.Port = intstr.FromString(p)
	}
	for _, edit := range edits {
		edit(get)
	}
	return corev1.ProbeHandler{HTTPGet: get}
}

func overTLS(get *corev1.HTTPGetAction) { get.Scheme = corev1.URISchemeHTTPS }

func header(name, value string) func(*corev1.HTTPGetAction) {
	return func(get *corev1.HTTPGetAction) {
		get.HTTPHeaders = append(get.HTTPHeaders, corev1.HTTPHeader{Name: name, Value: value})
	}
}

func tcpProbe(port any) corev1.ProbeHandler {
	return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: httpProbe("", port).HTTPGet.Port}}
}

func grpcProbe(port int32, service *string) corev1.ProbeHandler {
	return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port, Service: service}}
}

func startup(c *corev1.Container, p *corev1.Probe) { c.StartupProbe = p }

func liveness(c *corev1.Container, p *corev1.Probe) { c.LivenessProbe = p }

// probings are of one application, which listens on the ports of echoContainer,
// but for those that say otherwise.
func probings() map[string]probing {
	named := func(name string, port int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: name, ContainerPort: port}}
	}
	return map[string]probing{
		"http":             {probe: httpProbe("/status/200", 8080), want: good},
		"http-bad":         {probe: httpProbe("/status/503", 8080), want: bad},
		"http-399":         {probe: httpProbe("/status/399", 8080), want: good},
		"http-closed":      {probe: httpProbe("/status/200", 9999), want: bad},
		"http-query":       {probe: httpProbe("/status/200?a=b&c=%2F", 8080), want: good},
		"http-named":       {probe: httpProbe("/status/200", "web"), ports: named("web", 8080), want: good},
		"http-host":        {probe: httpProbe("/host/a.example", 8080, header("Host", "a.example")), want: good},
		"http-other-host":  {probe: httpProbe("/host/a.example", 8080, header("Host", "b.example")), want: bad},
		"http-redirect":    {probe: httpProbe("/to/status/200?by=302", 8080), want: good},
		"http-moved":       {probe: httpProbe("/to/status/200?by=308", 8080), want: good},
		"http-pod":         {probe: httpProbe("/status/200", 8181), serves: "$(POD_IP):8181", want: good},
		"http-loopback":    {probe: httpProbe("/status/200", 8182), serves: "127.0.0.1:8182", want: bad},
		"tcp-pod":          {probe: tcpProbe(8183), serves: "$(POD_IP):8183", want: good},
		"https":            {probe: httpProbe("/status/200", 8443, overTLS), want: good},
		"https-bad":        {probe: httpProbe("/status/500", 8443, overTLS), want: bad},
		"https-named":      {probe: httpProbe("/status/200", "secure", overTLS), ports: named("secure", 8443), want: good},
		"https-host":       {probe: httpProbe("/host/a.example", 8443, overTLS, header("Host", "a.example")), want: good},
		"https-closed":     {probe: httpProbe("/status/200", 9998, overTLS), want: bad},
		"grpc":             {probe: grpcProbe(9000, nil), want: good},
		"grpc-known":       {probe: grpcProbe(9000, ptr.To("echo.Echo")), want: good},
		"grpc-unknown":     {probe: grpcProbe(9000, ptr.To("nobody.Knows")), want: bad},
		"grpc-closed":      {probe: grpcProbe(9997, nil), want: bad},
		"tcp":              {probe: tcpProbe(9001), want: good},
		"tcp-server-first": {probe: tcpProbe(3306), want: good},
		"tcp-named":        {probe: tcpProbe("raw"), ports: named("raw", 9001), want: good},
		"tcp-closed":       {probe: tcpProbe(9996), want: bad},
		"startup":          {probe: httpProbe("/status/200", 8080), put: startup, want: good},
		"startup-bad":      {probe: tcpProbe(9995), put: startup, want: verdict{}},
		"startup-grpc":     {probe: grpcProbe(9000, nil), put: startup, want: good},
		"liveness":         {probe: tcpProbe(9001), put: liveness, want: good},
		"liveness-bad":     {probe: httpProbe("/status/503", 8080), put: liveness, want: verdict{started: true, restarted: true}},
	}
}

// probed is a pod with the application, and a container for each probe.
func probed() *corev1.Pod {
	pod := barePod("probed")
	pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](1)
	app := &pod.Spec.Containers[0]
	app.Ports, app.ReadinessProbe = nil, nil
	for _, name := range slices.Sorted(maps.Keys(probings())) {
		p := probings()[name]
		c := echoContainer("", "serve", "--http="+p.serves, "--grpc=", "--tcp=127.0.0.1:0", "--greet=", "--tls=", "--grace=1ms")
		c.Name, c.Ports, c.SecurityContext, c.ImagePullPolicy = name, p.ports, app.SecurityContext, app.ImagePullPolicy
		c.Env = append(c.Env, corev1.EnvVar{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}})
		probe := &corev1.Probe{ProbeHandler: p.probe, PeriodSeconds: 1, FailureThreshold: 2, TimeoutSeconds: 1}
		switch {
		case p.put == nil:
			c.ReadinessProbe = probe
		case name == "startup-bad":
			probe.FailureThreshold = 1000 // it is not to be ended meanwhile
			fallthrough
		default:
			p.put(&c, probe)
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	return pod
}

// differs says which containers of the pod are not as they should be.
func differs(pod *corev1.Pod) error {
	var wrong []string
	for _, s := range pod.Status.ContainerStatuses {
		p, ok := probings()[s.Name]
		if !ok {
			continue
		}
		got := verdict{ready: s.Ready, started: s.Started != nil && *s.Started, restarted: s.RestartCount > 0}
		if p.want.restarted { // it comes and goes
			got.ready, got.started = p.want.ready, p.want.started
		}
		if got != p.want {
			wrong = append(wrong, fmt.Sprintf("%s is %+v, want %+v", s.Name, got, p.want))
		}
	}
	if len(wrong) > 0 || len(pod.Status.ContainerStatuses) == 0 {
		slices.Sort(wrong)
		return fmt.Errorf("%d of %d: %s", len(wrong), len(pod.Status.ContainerStatuses), strings.Join(wrong, "; "))
	}
	return nil
}

// The kubelet says of each probe in the mesh, under Strict, what it says of the
// same outside.
func TestProbesAreAsTruthfulAsWithoutTheMesh(t *testing.T) {
	t.Parallel()
	in, out := newSpace(t, "probed", true), newSpace(t, "probed-outside", false)
	in.strict()
	for _, s := range []*space{in, out} {
		_, err := s.c.Client.CoreV1().Pods(s.name).Create(t.Context(), probed(), metav1.CreateOptions{})
		must(t, err)
	}
	for _, s := range []*space{out, in} {
		start, settled := time.Now(), 0
		eventually(t, 90*time.Second, "every probe of "+s.name+" to be told as it is", func(ctx context.Context) error {
			pod, err := s.c.Client.CoreV1().Pods(s.name).Get(ctx, "probed", metav1.GetOptions{})
			if err == nil {
				err = differs(pod)
			}
			if err != nil {
				settled = 0
				return err
			}
			// Not by chance, in passing: probes are a second apart.
			if settled++; settled < 15 {
				return fmt.Errorf("it has been so %d times", settled)
			}
			return nil
		})
		figure(t, "%d probes in %s are told as they are, after %.0f s", len(probings()), s.name, time.Since(start).Seconds())
	}
}
