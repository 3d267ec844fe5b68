package webhook

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// takeProbes leads the application's probes through the sidecar, which asks the
// application itself: the kubelet has no certificate, so under Strict it could
// not ask any more; and the sidecar accepts a TCP probe's connection whether the
// application listens or not. The probes as they were are returned.
//
// A TCP or gRPC probe becomes an HTTP one to the sidecar. Its times and
// thresholds stay.
//
// A port that is excluded from redirection keeps its probes: the kubelet
// reaches it as before. Hooks are left as they are, with a warning: the sidecar
// does not ask who calls for a probe, and what a hook does is not for everybody
// to do.
func takeProbes(pod *corev1.Pod, excluded []uint16) (taken []mesh.Probe, warnings []string, err error) {
	t := taker{before: before(pod).Probes, excluded: excluded}
	for c := range others(pod) {
		for _, p := range []struct {
			kind  string
			probe *corev1.Probe
		}{
			{"liveness", c.LivenessProbe},
			{"readiness", c.ReadinessProbe},
			{"startup", c.StartupProbe},
		} {
			if p.probe != nil {
				t.take(c, p.kind, p.probe)
			}
		}
		if c.Lifecycle != nil {
			t.leave(c, "postStart", c.Lifecycle.PostStart)
			t.leave(c, "preStop", c.Lifecycle.PreStop)
		}
	}
	return t.taken, t.warnings, join(t.problems)
}

// taker goes through a pod's probes.
type taker struct {
	before   []mesh.Probe
	excluded []uint16
	taken    []mesh.Probe
	warnings []string
	problems []error
}

func (t *taker) warn(format string, args ...any) {
	t.warnings = append(t.warnings, fmt.Sprintf(format, args...))
}

func (t *taker) take(c *corev1.Container, kind string, p *corev1.Probe) {
	h := &p.ProbeHandler
	switch {
	case h.HTTPGet != nil:
		t.takeHTTP(c, kind, h.HTTPGet)
	case h.TCPSocket != nil && h.TCPSocket.Host == "":
		t.takeOther(c, kind, h.TCPSocket.Port, p, mesh.Probe{Kind: mesh.ProbeTCP})
	case h.GRPC != nil:
		service := ""
		if h.GRPC.Service != nil {
			service = *h.GRPC.Service
		}
		t.takeOther(c, kind, intstr.FromInt32(h.GRPC.Port), p, mesh.Probe{Kind: mesh.ProbeGRPC, Service: service})
	}
}

func (t *taker) takeHTTP(c *corev1.Container, kind string, get *corev1.HTTPGetAction) {
	if get.Host != "" {
		return // the kubelet asks another host, not this pod
	}
	path := pathOf(c, kind)
	if get.Port.IntValue() == portProbes {
		t.keep(c, kind, path, get)
		return
	}
	port, ok := t.port(c, kind, get.Port)
	if !ok {
		return
	}
	t.taken = append(t.taken, mesh.Probe{
		Path:   path,
		Port:   port,
		Target: rooted(get.Path),
		HTTPS:  get.Scheme == corev1.URISchemeHTTPS,
	})
	get.Path = path
	get.Port = intstr.FromInt32(portProbes)
	get.Scheme = corev1.URISchemeHTTP
}

// takeOther makes a TCP or gRPC probe an HTTP one.
func (t *taker) takeOther(c *corev1.Container, kind string, port intstr.IntOrString, p *corev1.Probe, as mesh.Probe) {
	var ok bool
	if as.Port, ok = t.port(c, kind, port); !ok {
		return
	}
	as.Path = pathOf(c, kind)
	if p.TimeoutSeconds > 1 {
		as.Timeout = p.TimeoutSeconds
	}
	t.taken = append(t.taken, as)
	p.ProbeHandler = corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: as.Path, Port: intstr.FromInt32(portProbes), Scheme: corev1.URISchemeHTTP,
	}}
}

// leave warns of a hook that is an HTTP request.
func (t *taker) leave(c *corev1.Container, kind string, h *corev1.LifecycleHandler) {
	if h == nil || h.HTTPGet == nil || h.HTTPGet.Host != "" {
		return
	}
	if port, ok := resolve(h.HTTPGet.Port, c); ok && !slices.Contains(t.excluded, port) {
		t.warn("the %s hook of the container %q asks port %d: it fails where mTLS is Strict, because the kubelet has no certificate; write an exec hook, or name the port in the annotation %s", kind, c.Name, port, AnnotationExcludeInboundPorts)
	}
}

func pathOf(c *corev1.Container, kind string) string { return "/probe/" + c.Name + "/" + kind }

// port is the number of the port to ask through the sidecar, if it is to be.
func (t *taker) port(c *corev1.Container, kind string, port intstr.IntOrString) (uint16, bool) {
	n, ok := resolve(port, c)
	if !ok {
		t.warn("the %s probe of the container %q is of port %q, which the container does not declare, so it is left as it is and will fail", kind, c.Name, port.String())
	}
	return n, ok && !slices.Contains(t.excluded, n)
}

// keep finds the record of a probe that was led through the sidecar before: by
// an earlier call for the same pod, or in a manifest copied from an injected
// pod.
func (t *taker) keep(c *corev1.Container, kind, path string, get *corev1.HTTPGetAction) {
	i := slices.IndexFunc(t.before, func(p mesh.Probe) bool { return p.Path == get.Path })
	if get.Path != path || i < 0 {
		t.problems = append(t.problems, fmt.Errorf("the %s probe of the container %q asks port %d, which is the sidecar's: write the application's own port and path", kind, c.Name, portProbes))
		return
	}
	t.taken = append(t.taken, t.before[i])
}

// resolve returns the number of a probe's port. A name is looked up among the
// container's own ports, as the kubelet does.
func resolve(port intstr.IntOrString, c *corev1.Container) (uint16, bool) {
	if port.Type == intstr.Int {
		return uint16(port.IntVal), port.IntVal > 0 && port.IntVal <= 65535
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return uint16(p.ContainerPort), true
		}
	}
	return 0, false
}

// rooted makes a path absolute, as the kubelet does.
func rooted(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}
