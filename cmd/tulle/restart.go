package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/webhook"
)

// Why a workload is stale.
const (
	whyWithout = "no proxy"
	whyOld     = "older proxy"
	// Its labels name one control plane, and another one serves it.
	whyRevision = "other revision"
)

// staleWorkload is one whose pods are not what injection would make of them now.
type staleWorkload struct {
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"` // deployment, statefulset, daemonset, or pod: one without a controller that a restart can be asked of
	Name      string `json:"name"`
	Why       string `json:"why"`
	Pods      int    `json:"pods"`
}

func (w staleWorkload) String() string { return w.Namespace + "/" + w.Kind + "/" + w.Name }

// injected asks the API server what it makes of a pod that joins the mesh by a
// revision, without creating it: one in a namespace of the mesh, or, where there
// is none, one that asks for it in the namespace default. The pod is one that
// every pod security standard admits.
func (c *cluster) injected(ctx context.Context, revision string) (*corev1.Pod, error) {
	namespaces, err := c.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: labelInject + "=enabled"})
	if err != nil {
		return nil, fmt.Errorf("listing the namespaces of the mesh: %w", err)
	}
	var last error
	for _, n := range append(namespaces.Items, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceDefault}}) {
		if n.DeletionTimestamp != nil {
			continue
		}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "tulle-check-", Labels: map[string]string{labelInject: "enabled", webhook.LabelRevision: revision}},
			Spec: corev1.PodSpec{
				SecurityContext: &corev1.PodSecurityContext{
					RunAsNonRoot: new(true), RunAsUser: new(int64(65532)), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
				Containers: []corev1.Container{{
					Name: "app", Image: "none",
					SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
				}},
			},
		}
		out, err := c.client.CoreV1().Pods(n.Name).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		switch {
		case err != nil:
			last = fmt.Errorf("creating a pod in namespace %s, as a trial: %w", n.Name, err)
		case !meshed(out):
			last = fmt.Errorf("a pod in namespace %s, which asks for it, was not given a proxy", n.Name)
		default:
			return out, nil
		}
	}
	return nil, last
}

// proxyOf is what tells an older proxy from a newer one: its image and its
// configuration. Resources and log levels are a pod's own choice.
func proxyOf(p *corev1.Pod) (image, bootstrap string) {
	for _, c := range p.Spec.InitContainers {
		if c.Name != containerProxy {
			continue
		}
		image = c.Image
		for i, a := range c.Args {
			if a == "--config-yaml" && i+1 < len(c.Args) {
				bootstrap = c.Args[i+1]
			}
		}
	}
	return image, bootstrap
}

