package observe

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// proxyContainer is the name of the sidecar, which makes a pod a meshed one.
	proxyContainer = "tulle-proxy"
	// statusAnnotation is what injection wrote down about the pod.
	statusAnnotation = "mesh.tulle.dev/status"
)

// injection is the value of statusAnnotation, as far as it is used here.
type injection struct {
	Probes []mesh.Probe `json:"probes"`
	Direct []uint16     `json:"direct"`
}

// workload converts a Pod, meshed or not: the others are callers and endpoints
// too, which an address is to be known for.
func workload(p *corev1.Pod) *mesh.Workload {
	out := &mesh.Workload{
		Name:           mesh.Name{Namespace: p.Namespace, Name: p.Name},
		UID:            string(p.UID),
		ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default"),
		Labels:         p.Labels,
		Node:           p.Spec.NodeName,
		Meshed:         meshed(p),
		Terminating:    p.DeletionTimestamp != nil,
		Terminal:       p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		Ports:          containerPorts(&p.Spec),
	}
	if out.Terminating && p.DeletionGracePeriodSeconds != nil {
		out.Grace = time.Duration(*p.DeletionGracePeriodSeconds) * time.Second
	}
	// A pod on its host's network has the node's address, which it shares with
	// others: the address says nothing about who is there.
	if !p.Spec.HostNetwork {
		out.Addresses = podIPs(&p.Status)
	}
	if !out.Meshed && slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == proxyContainer }) {
		out.Gateway = p.Labels[gatewayv1.GatewayNameLabelKey]
		out.Started = started(p.Status.ContainerStatuses)
	}
	if out.Meshed {
		out.Started = started(p.Status.InitContainerStatuses)
		out.Probes, out.Direct = injected(p.Annotations[statusAnnotation])
	}
	return out
}

// meshed reports whether the pod runs our sidecar, which is a native one.
func meshed(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == proxyContainer && nativeSidecar(&c)
	})
}

// started reports whether our proxy's startup probe has passed.
func started(in []corev1.ContainerStatus) bool {
	return slices.ContainsFunc(in, func(c corev1.ContainerStatus) bool {
		return c.Name == proxyContainer && c.Started != nil && *c.Started
	})
}

// nativeSidecar reports whether an init container runs for as long as the pod.
func nativeSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// containerPorts are the declared TCP ports of what runs for as long as the
// pod, but for our own sidecar; sorted.
func containerPorts(spec *corev1.PodSpec) []mesh.ContainerPort {
	var out []mesh.ContainerPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.Protocol == "" || p.Protocol == corev1.ProtocolTCP {
				out = append(out, mesh.ContainerPort{Name: p.Name, Port: uint16(p.ContainerPort)})
			}
		}
	}
	for i := range spec.InitContainers {
		if c := &spec.InitContainers[i]; nativeSidecar(c) && c.Name != proxyContainer {
			add(c)
		}
	}
	for i := range spec.Containers {
		add(&spec.Containers[i])
	}
	slices.SortFunc(out, func(a, b mesh.ContainerPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Name, b.Name))
	})
	return slices.Compact(out)
}

func podIPs(status *corev1.PodStatus) []netip.Addr {
	texts := make([]string, 0, len(status.PodIPs)+1)
	for _, ip := range status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 {
		texts = append(texts, status.PodIP)
	}
	return addresses(texts)
}

// injected reads what injection wrote down: the probes that the sidecar answers,
// and the ports that its redirect leaves alone. The annotation is anybody's who
// may write the pod, so what makes no sense is left out: a bad path would make
// the pod's own proxy reject the listener.
func injected(annotation string) (probes []mesh.Probe, direct []uint16) {
	if annotation == "" {
		return nil, nil
	}
	var in injection
	if err := json.Unmarshal([]byte(annotation), &in); err != nil {
		return nil, nil
	}
	for _, p := range in.Probes {
		if sensible(p) {
			probes = append(probes, p)
		}
	}
	slices.Sort(in.Direct)
	return probes, slices.Compact(in.Direct)
}

func sensible(p mesh.Probe) bool {
	if p.Port == 0 || !strings.HasPrefix(p.Path, "/") {
		return false
	}
	switch p.Kind {
	case mesh.ProbeHTTP:
		return strings.HasPrefix(p.Target, "/")
	case mesh.ProbeTCP, mesh.ProbeGRPC:
		return p.Timeout >= 0
	}
	return false
}
