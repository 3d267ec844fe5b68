package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/webhook"
)

func settings() webhook.Settings {
	return webhook.Settings{Version: "test", ProxyImage: "example.org/envoy:test", Resources: webhook.DefaultResources()}
}

func listener(name string, port gatewayv1.PortNumber, protocol gatewayv1.ProtocolType) gatewayv1.Listener {
	return gatewayv1.Listener{Name: gatewayv1.SectionName(name), Port: port, Protocol: protocol}
}

func edge(listeners ...gatewayv1.Listener) *gatewayv1.Gateway {
	return &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "edge", UID: "u", Generation: 1, Annotations: map[string]string{}},
		Spec:       gatewayv1.GatewaySpec{GatewayClassName: "tulle", Listeners: listeners},
	}
}

// given are a Gateway's objects, by kind.
type given struct {
	account    *corev1.ServiceAccount
	deployment *appsv1.Deployment
	service    *corev1.Service
	budget     *policyv1.PodDisruptionBudget
	scaler     *autoscalingv2.HorizontalPodAutoscaler // may be nil
}

func give(t *testing.T, gw *gatewayv1.Gateway) given {
	t.Helper()
	objects, err := Objects(gw, settings())
	if err != nil {
		t.Fatal(err)
	}
	var g given
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.ServiceAccount:
			g.account = o
		case *appsv1.Deployment:
			g.deployment = o
		case *corev1.Service:
			g.service = o
		case *policyv1.PodDisruptionBudget:
			g.budget = o
		case *autoscalingv2.HorizontalPodAutoscaler:
			g.scaler = o
		}
	}
	return g
}

func portsIn(s *corev1.Service) string {
	var out []string
	for _, p := range s.Spec.Ports {
		out = append(out, fmt.Sprintf("%s:%d>%s/%s/%s", p.Name, p.Port, p.TargetPort.String(), p.Protocol, *p.AppProtocol))
	}
	return strings.Join(out, " ")
}

func TestAServiceHasAPortForEachPortOfTheListeners(t *testing.T) {
	gw := edge(
		listener("p443", 8443, gatewayv1.HTTPSProtocolType), // a name that could be another's
		listener("shop", 443, gatewayv1.HTTPSProtocolType),
		listener("bank", 443, gatewayv1.HTTPSProtocolType),
		listener("web", 80, gatewayv1.HTTPProtocolType),
		listener("dotted.name", 81, gatewayv1.HTTPProtocolType),
		listener("through", 9443, gatewayv1.TLSProtocolType),
		listener("both", 9443, gatewayv1.HTTPSProtocolType),
		listener("plain", 5432, gatewayv1.TCPProtocolType),
		listener("datagrams", 53, gatewayv1.UDPProtocolType), // which there is no proxy for
		listener("admin", 15000, gatewayv1.HTTPProtocolType),
		listener("stats", 15090, gatewayv1.HTTPProtocolType),
	)
	g := give(t, gw)
	want := "web:80>80/TCP/http p81:81>81/TCP/http p443:443>443/TCP/https plain:5432>5432/TCP/tcp p8443:8443>8443/TCP/https p9443:9443>9443/TCP/tcp"
	if got := portsIn(g.service); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var ports []int32
	for _, p := range g.deployment.Spec.Template.Spec.Containers[0].Ports {
		ports = append(ports, p.ContainerPort)
	}
	if want := []int32{15090, 80, 81, 443, 5432, 8443, 9443}; !slices.Equal(ports, want) {
		t.Errorf("the container has ports %v, want %v", ports, want)
	}
}

// What only the mesh calls is not shown to the world, unless it is asked for.
func TestAServiceForEgressAloneIsOfTheCluster(t *testing.T) {
	out := listener("out", 15443, protocolEgress)
	asked := edge(out)
	asked.Annotations[AnnotationServiceType] = "NodePort"
	for _, c := range []struct {
		what string
		gw   *gatewayv1.Gateway
		want corev1.ServiceType
	}{
		{"egress", edge(out), corev1.ServiceTypeClusterIP},
		{"egress and ingress", edge(out, listener("web", 80, gatewayv1.HTTPProtocolType)), corev1.ServiceTypeLoadBalancer},
		{"egress with an annotation", asked, corev1.ServiceTypeNodePort},
	} {
		if s := give(t, c.gw).service; s.Spec.Type != c.want || !strings.HasSuffix(portsIn(s), "out:15443>15443/TCP/tls") {
			t.Errorf("%s: a Service of type %s with ports %s", c.what, s.Spec.Type, portsIn(s))
		}
	}
}

