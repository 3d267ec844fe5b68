package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
)

// installOptions are what install is told.
type installOptions struct {
	overlay       string
	images        images
	replicas      int32
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
the present version.`),
		Example: a.text(`
  {tulle} install
  {tulle} install --overlay cni
  {tulle} install --tulled-image registry.example/tulled:v1 --proxy-image registry.example/envoy:1.40.0
  {tulle} install --dry-run > tulle.yaml`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.install(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.overlay, "overlay", "default", "What to install: "+strings.Join(overlays(), ", "))
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
	all, err := render(o.overlay, o.images, o.replicas)
	if err != nil {
		return err
	}
	if o.dryRun {
		text, err := manifest(all)
		if err != nil {
			return err
		}
		_, err = a.streams.Out.Write(text)
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
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
	if err := c.serves(ctx); err != nil {
		return &advice{fmt.Errorf("the control plane does not serve yet: %w", err), fmt.Sprintf("kubectl -n %s get pods\n%s check", c.meshNamespace, a.name)}
	}
	fmt.Fprintf(a.streams.Out, "\nThe control plane serves. Next:\n  kubectl label namespace NAME %s=enabled\n  %s restart -n NAME\n", labelInject, a.name)
	return nil
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

// serves waits until the control plane's present version serves, and the API
// server reaches its webhook.
func (c *cluster) serves(ctx context.Context) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 500*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		d, err := c.client.AppsV1().Deployments(c.meshNamespace).Get(ctx, "tulled", metav1.GetOptions{})
		switch {
		case err != nil:
			last = err
		case d.Status.ObservedGeneration < d.Generation || d.Status.UpdatedReplicas < *d.Spec.Replicas || d.Status.AvailableReplicas < *d.Spec.Replicas:
			last = fmt.Errorf("%d of %d replicas are available", d.Status.AvailableReplicas, *d.Spec.Replicas)
		default:
			_, last = c.injected(ctx)
		}
		return last == nil, nil
	})
	if err != nil && last != nil {
		return last
	}
	return err
}

func (a *app) uninstallCommand() *cobra.Command {
	var overlay string
	var force, purge, dryRun bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the mesh",
		Long: a.text(`
Removes what install applied, and the trust bundles in all namespaces. CRDs, the
objects of the mesh that people made, and the certificate authority's Secret with
its namespace stay, so that an installation later goes on where this one ended;
--purge removes them, too.

Meshed pods go on with what they have, but cannot start or renew their
certificates without a control plane: take them out of the mesh first
(remove the label {label}, and restart them).`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.uninstall(cmd.Context(), overlay, force, purge, dryRun)
		},
	}
	cmd.Long = strings.ReplaceAll(cmd.Long, "{label}", labelInject)
	cmd.Flags().StringVar(&overlay, "overlay", "cni", "What was installed: "+strings.Join(overlays(), ", "))
	cmd.Flags().BoolVar(&force, "force", false, "Remove though there are meshed pods")
	cmd.Flags().BoolVar(&purge, "purge", false, "Also remove CRDs, and so all objects of the mesh, and the namespace with the certificate authority")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "Say what would be removed, and change nothing")
	return cmd
}

func (a *app) uninstall(ctx context.Context, overlay string, force, purge, dryRun bool) error {
	all, err := render(overlay, images{}, 0)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	pods, err := c.meshedPods(ctx, "")
	if err != nil {
		return err
	}
	if pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return over(&p) }); len(pods) > 0 && !force && !dryRun {
		var names []string
		for i := range pods {
			names = append(names, podName(&pods[i]))
		}
		return &advice{
			fmt.Errorf("%s in the mesh: %s", count(len(pods), "pod is", "pods are"), list(names, 5)),
			fmt.Sprintf("remove the label %s from their namespaces, and restart them; or remove the mesh all the same with --force", labelInject),
		}
	}
	client, err := c.objects()
	if err != nil {
		return err
	}
	slices.Reverse(all)
	for _, o := range all {
		kept := o.GetKind() == "CustomResourceDefinition" || o.GetKind() == "Namespace"
		if kept && !purge {
			continue
		}
		if dryRun {
			fmt.Fprintf(a.streams.Out, "would delete %s\n", describe(o))
			continue
		}
		did, err := client.remove(ctx, o)
		if err != nil {
			return err
		}
		if did {
			fmt.Fprintf(a.streams.Out, "deleted %s\n", describe(o))
		}
	}
	if dryRun {
		return nil
	}
	return c.removeTrust(ctx, a)
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
