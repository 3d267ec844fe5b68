package webhook

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Inject returns the pod with Tulle's two containers, and warnings for the
// person who created it. A pod that is not to be injected is returned as it is;
// one that was injected already is brought to what the settings say now. The
// pod that was given is never changed.
//
// An error is a refusal: the sentence says what to write instead.
func Inject(pod *corev1.Pod, namespaceLabels map[string]string, s Settings) (*corev1.Pod, []string, error) {
	wanted, warnings, err := decide(pod, namespaceLabels)
	if err != nil || !wanted {
		return pod, warnings, err
	}
	if err := s.validate(); err != nil {
		return pod, warnings, err
	}
	if err := conflicts(pod); err != nil {
		return pod, warnings, err
	}
	how, err := redirectionOf(pod, namespaceLabels, s)
	if err != nil {
		return pod, warnings, err
	}
	if how == RedirectionInit {
		warnings = append(warnings, podSecurity(namespaceLabels)...)
	}
	o, err := overridesOf(pod, s)
	if err != nil {
		return pod, warnings, err
	}
	warnings = append(warnings, unknownAnnotations(pod.Annotations)...)

	out := pod.DeepCopy()
	user, err := proxyUser(out)
	if err != nil {
		return pod, warnings, err
	}
	removeOurs(out)
	probes, more, err := takeProbes(out, o.excludeInbound)
	warnings = append(warnings, more...)
	if err != nil {
		return pod, warnings, err
	}
	if err := add(out, s, o, how, user, probes); err != nil {
		return pod, warnings, err
	}
	return out, warnings, nil
}

// add puts everything of ours into the pod, which has none of it.
func add(pod *corev1.Pod, s Settings, o overrides, how Redirection, user int64, probes []mesh.Probe) error {
	proxy, err := proxyContainer(s, o, user)
	if err != nil {
		return err
	}
	// A native sidecar: it starts before the application and ends after it.
	proxy.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	proxy.Lifecycle = outlive(&pod.Spec)
	pod.Spec.InitContainers = slices.Concat(
		[]corev1.Container{redirecting(pod, s, o, how, user), proxy},
		pod.Spec.InitContainers,
	)
	pod.Spec.Volumes = append(pod.Spec.Volumes, volumes()...)

	preStop := addPreStop(pod, o.preStopSleep)
	status, err := json.Marshal(injection{Version: s.Version, Revision: s.Revision, Probes: probes, Direct: o.excludeInbound, PreStop: preStop})
	if err != nil {
		return fmt.Errorf("writing the annotation %s: %w", AnnotationStatus, err)
	}
	pod.Annotations = with(pod.Annotations, AnnotationStatus, string(status))
	pod.Labels = with(pod.Labels, LabelProxy, proxySidecar)
	return nil
}

// injection is the annotation AnnotationStatus.
type injection struct {
	Version  string       `json:"version"`
	Revision string       `json:"revision,omitempty"`
	Probes   []mesh.Probe `json:"probes,omitempty"`
	// Direct are the ports that callers reach without the sidecar, so that
	// their own sidecars do not speak mesh mTLS to them.
	Direct []uint16 `json:"direct,omitempty"`
	// PreStop are the containers that were given a sleep before their end, of
	// so many seconds.
	PreStop map[string]int64 `json:"preStop,omitempty"`
}

// before is what an earlier injection recorded.
func before(pod *corev1.Pod) injection {
	var status injection
	if err := json.Unmarshal([]byte(pod.Annotations[AnnotationStatus]), &status); err != nil {
		return injection{}
	}
	return status
}

// removeOurs takes away what an earlier injection put into the pod, but for
// the probes, which are dealt with one by one.
func removeOurs(pod *corev1.Pod) {
	delete(pod.Annotations, AnnotationRedirect) // also where somebody has copied it
	if !injected(pod) {
		return
	}
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == ContainerInit || c.Name == ContainerProxy
	})
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == volumeTrust || v.Name == volumeToken
	})
	removePreStop(pod)
}

// injected reports whether the pod has our sidecar.
func injected(pod *corev1.Pod) bool { return sidecar(pod) != nil }

// sidecar is the one that the pod has of us; nil: none.
func sidecar(pod *corev1.Pod) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name == ContainerProxy && isSidecar(*c) {
			return c
		}
	}
	return nil
}

// isSidecar reports whether an init container runs beside the application.
func isSidecar(c corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func with(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = make(map[string]string, 1)
	}
	m[key] = value
	return m
}