func TestEverythingIsNamedLabelledAndOwned(t *testing.T) {
	gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType))
	gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
		Labels:      map[gatewayv1.LabelKey]gatewayv1.LabelValue{"team": "edge", "mesh.tulle.dev/inject": "enabled"},
		Annotations: map[gatewayv1.AnnotationKey]gatewayv1.AnnotationValue{"example.org/lb": "internal"},
	}
	g := give(t, gw)
	for _, m := range []metav1.ObjectMeta{g.account.ObjectMeta, g.deployment.ObjectMeta, g.service.ObjectMeta, g.budget.ObjectMeta} {
		o := m.OwnerReferences
		if m.Name != "edge-tulle" || m.Namespace != "shop" || len(o) != 1 || o[0].Kind != "Gateway" || o[0].UID != "u" || o[0].APIVersion != "gateway.networking.k8s.io/v1" || !*o[0].Controller {
			t.Errorf("got %+v", m)
		}
		if m.Labels["team"] != "edge" || m.Labels["gateway.networking.k8s.io/gateway-name"] != "edge" || m.Annotations["example.org/lb"] != "internal" {
			t.Errorf("got labels %v, annotations %v", m.Labels, m.Annotations)
		}
	}
	pod := g.deployment.Spec.Template
	if pod.Labels["mesh.tulle.dev/inject"] != "disabled" || pod.Labels["mesh.tulle.dev/proxy"] != "gateway" || pod.Labels["team"] != "edge" || pod.Annotations["example.org/lb"] != "internal" {
		t.Errorf("got a pod with labels %v, annotations %v", pod.Labels, pod.Annotations)
	}
	for k, v := range g.service.Spec.Selector {
		if pod.Labels[k] != v || g.deployment.Spec.Selector.MatchLabels[k] != v || g.budget.Spec.Selector.MatchLabels[k] != v {
			t.Errorf("the selector %s=%s is not everybody's", k, v)
		}
	}
	if g.deployment.Spec.Replicas != nil {
		t.Error("the number of replicas is applied on its own")
	}

	injected, _, err := webhook.Inject(&corev1.Pod{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}, map[string]string{"mesh.tulle.dev/inject": "enabled"}, settings())
	if err != nil || len(injected.Spec.InitContainers) != 0 {
		t.Errorf("injection does not leave the pod alone: %v", err)
	}
}

func TestLongNames(t *testing.T) {
	gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType))
	gw.Name = strings.Repeat("g", 60)
	one := give(t, gw).service.Name
	gw.Spec.GatewayClassName = "tulip"
	other := give(t, gw).service.Name
	if len(one) != 63 || len(other) != 63 || one == other {
		t.Errorf("got %s and %s", one, other)
	}
	gw.Name = strings.Repeat("g", 64)
	if _, err := Objects(gw, settings()); err == nil || !strings.Contains(err.Error(), "at most 63") {
		t.Errorf("got %v", err)
	}
}

// The pod security standard restricted, field by field
// (https://kubernetes.io/docs/concepts/security/pod-security-standards/); the API
// server judges the same in the test with a real one.
func TestThePodIsRestricted(t *testing.T) {
	pod := give(t, edge(listener("web", 80, gatewayv1.HTTPProtocolType))).deployment.Spec.Template.Spec
	if pod.HostNetwork || pod.HostPID || pod.HostIPC || len(pod.InitContainers) != 0 || len(pod.Containers) != 1 {
		t.Errorf("got %+v", pod)
	}
	if s := pod.SecurityContext; !*s.RunAsNonRoot || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		len(s.Sysctls) != 1 || s.Sysctls[0] != (corev1.Sysctl{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"}) {
		t.Errorf("got %+v", s)
	}
	for _, v := range pod.Volumes {
		if v.ConfigMap == nil && v.Projected == nil {
			t.Errorf("the volume %s is of a kind that is not allowed", v.Name)
		}
	}
	c := pod.Containers[0]
	s := c.SecurityContext
	if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.RunAsNonRoot || *s.RunAsUser == 0 || !*s.ReadOnlyRootFilesystem ||
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) != 0 {
		t.Errorf("got %+v", s)
	}
	if c.Name != "tulle-proxy" || c.Image != "example.org/envoy:test" || c.RestartPolicy != nil {
		t.Errorf("got %+v", c)
	}
	for _, p := range c.Ports {
		if p.HostPort != 0 {
			t.Errorf("got %+v", p)
		}
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe} {
		if p.HTTPGet.Path != "/ready" || p.HTTPGet.Port.IntValue() != 15021 || p.HTTPGet.Host != "" {
			t.Errorf("got %+v", p.HTTPGet)
		}
	}
	if got := c.Lifecycle.PreStop.Sleep.Seconds; got != drainSeconds || got >= *pod.TerminationGracePeriodSeconds {
		t.Errorf("the proxy sleeps %d s of %d s", got, *pod.TerminationGracePeriodSeconds)
	}
	if *pod.AutomountServiceAccountToken {
		t.Error("the pod has a token of the API server")
	}
}

