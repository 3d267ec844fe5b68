package webhook

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// overrides are what one pod's annotations and the settings add up to.
type overrides struct {
	excludeInbound  []uint16
	excludeOutbound []uint16
	excludeRanges   []netip.Prefix
	excludeUIDs     []uint32
	excludeGIDs     []uint32
	resources       corev1.ResourceRequirements
	logLevel        string
	concurrency     int64
	preStopSleep    int64 // seconds
}

const (
	defaultLogLevel    = "warning"
	defaultConcurrency = 2
	maxConcurrency     = 64
)

// logLevels are Envoy's (envoy --help).
var logLevels = [...]string{"trace", "debug", "info", "warning", "error", "critical", "off"}

// overridesOf reads the pod's annotations. The error names each annotation that
// cannot be read, its value, and the form that is wanted.
func overridesOf(pod *corev1.Pod, s Settings) (overrides, error) {
	r := reader{annotations: pod.Annotations}
	o := overrides{
		excludeInbound:  r.ports(AnnotationExcludeInboundPorts),
		excludeOutbound: r.ports(AnnotationExcludeOutboundPorts),
		excludeRanges:   r.ranges(AnnotationExcludeOutboundCIDRs),
		excludeUIDs:     r.owners(AnnotationExcludeOutboundUIDs),
		excludeGIDs:     r.owners(AnnotationExcludeOutboundGIDs),
		logLevel:        r.logLevel(AnnotationProxyLogLevel),
		concurrency:     r.concurrency(AnnotationProxyConcurrency),
		preStopSleep:    r.preStopSleep(AnnotationPreStopSleep, &pod.Spec),
		resources:       *s.Resources.DeepCopy(),
	}
	if o.resources.Requests == nil && o.resources.Limits == nil {
		o.resources = DefaultResources()
	}
	r.quantity(AnnotationProxyCPU, &o.resources.Requests, corev1.ResourceCPU)
	r.quantity(AnnotationProxyMemory, &o.resources.Requests, corev1.ResourceMemory)
	r.quantity(AnnotationProxyCPULimit, &o.resources.Limits, corev1.ResourceCPU)
	r.quantity(AnnotationProxyMemoryLimit, &o.resources.Limits, corev1.ResourceMemory)
	r.withinLimits(o.resources)

	if o.logLevel == "" {
		o.logLevel = s.LogLevel
	}
	if o.logLevel == "" {
		o.logLevel = defaultLogLevel
	}
	if o.concurrency == 0 {
		o.concurrency = int64(s.Concurrency)
	}
	if o.concurrency == 0 {
		o.concurrency = workersFor(o.resources)
	}
	return o, join(r.problems)
}

// workersFor is one worker for each CPU that the proxy may use, begun ones
// included.
func workersFor(r corev1.ResourceRequirements) int64 {
	limit, ok := r.Limits[corev1.ResourceCPU]
	if !ok {
		return defaultConcurrency
	}
	return min(max(limit.Value(), 1), maxConcurrency) // Value rounds up
}

// reader reads annotations and collects what is wrong with them.
type reader struct {
	annotations map[string]string
	problems    []error
}

func (r *reader) refuse(annotation, format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf("the annotation %s is %q: %s", annotation, r.annotations[annotation], fmt.Sprintf(format, args...)))
}

