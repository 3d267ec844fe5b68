package webhook

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// takeProbes leads the application's HTTP probes through the sidecar, which
// asks the application itself: the kubelet has no certificate, so under Strict
// it could not ask any more. The probes as they were are returned.
//
// A port that is excluded from redirection keeps its probes: the kubelet
// reaches it as before. TCP and gRPC probes are left as they are, with a
// warning where they stop telling the truth.
func takeProbes(pod *corev1.Pod, excluded []uint16) (taken []mesh.Probe, warnings []string, err error) {
	t := taker{before: probesBefore(pod), excluded: excluded}
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
				t.take(c, p.kind, &p.probe.ProbeHandler)
			}
		}
	}
	return t.taken, t.warnings, join(t.problems)
}

// probesBefore are those that an earlier injection recorded.
func probesBefore(pod *corev1.Pod) []mesh.Probe {
	var status injection
	if err := json.Unmarshal([]byte(pod.Annotations[AnnotationStatus]), &status); err != nil {
		return nil
	}
	return status.Probes
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

func (t *taker) take(c *corev1.Container, kind string, h *corev1.ProbeHandler) {
	switch {
	case h.HTTPGet != nil:
		t.takeHTTP(c, kind, h.HTTPGet)
	case h.TCPSocket != nil:
		if port, ok := resolve(h.TCPSocket.Port, c); ok && h.TCPSocket.Host == "" && !slices.Contains(t.excluded, port) {
			t.warn("the %s probe of the container %q is a TCP one, of port %d: the sidecar accepts such a connection whether the application listens or not", kind, c.Name, port)
		}
	case h.GRPC != nil:
		if !slices.Contains(t.excluded, uint16(h.GRPC.Port)) {
			t.warn("the %s probe of the container %q is a gRPC one, of port %d: it fails where mTLS is Strict, because the kubelet has no certificate", kind, c.Name, h.GRPC.Port)
		}
	}
}

func (t *taker) takeHTTP(c *corev1.Container, kind string, get *corev1.HTTPGetAction) {
	path := fmt.Sprintf("/probe/%s/%s", c.Name, kind)
	if get.Host != "" {
		return // the kubelet asks another host, not this pod
	}
	if get.Port.IntValue() == portProbes {
		t.keep(c, kind, path, get)
		return
	}
	port, ok := resolve(get.Port, c)
	if !ok {
		t.warn("the %s probe of the container %q is of port %q, which the container does not declare, so it is left as it is and will fail", kind, c.Name, get.Port.String())
		return
	}
	if slices.Contains(t.excluded, port) {
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
