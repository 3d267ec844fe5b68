package webhook

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Settings are what injection needs to know of the mesh. They come from the
// MeshConfig and the control plane's own flags, and hold for pods that are
// created from then on.
type Settings struct {
	// Version of Tulle, and the revision of the control plane, are written into
	// the pod's status annotation. The revision also says which control plane
	// the sidecar connects to; "" is the default one.
	Version  string
	Revision string

	// InitImage and ProxyImage are the images of tulle-init and of Envoy.
	InitImage  string
	ProxyImage string

	// Services and Pods are the cluster's address ranges. Without a service
	// range no pod is injected: nothing that it calls would be in the mesh.
	Services []netip.Prefix
	Pods     []netip.Prefix

	// Redirection is how traffic is led to the sidecar, where neither the pod
	// nor its namespace says; "" is RedirectionInit.
	Redirection Redirection

	// Resources of the sidecar; [DefaultResources] where nobody said.
	Resources corev1.ResourceRequirements
	// LogLevel of Envoy; "" is warning.
	LogLevel string
	// Concurrency is the number of Envoy's worker threads; 0 is one for each
	// CPU of the sidecar's limit, and 2 where it has none.
	Concurrency int32
}

// DefaultResources are those of a sidecar that calls tens of services: Envoy
// 1.40 takes 65 MiB with no cluster, and some 75 KiB for each. There is no CPU
// limit, because a throttled proxy slows down every call of the application.
func DefaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("50m"),
			corev1.ResourceMemory: resource.MustParse("96Mi"),
		},
		Limits: corev1.ResourceList{
			corev1.ResourceMemory: resource.MustParse("512Mi"),
		},
	}
}

// initResources are enough for a process that lives for milliseconds. The
// requests never count: the scheduler takes the largest of init containers and
// the sum of the others, the sidecar's among them.
func initResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("10m"),
			corev1.ResourceMemory: resource.MustParse("32Mi"),
		},
		Limits: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("1"),
			corev1.ResourceMemory: resource.MustParse("64Mi"),
		},
	}
}

// validate reports what keeps every pod from being injected, in words for the
// operator.
func (s Settings) validate() error {
	var problems []error
	if len(s.Services) == 0 {
		problems = append(problems, errors.New("the address range of the cluster's Services is not known: write it in spec.clusterRanges.services of the MeshConfig default"))
	}
	if s.InitImage == "" || s.ProxyImage == "" {
		problems = append(problems, errors.New("the control plane was started without an image for tulle-init or tulle-proxy"))
	}
	return join(problems)
}

// join makes one line of several problems, because events and kubectl show one
// line.
func join(problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.Error()
	}
	return fmt.Errorf("%s", strings.Join(texts, "; "))
}
