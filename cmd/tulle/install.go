package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tulle-mesh/tulle/webhook"
)

// installOptions are what install is told.
type installOptions struct {
	installation
	dryRun, force bool
	wait          time.Duration
}

func (a *app) installCommand() *cobra.Command {
	var o installOptions
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the mesh, or bring it up to this version",
		Long: a.text(`
Applies the manifests of this version, the same that are in the folder deploy
of the sources for kubectl apply -k, after {tulle} check --pre, and waits until
the control plane serves. Run again, it upgrades. With --dry-run it prints them
instead, for a repository or for kubectl.

Running proxies are not touched. After an upgrade, {tulle} restart gives them
the present version.

With --revision another control plane is installed beside the default one, for
namespaces with the label {label}: a new version, to try on some of
them first. What there is once (CRDs, permissions, validation) is brought up to
this version, too; the default control plane stays as it is.`),
		Example: a.text(`
  {tulle} install
  {tulle} install --overlay cni
  {tulle} install --tulled-image registry.example/tulled:v1 --proxy-image registry.example/envoy:1.40.0
  {tulle} install --dry-run > tulle.yaml
  {tulle} install --revision canary --tulled-image registry.example/tulled:v2`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.install(cmd.Context(), o) },
	}
	cmd.Long = strings.ReplaceAll(cmd.Long, "{label}", webhook.LabelRevision)
	f := cmd.Flags()
	f.StringVar(&o.overlay, "overlay", "", "What to install: "+strings.Join(overlays(), ", ")+" (as it is installed already, else default)")
	f.StringVar(&o.revision, "revision", webhook.DefaultRevision, "Name of the control plane")
	f.StringVar(&o.images.tulled, "tulled-image", "", "Image of the control plane")
	f.StringVar(&o.images.init, "init-image", "", "Image of tulle-init, for injected pods")
	f.StringVar(&o.images.proxy, "proxy-image", "", "Image of Envoy, for injected pods")
	f.StringVar(&o.images.cni, "cni-image", "", "Image of the CNI plugin")
	f.Int32Var(&o.replicas, "replicas", 0, "Replicas of the control plane; 0: as the overlay says")
	f.BoolVar(&o.dryRun, "dry-run", false, "Print the manifests, and change nothing")
	f.BoolVar(&o.force, "force", false, "Install though the cluster is found unfit")
	f.DurationVar(&o.wait, "wait", 2*time.Minute, "How long to wait until the control plane serves; 0: do not")
	_ = cmd.RegisterFlagCompletionFunc("overlay", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return overlays(), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

func (a *app) install(ctx context.Context, o installOptions) error {
	if o.dryRun {
		return a.printManifests(o.installation)
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	if o.overlay == "" {
		if o.overlay, err = c.overlay(ctx); err != nil {
			return err
		}
	}
	all, err := o.render()
	if err != nil {
		return err
	}
	if o.named() {
		planes, err := c.controlPlanes(ctx)
		if err != nil {
			return err
		}
		if len(planes) == 0 || planes[0].revision != webhook.DefaultRevision {
			return &advice{
				fmt.Errorf("there is no default control plane, beside which %s could be: it answers for the objects of the mesh", o.revision),
				a.name + " install",
			}
		}
	}
	report := c.check(ctx, true, a.now())
	if report.worst() >= failed && !o.force {
		if err := a.show(formatTable, report); err != nil {
			return err
		}
		return &advice{fmt.Errorf("the cluster is not fit for the mesh: nothing was installed"), "mend what is marked ✗ above, or install all the same with --force"}
	}
	client, err := c.objects()
	if err != nil {
		return err
	}
	for i, object := range all {
		if i > 0 && rank(all[i-1]) == rankCRD && rank(object) != rankCRD {
			if err := client.established(ctx, all[:i]); err != nil {
				return err
			}
		}
		if err := client.apply(ctx, object); err != nil {
			return err
		}
		fmt.Fprintf(a.streams.Out, "applied %s\n", describe(object))
	}
	if o.wait == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	if err := c.serves(ctx, o.revision); err != nil {
		return &advice{fmt.Errorf("the control plane does not serve yet: %w", err), fmt.Sprintf("kubectl -n %s get pods\n%s check", c.meshNamespace, a.name)}
	}
	label := labelInject + "=enabled"
	if o.named() {
		label = webhook.LabelRevision + "=" + o.revision
	}
	fmt.Fprintf(a.streams.Out, "\nThe control plane serves. Next:\n  kubectl label namespace NAME %s\n  %s restart -n NAME\n", label, a.name)
	return nil
}

// printManifests prints them without a look at any cluster.
func (a *app) printManifests(i installation) error {
	i.overlay = cmp.Or(i.overlay, "default")
	all, err := i.render()
	if err != nil {
		return err
	}
	text, err := manifest(all)
	if err != nil {
		return err
	}
	_, err = a.streams.Out.Write(text)
	return err
}

// overlay is the one that the mesh was installed by, or the default.
func (c *cluster) overlay(ctx context.Context) (string, error) {
	_, err := c.client.AppsV1().DaemonSets(c.meshNamespace).Get(ctx, "tulle-cni", metav1.GetOptions{})
	switch {
	case err == nil:
		return "cni", nil
	case apierrors.IsNotFound(err):
		return "default", nil
	}
	return "", fmt.Errorf("looking for the CNI plugin: %w", err)
}

const rankCRD = 1

// established waits until the API server serves the kinds.
func (c *objects) established(ctx context.Context, crds []*unstructured.Unstructured) error {
	for _, crd := range crds {
		if rank(crd) != rankCRD {
			continue
		}
		r, err := c.of(crd)
		if err != nil {
			return err
		}
		err = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
			got, err := r.Get(ctx, crd.GetName(), metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			conditions, _, _ := unstructured.NestedSlice(got.Object, "status", "conditions")
			return slices.ContainsFunc(conditions, func(c any) bool {
				m, ok := c.(map[string]any)
				return ok && m["type"] == "Established" && m["status"] == "True"
			}), nil
		})
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", describe(crd), err)
		}
	}
	return nil
}

