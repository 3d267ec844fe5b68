package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Annotations of a Gateway, or of its spec.infrastructure.annotations, which have
// the last word. Those about the proxy of package webhook count too
// (webhook.AnnotationProxyCPU and so on, webhook.AnnotationPreStopSleep).
const (
	prefix = "mesh.tulle.dev/"
	// AnnotationServiceType is the type of a Gateway's Service: ClusterIP, which is the
	// default where all listeners are for egress, NodePort or LoadBalancer, the default else.
	AnnotationServiceType = prefix + "service-type"
)

// Labels of all that a Gateway is given.
const (
	// labelGateway and labelClass name the Gateway and its class (GEP-1762).
	labelGateway = gatewayv1.GatewayNameLabelKey
	labelClass   = gatewayv1.GatewayClassNameLabelKey
	// labelManager tells our objects from those of other controllers, which have
	// labelGateway too.
	labelManager = "app.kubernetes.io/managed-by"
	manager      = "tulle-gateway"
)

// protocolEgress is that of listeners for calls on their way out of the mesh.
const protocolEgress = gatewayv1.ProtocolType(mesh.ListenerEgress)

const (
	// drainSeconds is how long a pod goes on after its deletion, where the
	// annotation webhook.AnnotationPreStopSleep does not say: until load balancers
	// and nodes send it no new connections, and requests under way have ended. Envoy
	// itself exits at SIGTERM at once.
	drainSeconds = 15
	// graceSeconds is a pod's grace period, and so the bound of that annotation.
	graceSeconds = 120
)

// reserved reports whether the port is the proxy's own in every pod. The findings
// about a Gateway refuse its listeners of such ports, and no Service leads to them.
func reserved(port gatewayv1.PortNumber) bool {
	return port >= 15000 && port <= 15021 || port == 15090
}

// mistake is what its author has to mend, in words for the Gateway's status.
type mistake string

func (m mistake) Error() string { return string(m) }

func mistakef(format string, args ...any) error { return mistake(fmt.Sprintf(format, args...)) }

// Objects are what a Gateway is given: a ServiceAccount, a Deployment (without a
// number of replicas), a Service, a PodDisruptionBudget, and a HorizontalPodAutoscaler
// where its author asks for one. The settings are those of the revision whose control
// plane is to serve it.
//
// An error is the Gateway's author's to mend, and says how.
func Objects(gw *gatewayv1.Gateway, s webhook.Settings) ([]client.Object, error) {
	for field, value := range map[string]string{"metadata.name": gw.Name, "spec.gatewayClassName": string(gw.Spec.GatewayClassName)} {
		if len(value) > validation.LabelValueMaxLength {
			return nil, mistakef("%s has %d characters, and has to fit into a label: give it a name of at most %d", field, len(value), validation.LabelValueMaxLength)
		}
	}
	ports := portsOf(gw)
	if len(ports) == 0 {
		return nil, mistakef("there is no listener of protocol HTTP, HTTPS, TLS, TCP or %s whose port is not the proxy's own (15000 to 15021, 15090)", protocolEgress)
	}
	asks := annotations(gw)
	serviceType, err := serviceTypeOf(gw, asks)
	if err != nil {
		return nil, err
	}
	template, err := podOf(gw, s, ports)
	if err != nil {
		return nil, err
	}
	meta := metaOf(gw)
	scaled, err := scalingOf(gw)
	if err != nil {
		return nil, err
	}
	selector := &metav1.LabelSelector{MatchLabels: selectorOf(gw)}
	out := []client.Object{
		&corev1.ServiceAccount{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: meta,
		},
		&appsv1.Deployment{
			TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: meta,
			Spec: appsv1.DeploymentSpec{
				Selector: selector,
				Template: template,
				Strategy: appsv1.DeploymentStrategy{
					Type:          appsv1.RollingUpdateDeploymentStrategyType,
					RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: new(intstr.FromInt32(0)), MaxSurge: new(intstr.FromString("25%"))},
				},
			},
		},
		&corev1.Service{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta,
			Spec: corev1.ServiceSpec{Type: serviceType, Selector: selectorOf(gw), Ports: ports},
		},
		&policyv1.PodDisruptionBudget{
			TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}, ObjectMeta: meta,
			Spec: policyv1.PodDisruptionBudgetSpec{Selector: selector, MaxUnavailable: new(intstr.FromInt32(1))},
		},
	}
	if !scaled.Auto {
		return out, nil
	}
	scaler, err := autoscalerOf(meta, scaled, &template)
	if err != nil {
		return nil, err
	}
	return append(out, scaler), nil
}

// nameOf is that of all that a Gateway is given.
func nameOf(gw *gatewayv1.Gateway) string {
	return mesh.ProxiesOf(gw.Name, string(gw.Spec.GatewayClassName))
}

func selectorOf(gw *gatewayv1.Gateway) map[string]string {
	return map[string]string{labelGateway: gw.Name, labelClass: string(gw.Spec.GatewayClassName)}
}

func metaOf(gw *gatewayv1.Gateway) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: nameOf(gw), Namespace: gw.Namespace,
		Labels: labelsOf(gw), Annotations: carried(gw),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: gatewayv1.GroupVersion.String(), Kind: translate.KindGateway, Name: gw.Name, UID: gw.UID, Controller: new(true),
		}},
	}
}

// labelsOf are those that the Gateway's author wants, and ours.
func labelsOf(gw *gatewayv1.Gateway) map[string]string {
	out := map[string]string{}
	if i := gw.Spec.Infrastructure; i != nil {
		for k, v := range i.Labels {
			out[string(k)] = string(v)
		}
	}
	maps.Copy(out, selectorOf(gw))
	out[labelManager] = manager
	return out
}

