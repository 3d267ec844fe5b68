package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/webhook"
)

func checkControlPlane(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	planes, err := c.controlPlanes(ctx)
	if !to.could("control plane", err) {
		return
	}
	pods, err := c.listPods(ctx, c.meshNamespace, selectTulled)
	if !to.could("control plane", err) {
		return
	}
	for _, p := range planes {
		own := slices.DeleteFunc(slices.Clone(pods), func(pod corev1.Pod) bool { return revisionIn(pod.Labels) != p.revision })
		checkReplicas(c, to, p, own)
	}
	if len(planes) > 0 && planes[0].revision != webhook.DefaultRevision {
		to.add("control plane", failed, "tulle install", "there is no default control plane: nobody answers for objects of the mesh, so none can be changed")
	}
}

func checkReplicas(c *cluster, to *checks, p controlPlane, pods []corev1.Pod) {
	name, d := p.String(), &p.deployment
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	look := fmt.Sprintf("kubectl -n %s get pods; kubectl -n %[1]s logs deploy/%s", c.meshNamespace, d.Name)
	switch ready := d.Status.ReadyReplicas; {
	case ready == 0:
		to.add(name, failed, look, "no replica is ready: proxies go on with what they have, and no pod can join")
	case ready < want:
		to.add(name, failed, look, "%d of %d replicas are ready", ready, want)
	case want < 2:
		to.add(name, warning, fmt.Sprintf("kubectl -n %s scale deploy/%s --replicas=2", c.meshNamespace, d.Name), "one replica is ready, and there is no other while that is away")
	default:
		to.add(name, fine, "", "%d replicas are ready", ready)
	}
	if images := countImages(pods, "tulled", func(*corev1.Pod) string { return p.revision }); len(images) > 1 {
		to.add(name, warning, look, "it runs %d versions: an upgrade is under way, or stuck", len(images))
	}
}

// checkWebhook has the API server ask each revision's webhook about a pod that is
// not created.
func checkWebhook(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	planes, err := c.controlPlanes(ctx)
	if !to.could("webhook", err) {
		return
	}
	for _, p := range planes {
		checkInjection(ctx, c, to, p)
	}
}

func checkInjection(ctx context.Context, c *cluster, to *checks, p controlPlane) {
	name := strings.Replace(p.String(), "control plane", "webhook", 1)
	object := strings.Replace(p.deployment.Name, "tulled", "tulle", 1)
	hook, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, object, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		to.add(name, failed, "tulle install", "there is no MutatingWebhookConfiguration %s: no pod joins the mesh", object)
		return
	}
	if !to.could(name, err) {
		return
	}
	for _, w := range hook.Webhooks {
		if len(w.ClientConfig.CABundle) == 0 {
			to.add(name, failed, "see the control plane's log: it fills this in when it leads", "%s has no caBundle: pods of meshed namespaces wait", w.Name)
			return
		}
	}
	if _, err := c.injected(ctx, p.revision); err != nil {
		to.add(name, failed, "can the API server reach pods on port 9443 (firewall, network policy)?", "the API server does not get a pod injected: %v", err)
		return
	}
	to.add(name, fine, "", "the API server reaches it, and a pod was injected as it should be")
}

// Certificates are worth a word when they end sooner than this. Workloads' and
// serving certificates are renewed at half their life.
const rootSoon = 90 * 24 * time.Hour

func checkCertificates(ctx context.Context, c *cluster, to *checks, now time.Time) {
	const name = "certificates"
	pods, err := c.listPods(ctx, c.meshNamespace, selectTulled)
	if !to.could(name, err) {
		return
	}
	for i := range pods {
		if !ready(&pods[i]) {
			continue
		}
		ends, err := c.certificateEnds(ctx, &pods[i])
		if !to.could(name, err) {
			return
		}
		for _, what := range []string{"root", "issuer", "serving", "workload"} {
			switch at, ok := ends[what]; {
			case !ok:
			case at.Before(now):
				to.add(name, failed, "see docs/operations.md", "the %s certificate has ended at %s", what, at.Format(time.RFC3339))
				return
			case what == "root" && at.Sub(now) < rootSoon:
				to.add(name, warning, "rotate it: tulle ca rotate --root; see docs/operations.md", "the root certificate ends at %s", at.Format(time.RFC3339))
				return
			}
		}
		until := func(what string) string {
			if at, ok := ends[what]; ok {
				return age(now, at)
			}
			return none
		}
		to.add(name, fine, "", "root for %s, issuer %s, the control plane's own %s, the first workload's %s", until("root"), until("issuer"), until("serving"), until("workload"))
		return
	}
	to.add(name, unknown, "", "no replica is ready to ask")
}

const portMetrics = 8080