// serves waits until the revision's present version serves, and the API server
// reaches its webhook.
func (c *cluster) serves(ctx context.Context, revision string) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 500*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		d, err := c.client.AppsV1().Deployments(c.meshNamespace).Get(ctx, webhook.ServiceOf(revision), metav1.GetOptions{})
		switch {
		case err != nil:
			last = err
		case d.Status.ObservedGeneration < d.Generation || d.Status.UpdatedReplicas < *d.Spec.Replicas || d.Status.AvailableReplicas < *d.Spec.Replicas:
			last = fmt.Errorf("%d of %d replicas are available", d.Status.AvailableReplicas, *d.Spec.Replicas)
		default:
			_, last = c.injected(ctx, revision)
		}
		return last == nil, nil
	})
	if err != nil && last != nil {
		return last
	}
	return err
}

func (a *app) uninstallCommand() *cobra.Command {
	o := installOptions{installation: installation{overlay: "cni"}} // which has all that the others have
	var purge bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the mesh, or a revision of its control plane",
		Long: a.text(`
Removes what install applied, and the trust bundles in all namespaces. CRDs, the
objects of the mesh that people made, and the certificate authority's Secret with
its namespace stay, so that an installation later goes on where this one ended;
--purge removes them, too. With --revision only that control plane is removed.

Meshed pods go on with what they have, but cannot start or renew their
certificates without a control plane: take them out of the mesh first
(remove the label {label}, and restart them), or to another revision.`),
		Example: a.text(`
  {tulle} uninstall
  {tulle} uninstall --revision canary`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.named() && purge {
				return errors.New("--purge removes what the other control planes need: leave out either it or --revision")
			}
			return a.uninstall(cmd.Context(), o, purge)
		},
	}
	cmd.Long = strings.ReplaceAll(cmd.Long, "{label}", labelInject)
	cmd.Flags().StringVar(&o.revision, "revision", webhook.DefaultRevision, "Name of the control plane")
	cmd.Flags().BoolVar(&o.force, "force", false, "Remove though there are meshed pods")
	cmd.Flags().BoolVar(&purge, "purge", false, "Also remove CRDs, and so all objects of the mesh, and the namespace with the certificate authority")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "Say what would be removed, and change nothing")
	return cmd
}

