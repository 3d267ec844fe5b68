package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
)

// stream is what a replica of the control plane says of one proxy's stream:
// an element of GET /debug/proxies.
type stream struct {
	Pod       string         `json:"pod"`
	Identity  string         `json:"identity"`
	Profile   string         `json:"profile"`
	Since     time.Time      `json:"since"`
	Replica   string         `json:"replica"`
	Pushes    int            `json:"pushes"`
	Resources map[string]int `json:"resources"`
	Pending   []resource     `json:"pending"`
	Rejected  []resource     `json:"rejected"`
	Held      []resource     `json:"held"`   // only of a pod that was asked for
	Scopes    []string       `json:"scopes"` // the same
}

// resource is an xDS resource that a proxy was sent and has not acknowledged,
// or has rejected.
type resource struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	// Error is Envoy's own words.
	Error string `json:"error,omitempty"`
}

// States of a proxy.
const (
	stateSynced       = "synced"
	statePending      = "pending"
	stateRejected     = "rejected"
	stateDisconnected = "not connected"
	stateUnknown      = "unknown" // a replica did not answer; it may be connected there
)

// proxyStatus is one line of the answer.
type proxyStatus struct {
	Pod       string         `json:"pod"`
	State     string         `json:"state"`
	Phase     string         `json:"phase,omitempty"`
	Identity  string         `json:"identity,omitempty"`
	Profile   string         `json:"profile,omitempty"`
	Replica   string         `json:"replica,omitempty"`
	Since     *time.Time     `json:"since,omitempty"`
	Pushes    int            `json:"pushes"`
	Resources map[string]int `json:"resources,omitempty"`
	Pending   []resource     `json:"pending,omitempty"`
	Rejected  []resource     `json:"rejected,omitempty"`
	// Plaintext is what came in without mutual TLS; nil where it was not asked for.
	Plaintext *plaintext `json:"plaintext,omitempty"`
}

// replicaStatus is a replica of the control plane, and why it did not answer.
type replicaStatus struct {
	Pod   string `json:"pod"`
	Error string `json:"error,omitempty"`
}

// status is the answer to `tulle status`.
type status struct {
	Replicas []replicaStatus `json:"replicas"`
	Proxies  []proxyStatus   `json:"proxies"`

	plaintext bool   // every proxy was asked what comes in without mutual TLS
	scope     string // what was asked for, in words
	hint      string // what to do where there is nothing
}

func (s *status) data() any { return s }

// lacks reports whether anything is not as it should be.
func (s *status) lacks() bool {
	return slices.ContainsFunc(s.Proxies, func(p proxyStatus) bool { return p.State != stateSynced }) ||
		slices.ContainsFunc(s.Replicas, func(r replicaStatus) bool { return r.Error != "" })
}

