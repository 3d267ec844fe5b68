package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// check makes calls and says what came of them. It cannot fail: an error is
// what was seen.
type check func(context.Context) []row

// settle is how long a check waits for what has just been applied to take
// effect. It takes milliseconds; the rest is for a busy machine.
const settle = 20 * time.Second

func (d *demo) checkSplit(ctx context.Context) []row {
	const points = 2.0
	var load report.Load
	from := kube.Pod{Namespace: shopNamespace, Name: d.frontend.Name, Container: "app"}
	err := d.cluster.Echo(ctx, from, &load, "load", "http", reviewsURL, "--connections", "8", "--new-connection-share", "0.25",
		"--rate", fmt.Sprint(d.options.rate), "--requests", fmt.Sprint(d.options.requests))
	var rows []row
	for _, v := range []struct {
		version string
		percent float64
	}{{"v1", 90}, {"v2", 10}} {
		r := row{what: "calls to reviews " + v.version, expected: fmt.Sprintf("%.0f %%, within %.0f points", v.percent, points)}
		if err != nil {
			r.seen = err.Error()
		} else {
			got := 100 * float64(load.Versions[v.version]) / float64(load.Requests)
			r.seen = fmt.Sprintf("%.1f %% (%d of %d)", got, load.Versions[v.version], load.Requests)
			r.ok = math.Abs(got-v.percent) <= points
		}
		rows = append(rows, r)
	}
	failed := row{what: "calls to reviews that failed", expected: "0"}
	if err != nil {
		failed.seen = err.Error()
	} else {
		failed.seen = fmt.Sprintf("%d; half took under %.1f ms, 99 %% under %.1f ms", load.Failed, load.Service.P50, load.Service.P99)
		failed.ok = load.Failed == 0
		if load.Failed > 0 {
			failed.seen += fmt.Sprintf(" (%v, first: %s)", load.Failures, load.Example)
		}
	}
	return append(rows, failed)
}

// checkIdentity looks for the caller's SPIFFE identity in the access log of
// the server's proxy.
func (d *demo) checkIdentity(ctx context.Context) []row {
	want := "spiffe://cluster.local/ns/shop/sa/frontend"
	r := row{what: "caller, in the log of reviews' proxy", expected: want}
	// Envoy writes its log out every ten seconds at the latest.
	err := kube.Eventually(ctx, 40*time.Second, "an access log line", func(ctx context.Context) error {
		pods, err := d.cluster.Client.CoreV1().Pods(shopNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=reviews"})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			log, err := d.cluster.Logs(ctx, kube.Proxy(&p), time.Now().Add(-time.Minute))
			if err != nil {
				return err
			}
			if strings.Contains(log, want+`"`) {
				return nil
			}
		}
		return errors.New("no line names it")
	})
	if err != nil {
		r.seen = err.Error()
		return []row{r}
	}
	r.seen, r.ok = want, true
	return []row{r}
}

// checkPlaintext calls a pod of reviews from outside the mesh.
func (d *demo) checkPlaintext(ctx context.Context) []row {
	r := row{what: "plaintext from outside the mesh", expected: "reset"}
	from, err := d.cluster.App(ctx, legacyNamespace, "client")
	if err != nil {
		r.seen = err.Error()
		return []row{r}
	}
	server, err := d.cluster.RunningPod(ctx, shopNamespace, "reviews")
	if err != nil {
		r.seen = err.Error()
		return []row{r}
	}
	address := net.JoinHostPort(server.Status.PodIP, "8080")
	r.seen, r.ok = d.callUntil(ctx, from, func(c *report.Call) (string, bool) {
		if c.Failure != nil {
			return c.Failure.Kind, c.Failure.Kind == "reset"
		}
		return fmt.Sprintf("answered with %d", c.Status), false
	}, "plain", address)
	return []row{r}
}

