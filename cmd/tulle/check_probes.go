package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tulle-mesh/tulle/webhook"
)

// trialServer is an application made of the proxy's own image, which every
// cluster with the mesh has: HTTP that is well at /good and not at /bad, and a
// TCP port.
const trialServer = `
static_resources:
  listeners:
  - name: http
    address: {socket_address: {address: 0.0.0.0, port_value: 18080}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {match: {path: /good}, direct_response: {status: 200}}
              - {match: {prefix: /}, direct_response: {status: 503}}
          http_filters:
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  - name: tcp
    address: {socket_address: {address: 0.0.0.0, port_value: 18081}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, response: {inline_string: "hello"}}
`

// trial is a probe and what has to come of it.
type trial struct {
	name  string
	probe corev1.ProbeHandler
	good  bool
}

func trials() []trial {
	http := func(path string) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(18080)}}
	}
	tcp := func(port int32) corev1.ProbeHandler {
		return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}
	}
	grpc := corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 18082}}
	return []trial{
		{"http-good", http("/good"), true},
		{"http-bad", http("/bad"), false},
		{"tcp-open", tcp(18081), true},
		{"tcp-closed", tcp(18089), false},
		{"grpc-closed", grpc, false},
	}
}

// checkProbes makes a pod under Strict whose probes are known to be good or bad,
// and sees what the kubelet makes of them.
func checkProbes(ctx context.Context, c *cluster, to *checks, now time.Time) {
	const name = "probes"
	model, err := c.injected(ctx, webhook.DefaultRevision)
	if !to.could(name, err) {
		return
	}
	image, _ := proxyOf(model)
	namespace := fmt.Sprintf("tulle-check-%x", now.UnixNano()&0xffffffff)
	_, err = c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{labelInject: "enabled"},
	}}, metav1.CreateOptions{})
	if !to.could(name, err) {
		return
	}
	defer func() {
		// The user may have ended the command; what it made goes all the same.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := c.client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
			to.add(name, warning, "kubectl delete namespace "+namespace, "the namespace of the trial is left: %v", err)
		}
	}()
	client, err := c.objects()
	if !to.could(name, err) {
		return
	}
	strict := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "mesh.tulle.dev/v1alpha1", "kind": "MeshPolicy",
		"metadata": map[string]any{"name": "strict", "namespace": namespace},
		"spec":     map[string]any{"mtls": map[string]any{"mode": "Strict"}},
	}}
	if !to.could(name, client.apply(ctx, strict)) {
		return
	}
	if _, err := c.client.CoreV1().Pods(namespace).Create(ctx, trialPod(image), metav1.CreateOptions{}); !to.could(name, err) {
		return
	}
	ready, err := c.trialVerdicts(ctx, namespace)
	if !to.could(name, err) {
		return
	}
	for _, t := range trials() {
		switch {
		case ready[t.name] && !t.good:
			to.add(name, failed, "report this as a bug", "%s passes, and must fail", t.name)
		case !ready[t.name] && t.good:
			to.add(name, failed, "report this as a bug", "%s fails, and must pass", t.name)
		default:
			to.add(name, fine, "", "%s is told as it is", t.name)
		}
	}
}

func trialPod(image string) *corev1.Pod {
	container := func(name, config string) corev1.Container {
		return corev1.Container{
			Name: name, Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{"/usr/local/bin/envoy"},
			Args:    []string{"--disable-hot-restart", "--concurrency", "1", "--log-level", "error", "--config-yaml", config},
			SecurityContext: &corev1.SecurityContext{
				RunAsUser: new(int64(65532)), RunAsGroup: new(int64(65532)), AllowPrivilegeEscalation: new(false),
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probes"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(1)),
			SecurityContext:               &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers:                    []corev1.Container{container("server", trialServer)},
		},
	}
	for _, t := range trials() {
		c := container(t.name, "{}")
		c.ReadinessProbe = &corev1.Probe{ProbeHandler: t.probe, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 1}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	return pod
}

// trialVerdicts waits until what must be ready is, and then for a few rounds of
// probes more, so that what must not be has had its chance.
func (c *cluster) trialVerdicts(ctx context.Context, namespace string) (map[string]bool, error) {
	const rounds = 4 * time.Second
	ready := map[string]bool{}
	var since time.Time
	err := wait.PollUntilContextTimeout(ctx, 500*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		p, err := c.client.CoreV1().Pods(namespace).Get(ctx, "probes", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, s := range p.Status.ContainerStatuses {
			ready[s.Name] = s.Ready
		}
		for _, t := range trials() {
			if t.good && !ready[t.name] {
				return false, nil
			}
		}
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) > rounds, nil
	})
	if err != nil && !wait.Interrupted(err) {
		return nil, fmt.Errorf("following the trial's pod: %w", err)
	}
	return ready, nil
}
