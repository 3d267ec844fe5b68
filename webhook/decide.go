package webhook

import (
	"fmt"
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// neverInjected are namespaces that the cluster or the mesh itself stands on.
// The webhook's own selectors leave them out already; this is the second lock.
var neverInjected = [...]string{"kube-system", "kube-public", "kube-node-lease", "tulle-system"}

// decide says whether a pod is to be injected.
func decide(pod *corev1.Pod, namespaceLabels map[string]string) (wanted bool, warnings []string, err error) {
	if slices.Contains(neverInjected[:], pod.Namespace) {
		return false, nil, nil
	}
	// The API server's picture of a pod that a kubelet runs by itself: the
	// kubelet would not know what changed.
	if _, mirror := pod.Annotations[annotationMirror]; mirror {
		return false, nil, nil
	}
	switch value := pod.Labels[LabelInject]; value {
	case disabled:
		return false, nil, nil
	case enabled:
	case "":
		if namespaceLabels[LabelInject] != enabled {
			return false, nil, nil
		}
	default:
		return false, nil, fmt.Errorf("the label %s is %q: write %q or %q", LabelInject, value, enabled, disabled)
	}
	if pod.Spec.HostNetwork {
		return false, []string{leftAlone("uses the host's network, and a redirect there would take the whole node's traffic")}, nil
	}
	if isWindows(pod) {
		return false, []string{leftAlone("runs on Windows, where there is no sidecar")}, nil
	}
	return true, nil, nil
}

func leftAlone(why string) string {
	return fmt.Sprintf("not in the mesh: the pod %s; the label %s=%s says that this is meant", why, LabelInject, disabled)
}

func isWindows(pod *corev1.Pod) bool {
	if pod.Spec.OS != nil {
		return pod.Spec.OS.Name == corev1.Windows
	}
	return pod.Spec.NodeSelector[labelOS] == string(corev1.Windows)
}

// podSecurity warns of the refusal that is to come. Pod security is judged
// after webhooks, and its own words do not say what to do about a container
// that the pod's author never wrote.
func podSecurity(namespaceLabels map[string]string) []string {
	switch level := namespaceLabels[labelPodSecurity]; level {
	case "baseline", "restricted":
		return []string{fmt.Sprintf(
			"the namespace enforces the pod security level %s, which refuses %s the capability NET_ADMIN: install Tulle's CNI plugin and set the namespace's label %s to %s, or its label %s to privileged, or the pod's label %s to %s",
			level, ContainerInit, LabelRedirection, RedirectionCNI, labelPodSecurity, LabelInject, disabled)}
	}
	return nil
}

// otherMeshes are the names of proxies of Istio, Linkerd and Kuma, beside which the pod's
// traffic would be redirected twice.
var otherMeshes = []string{"istio-proxy", "linkerd-proxy", "kuma-sidecar"}

// conflicts reports everything in the pod that cannot go together with a
// sidecar.
func conflicts(pod *corev1.Pod) error {
	var problems []error
	refuse := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	again := injected(pod)
	named := pod.Spec.Containers
	if !again {
		named = slices.Concat(pod.Spec.InitContainers, named)
	}
	for _, c := range named {
		if c.Name == ContainerInit || c.Name == ContainerProxy {
			refuse("the name of the container %q is the mesh's own: give it another", c.Name)
		}
	}
	for c := range others(pod) {
		if slices.Contains(otherMeshes, c.Name) {
			refuse("the container %q is another mesh's proxy: a pod can be in one mesh; take it out of that one, or write the label %s=%s", c.Name, LabelInject, disabled)
		}
		for _, p := range c.Ports {
			if isTCP(p) && p.ContainerPort >= portFirst && p.ContainerPort <= portLast {
				refuse("the container %q declares port %d: ports %d to %d are the sidecar's; let the application listen on another", c.Name, p.ContainerPort, portFirst, portLast)
			}
		}
	}
	for _, v := range pod.Spec.Volumes {
		if !again && (v.Name == volumeTrust || v.Name == volumeToken) {
			refuse("the name of the volume %q is the mesh's own: give it another", v.Name)
		}
	}
	return join(problems)
}

// others are all containers of the pod but ours.
func others(pod *corev1.Pod) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				if c := &list[i]; c.Name != ContainerInit && c.Name != ContainerProxy && !yield(c) {
					return
				}
			}
		}
	}
}

// effectiveUser is the uid that a container is told to run as; nil leaves it to
// the image, which nobody here has seen.
func effectiveUser(pod *corev1.Pod, c *corev1.Container) *int64 {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return c.SecurityContext.RunAsUser
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.RunAsUser
	}
	return nil
}

func isTCP(p corev1.ContainerPort) bool {
	return p.Protocol == "" || p.Protocol == corev1.ProtocolTCP
}
