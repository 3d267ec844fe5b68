package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// verdict is how a check turned out, from good to bad.
type verdict int

const (
	fine verdict = iota
	warning
	unknown // it could not be told
	failed
)

var verdicts = [...]struct{ mark, word string }{fine: {"✓", "ok"}, warning: {"!", "warning"}, unknown: {"?", "unknown"}, failed: {"✗", "failed"}}

// result is what a check found.
type result struct {
	Check   string `json:"check"`
	Result  string `json:"result"` // ok, warning, unknown or failed
	Message string `json:"message"`
	Next    string `json:"next,omitempty"` // what to do
	is      verdict
}

// checks are the answer to `tulle check`.
type checks struct {
	Installed bool     `json:"installed"`
	Results   []result `json:"results"`
}

func (c *checks) data() any { return c }

func (c *checks) add(check string, is verdict, next, format string, args ...any) {
	c.Results = append(c.Results, result{
		Check: check, Result: verdicts[is].word, Message: fmt.Sprintf(format, args...), Next: next, is: is,
	})
}

// could adds that a question was not answered; false when it was.
func (c *checks) could(check string, err error) bool {
	if err == nil {
		return true
	}
	c.add(check, unknown, nextStep(err), "%v", err)
	return false
}

func (c *checks) worst() verdict {
	worst := fine
	for _, r := range c.Results {
		worst = max(worst, r.is)
	}
	return worst
}

// lacks reports whether the cluster or the mesh is not as it should be.
func (c *checks) lacks() bool { return c.worst() >= unknown }

func (c *checks) table(time.Time) *table {
	t := &table{header: []string{"IS", "CHECK", "FOUND"}}
	for _, r := range c.Results {
		t.row(verdicts[r.is].mark, r.Check, r.Message)
	}
	for _, r := range c.Results {
		if r.Next != "" && r.is > fine {
			t.note("%s %s: %s", verdicts[r.is].mark, r.Check, r.Next)
		}
	}
	return t
}

// checkArea is one thing that check looks at.
type checkArea func(ctx context.Context, c *cluster, to *checks, now time.Time)

// before are looked at before an installation, after when there is one.
func before() []checkArea {
	return []checkArea{checkKubernetes, checkNodes, checkRights, checkDefinitions, checkOtherMeshes}
}

func after() []checkArea {
	return []checkArea{checkKubernetes, checkControlPlane, checkWebhook, checkRevisions, checkCertificates, checkPlugin, checkProxies, checkObjects, checkWorkloads, checkOtherMeshes}
}

// check looks at the cluster.
func (c *cluster) check(ctx context.Context, pre bool, now time.Time) *checks {
	out := &checks{Installed: !pre}
	areas := after()
	if pre {
		areas = before()
	}
	for _, look := range areas {
		look(ctx, c, out, now)
	}
	return out
}

func (a *app) checkCommand() *cobra.Command {
	var format string
	var pre, probes bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Is this cluster fit for the mesh; is the mesh healthy",
		Long: a.text(`
Before an installation (or with --pre): Kubernetes and its nodes, what you may
do, what is left of another installation or mesh. With the mesh installed: the
control planes and their certificates, whether the API server reaches the webhook,
proxies, objects that do not hold, and workloads that are not in the mesh yet or
have an old proxy.

Each line is ✓ as it should be, ! worth knowing, ? could not be told, or ✗ not as
it should be, with the next step below. Nothing is changed; the webhook is tried
with a pod that is not created.

Exit codes: 0 fit or healthy (warnings included), 1 error, 2 not fit, not healthy,
or something could not be told.`),
		Example: a.text(`
  {tulle} check --pre && {tulle} install
  {tulle} check -o json | jq -r '.results[] | select(.result != "ok") | .message'`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if !pre {
				planes, err := c.controlPlanes(ctx)
				if err != nil {
					return err
				}
				pre = len(planes) == 0
			}
			report := c.check(ctx, pre, a.now())
			if probes && !pre {
				checkProbes(ctx, c, report, a.now())
			}
			if err := a.show(format, report); err != nil {
				return err
			}
			if report.lacks() {
				return errLacking
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&pre, "pre", false, "Look at what an installation needs, whether or not there is one")
	cmd.Flags().BoolVar(&probes, "probes", false, "Also prove that probes tell the truth: makes a namespace with pods for a minute, and removes it")
	outputFlag(cmd, &format)
	return cmd
}