// list splits an annotation at its commas; an empty one has nothing in it.
func (r *reader) list(annotation string) []string {
	var items []string
	for item := range strings.SplitSeq(r.annotations[annotation], ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (r *reader) ports(annotation string) []uint16 {
	var ports []uint16
	for _, item := range r.list(annotation) {
		port, err := strconv.ParseUint(item, 10, 16)
		if err != nil || port == 0 {
			r.refuse(annotation, "%q is not a port from 1 to 65535; write ports with commas between them, such as \"3306,6379\"", item)
			continue
		}
		ports = append(ports, uint16(port))
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

func (r *reader) ranges(annotation string) []netip.Prefix {
	var ranges []netip.Prefix
	for _, item := range r.list(annotation) {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			r.refuse(annotation, "%q is not an address range; write CIDRs with commas between them, such as \"192.0.2.0/24,2001:db8::/32\"", item)
			continue
		}
		if p.Addr().Is4In6() {
			r.refuse(annotation, "%q is an IPv4 range in the form of IPv6, which no connection goes to: write it as IPv4, such as \"192.0.2.0/24\"", item)
			continue
		}
		ranges = append(ranges, p.Masked())
	}
	return ranges
}

// owners reads the numbers of users or groups. The largest is one below that
// which means "no change" to the kernel.
func (r *reader) owners(annotation string) []uint32 {
	var ids []uint32
	for _, item := range r.list(annotation) {
		id, err := strconv.ParseUint(item, 10, 32)
		switch {
		case err != nil || id == math.MaxUint32:
			r.refuse(annotation, "%q is not the number of a user or group; write numbers with commas between them, such as \"1001,1002\"", item)
		default:
			ids = append(ids, uint32(id))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (r *reader) logLevel(annotation string) string {
	level, ok := r.annotations[annotation]
	if ok && !slices.Contains(logLevels[:], level) {
		r.refuse(annotation, "write one of %s", strings.Join(logLevels[:], ", "))
	}
	return level
}

func (r *reader) concurrency(annotation string) int64 {
	text, ok := r.annotations[annotation]
	if !ok {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 || n > maxConcurrency {
		r.refuse(annotation, "write a number of threads from 1 to %d", maxConcurrency)
		return 0
	}
	return n
}

func (r *reader) quantity(annotation string, into *corev1.ResourceList, name corev1.ResourceName) {
	text, ok := r.annotations[annotation]
	if !ok {
		return
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() <= 0 {
		r.refuse(annotation, "write a quantity above zero, such as %s", map[corev1.ResourceName]string{
			corev1.ResourceCPU:    "\"100m\"",
			corev1.ResourceMemory: "\"128Mi\"",
		}[name])
		return
	}
	if *into == nil {
		*into = corev1.ResourceList{}
	}
	(*into)[name] = q
}

// withinLimits refuses a request above its limit. The API server would too, in
// words about a container that the pod's author never wrote.
func (r *reader) withinLimits(resources corev1.ResourceRequirements) {
	for _, pair := range []struct {
		name           corev1.ResourceName
		request, limit string
	}{
		{corev1.ResourceCPU, AnnotationProxyCPU, AnnotationProxyCPULimit},
		{corev1.ResourceMemory, AnnotationProxyMemory, AnnotationProxyMemoryLimit},
	} {
		request, limit := resources.Requests[pair.name], resources.Limits[pair.name]
		if !limit.IsZero() && request.Cmp(limit) > 0 {
			r.problems = append(r.problems, fmt.Errorf("the sidecar would request %s of %s, above its limit of %s: set the annotations %s and %s so that they go together",
				request.String(), pair.name, limit.String(), pair.request, pair.limit))
		}
	}
}

// known are the annotations that mean something on a pod.
var known = [...]string{
	AnnotationStatus, AnnotationRedirect,
	AnnotationExcludeInboundPorts, AnnotationExcludeOutboundPorts, AnnotationExcludeOutboundCIDRs,
	AnnotationExcludeOutboundUIDs, AnnotationExcludeOutboundGIDs,
	AnnotationProxyCPU, AnnotationProxyMemory, AnnotationProxyCPULimit, AnnotationProxyMemoryLimit,
	AnnotationProxyLogLevel, AnnotationProxyConcurrency,
	AnnotationPreStopSleep,
}

// unknownAnnotations warns of what is probably a slip of the pen. It is no
// refusal: a newer control plane may know it.
func unknownAnnotations(annotations map[string]string) []string {
	var warnings []string
	for _, a := range slices.Sorted(maps.Keys(annotations)) {
		if strings.HasPrefix(a, prefix) && !slices.Contains(known[:], a) {
			warnings = append(warnings, fmt.Sprintf("the annotation %s means nothing to this version of Tulle", a))
		}
	}
	return warnings
}