// checkWrongCaller calls reviews from a workload that may not.
func (d *demo) checkWrongCaller(ctx context.Context) []row {
	r := row{what: "ratings calls reviews", expected: "403"}
	from, err := d.cluster.App(ctx, shopNamespace, "ratings")
	if err != nil {
		r.seen = err.Error()
		return []row{r}
	}
	r.seen, r.ok = d.callUntil(ctx, from, func(c *report.Call) (string, bool) {
		if c.Failure != nil {
			return c.Failure.Kind, false
		}
		return fmt.Sprint(c.Status), c.Status == 403
	}, "http", reviewsURL)
	return []row{r}
}

// checkServerFirst talks with the store, whose server speaks first.
func (d *demo) checkServerFirst(ctx context.Context) []row {
	// A proxy that waited for the client's first bytes would take a second.
	const atMost = 500.0
	r := row{what: "the store speaks first", expected: fmt.Sprintf("greeting within %.0f ms", atMost)}
	from := kube.Pod{Namespace: shopNamespace, Name: d.frontend.Name, Container: "app"}
	r.seen, r.ok = d.callUntil(ctx, from, func(c *report.Call) (string, bool) {
		if c.Failure != nil {
			return c.Failure.Kind + ": " + c.Failure.Text, false
		}
		return fmt.Sprintf("greeting after %.1f ms", c.StepsMS[0]), c.StepsMS[0] <= atMost
	}, "greet", "store.shop.svc.cluster.local:3306")
	return []row{r}
}

// callUntil repeats a call until it is judged right, or settle is over.
func (d *demo) callUntil(ctx context.Context, from kube.Pod, judge func(*report.Call) (string, bool), args ...string) (seen string, ok bool) {
	err := kube.Eventually(ctx, settle, "the right answer", func(ctx context.Context) error {
		var c report.Call
		if err := d.cluster.Echo(ctx, from, &c, append([]string{"call"}, args...)...); err != nil {
			// What the last whole call showed says more than how the wait ended.
			if seen == "" || ctx.Err() == nil {
				seen = err.Error()
			}
			return err
		}
		if seen, ok = judge(&c); !ok {
			return errors.New(seen)
		}
		return nil
	})
	return seen, err == nil
}

// checkJob waits for the batch Job: its pod ends though a proxy runs in it.
func (d *demo) checkJob(ctx context.Context) []row {
	r := row{what: "the Job, with a proxy beside it", expected: "Complete"}
	err := kube.Eventually(ctx, time.Minute, "the Job", func(ctx context.Context) error {
		job, err := d.cluster.Client.BatchV1().Jobs(shopNamespace).Get(ctx, "report", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range job.Status.Conditions {
			if c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("active %d, failed %d", job.Status.Active, job.Status.Failed)
	})
	r.seen, r.ok = "Complete", err == nil
	if err != nil {
		r.seen = err.Error()
	}
	return []row{r}
}

// checkRotation waits until the frontend's proxy presents another certificate.
func (d *demo) checkRotation(ctx context.Context) []row {
	r := row{what: "the frontend's certificate", expected: "renewed meanwhile, same identity"}
	var now kube.Certificate
	// It is renewed at half its life, so that this is twice the time it takes.
	err := kube.Eventually(ctx, 75*time.Second, "another certificate", func(ctx context.Context) (err error) {
		now, err = d.cluster.WorkloadCertificate(ctx, shopNamespace, d.frontend.Name)
		if err == nil && now.Serial == d.before.Serial {
			err = fmt.Errorf("serial is still %.12s", now.Serial)
		}
		return err
	})
	if err != nil {
		r.seen = err.Error()
		return []row{r}
	}
	r.seen = fmt.Sprintf("serial %.8s…, then %.8s…", d.before.Serial, now.Serial)
	r.ok = now.Identity == d.before.Identity
	if !r.ok {
		r.seen += ", but identity " + now.Identity
	}
	return []row{r}
}
