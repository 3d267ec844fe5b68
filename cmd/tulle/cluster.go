package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Names that injection and the installation give.
const (
	labelInject    = "mesh.tulle.dev/inject"
	labelProxy     = "mesh.tulle.dev/proxy"
	proxySidecar   = "sidecar"
	containerProxy = "tulle-proxy"
	selectTulled   = "app.kubernetes.io/name=tulled"
	selectTulle    = "app.kubernetes.io/part-of=tulle"
	portAdmin      = 15000 // Envoy's admin, on the pod's loopback
	portDebug      = 8082  // the control plane's debug endpoint, on its loopback
)

// cluster is the cluster that a command asks.
type cluster struct {
	client kubernetes.Interface
	config *rest.Config // for clients of other kinds
	// namespace is where a pod is that is named without one.
	namespace     string
	meshNamespace string
	// reach opens a port of a pod's loopback.
	reach func(pod *corev1.Pod, port int) (endpoint, error)
}

// connect makes the cluster that the kubeconfig flags name. It does not speak
// to it yet.
func connect(flags *genericclioptions.ConfigFlags, meshNamespace string) (*cluster, error) {
	loader := flags.ToRawKubeConfigLoader()
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, kubeconfigError(err)
	}
	config, err := flags.ToRESTConfig()
	if err != nil {
		return nil, kubeconfigError(err)
	}
	config.QPS, config.Burst = 50, 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, kubeconfigError(err)
	}
	return &cluster{
		client: client, config: config, namespace: namespace, meshNamespace: meshNamespace,
		reach: func(pod *corev1.Pod, port int) (endpoint, error) { return reach(config, client, pod, port) },
	}, nil
}

func kubeconfigError(err error) error {
	return &advice{fmt.Errorf("reading the kubeconfig: %w", err), "set KUBECONFIG or --kubeconfig, and --context, to a cluster that you may use"}
}

// meshed reports whether the pod has a proxy of the mesh.
func meshed(pod *corev1.Pod) bool {
	isProxy := func(c corev1.Container) bool { return c.Name == containerProxy }
	return slices.ContainsFunc(pod.Spec.InitContainers, isProxy) || slices.ContainsFunc(pod.Spec.Containers, isProxy)
}

