package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// inNode runs a shell command in the cluster's node.
func inNode(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "cluster/node.sh", "sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("running %q in the node: %v: %s", command, err, out)
	}
	return string(out)
}

// networkOfNode is what the node's folders of network plugins hold, to the byte.
const networkOfNode = "cd /etc/cni/net.d && ls -la --time-style=+ && cat * && cd /opt/cni/bin && ls -la --time-style=+"

// plugin puts the CNI plugin into the cluster, or takes it out.
func plugin(t *testing.T, c *kube.Cluster, in bool) {
	t.Helper()
	level := "privileged" // the agent mounts folders of the node
	if !in {
		level = "restricted"
	}
	label := func(ctx context.Context) error {
		patch := fmt.Sprintf(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":%q}}}`, level)
		_, err := c.Client.CoreV1().Namespaces().Patch(ctx, kube.TulleNamespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	// The cleanup of a test comes after its own context.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if !in {
		err := c.Client.AppsV1().DaemonSets(kube.TulleNamespace).Delete(ctx, "tulle-cni", metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
		err = kube.Eventually(ctx, time.Minute, "the end of the plugin's agent", func(ctx context.Context) error {
			pods, err := c.Client.CoreV1().Pods(kube.TulleNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=tulle-cni"})
			if err == nil && len(pods.Items) > 0 {
				err = fmt.Errorf("%s is still there", pods.Items[0].Name)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if err := label(ctx); err != nil {
			t.Error(err)
		}
		return
	}
	must(t, label(ctx))
	must(t, c.ApplyKustomization(ctx, "../deploy/cni"))
	must(t, kube.Eventually(ctx, time.Minute, "the plugin on the node", func(ctx context.Context) error {
		set, err := c.Client.AppsV1().DaemonSets(kube.TulleNamespace).Get(ctx, "tulle-cni", metav1.GetOptions{})
		if err == nil && (set.Status.NumberReady == 0 || set.Status.ObservedGeneration < set.Generation) {
			err = fmt.Errorf("%d of %d agents are ready", set.Status.NumberReady, set.Status.DesiredNumberScheduled)
		}
		return err
	}))
}

// restricted is what the pod security standard of that name asks of a pod.
func restricted(t *corev1.PodTemplateSpec) {
	t.Spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsNonRoot: ptr.To(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	t.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

func TestThePluginMeshesRestrictedPodsAndLeavesTheNodeAsItWas(t *testing.T) {
	c := cluster(t)
	before := inNode(t, networkOfNode)
	plugin(t, c, true)
	t.Cleanup(func() { plugin(t, c, false) })
	s := newSpace(t, "cni", true)
	labels := `{"metadata":{"labels":{"mesh.tulle.dev/redirection":"cni","pod-security.kubernetes.io/enforce":"restricted"}}}`
	_, err := c.Client.CoreV1().Namespaces().Patch(t.Context(), s.name, types.MergePatchType, []byte(labels), metav1.PatchOptions{})
	must(t, err)
	s.deploy(app{name: "client", pod: restricted}, app{name: "server", pod: restricted})
	s.strict()
	for _, container := range s.running("server").Spec.InitContainers {
		if caps := container.SecurityContext.Capabilities; caps == nil || len(caps.Add) > 0 {
			t.Errorf("%s has capabilities %+v", container.Name, caps)
		}
	}
	s.checkTraffic(t, s.in("client"), s.host("server"), greetingDetected)
	outside := newSpace(t, "cni-outside", false)
	outside.deploy(app{name: "client"})
	outside.callUntil(outside.in("client"), fails("reset", "eof"), "http", s.url("server"))

	// Without the plugin a pod does not start; it does when that is back.
	plugin(t, c, false)
	if after := inNode(t, networkOfNode); after != before {
		t.Errorf("the node is not what it was:\n%s\nwas\n%s", after, before)
	}
	late := app{name: "late", pod: restricted}
	_, err = c.Client.CoreV1().ServiceAccounts(s.name).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: late.name}}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.Client.AppsV1().Deployments(s.name).Create(t.Context(), late.deployment(), metav1.CreateOptions{})
	must(t, err)
	waiting := func(ctx context.Context) error {
		pods, err := c.Client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{LabelSelector: "app=late"})
		if err != nil || len(pods.Items) == 0 {
			return fmt.Errorf("no pod yet: %w", err)
		}
		log, err := c.Logs(ctx, kube.Pod{Namespace: s.name, Name: pods.Items[0].Name, Container: "tulle-init"}, time.Time{})
		if err != nil {
			return err
		}
		if !strings.Contains(log, "is not redirected") {
			return fmt.Errorf("its check says: %s", log)
		}
		return nil
	}
	eventually(t, 20*time.Second, "that the pod waits to be redirected", waiting)
	plugin(t, c, true)
	begin := time.Now()
	must(t, c.Deployed(t.Context(), s.name, rollout))
	figure(t, "a pod that began without the plugin was ready %.1f s after the plugin's agent", time.Since(begin).Seconds())
	if err := answered(200)(s.call(s.in("late"), "http", s.url("server"))); err != nil {
		t.Error(err)
	}
}
