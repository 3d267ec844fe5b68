package webhook

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Redirection is how a pod's traffic is led to its sidecar.
type Redirection string

const (
	// RedirectionInit has an init container of the pod do it, which needs the
	// capability NET_ADMIN for a moment.
	RedirectionInit Redirection = "init"
	// RedirectionCNI leaves it to the CNI plugin of the node (cmd/tulle-cni). An
	// init container without any privilege makes sure that it was done.
	RedirectionCNI Redirection = "cni"
)

// ParseRedirection reads what a person wrote.
func ParseRedirection(text string) (Redirection, error) {
	switch r := Redirection(text); r {
	case RedirectionInit, RedirectionCNI:
		return r, nil
	}
	return "", fmt.Errorf("%q is not a way to redirect traffic: write %q or %q", text, RedirectionInit, RedirectionCNI)
}

// redirectionOf is a pod's own word, else its namespace's, else the mesh's.
func redirectionOf(pod *corev1.Pod, namespaceLabels map[string]string, s Settings) (Redirection, error) {
	for _, labels := range []map[string]string{pod.Labels, namespaceLabels} {
		if text, ok := labels[LabelRedirection]; ok {
			r, err := ParseRedirection(text)
			if err != nil {
				return "", fmt.Errorf("the label %s: %w", LabelRedirection, err)
			}
			return r, nil
		}
	}
	if s.Redirection == "" {
		return RedirectionInit, nil
	}
	return s.Redirection, nil
}

// redirecting is the container that has the pod start redirected or not at all.
// For the CNI plugin it also writes down what is to be redirected: a container
// runtime shows plugins a pod's annotations, but not its containers.
func redirecting(pod *corev1.Pod, s Settings, o overrides, how Redirection, user int64) corev1.Container {
	args := redirectArguments(s, o, user)
	if how == RedirectionInit {
		return initContainer(s, args)
	}
	pod.Annotations = with(pod.Annotations, AnnotationRedirect, strings.Join(args, " "))
	return checkContainer(s, args)
}

// redirectArguments are those of tulle-init; cmd/tulle-init/redirect reads
// them. None has a space in it.
func redirectArguments(s Settings, o overrides, user int64) []string {
	args := []string{fmt.Sprintf("--proxy-uid=%d", user)}
	for _, r := range s.Services {
		args = append(args, "--service="+r.String())
	}
	for _, r := range s.Pods {
		args = append(args, "--pod="+r.String())
	}
	for _, p := range o.excludeInbound {
		args = append(args, fmt.Sprintf("--exclude-inbound-port=%d", p))
	}
	for _, p := range o.excludeOutbound {
		args = append(args, fmt.Sprintf("--exclude-outbound-port=%d", p))
	}
	for _, r := range o.excludeRanges {
		args = append(args, "--exclude-outbound-cidr="+r.String())
	}
	for _, u := range o.excludeUIDs {
		args = append(args, fmt.Sprintf("--exclude-outbound-uid=%d", u))
	}
	for _, g := range o.excludeGIDs {
		args = append(args, fmt.Sprintf("--exclude-outbound-gid=%d", g))
	}
	return args
}

// initContainer redirects the pod's traffic, and ends.
func initContainer(s Settings, args []string) corev1.Container {
	return corev1.Container{
		Name:            ContainerInit,
		Image:           s.InitImage,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Args:            args,
		Resources:       initResources(),
		SecurityContext: &corev1.SecurityContext{
			// A uid other than 0 has no capability in effect, whatever the
			// container was given. The pod may say runAsNonRoot for itself.
			RunAsUser:                new(int64(0)),
			RunAsGroup:               new(int64(0)),
			RunAsNonRoot:             new(false),
			AllowPrivilegeEscalation: new(false),
			Privileged:               new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities: &corev1.Capabilities{
				Drop: []corev1.Capability{"ALL"},
				Add:  []corev1.Capability{"NET_ADMIN"},
			},
			SeccompProfile: runtimeDefault(),
		},
	}
}

// checkContainer makes sure that the pod's traffic is redirected, and ends. It
// has no privilege, so it proves that by trying.
func checkContainer(s Settings, args []string) corev1.Container {
	return corev1.Container{
		Name:            ContainerInit,
		Image:           s.InitImage,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Args:            append([]string{"check"}, args...),
		Resources:       initResources(),
		// What it says at its end is seen with the pod.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{
			// Any but the sidecar's, whose connections are not redirected.
			RunAsUser:                new(int64(checkID)),
			RunAsGroup:               new(int64(checkID)),
			RunAsNonRoot:             new(true),
			AllowPrivilegeEscalation: new(false),
			Privileged:               new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           runtimeDefault(),
		},
	}
}
