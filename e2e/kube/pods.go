package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

// Pod names a container of a pod in which to run things.
type Pod struct {
	Namespace, Name, Container string
}

// String returns "namespace/name".
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// RunningPod is a ready pod with the given label "app", that is not about to
// end.
func (c *Cluster) RunningPod(ctx context.Context, namespace, app string) (*corev1.Pod, error) {
	var found *corev1.Pod
	err := Eventually(ctx, time.Minute, fmt.Sprintf("a ready pod of %s/%s", namespace, app), func(ctx context.Context) error {
		pods, err := c.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.DeletionTimestamp == nil && PodReady(p) {
				found = p
				return nil
			}
		}
		return fmt.Errorf("%d pods, none ready%s", len(pods.Items), whyNotReady(pods.Items))
	})
	return found, err
}

// App is the container "app" of a ready pod, see RunningPod.
func (c *Cluster) App(ctx context.Context, namespace, app string) (Pod, error) {
	p, err := c.RunningPod(ctx, namespace, app)
	if err != nil {
		return Pod{}, err
	}
	return Pod{Namespace: namespace, Name: p.Name, Container: "app"}, nil
}

// PodReady reports whether a pod's condition Ready holds.
func PodReady(p *corev1.Pod) bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// whyNotReady gathers what kubelet says about containers that wait.
func whyNotReady(pods []corev1.Pod) string {
	var b strings.Builder
	for _, p := range pods {
		for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if w := s.State.Waiting; w != nil && w.Reason != "PodInitializing" {
				fmt.Fprintf(&b, "; %s of %s: %s %s", s.Name, p.Name, w.Reason, w.Message)
			}
		}
	}
	return b.String()
}

// Deployed waits until all pods of the namespace's Deployments are those of the
// newest generation, and ready.
func (c *Cluster) Deployed(ctx context.Context, namespace string, atMost time.Duration) error {
	return Eventually(ctx, atMost, "the Deployments of "+namespace, func(ctx context.Context) error {
		list, err := c.Client.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, d := range list.Items {
			s, want := d.Status, *d.Spec.Replicas
			if s.ObservedGeneration < d.Generation || s.UpdatedReplicas < want || s.AvailableReplicas < want || s.Replicas > want {
				pods, err := c.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
				if err != nil {
					return err
				}
				return fmt.Errorf("%s has %d of %d replicas available%s%s", d.Name, s.AvailableReplicas, want,
					whyNotReady(pods.Items), c.lastWarning(ctx, namespace))
			}
		}
		return nil
	})
}

// lastWarning is the newest warning event: where a pod is refused, it alone
// says why.
func (c *Cluster) lastWarning(ctx context.Context, namespace string) string {
	events, err := c.Client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil || len(events.Items) == 0 {
		return ""
	}
	e := events.Items[len(events.Items)-1]
	return "; event: " + e.Reason + " " + e.Message
}

// ExitError is a command in a pod that ended with an error.
type ExitError struct {
	Pod    Pod
	Args   []string
	Stderr string
	Err    error
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("in %v: %s: %v: %s", e.Pod, strings.Join(e.Args, " "), e.Err, strings.TrimSpace(e.Stderr))
}

func (e *ExitError) Unwrap() error { return e.Err }

// Exec runs a command in a pod and returns what it wrote to its standard
// output. A command that ends with an error gives an *ExitError.
func (c *Cluster) Exec(ctx context.Context, p Pod, args ...string) ([]byte, error) {
	return c.exec(ctx, p, nil, args...)
}

// exec gives the command a standard input, unless that is nil.
func (c *Cluster) exec(ctx context.Context, p Pod, stdin io.Reader, args ...string) ([]byte, error) {
	url := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: p.Container, Command: args, Stdin: stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", url.String())
	if err != nil {
		return nil, fmt.Errorf("preparing to run %s in %v: %w", args[0], p, err)
	}
	var stdout, stderr strings.Builder
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return []byte(stdout.String()), &ExitError{Pod: p, Args: args, Stderr: stderr.String(), Err: err}
	}
	return []byte(stdout.String()), nil
}

// Exited reports whether err is a command's own exit code, and which.
func Exited(err error) (code int, ok bool) {
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code, true
	}
	return 0, false
}

// Echo runs tulle-echo in a pod and reads its report into v.
func (c *Cluster) Echo(ctx context.Context, p Pod, v any, args ...string) error {
	return c.EchoWith(ctx, p, nil, v, args...)
}

// EchoWith is Echo with a standard input, whose end is an end to a load.
func (c *Cluster) EchoWith(ctx context.Context, p Pod, stdin io.Reader, v any, args ...string) error {
	out, err := c.exec(ctx, p, stdin, append([]string{"/tulle-echo"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("reading the report of %q in %v: %w", args, p, err)
	}
	return nil
}

// Logs returns what a container has written since a moment; the zero time
// means all of it.
func (c *Cluster) Logs(ctx context.Context, p Pod, since time.Time) (string, error) {
	o := &corev1.PodLogOptions{Container: p.Container}
	if !since.IsZero() {
		o.SinceTime = &metav1.Time{Time: since}
	}
	stream, err := c.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, o).Stream(ctx)
	if err != nil {
		return "", fmt.Errorf("reading the log of %s in %v: %w", p.Container, p, err)
	}
	defer stream.Close()
	text, err := io.ReadAll(stream)
	if err != nil {
		return "", fmt.Errorf("reading the log of %s in %v: %w", p.Container, p, err)
	}
	return string(text), nil
}

// NamespaceGone waits until a namespace is deleted.
func (c *Cluster) NamespaceGone(ctx context.Context, name string, atMost time.Duration) error {
	return Eventually(ctx, atMost, "the end of namespace "+name, func(ctx context.Context) error {
		_, err := c.Client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = errors.New("it is still there")
		}
		return err
	})
}