func (a *app) uninstall(ctx context.Context, o installOptions, purge bool) error {
	all, err := o.render()
	if err != nil {
		return err
	}
	if o.named() {
		all = slices.DeleteFunc(all, func(object *unstructured.Unstructured) bool { return !o.ofControlPlane(object) })
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	if !o.force && !o.dryRun {
		if err := c.unused(ctx, o.installation); err != nil {
			return err
		}
	}
	client, err := c.objects()
	if err != nil {
		return err
	}
	slices.Reverse(all)
	for _, object := range all {
		kept := object.GetKind() == "CustomResourceDefinition" || object.GetKind() == "Namespace"
		if kept && !purge {
			continue
		}
		if o.dryRun {
			fmt.Fprintf(a.streams.Out, "would delete %s\n", describe(object))
			continue
		}
		did, err := client.remove(ctx, object)
		if err != nil {
			return err
		}
		if did {
			fmt.Fprintf(a.streams.Out, "deleted %s\n", describe(object))
		}
	}
	if o.dryRun || o.named() {
		return nil
	}
	return c.removeTrust(ctx, a)
}

// unused reports, as an error, who still needs what is to be removed.
func (c *cluster) unused(ctx context.Context, i installation) error {
	pods, err := c.meshedPods(ctx, "")
	if err != nil {
		return err
	}
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return over(&p) || i.named() && servedBy(&p) != i.revision })
	if len(pods) > 0 {
		var names []string
		for i := range pods {
			names = append(names, podName(&pods[i]))
		}
		if i.named() {
			return &advice{
				fmt.Errorf("%s to the control plane %s: %s", count(len(pods), "proxy connects", "proxies connect"), i.revision, list(names, 5)),
				fmt.Sprintf("take the label %s from their namespaces, or change it, and then tulle restart; or remove it all the same with --force", webhook.LabelRevision),
			}
		}
		return &advice{
			fmt.Errorf("%s in the mesh: %s", count(len(pods), "pod is", "pods are"), list(names, 5)),
			fmt.Sprintf("remove the label %s from their namespaces, and restart them; or remove the mesh all the same with --force", labelInject),
		}
	}
	if i.named() {
		return nil
	}
	planes, err := c.controlPlanes(ctx)
	if err != nil {
		return err
	}
	for _, p := range planes {
		if p.revision != i.revision {
			return &advice{fmt.Errorf("the control plane %s is installed beside the default one, and cannot be without it", p.revision), "tulle uninstall --revision " + p.revision}
		}
	}
	return nil
}

// removeTrust deletes the trust bundles, which the control plane made.
func (c *cluster) removeTrust(ctx context.Context, a *app) error {
	bundles, err := c.client.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=tulle-trust"})
	if err != nil {
		return fmt.Errorf("listing the trust bundles: %w", err)
	}
	for _, b := range bundles.Items {
		if err := c.client.CoreV1().ConfigMaps(b.Namespace).Delete(ctx, b.Name, metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("deleting the trust bundle of namespace %s: %w", b.Namespace, err)
		}
	}
	if n := len(bundles.Items); n > 0 {
		fmt.Fprintf(a.streams.Out, "deleted %s\n", count(n, "trust bundle", "trust bundles"))
	}
	leases := c.client.CoordinationV1().Leases(c.meshNamespace)
	if err := leases.Delete(ctx, "tulled", metav1.DeleteOptions{}); err == nil {
		fmt.Fprintf(a.streams.Out, "deleted Lease %s/tulled\n", c.meshNamespace)
	}
	return nil
}
