package webhook

import (
	"hash/fnv"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Users, and groups of the same number, that proxies run as: each pod's has one of its
// own, as far as chance allows. What a node's kernel gives to a user it gives to all pods
// of it together; of inotify instances (inotify(7)) that is 128, and a proxy takes four,
// without which it does not start. In a user namespace a pod has the first 65536
// (user_namespaces in Kubernetes' documentation).
const (
	firstUser = 32768
	users     = 16384
)

// proxyUser is the user of the pod's proxy: that of an earlier injection, else one that
// follows from the pod's name and UID. None of the pod's containers is told to run as it:
// their traffic would pass by the sidecar.
func proxyUser(pod *corev1.Pod, o overrides) int64 {
	taken := func(id int64) bool {
		for c := range others(pod) {
			if uid := effectiveUser(pod, c); uid != nil && *uid == id {
				return true
			}
		}
		return slices.Contains(o.excludeUIDs, uint32(id))
	}
	if id, ok := earlierUser(pod); ok && !taken(id) {
		return id
	}
	h := fnv.New32a()
	for _, text := range []string{pod.Namespace, pod.Name, pod.GenerateName, string(pod.UID)} {
		h.Write([]byte(text))
		h.Write([]byte{0})
	}
	for n := int64(h.Sum32()); ; n++ {
		if id := firstUser + n%users; !taken(id) {
			return id
		}
	}
}

// earlierUser is the user of the proxy that the pod has already.
func earlierUser(pod *corev1.Pod) (int64, bool) {
	for _, c := range pod.Spec.InitContainers {
		if c.Name == ContainerProxy && isSidecar(c) && c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			id := *c.SecurityContext.RunAsUser
			return id, id >= firstUser && id < firstUser+users
		}
	}
	return 0, false
}
