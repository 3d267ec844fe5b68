package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/ca"
)

const (
	pathAuthority    = "/debug/ca"
	annotationRotate = "mesh.tulle.dev/rotate-ca"
	meshConfigName   = "default"
)

var meshConfigs = schema.GroupVersionResource{Group: "mesh.tulle.dev", Version: "v1alpha1", Resource: "meshconfigs"}

func (a *app) caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Show and rotate the certificate authority",
		Long: a.text(`
The certificate authority has a root, which everybody trusts, and an issuer under
it, which signs the certificates of workloads. Both are rotated before they end,
and when you ask for it, without a failed call: each step waits until every proxy
has taken the one before.

  {tulle} ca status          what signs, what is trusted, and what a rotation waits for
  {tulle} ca history         the rotations that there were
  {tulle} ca rotate          replace the issuer
  {tulle} ca rotate --root   replace the root, and the issuer with it`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.caStatusCommand(), a.caHistoryCommand(), a.caRotateCommand())
	return cmd
}

func (a *app) caStatusCommand() *cobra.Command {
	return a.authorityCommand("status", "What signs, what is trusted, and what a rotation waits for", `
One line for the issuer and each root, and below what the leader says: nothing is
to be rotated, or in which phase a rotation is and for which proxies it waits.

Exit code 2 if the authority needs your help, or has ended.`,
		func(s *authorityStatus) view { return s })
}

func (a *app) caHistoryCommand() *cobra.Command {
	return a.authorityCommand("history", "The rotations that there were, the newest first", `
What was rotated, why, from which key to which, how long it took, and who was cut
off if it was forced.`,
		func(s *authorityStatus) view { return authorityHistory(s.Record.History) })
}

// authorityCommand is a command that answers from the control plane's state.
func (a *app) authorityCommand(use, short, long string, look func(*authorityStatus) view) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: use, Short: short, Long: a.text(long), Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			s, err := c.authority(cmd.Context())
			if err != nil {
				return err
			}
			v := look(s)
			if err := a.show(format, v); err != nil {
				return err
			}
			if l, ok := v.(*authorityStatus); ok && l.lacks(a.now()) {
				return errLacking
			}
			return nil
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func (a *app) caRotateCommand() *cobra.Command {
	var (
		root  bool
		force string
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the issuer, or with --root the root",
		Long: a.text(`
Asks for a rotation by an annotation of the MeshConfig, which is created if there is
none. The control plane does it step by step, and waits in each until every proxy
has taken it: see "{tulle} ca status". Pods that never acknowledge hold it up; restart
or delete them. If that cannot be, --force=cut-off, given now or for a rotation that
waits, has it go on without them after a minute in each phase: their calls fail.

It goes on without them by itself when what signs is about to end: when an hour of its
life is left, or a twentieth where that is shorter. Else all others would be cut off
with them. The history names those that were.`),
		Example: a.text(`
  {tulle} ca rotate
  {tulle} ca rotate --root
  kubectl wait mcfg/default --for=condition=AuthorityCurrent --timeout=30m`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if force != "" && force != ca.ForceWord {
				return fmt.Errorf("--force=%s: write --force=%s if proxies that do not acknowledge are to be cut off", force, ca.ForceWord)
			}
			ask := ca.Ask{Scope: ca.ScopeIssuer, At: a.now(), Forced: force != ""}
			if root {
				ask.Scope = ca.ScopeRoot
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := c.askToRotate(cmd.Context(), ask); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.streams.Out, "Asked to rotate the %s. How far it is: %s ca status\n", ask.Scope, a.name)
			return err
		},
	}
	cmd.Flags().BoolVar(&root, "root", false, "Rotate the root, and the issuer with it")
	cmd.Flags().StringVar(&force, "force", "", "Write "+ca.ForceWord+" to go on without proxies that do not acknowledge")
	return cmd
}

// askToRotate writes the request.
func (c *cluster) askToRotate(ctx context.Context, ask ca.Ask) error {
	objects, err := c.objects()
	if err != nil {
		return err
	}
	meta := map[string]any{"annotations": map[string]any{annotationRotate: ask.String()}}
	patch, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return err
	}
	resource := objects.dynamic.Resource(meshConfigs)
	_, err = resource.Patch(ctx, meshConfigName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "tulle"})
	if apierrors.IsNotFound(err) {
		meta["name"] = meshConfigName
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": meshConfigs.GroupVersion().String(), "kind": "MeshConfig", "metadata": meta}}
		_, err = resource.Create(ctx, o, metav1.CreateOptions{FieldManager: "tulle"})
	}
	if err != nil {
		return fmt.Errorf("asking for a rotation by an annotation of the MeshConfig: %w", err)
	}
	return nil
}

// authorityStatus is what the control plane says of the authority.
type authorityStatus struct {
	ca.State
	// Replica is the one that says so: the leader, if it answers.
	Replica string `json:"replica"`
	// Behind are replicas that do not have the same yet.
	Behind []string `json:"behind,omitempty"`
}