// stale finds the workloads whose pods are not what injection would make of
// them now, in a namespace or all (""), of those that are wanted (nil: all).
func (c *cluster) stale(ctx context.Context, namespace string, wanted func(staleWorkload) bool) ([]staleWorkload, error) {
	planes, err := c.controlPlanes(ctx)
	if err != nil {
		return nil, err
	}
	models := map[string]*corev1.Pod{}
	for _, p := range planes {
		if models[p.revision], err = c.injected(ctx, p.revision); err != nil {
			return nil, err
		}
	}
	namespaces, err := c.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing the namespaces: %w", err)
	}
	labels := map[string]map[string]string{}
	for _, n := range namespaces.Items {
		labels[n.Name] = n.Labels
	}
	pods, err := c.listPods(ctx, namespace, "")
	if err != nil {
		return nil, err
	}
	found := map[string]*staleWorkload{}
	for i := range pods {
		p := &pods[i]
		model := models[revisionIn(p.Labels, labels[p.Namespace])]
		if model == nil {
			continue // a new pod would be refused, and check says so
		}
		why := staleness(p, model, labels[p.Namespace])
		if why == "" {
			continue
		}
		w, err := c.workloadOf(ctx, p)
		if err != nil {
			return nil, err
		}
		w.Why = why
		if wanted != nil && !wanted(w) {
			continue
		}
		if have := found[w.String()]; have != nil {
			have.Pods++
			continue
		}
		w.Pods = 1
		found[w.String()] = &w
	}
	var out []staleWorkload
	for _, w := range found {
		out = append(out, *w)
	}
	slices.SortFunc(out, func(a, b staleWorkload) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// staleness is why the pod is not what injection, which makes the model, would make
// of it now; "" where it is.
func staleness(p, model *corev1.Pod, namespaceLabels map[string]string) string {
	has := meshed(p)
	switch {
	case over(p) || p.Spec.HostNetwork || p.Labels[labelInject] == "disabled":
		return ""
	case !has && (namespaceLabels[labelInject] == "enabled" || p.Labels[labelInject] == "enabled"):
		return whyWithout
	case !has:
		return ""
	case servedBy(p) != servedBy(model):
		return whyRevision
	}
	image, bootstrap := proxyOf(p)
	if i, b := proxyOf(model); i != image || b != bootstrap {
		return whyOld
	}
	return ""
}

// workloadOf is what a restart would be asked of.
func (c *cluster) workloadOf(ctx context.Context, p *corev1.Pod) (staleWorkload, error) {
	owner := metav1.GetControllerOf(p)
	if owner != nil && owner.Kind == "ReplicaSet" {
		set, err := c.client.AppsV1().ReplicaSets(p.Namespace).Get(ctx, owner.Name, metav1.GetOptions{})
		if err != nil {
			return staleWorkload{}, fmt.Errorf("looking for the owner of pod %s: %w", podName(p), err)
		}
		owner = metav1.GetControllerOf(set)
	}
	if owner != nil {
		switch owner.Kind {
		case "Deployment", "StatefulSet", "DaemonSet":
			return staleWorkload{Namespace: p.Namespace, Kind: strings.ToLower(owner.Kind), Name: owner.Name}, nil
		}
	}
	return staleWorkload{Namespace: p.Namespace, Kind: "pod", Name: p.Name}, nil
}

// restarted is the answer to `tulle restart`.
type restarted struct {
	Restarted []staleWorkload `json:"restarted"`
	// Left cannot be restarted by this command.
	Left []staleWorkload `json:"left,omitempty"`

	dry bool
}

func (r *restarted) data() any { return r }

func (r *restarted) lacks() bool { return len(r.Left) > 0 }

func (r *restarted) table(time.Time) *table {
	t := &table{header: []string{"WORKLOAD", "PODS", "WHY", "WHAT"}}
	did := "restarted"
	if r.dry {
		did = "to be restarted"
	}
	for _, w := range r.Restarted {
		t.row(w.String(), fmt.Sprint(w.Pods), w.Why, did)
	}
	for _, w := range r.Left {
		t.row(w.String(), fmt.Sprint(w.Pods), w.Why, "left")
	}
	switch {
	case len(r.Restarted)+len(r.Left) == 0:
		t.note("Every pod has the present proxy: nothing to restart.")
	case len(r.Left) > 0:
		t.note("What is left has no Deployment, StatefulSet or DaemonSet: delete these pods, or let what made them make them anew.")
	}
	return t
}

func (a *app) restartCommand() *cobra.Command {
	var format string
	var all, dry bool
	cmd := &cobra.Command{
		Use:   "restart [WORKLOAD...]",
		Short: "Roll workloads that predate injection or have an old proxy",
		Long: a.text(`
A pod gets its proxy when it is created. This finds pods of the mesh's
namespaces that have none, or one of another version, revision or configuration
than a new pod would get, and restarts their Deployments, StatefulSets and DaemonSets,
as kubectl rollout restart does. Workloads whose pods are up to date are never
touched.

A WORKLOAD is deploy/NAME, sts/NAME or ds/NAME. Without one, all of the namespace
are looked at.

Exit codes: 0 all is up to date or was restarted, 1 error, 2 something is left
that cannot be restarted.`),
		Example: a.text(`
  {tulle} restart -n shop
  {tulle} restart deploy/frontend -n shop
  {tulle} restart -A --dry-run`),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			return a.restart(cmd.Context(), args, all, dry, format)
		},
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "All namespaces")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "Say what would be restarted, and change nothing")
	outputFlag(cmd, &format)
	return cmd
}

func (a *app) restart(ctx context.Context, args []string, all, dry bool, format string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	namespace := c.namespace
	if all {
		namespace = ""
	}
	wanted, err := wantedWorkloads(args, c.namespace)
	if err != nil {
		return err
	}
	stale, err := c.stale(ctx, namespace, wanted)
	if err != nil {
		return err
	}
	out := &restarted{Restarted: []staleWorkload{}, dry: dry}
	for _, w := range stale {
		if w.Kind == "pod" {
			out.Left = append(out.Left, w)
			continue
		}
		if !dry {
			if err := c.roll(ctx, w, a.now()); err != nil {
				return err
			}
		}
		out.Restarted = append(out.Restarted, w)
	}
	if err := a.show(format, out); err != nil {
		return err
	}
	if out.lacks() {
		return errLacking
	}
	return nil
}

// wantedWorkloads reads what the user named; nil for everything.
func wantedWorkloads(args []string, namespace string) (func(staleWorkload) bool, error) {
	if len(args) == 0 {
		return nil, nil
	}
	named := map[string]bool{}
	for _, arg := range args {
		t, err := parseTarget(arg, namespace)
		if err != nil {
			return nil, err
		}
		named[t.namespace+"/"+t.kind+"/"+t.name] = true
	}
	return func(w staleWorkload) bool { return named[w.String()] }, nil
}

// roll restarts the workload as kubectl rollout restart does.
func (c *cluster) roll(ctx context.Context, w staleWorkload, now time.Time) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{"kubectl.kubernetes.io/restartedAt": now.UTC().Format(time.RFC3339)},
	}}}})
	if err != nil {
		return err
	}
	apps := c.client.AppsV1()
	switch w.Kind {
	case "deployment":
		_, err = apps.Deployments(w.Namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	case "statefulset":
		_, err = apps.StatefulSets(w.Namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	case "daemonset":
		_, err = apps.DaemonSets(w.Namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("restarting %s: %w", w, err)
	}
	return nil
}