// carried are the annotations that everything is to have.
func carried(gw *gatewayv1.Gateway) map[string]string {
	if gw.Spec.Infrastructure == nil {
		return nil
	}
	out := map[string]string{}
	for k, v := range gw.Spec.Infrastructure.Annotations {
		out[string(k)] = string(v)
	}
	return out
}

// annotations are those by which a Gateway says what its proxy is like.
func annotations(gw *gatewayv1.Gateway) map[string]string {
	out := map[string]string{}
	for _, from := range []map[string]string{gw.Annotations, carried(gw)} {
		for k, v := range from {
			if strings.HasPrefix(k, prefix) {
				out[k] = v
			}
		}
	}
	return out
}

// serviceTypeOf is what the annotation says. By default a Gateway is called from outside,
// but for one that is a way out, which the mesh's workloads alone call.
func serviceTypeOf(gw *gatewayv1.Gateway, annotations map[string]string) (corev1.ServiceType, error) {
	switch t := corev1.ServiceType(annotations[AnnotationServiceType]); t {
	case "":
		if !slices.ContainsFunc(gw.Spec.Listeners, func(l gatewayv1.Listener) bool { return l.Protocol != protocolEgress }) {
			return corev1.ServiceTypeClusterIP, nil
		}
		return corev1.ServiceTypeLoadBalancer, nil
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		return t, nil
	default:
		return "", mistakef("the annotation %s is %q: write ClusterIP, NodePort or LoadBalancer", AnnotationServiceType, t)
	}
}

// portsOf are the Service's: one for each distinct port of the listeners, in order.
func portsOf(gw *gatewayv1.Gateway) []corev1.ServicePort {
	byPort := map[gatewayv1.PortNumber][]gatewayv1.Listener{}
	for _, l := range gw.Spec.Listeners {
		if applicationProtocol(l.Protocol) != "" && !reserved(l.Port) {
			byPort[l.Port] = append(byPort[l.Port], l)
		}
	}
	var out []corev1.ServicePort
	for _, port := range slices.Sorted(maps.Keys(byPort)) {
		out = append(out, corev1.ServicePort{
			Name: portName(byPort[port]), Port: port, TargetPort: intstr.FromInt32(port),
			Protocol: corev1.ProtocolTCP, AppProtocol: new(sharedProtocol(byPort[port])),
		})
	}
	return out
}

// portName is the name of the port's one listener, where a port may be called so,
// else "p<port>"; a listener that is called like that does not get in the way.
func portName(listeners []gatewayv1.Listener) string {
	name, number := string(listeners[0].Name), fmt.Sprintf("p%d", listeners[0].Port)
	_, err := strconv.Atoi(strings.TrimPrefix(name, "p"))
	if len(listeners) > 1 || err == nil || len(validation.IsDNS1123Label(name)) > 0 {
		return number
	}
	return name
}

// applicationProtocol is what Services call a listener's protocol; "" for one that
// gateways do not have.
func applicationProtocol(p gatewayv1.ProtocolType) string {
	switch p {
	case gatewayv1.HTTPProtocolType:
		return "http"
	case gatewayv1.HTTPSProtocolType:
		return "https"
	case gatewayv1.TLSProtocolType, gatewayv1.TCPProtocolType:
		return "tcp"
	case protocolEgress:
		return "tls" // a port of tcp would drain the outbound listeners of all sidecars (mesh.Sniffing)
	default:
		return ""
	}
}

// sharedProtocol is what is true of all listeners of a port.
func sharedProtocol(listeners []gatewayv1.Listener) string {
	first := applicationProtocol(listeners[0].Protocol)
	for _, l := range listeners[1:] {
		if applicationProtocol(l.Protocol) != first {
			return "tcp"
		}
	}
	return first
}

// podOf is the pod of the Gateway's Deployment: the proxy of an injected pod, alone,
// which may listen on any port without being root, and is left alone by injection.
// It satisfies the pod security standard restricted.
func podOf(gw *gatewayv1.Gateway, s webhook.Settings, ports []corev1.ServicePort) (corev1.PodTemplateSpec, error) {
	asks := annotations(gw)
	asks[webhook.AnnotationPreStopSleep] = cmp.Or(asks[webhook.AnnotationPreStopSleep], strconv.Itoa(drainSeconds))
	grace := int64(graceSeconds)
	proxy, volumes, err := webhook.Proxy(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: gw.Namespace, Name: nameOf(gw), Annotations: asks},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: &grace},
	}, s)
	if err != nil {
		return corev1.PodTemplateSpec{}, mistake(err.Error())
	}
	for _, p := range ports {
		proxy.Ports = append(proxy.Ports, corev1.ContainerPort{ContainerPort: p.Port, Protocol: corev1.ProtocolTCP})
	}
	labels := labelsOf(gw)
	labels[webhook.LabelInject] = "disabled"
	labels[webhook.LabelProxy] = webhook.ProxyGateway
	if s.Revision != "" {
		labels[webhook.LabelRevision] = s.Revision
	}
	spread := func(key string) corev1.TopologySpreadConstraint {
		return corev1.TopologySpreadConstraint{
			TopologyKey: key, MaxSkew: 1, WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector:  &metav1.LabelSelector{MatchLabels: selectorOf(gw)},
			MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey},
		}
	}
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: carried(gw)},
		Spec: corev1.PodSpec{
			ServiceAccountName: nameOf(gw),
			// The proxy has a token of its own, which the API server does not accept.
			AutomountServiceAccountToken:  new(false),
			TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   new(true),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				Sysctls:        []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"}},
			},
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{spread(corev1.LabelHostname), spread(corev1.LabelTopologyZone)},
			Containers:                []corev1.Container{proxy},
			Volumes:                   volumes,
		},
	}, nil
}