// over reports whether the pod has ended, or is about to.
func over(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func ready(pod *corev1.Pod) bool {
	return !over(pod) && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// target is what the user named: one pod, or the pods of a workload.
type target struct {
	namespace, kind, name string // kind is "pod" or a workload's
}

func (t target) String() string { return t.kind + " " + t.namespace + "/" + t.name }

// kinds are the words for what has pods.
func kindOf(word string) (string, bool) {
	switch strings.ToLower(word) {
	case "pod", "pods", "po":
		return "pod", true
	case "deploy", "deployment", "deployments", "deployment.apps":
		return "deployment", true
	case "sts", "statefulset", "statefulsets", "statefulset.apps":
		return "statefulset", true
	case "ds", "daemonset", "daemonsets", "daemonset.apps":
		return "daemonset", true
	case "job", "jobs", "job.batch":
		return "job", true
	}
	return "", false
}

// parseTarget reads "name", "namespace/name", "kind/name" or
// "namespace/kind/name". A namespace that is called like a kind needs -n.
func parseTarget(arg, namespace string) (target, error) {
	parts := strings.Split(arg, "/")
	t := target{namespace: namespace, kind: "pod", name: parts[len(parts)-1]}
	ok := true
	switch len(parts) {
	case 1:
	case 2:
		if kind, is := kindOf(parts[0]); is {
			t.kind = kind
		} else {
			t.namespace = parts[0]
		}
	case 3:
		t.namespace = parts[0]
		t.kind, ok = kindOf(parts[1])
	default:
		ok = false
	}
	if !ok || t.namespace == "" || t.name == "" {
		return target{}, fmt.Errorf("%q names no pod: want NAME, NAMESPACE/NAME or deploy/NAME", arg)
	}
	return t, nil
}

// pods returns the pods that the target means, sorted by name; at least one.
func (c *cluster) pods(ctx context.Context, t target) ([]corev1.Pod, error) {
	if t.kind == "pod" {
		pod, err := c.client.CoreV1().Pods(t.namespace).Get(ctx, t.name, metav1.GetOptions{})
		if err != nil {
			return nil, notFoundAdvice(t, err)
		}
		return []corev1.Pod{*pod}, nil
	}
	selector, err := c.selectorOf(ctx, t)
	if err != nil {
		return nil, notFoundAdvice(t, err)
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("reading the selector of %s: %w", t, err)
	}
	list, err := c.listPods(ctx, t.namespace, s.String())
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, &advice{fmt.Errorf("%s has no pods", t), fmt.Sprintf("kubectl -n %s describe %s %s", t.namespace, t.kind, t.name)}
	}
	return list, nil
}

func (c *cluster) selectorOf(ctx context.Context, t target) (*metav1.LabelSelector, error) {
	switch t.kind {
	case "deployment":
		o, err := c.client.AppsV1().Deployments(t.namespace).Get(ctx, t.name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return o.Spec.Selector, nil
	case "statefulset":
		o, err := c.client.AppsV1().StatefulSets(t.namespace).Get(ctx, t.name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return o.Spec.Selector, nil
	case "daemonset":
		o, err := c.client.AppsV1().DaemonSets(t.namespace).Get(ctx, t.name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return o.Spec.Selector, nil
	case "job":
		o, err := c.client.BatchV1().Jobs(t.namespace).Get(ctx, t.name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return o.Spec.Selector, nil
	}
	return nil, fmt.Errorf("%s is of a kind that has no pods", t)
}

func notFoundAdvice(t target, err error) error {
	err = fmt.Errorf("looking for %s: %w", t, err)
	if apierrors.IsNotFound(err) {
		return &advice{err, fmt.Sprintf("kubectl -n %s get %ss  (another namespace: -n)", t.namespace, t.kind)}
	}
	return err
}

// listPods lists pods, sorted by namespace and name. No namespace is all.
func (c *cluster) listPods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	list, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("listing pods with %s: %w", selector, err)
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int {
		return strings.Compare(podName(&a), podName(&b))
	})
	return list.Items, nil
}

// meshedPods lists the pods with a sidecar. No namespace is all.
func (c *cluster) meshedPods(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	return c.listPods(ctx, namespace, labels.Set{labelProxy: proxySidecar}.String())
}

// proxyPod is the pod whose proxy the user asks for: of a workload the first
// that is ready, else the first that has a proxy at all.
func (c *cluster) proxyPod(ctx context.Context, arg string) (*corev1.Pod, error) {
	t, err := parseTarget(arg, c.namespace)
	if err != nil {
		return nil, err
	}
	pods, err := c.pods(ctx, t)
	if err != nil {
		return nil, err
	}
	var found *corev1.Pod
	for i := range pods {
		p := &pods[i]
		if meshed(p) && (found == nil || !ready(found) && ready(p)) {
			found = p
		}
	}
	if found == nil {
		return nil, c.notMeshed(ctx, &pods[0])
	}
	if state := proxyState(found); state != "" {
		return nil, &advice{
			fmt.Errorf("the proxy of pod %s does not run: %s", podName(found), state),
			fmt.Sprintf("kubectl -n %s describe pod %s\nkubectl -n %[1]s logs %s -c %s", found.Namespace, found.Name, containerProxy),
		}
	}
	return found, nil
}

// proxyState says why the pod's proxy does not run, or "".
func proxyState(pod *corev1.Pod) string {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if s.Name != containerProxy || s.State.Running != nil {
			continue
		}
		if w := s.State.Waiting; w != nil {
			return strings.TrimSpace("waiting: " + w.Reason + " " + w.Message)
		}
		if d := s.State.Terminated; d != nil {
			return fmt.Sprintf("ended with exit code %d: %s", d.ExitCode, d.Reason)
		}
	}
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return "the pod has ended (" + string(pod.Status.Phase) + ")"
	}
	return ""
}

// notMeshed says why the pod has no proxy, as far as one can see, and what
// would give it one.
func (c *cluster) notMeshed(ctx context.Context, pod *corev1.Pod) error {
	err := fmt.Errorf("pod %s has no proxy of the mesh", podName(pod))
	restart := fmt.Sprintf("kubectl -n %s rollout restart deployment  (pods get their proxy when they are created)", pod.Namespace)
	switch {
	case pod.Spec.HostNetwork:
		return &advice{fmt.Errorf("%w: it uses the node's network (hostNetwork)", err), "such pods cannot be meshed: give it a network of its own"}
	case pod.Labels[labelInject] == "disabled":
		return &advice{fmt.Errorf("%w: its label %s=disabled says so", err, labelInject), "remove the label from the pod template of its workload"}
	}
	ns, nsErr := c.client.CoreV1().Namespaces().Get(ctx, pod.Namespace, metav1.GetOptions{})
	if nsErr == nil && ns.Labels[labelInject] == "enabled" || pod.Labels[labelInject] == "enabled" {
		return &advice{fmt.Errorf("%w: it was created before injection was enabled for it", err), restart}
	}
	return &advice{
		fmt.Errorf("%w: injection is not enabled for it", err),
		fmt.Sprintf("kubectl label namespace %s %s=enabled\n%s", pod.Namespace, labelInject, restart),
	}
}

func podName(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

// askControlPlane puts the question to a replica that is ready.
func (c *cluster) askControlPlane(ctx context.Context, path string, question, answer any) error {
	replicas, err := c.listPods(ctx, c.meshNamespace, selectTulled)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(replicas, func(p corev1.Pod) bool { return ready(&p) })
	if i < 0 {
		return &advice{errors.New("no replica of the control plane is ready"), fmt.Sprintf("kubectl -n %s get pods -l %s", c.meshNamespace, selectTulled)}
	}
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	e, err := c.reach(&replicas[i], portDebug)
	if err != nil {
		return err
	}
	defer e.Close()
	said, err := e.Post(ctx, path, body)
	if err != nil {
		var refused refusedQuestion
		if errors.As(err, &refused) {
			return refused
		}
		return fmt.Errorf("asking pod %s (is it of this version?): %w", podName(&replicas[i]), err)
	}
	if err := json.Unmarshal(said, answer); err != nil {
		return fmt.Errorf("reading what pod %s says: %w", podName(&replicas[i]), err)
	}
	return nil
}