// authority asks all replicas, of which the leader knows most.
func (c *cluster) authority(ctx context.Context) (*authorityStatus, error) {
	pods, err := c.listPods(ctx, c.meshNamespace, selectTulled)
	if err != nil {
		return nil, err
	}
	var all []*authorityStatus
	var failed error
	for i := range pods {
		if over(&pods[i]) {
			continue
		}
		s, err := c.askAuthority(ctx, &pods[i])
		if err != nil {
			failed = err
			continue
		}
		all = append(all, s)
	}
	switch {
	case len(all) == 0 && failed != nil:
		return nil, fmt.Errorf("no replica of the control plane answers: %w", failed)
	case len(all) == 0:
		return nil, &advice{fmt.Errorf("no control plane runs in namespace %s", c.meshNamespace), "install it: tulle install\nor name its namespace: --mesh-namespace"}
	}
	chosen := all[0]
	for _, s := range all {
		if s.Leading {
			chosen = s
		}
	}
	for _, s := range all {
		if s.Record.Sequence != chosen.Record.Sequence {
			chosen.Behind = append(chosen.Behind, s.Replica)
		}
	}
	return chosen, nil
}

func (c *cluster) askAuthority(ctx context.Context, pod *corev1.Pod) (*authorityStatus, error) {
	e, err := c.reach(pod, portDebug)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	body, err := e.Get(ctx, pathAuthority)
	if err != nil {
		return nil, fmt.Errorf("asking pod %s for the certificate authority (is it of this version?): %w", podName(pod), err)
	}
	s := &authorityStatus{Replica: pod.Name}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("reading what pod %s says of the certificate authority: %w", podName(pod), err)
	}
	return s, nil
}

func (s *authorityStatus) data() any { return s }

// lacks reports whether somebody has to do something.
func (s *authorityStatus) lacks(now time.Time) bool {
	switch s.Reason {
	case ca.ReasonWaiting, ca.ReasonInvalid, ca.ReasonRefused, ca.ReasonEndsSoon, ca.ReasonUnavailable,
		ca.ReasonPending, ca.ReasonDenied, ca.ReasonFailed:
		return true
	}
	return now.After(s.Issuer.NotAfter)
}

func (s *authorityStatus) table(now time.Time) *table {
	t := &table{header: []string{"USE", "KEY ID", "KEY", "VALID FROM", "VALID UNTIL", "LEFT"}}
	row := func(use string, c ca.AuthorityCertificate) {
		left := "ended"
		if c.NotAfter.After(now) {
			left = age(now, c.NotAfter)
		}
		t.row(use, c.KeyID, c.Key, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), left)
	}
	if s.Record.Delegation == nil {
		row("issuer", s.Issuer)
	}
	for _, r := range s.Roots {
		use := "root"
		if now := s.Record.Rotation; now != nil && now.From.Root != now.To.Root {
			switch r.KeyID {
			case now.From.Root:
				use = "root (old)"
			case now.To.Root:
				use = "root (new)"
			}
		}
		row(use, r)
	}
	for _, r := range s.Servers {
		row("root of the control plane", r)
	}
	if now := s.Record.Rotation; now != nil {
		forced := ""
		if now.Forced {
			forced = ", forced"
		}
		t.note("Rotation of the %s (%s%s) since %s, in the phase %s since %s.", now.Scope, strings.ToLower(string(now.Why)), forced,
			now.Started.UTC().Format(time.RFC3339), now.Phase, now.Since.UTC().Format(time.RFC3339))
	}
	switch {
	case s.Message != "":
		t.note("%s: %s", s.Reason, s.Message)
	case !s.Leading:
		t.note("The leader does not answer; %s knows what is signed with, and not what a rotation waits for.", s.Replica)
	}
	switch signer := s.Record.Signer; {
	case signer != nil && s.Record.Delegation != nil:
		t.note("%s signs the certificates of workloads.", signer)
	case signer != nil:
		t.note("%s has signed the issuer.", signer)
	}
	if !s.RootKey {
		t.note("The root's key is not in the cluster.")
	}
	if len(s.Behind) > 0 {
		t.note("Not there yet: %s", list(s.Behind, 3))
	}
	return t
}

// signers names who signed before and after a rotation.
func signers(p ca.Past) string {
	name := func(s *ca.Signer) string {
		if s == nil {
			return "mesh"
		}
		return fmt.Sprintf("%s/%s (%s)", s.Kind, s.Name, s.Signs)
	}
	text := name(p.To.Signer)
	if from := name(p.From.Signer); from != text {
		text = from + " > " + text
	}
	if p.GivenUp {
		text += ", given up"
	}
	return text
}

// authorityHistory are rotations that have ended.
type authorityHistory []ca.Past

func (h authorityHistory) data() any {
	return slices.Concat([]ca.Past{}, h)
}

func (h authorityHistory) table(time.Time) *table {
	t := &table{header: []string{"ENDED", "SCOPE", "WHY", "TOOK", "ISSUER", "ROOT", "SIGNED BY", "CUT OFF"}}
	change := func(from, to string) string {
		from, to = cmp.Or(from, "none"), cmp.Or(to, "none") // where leaves are signed elsewhere
		if from == to {
			return short(to)
		}
		return short(from) + " > " + short(to)
	}
	for _, p := range h {
		t.row(p.Ended.UTC().Format(time.RFC3339), string(p.Scope), string(p.Why), p.Ended.Sub(p.Started).Round(time.Second).String(),
			change(p.From.Issuer, p.To.Issuer), change(p.From.Root, p.To.Root), signers(p), list(p.CutOff, 3))
	}
	if len(h) == 0 {
		t.note("Nothing was rotated yet.")
	}
	return t
}