func (a *app) statusCommand() *cobra.Command {
	var format string
	var all, plain bool
	cmd := &cobra.Command{
		Use:     "status [POD...]",
		Aliases: []string{"ps"},
		Short:   "Which proxies are connected, and what each lacks",
		Long: a.text(`
Shows every meshed pod, the control plane's replica that its proxy is connected
to and since when, and what it lacks: resources that were sent and are not
acknowledged yet (SYNCED), and resources that Envoy refused, in its own words
(REJECTED). A proxy that rejects something keeps its last good state.

A POD is NAME, NAMESPACE/NAME, or a workload such as deploy/NAME. Without one,
all meshed pods of the namespace are shown.

With --plaintext every proxy that is shown is asked, by port-forward to its admin
endpoint, how many HTTP requests and TCP connections came to it in plaintext since
it started, those that were refused included. Where none did for as long as callers
take to call, mtls.mode: Strict cuts nobody off. Requests of clients whose TLS ends at
the proxy (tls of a MeshPolicy) are not in mutual TLS of the mesh either, and shown
apart (OTHER TLS): Strict lets them in. Probes do not count.

Exit codes: 0 every proxy has all, 1 error, 2 a proxy is not connected, has not
acknowledged or has rejected something, or a replica did not answer.`),
		Example: a.text(`
  {tulle} status                      # this namespace
  {tulle} status -A                   # the whole mesh
  {tulle} status deploy/frontend -n shop
  {tulle} status -A --plaintext       # who is called in plaintext still
  {tulle} status -A -o json | jq -r '.proxies[] | select(.state != "synced") | .pod'`),
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			if all && len(args) > 0 {
				return fmt.Errorf("name pods, or ask for all namespaces with -A: not both")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			s, err := c.status(cmd.Context(), args, all)
			if err != nil {
				return err
			}
			if plain {
				c.plaintext(cmd.Context(), s)
			}
			if err := a.show(format, s); err != nil {
				return err
			}
			if s.lacks() {
				return errLacking
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "All namespaces")
	cmd.Flags().BoolVar(&plain, "plaintext", false, "Also what comes in without mutual TLS, which each proxy is asked for")
	outputFlag(cmd, &format)
	return cmd
}

// status asks the cluster for its meshed pods and every replica for its
// streams, and joins them.
func (c *cluster) status(ctx context.Context, args []string, all bool) (*status, error) {
	pods, err := c.statusPods(ctx, args, all)
	if err != nil {
		return nil, err
	}
	replicas, streams, err := c.streams(ctx)
	if err != nil {
		return nil, err
	}
	s := &status{Replicas: replicas, scope: "namespace " + c.namespace}
	if all {
		s.scope = "the cluster"
	}
	s.hint = fmt.Sprintf("kubectl label namespace %s %s=enabled, then restart its workloads", c.namespace, labelInject)
	// A proxy that is no sidecar (a gateway's) is known by its stream alone.
	include := func(st stream) bool { return len(args) == 0 && (all || strings.HasPrefix(st.Pod, c.namespace+"/")) }
	s.Proxies = join(pods, streams, include, slices.ContainsFunc(replicas, func(r replicaStatus) bool { return r.Error != "" }))
	return s, nil
}

// statusPods are the meshed pods that the user asks for. Of those that end
// nothing is expected.
func (c *cluster) statusPods(ctx context.Context, args []string, all bool) ([]corev1.Pod, error) {
	if len(args) == 0 {
		namespace := c.namespace
		if all {
			namespace = ""
		}
		pods, err := c.meshedPods(ctx, namespace)
		return slices.DeleteFunc(pods, func(p corev1.Pod) bool { return over(&p) }), err
	}
	var pods []corev1.Pod
	for _, arg := range args {
		t, err := parseTarget(arg, c.namespace)
		if err != nil {
			return nil, err
		}
		found, err := c.pods(ctx, t)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			if !meshed(&p) {
				return nil, c.notMeshed(ctx, &p)
			}
			if !over(&p) || t.kind == "pod" {
				pods = append(pods, p)
			}
		}
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(podName(&a), podName(&b)) })
	return slices.CompactFunc(pods, func(a, b corev1.Pod) bool { return podName(&a) == podName(&b) }), nil
}

// streams asks every replica of the control plane. It is an error if none
// answers; one that does not answer says so in its status.
func (c *cluster) streams(ctx context.Context) ([]replicaStatus, []stream, error) {
	pods, err := c.listPods(ctx, c.meshNamespace, selectTulled)
	if err != nil {
		return nil, nil, err
	}
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return over(&p) })
	if len(pods) == 0 {
		return nil, nil, &advice{
			fmt.Errorf("no control plane runs in namespace %s", c.meshNamespace),
			"install it: tulle install\nor name its namespace: --mesh-namespace",
		}
	}
	replicas := make([]replicaStatus, len(pods))
	answers := make([][]stream, len(pods))
	errs := make([]error, len(pods))
	var group errgroup.Group
	group.SetLimit(8)
	for i := range pods {
		replicas[i].Pod = podName(&pods[i])
		group.Go(func() error {
			answers[i], errs[i] = c.askReplica(ctx, &pods[i])
			return nil
		})
	}
	_ = group.Wait() // each error is its replica's
	failed := 0
	for i, err := range errs {
		if err != nil {
			replicas[i].Error = err.Error()
			failed++
		}
	}
	if failed == len(pods) {
		return nil, nil, fmt.Errorf("no replica of the control plane answers: %w", errs[0])
	}
	return replicas, slices.Concat(answers...), nil
}

const pathStreams = "/debug/proxies"

// askReplica reads the streams of one replica.
func (c *cluster) askReplica(ctx context.Context, pod *corev1.Pod) ([]stream, error) {
	return c.askReplicaFor(ctx, pod, pathStreams)
}

func (c *cluster) askReplicaFor(ctx context.Context, pod *corev1.Pod, path string) ([]stream, error) {
	if pod.Status.Phase != corev1.PodRunning {
		return nil, &advice{
			fmt.Errorf("pod %s does not run: %s", podName(pod), pod.Status.Phase),
			fmt.Sprintf("kubectl -n %s describe pod %s", pod.Namespace, pod.Name),
		}
	}
	e, err := c.reach(pod, portDebug)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	body, err := e.Get(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("asking pod %s for its proxies: %w", podName(pod), err)
	}
	var streams []stream
	if err := json.Unmarshal(body, &streams); err != nil {
		return nil, fmt.Errorf("reading what pod %s says of its proxies (is it of this version?): %w", podName(pod), err)
	}
	for i := range streams {
		if streams[i].Replica == "" {
			streams[i].Replica = pod.Name
		}
	}
	return streams, nil
}

