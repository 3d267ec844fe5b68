package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/webhook"
)

// controlPlane is one revision of it that is installed.
type controlPlane struct {
	revision   string
	deployment appsv1.Deployment
}

// String is its name in messages.
func (p controlPlane) String() string {
	if p.revision == webhook.DefaultRevision {
		return "control plane"
	}
	return "control plane " + p.revision
}

// controlPlanes are those that are installed, the default one first.
func (c *cluster) controlPlanes(ctx context.Context) ([]controlPlane, error) {
	list, err := c.client.AppsV1().Deployments(c.meshNamespace).List(ctx, metav1.ListOptions{LabelSelector: selectTulled})
	if err != nil {
		return nil, fmt.Errorf("listing the control planes: %w", err)
	}
	var out []controlPlane
	for _, d := range list.Items {
		out = append(out, controlPlane{revisionIn(d.Labels), d})
	}
	slices.SortFunc(out, func(a, b controlPlane) int {
		switch {
		case a.revision == webhook.DefaultRevision:
			return -1
		case b.revision == webhook.DefaultRevision:
			return 1
		}
		return strings.Compare(a.revision, b.revision)
	})
	return out, nil
}

// revisionIn is what the first of the labels that names a revision says.
func revisionIn(labels ...map[string]string) string {
	for _, l := range labels {
		if r := l[webhook.LabelRevision]; r != "" {
			return r
		}
	}
	return webhook.DefaultRevision
}

// servedBy is the revision that injected the pod, and that its proxy connects to.
func servedBy(p *corev1.Pod) string {
	var status struct {
		Revision string `json:"revision"`
	}
	if err := json.Unmarshal([]byte(p.Annotations[webhook.AnnotationStatus]), &status); err != nil || status.Revision == "" {
		return webhook.DefaultRevision
	}
	return status.Revision
}

// checkRevisions looks for namespaces and pods that count on a control plane that
// is not installed. It says nothing where there is but one and nobody names
// another.
func checkRevisions(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "revisions"
	planes, err := c.controlPlanes(ctx)
	if !to.could(name, err) {
		return
	}
	installed := map[string]bool{}
	for _, p := range planes {
		installed[p.revision] = true
	}
	namespaces, err := c.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: webhook.LabelRevision})
	if !to.could(name, err) {
		return
	}
	pods, err := c.meshedPods(ctx, "")
	if !to.could(name, err) {
		return
	}
	missing := false
	say := func(what, revision string, which []string) {
		missing = true
		to.add(name, failed, fmt.Sprintf("tulle install --revision %s, or another %s and then tulle restart", revision, webhook.LabelRevision),
			"%s the revision %s, which is not installed: %s", what, revision, list(which, 5))
	}
	of := map[string][]string{}
	for _, n := range namespaces.Items {
		if r := revisionIn(n.Labels); !installed[r] {
			of[r] = append(of[r], n.Name)
		}
	}
	for _, r := range slices.Sorted(maps.Keys(of)) {
		say(count(len(of[r]), "namespace names", "namespaces name"), r, of[r])
	}
	clear(of)
	proxies := map[string]int{}
	for i := range pods {
		p := &pods[i]
		if over(p) {
			continue
		}
		r := servedBy(p)
		proxies[r]++
		if !installed[r] {
			of[r] = append(of[r], podName(p))
		}
	}
	for _, r := range slices.Sorted(maps.Keys(of)) {
		say(count(len(of[r]), "proxy connects to", "proxies connect to"), r, of[r])
	}
	if missing || len(planes) < 2 {
		return
	}
	var said []string
	for _, p := range planes {
		said = append(said, fmt.Sprintf("%s %s", p.revision, count(proxies[p.revision], "proxy", "proxies")))
	}
	to.add(name, fine, "", "%s", strings.Join(said, ", "))
}
