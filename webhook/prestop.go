package webhook

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

const (
	// defaultPreStopSleep is how many seconds an application goes on after its
	// pod was deleted, when nobody says otherwise: until callers know of it,
	// which takes milliseconds in the mesh, and for kube-proxy up to a second.
	defaultPreStopSleep = 1
	// defaultGrace is what Kubernetes gives a pod that asks for nothing.
	defaultGrace = 30
)

// preStopSleep is how many seconds the pod's containers are to sleep before
// they are told to stop; 0 is not at all. By default a pod whose grace period
// leaves no time for it goes without. It never uses the grace period up: the
// kubelet kills what is left then, and the API server refuses a longer sleep.
func (r *reader) preStopSleep(annotation string, pod *corev1.PodSpec) int64 {
	grace := int64(defaultGrace)
	if g := pod.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	text, ok := r.annotations[annotation]
	if !ok {
		return max(0, min(defaultPreStopSleep, grace-1))
	}
	n, err := strconv.ParseInt(text, 10, 32)
	switch {
	case err != nil || n < 0:
		r.refuse(annotation, "write a number of seconds, such as \"5\", or \"0\" for no sleep")
		return 0
	case n > 0 && n >= grace:
		r.refuse(annotation, "the pod's terminationGracePeriodSeconds is %d, which would leave the application no time to end: sleep less, or make that longer", grace)
		return 0
	}
	return n
}

// addPreStop has each container of the application that has no preStop of its
// own sleep first, and returns which do and how long. Init containers and
// sidecars of the pod's own are left alone: the former have ended, the latter
// are stopped after the application. A container that ends by itself, as a
// Job's does, runs no preStop.
func addPreStop(pod *corev1.Pod, seconds int64) map[string]int64 {
	if seconds == 0 {
		return nil
	}
	var added map[string]int64
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
			continue
		}
		if c.Lifecycle == nil {
			c.Lifecycle = &corev1.Lifecycle{}
		}
		c.Lifecycle.PreStop = &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: seconds}}
		if added == nil {
			added = map[string]int64{}
		}
		added[c.Name] = seconds
	}
	return added
}

// removePreStop takes away what an earlier injection added, and nobody has
// changed since.
func removePreStop(pod *corev1.Pod) {
	added := before(pod).PreStop
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		seconds, ours := added[c.Name]
		if !ours || c.Lifecycle == nil || c.Lifecycle.PreStop == nil {
			continue
		}
		if s := c.Lifecycle.PreStop.Sleep; s == nil || s.Seconds != seconds {
			continue
		}
		c.Lifecycle.PreStop = nil
		if *c.Lifecycle == (corev1.Lifecycle{}) {
			c.Lifecycle = nil
		}
	}
}

// outliveSeconds is how long a sidecar goes on when nobody has told it to end.
const outliveSeconds = 1

// outlive has the sidecar of an application that ends of its own accord, as a
// Job's does, go on until callers have heard of that: until then it sends them
// elsewhere. Of a pod that is deleted they have heard before, and the time runs
// beside the application's own. The API takes no sleep that is longer than the
// pod's grace period.
func outlive(pod *corev1.PodSpec) *corev1.Lifecycle {
	if grace := pod.TerminationGracePeriodSeconds; grace != nil && *grace <= outliveSeconds {
		return nil
	}
	return &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: outliveSeconds}}}
}