// join puts pods and streams together, sorted by pod. Of a pod with several
// streams the newest counts: the others are of connections that broke and whose
// end their replica has not seen. Streams of pods that are not listed are taken
// if include says so. If partial, not all replicas answered, and a pod without
// a stream may have one there.
func join(pods []corev1.Pod, streams []stream, include func(stream) bool, partial bool) []proxyStatus {
	newest := make(map[string]stream, len(streams))
	for _, st := range streams {
		if other, ok := newest[st.Pod]; !ok || st.Since.After(other.Since) {
			newest[st.Pod] = st
		}
	}
	out := []proxyStatus{}
	for i := range pods {
		name := podName(&pods[i])
		p := proxyStatus{Pod: name, State: stateDisconnected, Phase: string(pods[i].Status.Phase)}
		if partial {
			p.State = stateUnknown
		}
		if st, ok := newest[name]; ok {
			p.connected(st)
			delete(newest, name)
		}
		out = append(out, p)
	}
	for name, st := range newest {
		if include(st) {
			p := proxyStatus{Pod: name}
			p.connected(st)
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b proxyStatus) int { return strings.Compare(a.Pod, b.Pod) })
	return out
}

// connected takes over what the stream says.
func (p *proxyStatus) connected(st stream) {
	since := st.Since
	p.Identity, p.Profile, p.Replica, p.Since = st.Identity, st.Profile, st.Replica, &since
	p.Pushes, p.Resources, p.Pending, p.Rejected = st.Pushes, st.Resources, st.Pending, st.Rejected
	switch {
	case len(st.Rejected) > 0:
		p.State = stateRejected
	case len(st.Pending) > 0:
		p.State = statePending
	default:
		p.State = stateSynced
	}
}

func (s *status) table(now time.Time) *table {
	t := &table{header: []string{"POD", "IDENTITY", "CONNECTED TO", "SINCE", "SYNCED", "REJECTED"}}
	if s.plaintext {
		t.header = append(t.header, "PLAINTEXT", "OTHER TLS")
	}
	row := func(p proxyStatus, cells ...string) {
		if s.plaintext {
			cells = append(cells, p.Plaintext.cells()...)
		}
		t.row(cells...)
	}
	for _, p := range s.Proxies {
		if p.Since == nil {
			row(p, p.Pod, p.Identity, p.State, none, none, none)
			continue
		}
		synced, rejected := "all", none
		if n := len(p.Pending); n > 0 {
			synced = fmt.Sprintf("%d pending", n)
		}
		if n := len(p.Rejected); n > 0 {
			rejected = fmt.Sprint(n)
		}
		row(p, p.Pod, p.Identity, p.Replica, age(*p.Since, now), synced, rejected)
	}
	if len(s.Proxies) == 0 {
		t.note("No meshed pods in %s. To mesh a namespace: %s.", s.scope, s.hint)
	}
	s.notes(t)
	return t
}

// notes says below the table what lacks, and what to look at next.
func (s *status) notes(t *table) {
	for _, r := range s.Replicas {
		if r.Error != "" {
			t.note("Replica %s did not answer: %s", r.Pod, r.Error)
		}
	}
	for _, p := range s.Proxies {
		if p.Plaintext != nil && p.Plaintext.Error != "" {
			t.note("%s did not say what comes in in plaintext: %s", p.Pod, p.Plaintext.Error)
		}
		switch p.State {
		case stateRejected:
			for _, r := range p.Rejected {
				t.note("%s rejected %s %s: %s", p.Pod, r.Type, r.Name, r.Error)
			}
		case statePending:
			names := make([]string, len(p.Pending))
			for i, r := range p.Pending {
				names[i] = r.Type + " " + r.Name
			}
			t.note("%s has not acknowledged %s", p.Pod, list(names, 3))
		case stateDisconnected:
			namespace, name, _ := strings.Cut(p.Pod, "/")
			if p.Phase == string(corev1.PodRunning) {
				t.note("%s is not connected; its proxy says why: kubectl -n %s logs %s -c %s", p.Pod, namespace, name, containerProxy)
			} else {
				t.note("%s is not connected; it is %s: kubectl -n %s describe pod %s", p.Pod, p.Phase, namespace, name)
			}
		}
	}
}
