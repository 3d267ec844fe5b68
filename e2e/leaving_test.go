package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// cordon keeps new pods from the cluster's one node, or lets them in again.
func cordon(t *testing.T, c *kube.Cluster, closed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	must(t, err)
	for _, n := range nodes.Items {
		patch := fmt.Sprintf(`{"spec":{"unschedulable":%t}}`, closed)
		_, err := c.Client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		must(t, err)
	}
}

// evict asks for the eviction of a pod until its disruption budget allows it.
func (s *space) evict(name string) {
	s.t.Helper()
	eventually(s.t, time.Minute, "the eviction of "+name, func(ctx context.Context) error {
		err := s.c.Client.CoreV1().Pods(s.name).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name}})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// A drain is a cordon and evictions; with one node its end has to be in sight.
func TestADrainAndEvictionsCostNoCall(t *testing.T) {
	s := newSpace(t, "drain", true)
	s.deploy(app{name: "client"}, ending(3, nil, "--grace=5s"))
	_, err := s.c.Client.PolicyV1().PodDisruptionBudgets(s.name).Create(t.Context(), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "server"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: ptr.To(intstr.FromInt32(2)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() { cordon(t, s.c, false) })
	s.underLoad(s.in("client"), s.everyForm(), func() {
		pods, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=server"})
		must(t, err)
		for i, p := range pods.Items {
			if i == 0 {
				cordon(t, s.c, true)
			}
			s.evict(p.Name)
			if i == 0 {
				cordon(t, s.c, false) // its successor has nowhere else to go
			}
		}
		must(t, s.c.Deployed(t.Context(), s.name, rollout))
	})
}

// A Job's pod that serves ends of its own accord: nobody is told before.
func TestTheCompletionOfAJobThatServesCostsNoCall(t *testing.T) {
	s := newSpace(t, "job", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 2})
	template := ending(1, nil, "--for=8s", "--grace=3s").deployment().Spec.Template
	template.Labels = map[string]string{"app": "server", "job": "serves"}
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	s.underLoad(s.in("client"), map[string][]string{
		"HTTP/1": {"http", s.url("server"), "--rate", "200", "--connections", "16", "--new-connection-share", "0.25"},
		"gRPC":   {"grpc", s.host("server") + ":9000", "--rate", "200"},
	}, func() {
		_, err := s.c.Client.BatchV1().Jobs(s.name).Create(t.Context(), &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Name: "serves"},
			Spec:       batchv1.JobSpec{BackoffLimit: ptr.To[int32](0), Template: template},
		}, metav1.CreateOptions{})
		must(t, err)
		eventually(t, time.Minute, "the Job's completion", func(ctx context.Context) error {
			j, err := s.c.Client.BatchV1().Jobs(s.name).Get(ctx, "serves", metav1.GetOptions{})
			if err == nil && j.Status.Succeeded == 0 {
				err = fmt.Errorf("%d active, %d failed", j.Status.Active, j.Status.Failed)
			}
			return err
		})
		time.Sleep(2 * time.Second) // who still had it would call it
	})
}

// The deletion of a pod is known to its callers' proxies before its application
// is told to end: 12 deletions, or TULLE_E2E_DELETIONS.
func TestCallersKnowOfADeletionBeforeTheApplication(t *testing.T) {
	deletions := 12
	if text := os.Getenv("TULLE_E2E_DELETIONS"); text != "" {
		n, err := strconv.Atoi(text)
		must(t, err)
		deletions = n
	}
	s := newSpace(t, "lead", true)
	s.deploy(app{name: "client", replicas: 2}, ending(4, noSleep, "--grace=1s"))
	clients, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=client"})
	must(t, err)
	var callers []kube.Pod
	for _, p := range clients.Items {
		caller := kube.Pod{Namespace: s.name, Name: p.Name, Container: "app"}
		s.callUntil(caller, answered(200), "http", s.url("server"))
		callers = append(callers, caller)
	}
	var leads []time.Duration
	for range deletions {
		// The oldest: a kubelet that is still busy with a pod takes longer.
		pods, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=server"})
		must(t, err)
		there := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
		oldest := slices.MinFunc(there, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
		leads = append(leads, s.lead(&oldest, callers))
		must(t, s.c.Deployed(t.Context(), s.name, rollout))
	}
	slices.Sort(leads)
	ahead := 0
	for _, l := range leads {
		if l > 0 {
			ahead++
		}
	}
	figure(t, "in %d of %d deletions every caller's proxy had let go of the endpoint before the application was told to end; ahead by %v at least, %v in the middle, %v at most",
		ahead, deletions, leads[0].Round(time.Millisecond), leads[len(leads)/2].Round(time.Millisecond), leads[len(leads)-1].Round(time.Millisecond))
	if ahead*3 < deletions*2 { // the machine may be busy; the figure is for a quiet one
		t.Errorf("only %d of %d", ahead, deletions)
	}
}

// lead deletes the pod, and returns by how much the last of the callers' proxies
// let go of it before its application was told to end. Proxies are asked every
// few milliseconds, so that it is rather more than what is returned.
func (s *space) lead(pod *corev1.Pod, callers []kube.Pod) time.Duration {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	log, err := s.c.Client.CoreV1().Pods(s.name).GetLogs(pod.Name, &corev1.PodLogOptions{Container: "app", Follow: true}).Stream(ctx)
	must(s.t, err)
	defer func() { _ = log.Close() }()
	all, ctx := errgroup.WithContext(ctx)
	gone := make([]report.Gone, len(callers))
	for i, caller := range callers {
		all.Go(func() error {
			return s.c.Echo(ctx, caller, &gone[i], "gone", "http://127.0.0.1:15000/clusters?filter=server", "::"+pod.Status.PodIP+":8080::")
		})
	}
	time.Sleep(time.Second) // they look by then, which is seen below
	deleted := time.Now()
	must(s.t, s.c.Client.CoreV1().Pods(s.name).Delete(ctx, pod.Name, metav1.DeleteOptions{}))
	var told time.Time
	for lines := bufio.NewScanner(log); lines.Scan(); {
		if _, at, ok := strings.Cut(lines.Text(), "ending at "); ok {
			nanoseconds, err := strconv.ParseInt(at, 10, 64)
			must(s.t, err)
			told = time.Unix(0, nanoseconds)
			break
		}
	}
	must(s.t, all.Wait())
	if told.IsZero() {
		s.t.Fatal("the application did not say when it was told to end")
	}
	var last time.Time
	for _, g := range gone {
		if g.Since.After(deleted) {
			s.t.Fatalf("a proxy was asked first %v after the deletion", g.Since.Sub(deleted))
		}
		if g.At.After(last) {
			last = g.At
		}
	}
	return told.Sub(last)
}