// certificateEnds asks a replica when certificates end.
func (c *cluster) certificateEnds(ctx context.Context, p *corev1.Pod) (map[string]time.Time, error) {
	e, err := c.reach(p, portMetrics)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	body, err := e.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	out := map[string]time.Time{}
	names := map[string]string{
		"tulle_ca_root_expiry_timestamp_seconds":                              "root",
		"tulle_ca_issuer_expiry_timestamp_seconds":                            "issuer",
		`tulle_certificate_soonest_expiry_timestamp_seconds{kind="serving"}`:  "serving",
		`tulle_certificate_soonest_expiry_timestamp_seconds{kind="workload"}`: "workload",
	}
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		metric, value, _ := strings.Cut(lines.Text(), " ")
		if what, ok := names[metric]; ok {
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", metric, err)
			}
			out[what] = time.Unix(int64(seconds), 0)
		}
	}
	return out, nil
}

func checkPlugin(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "CNI plugin"
	set, err := c.client.AppsV1().DaemonSets(c.meshNamespace).Get(ctx, "tulle-cni", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return // pods redirect themselves
	}
	if !to.could(name, err) {
		return
	}
	if s := set.Status; s.NumberReady < s.DesiredNumberScheduled {
		to.add(name, failed, fmt.Sprintf("kubectl -n %s get pods -o wide -l app.kubernetes.io/name=tulle-cni", c.meshNamespace), "it is in place on %d of %d nodes: pods on the others wait", s.NumberReady, s.DesiredNumberScheduled)
		return
	}
	to.add(name, fine, "", "it is in place on %s", count(int(set.Status.NumberReady), "node", "nodes"))
}

func checkProxies(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "proxies"
	s, err := c.status(ctx, nil, true)
	if !to.could(name, err) {
		return
	}
	states := map[string][]string{}
	for _, p := range s.Proxies {
		states[p.State] = append(states[p.State], p.Pod)
	}
	good := true
	for _, state := range []string{stateRejected, stateDisconnected, statePending, stateUnknown} {
		if pods := states[state]; len(pods) > 0 {
			good = false
			to.add(name, failed, "tulle status -A", "%s %s: %s", count(len(pods), "proxy is", "proxies are"), state, list(pods, 3))
		}
	}
	if good {
		to.add(name, fine, "", "%s, all connected and up to date", count(len(s.Proxies), "proxy", "proxies"))
	}
}

// checkObjects looks for objects of the mesh that do not hold as written.
func checkObjects(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "objects"
	client, err := c.objects()
	if !to.could(name, err) {
		return
	}
	total, bad := 0, 0
	for _, resource := range []string{"meshconfigs", "meshpolicies", "trafficsplits", "externalservices"} {
		items, err := client.dynamic.Resource(schema.GroupVersionResource{Group: "mesh.tulle.dev", Version: "v1alpha1", Resource: resource}).List(ctx, metav1.ListOptions{})
		if !to.could(name, err) {
			return
		}
		for i := range items.Items {
			o := &items.Items[i]
			total++
			if problem := notHolding(o); problem != "" {
				bad++
				if bad <= 5 {
					to.add(name, failed, fmt.Sprintf("kubectl -n %s describe %s %s", orNone(o.GetNamespace()), resource, o.GetName()), "%s: %s", describe(o), problem)
				}
			}
		}
	}
	switch {
	case bad > 5:
		to.add(name, failed, "", "and %d more", bad-5)
	case bad == 0:
		to.add(name, fine, "", "%s, all in force on every proxy that they concern", count(total, "object", "objects"))
	}
}

// rotating reports whether the condition tells of a rotation that goes on as it
// should.
func rotating(condition map[string]any) bool {
	reasons := []any{ca.ReasonDistributing, ca.ReasonSigning, ca.ReasonRetiring}
	return condition["type"] == "AuthorityCurrent" && slices.Contains(reasons, condition["reason"])
}

// notHolding says which condition of the object is not True; "" for none.
func notHolding(o *unstructured.Unstructured) string {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	if len(conditions) == 0 {
		return "the control plane has not said anything about it yet"
	}
	for _, each := range conditions {
		c, ok := each.(map[string]any)
		if ok && c["status"] != "True" && !rotating(c) {
			return fmt.Sprintf("%v is %v (%v): %v", c["type"], c["status"], c["reason"], c["message"])
		}
	}
	return ""
}

func checkWorkloads(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "workloads"
	stale, err := c.stale(ctx, "", nil)
	if !to.could(name, err) {
		return
	}
	if len(stale) == 0 {
		to.add(name, fine, "", "every pod of the mesh's namespaces has the present proxy")
		return
	}
	by := map[string][]string{}
	for _, w := range stale {
		by[w.Why] = append(by[w.Why], w.String())
	}
	for _, problem := range []struct{ why, what string }{
		{whyWithout, "began before their namespace was in the mesh"},
		{whyOld, "have an older proxy"},
		{whyRevision, "have a proxy of another revision than their labels say"},
	} {
		if workloads := by[problem.why]; len(workloads) > 0 {
			to.add(name, warning, "tulle restart -A", "%s %s: %s", count(len(workloads), "workload", "workloads"), problem.what, list(workloads, 5))
		}
	}
}
