package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

const (
	shopNamespace   = "shop"
	legacyNamespace = "legacy"
	reviewsURL      = "http://reviews.shop.svc.cluster.local/"
)

// demo is what the steps share.
type demo struct {
	cluster *kube.Cluster
	options options
	screen  *screen

	frontend *corev1.Pod
	before   kube.Certificate
	rows     []row
}

func (d *demo) install(ctx context.Context) error {
	if d.options.deploy != "" {
		if err := d.cluster.ApplyKustomization(ctx, d.options.deploy); err != nil {
			return err
		}
		d.screen.say("applied %s", filepath.Clean(d.options.deploy))
	}
	if err := d.cluster.Installed(ctx); err != nil {
		return err
	}
	d.screen.say("the control plane is available")
	// Before the shop, so that its first certificates are short-lived already.
	if err := d.cluster.SetLifetime(ctx, d.options.lifetime); err != nil {
		return err
	}
	d.screen.say("certificates live for %s in this demo, so that one is seen to rotate", d.options.lifetime)
	return nil
}

func (d *demo) deployShop(ctx context.Context) error {
	// A Job cannot be applied twice: an earlier demo's has to go.
	jobs := d.cluster.Client.BatchV1().Jobs(shopNamespace)
	foreground := metav1.DeletePropagationForeground
	if jobs.Delete(ctx, "report", metav1.DeleteOptions{PropagationPolicy: &foreground}) == nil {
		err := kube.Eventually(ctx, time.Minute, "the end of the last demo's Job", func(ctx context.Context) error {
			if _, err := jobs.Get(ctx, "report", metav1.GetOptions{}); err != nil {
				return nil
			}
			return fmt.Errorf("job %s/report is still there", shopNamespace)
		})
		if err != nil {
			return err
		}
	}
	if err := d.cluster.ApplyKustomization(ctx, d.options.shop); err != nil {
		return err
	}
	var (
		all    sync.WaitGroup
		errors [2]error
	)
	for i, namespace := range []string{shopNamespace, legacyNamespace} {
		all.Go(func() { errors[i] = d.cluster.Deployed(ctx, namespace, 2*time.Minute) })
	}
	all.Wait()
	for _, err := range errors {
		if err != nil {
			return err
		}
	}
	pod, err := d.cluster.RunningPod(ctx, shopNamespace, "frontend")
	if err != nil {
		return err
	}
	d.frontend = pod
	pods, err := d.cluster.Client.CoreV1().Pods(shopNamespace).List(ctx, metav1.ListOptions{LabelSelector: "mesh.tulle.dev/proxy=sidecar"})
	if err != nil {
		return fmt.Errorf("listing the shop's meshed pods: %w", err)
	}
	d.screen.say("the shop is open: %d pods with a proxy", len(pods.Items))
	return nil
}

func (d *demo) tellMesh(ctx context.Context) error {
	err := kube.Eventually(ctx, 30*time.Second, "the frontend's certificate", func(ctx context.Context) (err error) {
		d.before, err = d.cluster.WorkloadCertificate(ctx, shopNamespace, d.frontend.Name)
		return err
	})
	if err != nil {
		return err
	}
	d.screen.say("the frontend's certificate: %s, serial %.12s…", d.before.Identity, d.before.Serial)
	if err := d.cluster.ApplyKustomization(ctx, filepath.Join(d.options.shop, "mesh")); err != nil {
		return err
	}
	for _, o := range []struct{ kind, name string }{{"MeshPolicy", "strict"}, {"MeshPolicy", "reviews"}, {"TrafficSplit", "reviews"}} {
		err := kube.Eventually(ctx, 30*time.Second, o.kind+" "+o.name, func(ctx context.Context) error {
			return d.cluster.Condition(ctx, kube.MeshKind(o.kind), shopNamespace, o.name, "Accepted", "True")
		})
		if err != nil {
			return err
		}
		d.screen.say("%s %s is accepted", o.kind, o.name)
	}
	return nil
}

// observe makes all the calls, side by side, and gathers the rows in a fixed
// order.
func (d *demo) observe(ctx context.Context) error {
	checks := []check{
		d.checkSplit,
		d.checkIdentity,
		d.checkPlaintext,
		d.checkWrongCaller,
		d.checkServerFirst,
		d.checkJob,
		d.checkRotation,
	}
	var (
		all  sync.WaitGroup
		rows = make([][]row, len(checks))
	)
	for i, check := range checks {
		all.Go(func() {
			rows[i] = check(ctx)
			for _, r := range rows[i] {
				d.screen.say("%s: %s", r.what, r.seen)
			}
		})
	}
	all.Wait()
	for _, r := range rows {
		d.rows = append(d.rows, r...)
	}
	return ctx.Err()
}
