package webhook

import (
	"fmt"
	"hash/fnv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

// Users, and groups of the same number, that proxies run as: each pod's has one of its
// own, as far as chance allows. What a node's kernel gives to a user it gives to all pods
// of it together; of inotify instances (inotify(7)) that is 128, and a proxy takes four,
// without which it does not start. In a user namespace a pod has the first 65536
// (user_namespaces in Kubernetes' documentation).
const (
	firstUser = 32768
	userCount = 16384
)

// proxyUser is the user of the pod's proxy: that of an earlier injection, else one that
// follows from the pod's name and UID. None of the pod's containers is told to run as it:
// their traffic would pass by the sidecar. An error is a refusal.
func proxyUser(pod *corev1.Pod) (int64, error) {
	taken := sets.New[int64]()
	for c := range others(pod) {
		if id := effectiveUser(pod, c); id != nil {
			taken.Insert(*id)
		}
	}
	if id, ok := earlierUser(pod); ok && !taken.Has(id) {
		return id, nil
	}
	h := fnv.New32a()
	for _, text := range []string{pod.Namespace, pod.Name, pod.GenerateName, string(pod.UID)} {
		h.Write([]byte(text))
		h.Write([]byte{0})
	}
	for n := range int64(userCount) {
		if id := firstUser + (int64(h.Sum32())+n)%userCount; !taken.Has(id) {
			return id, nil
		}
	}
	return 0, fmt.Errorf("the pod's containers run as all of the users %d to %d, of which the sidecar needs one", firstUser, firstUser+userCount-1)
}

// earlierUser is the user of the proxy that the pod has already.
func earlierUser(pod *corev1.Pod) (int64, bool) {
	c := sidecar(pod)
	if c == nil || c.SecurityContext == nil || c.SecurityContext.RunAsUser == nil {
		return 0, false
	}
	id := *c.SecurityContext.RunAsUser
	return id, id >= firstUser && id < firstUser+userCount
}