// Everything but what the kind of pod decides is the same, the command line with its
// bootstrap first of all.
func TestTheProxyIsTheOneThatIsInjected(t *testing.T) {
	s := settings()
	s.InitImage, s.Services = "example.org/init", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app", Labels: map[string]string{webhook.LabelInject: "enabled"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	}
	injected, _, err := webhook.Inject(pod, nil, s)
	if err != nil {
		t.Fatal(err)
	}
	sidecar := injected.Spec.InitContainers[1]
	gateway := give(t, edge(listener("web", 80, gatewayv1.HTTPProtocolType))).deployment.Spec.Template.Spec
	proxy := gateway.Containers[0]
	if as := proxy.SecurityContext; *as.RunAsUser < 32768 || *as.RunAsGroup != *as.RunAsUser {
		t.Errorf("the gateway runs as user %d, group %d", *as.RunAsUser, *as.RunAsGroup)
	}
	// Its pod decides as whom it runs.
	sidecar.SecurityContext.RunAsUser, sidecar.SecurityContext.RunAsGroup = proxy.SecurityContext.RunAsUser, proxy.SecurityContext.RunAsGroup
	for _, c := range []*corev1.Container{&sidecar, &proxy} {
		c.RestartPolicy, c.ReadinessProbe, c.Lifecycle, c.Ports = nil, nil, nil, nil
	}
	if d := cmp.Diff(sidecar, proxy); d != "" {
		t.Errorf("sidecar (-) and gateway (+):\n%s", d)
	}
	if d := cmp.Diff(injected.Spec.Volumes, gateway.Volumes); d != "" {
		t.Errorf("sidecar (-) and gateway (+):\n%s", d)
	}
}

func TestAnnotations(t *testing.T) {
	web := listener("web", 80, gatewayv1.HTTPProtocolType)
	t.Run("are obeyed, those of the infrastructure above others", func(t *testing.T) {
		gw := edge(web)
		gw.Annotations = map[string]string{
			AnnotationServiceType: "NodePort", AnnotationReplicas: "3",
			webhook.AnnotationPreStopSleep: "60", webhook.AnnotationProxyCPU: "2", webhook.AnnotationProxyLogLevel: "info",
		}
		gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{Annotations: map[gatewayv1.AnnotationKey]gatewayv1.AnnotationValue{AnnotationServiceType: "ClusterIP"}}
		g := give(t, gw)
		c := g.deployment.Spec.Template.Spec.Containers[0]
		if g.service.Spec.Type != corev1.ServiceTypeClusterIP || c.Lifecycle.PreStop.Sleep.Seconds != 60 ||
			c.Resources.Requests.Cpu().String() != "2" || !slices.Contains(c.Args, "info") {
			t.Errorf("got a Service of type %s, a container %+v", g.service.Spec.Type, c)
		}
		if got, err := scalingOf(gw); got != (scaling{Replicas: 3, Asked: true}) || err != nil {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("are left out", func(t *testing.T) {
		gw := edge(web)
		if got := give(t, gw).service.Spec.Type; got != corev1.ServiceTypeLoadBalancer {
			t.Errorf("got a Service of type %s", got)
		}
		if got, err := scalingOf(gw); got != (scaling{Replicas: 2}) || err != nil {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	for annotation, value := range map[string]string{
		AnnotationServiceType: "ExternalName", AnnotationReplicas: "-1", webhook.AnnotationProxyCPU: "much", webhook.AnnotationPreStopSleep: "120",
	} {
		t.Run("are refused: "+annotation, func(t *testing.T) {
			gw := edge(web)
			gw.Annotations[annotation] = value
			_, err := Objects(gw, settings())
			if m := mistake(""); !errors.As(err, &m) || !strings.Contains(err.Error(), annotation) || !strings.Contains(err.Error(), value) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNothingToListenOn(t *testing.T) {
	if _, err := Objects(edge(listener("admin", 15000, gatewayv1.HTTPProtocolType)), settings()); err == nil {
		t.Error("a Service without ports")
	}
}
