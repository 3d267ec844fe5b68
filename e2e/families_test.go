package e2e

import (
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// Services and pods have addresses of both families; the mesh is the same on
// each, and neither is a way round it.
func TestBothAddressFamiliesAreMeshed(t *testing.T) {
	t.Parallel()
	s, outside := newSpace(t, "families", true), newSpace(t, "families-outside", false)
	s.deploy(app{name: "client"}, app{name: "server"})
	outside.deploy(app{name: "client"})
	s.strict()
	dual := s.service("dual", map[string]string{"app": "server"}, func(svc *corev1.Service) {
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyPreferDualStack)
	})
	s.service("six", map[string]string{"app": "server"}, func(svc *corev1.Service) {
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	})
	six, err := s.c.Client.CoreV1().Services(s.name).Get(t.Context(), "six", metav1.GetOptions{})
	must(t, err)
	pod := s.running("server")
	if len(dual.Spec.ClusterIPs) != 2 || len(pod.Status.PodIPs) != 2 {
		t.Fatalf("the cluster has one family: a Service has %v, a pod %v", dual.Spec.ClusterIPs, pod.Status.PodIPs)
	}
	from := s.in("client")
	for _, ip := range append(dual.Spec.ClusterIPs, six.Spec.ClusterIPs...) {
		r := s.callUntil(from, answered(200), "http", "http://"+net.JoinHostPort(ip, "80"))
		seen(t, ip, r, s.name)
		s.callUntil(from, works, "grpc", net.JoinHostPort(ip, "9000"))
		s.callUntil(from, works, "tcp", net.JoinHostPort(ip, "9001"))
		s.callUntil(from, works, "greet", net.JoinHostPort(ip, "3306"))
	}
	for _, ip := range pod.Status.PodIPs {
		r := s.callUntil(from, answered(200), "http", "http://"+net.JoinHostPort(ip.IP, "8080"))
		seen(t, ip.IP, r, s.name)
		s.callUntil(from, works, "tcp", net.JoinHostPort(ip.IP, "9001"))
		outside.callUntil(outside.in("client"), fails("reset", "eof"), "plain", net.JoinHostPort(ip.IP, "8080"))
	}
}

// seen fails the test unless the server saw the client's identity.
func seen(t *testing.T, ip string, r *report.Call, namespace string) {
	t.Helper()
	got := ""
	if r.Reply != nil {
		got = strings.Join(r.Reply.Headers["X-Forwarded-Client-Cert"], ",")
	}
	if !strings.Contains(got, "/ns/"+namespace+"/sa/client") {
		t.Errorf("by %s the server saw %q", ip, got)
	}
}

// An application is reached where it would be without a mesh.
func TestAnApplicationIsReachedWhereItListens(t *testing.T) {
	s := newSpace(t, "listens", true)
	at := func(name, address string) app {
		return app{name: name, pod: func(p *corev1.PodTemplateSpec) {
			c := &p.Spec.Containers[0]
			c.Args = []string{"serve", "--http=" + address + ":8080", "--grpc=", "--tcp=", "--greet=", "--tls="}
			c.Env = append(c.Env, corev1.EnvVar{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}})
			c.ReadinessProbe = nil
		}}
	}
	s.deploy(app{name: "client"}, at("all", ""), at("pod", "$(POD_IP)"), at("loopback", "127.0.0.1"))
	s.strict()
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("all"))
	s.callUntil(from, answered(200), "http", s.url("pod"))
	s.callUntil(from, answered(503), "http", s.url("loopback"))
	// What calls itself reaches itself: by its own address, its Service's, and loopback.
	itself := s.in("all")
	s.callUntil(itself, answered(200), "http", "http://"+s.running("all").Status.PodIP+":8080")
	s.callUntil(itself, answered(200), "http", s.url("all"))
	s.callUntil(itself, answered(200), "http", "http://127.0.0.1:8080")
	s.callUntil(s.in("loopback"), answered(200), "http", "http://127.0.0.1:8080")
}
