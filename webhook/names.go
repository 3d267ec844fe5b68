package webhook

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Names in a meshed pod.
const (
	ContainerInit  = "tulle-init"
	ContainerProxy = "tulle-proxy"

	volumeTrust = "tulle-trust"
	volumeToken = "tulle-token"

	// trustConfigMap is in every namespace; controllers/trust keeps it.
	trustConfigMap = "tulle-trust"
	trustPath      = "/var/run/tulle/trust"
	tokenPath      = "/var/run/tulle/token"
	tokenFile      = "token"
	tokenAudience  = "tulle"
	// tokenSeconds is how long a token lives. The kubelet renews it at 80 % of
	// that; 3600 is the least that it renews without rounding up.
	tokenSeconds = 3600

	// checkID is the user nonroot of our images.
	checkID = 65532
)

// Labels and annotations. All begin with prefix.
const (
	prefix = "mesh.tulle.dev/"

	// LabelInject, on a namespace or a pod, is "enabled" or "disabled". The
	// pod's has the last word.
	LabelInject = prefix + "inject"
	enabled     = "enabled"
	disabled    = "disabled"

	// LabelRevision, on a namespace or a pod, names the control plane that is to
	// inject and serve its pods. The pod's has the last word. The API server
	// reads it, to choose the webhook.
	LabelRevision = prefix + "revision"
	// DefaultRevision is the control plane of what has no such label.
	DefaultRevision = "default"

	// LabelRedirection, on a namespace or a pod, is a [Redirection]. The pod's
	// has the last word, then the namespace's, then the settings'.
	LabelRedirection = prefix + "redirection"

	// LabelProxy marks pods that were injected, and those of gateways.
	LabelProxy   = prefix + "proxy"
	proxySidecar = "sidecar"
	// ProxyGateway is the label's value on a gateway's pods.
	ProxyGateway = "gateway"

	// AnnotationStatus says what was injected, as JSON.
	AnnotationStatus = prefix + "status"

	// AnnotationRedirect is what the CNI plugin is to put in place for the pod:
	// the arguments that tulle-init would have been given, with spaces between.
	AnnotationRedirect = prefix + "redirect"

	// What a pod may choose for itself.
	AnnotationExcludeInboundPorts  = prefix + "exclude-inbound-ports"
	AnnotationExcludeOutboundPorts = prefix + "exclude-outbound-ports"
	AnnotationExcludeOutboundCIDRs = prefix + "exclude-outbound-cidrs"
	AnnotationExcludeOutboundUIDs  = prefix + "exclude-outbound-uids"
	AnnotationExcludeOutboundGIDs  = prefix + "exclude-outbound-gids"
	AnnotationProxyCPU             = prefix + "proxy-cpu"
	AnnotationProxyMemory          = prefix + "proxy-memory"
	AnnotationProxyCPULimit        = prefix + "proxy-cpu-limit"
	AnnotationProxyMemoryLimit     = prefix + "proxy-memory-limit"
	AnnotationProxyLogLevel        = prefix + "proxy-log-level"
	AnnotationProxyConcurrency     = prefix + "proxy-concurrency"
	AnnotationPreStopSleep         = prefix + "prestop-sleep"

	labelPodSecurity = "pod-security.kubernetes.io/enforce"
	labelOS          = "kubernetes.io/os"
	annotationMirror = "kubernetes.io/config.mirror"
)

// Ports of the sidecar. All from portFirst to portLast are the sidecar's, some
// of them for versions to come.
const (
	portFirst  = 15000
	portLast   = 15090
	portProbes = 15020
	portReady  = 15021
	portStats  = 15090
)

// ServiceOf is the name of the Service of a revision's control plane; "" is
// [DefaultRevision].
func ServiceOf(revision string) string {
	if revision == "" || revision == DefaultRevision {
		return "tulled"
	}
	return "tulled-" + revision
}

// maxRevision leaves room for what names of Services begin with, of at most 63
// characters.
const maxRevision = 63 - len("tulled-")

// ValidRevision reports why the text cannot name a revision: it becomes a part of
// the names of objects.
func ValidRevision(revision string) error {
	if problems := validation.IsDNS1123Label(revision); len(problems) > 0 {
		return fmt.Errorf("%q cannot name a revision: %s", revision, problems[0])
	}
	if len(revision) > maxRevision {
		return fmt.Errorf("%q cannot name a revision: it has more than %d characters", revision, maxRevision)
	}
	return nil
}
