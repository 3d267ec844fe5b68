package main

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

// proxyOptions narrow a view of a proxy.
type proxyOptions struct {
	filter *regexp.Regexp // nil: everything
	all    bool           // also what is unused
	now    time.Time
}

func (o proxyOptions) matches(name string) bool { return o.filter == nil || o.filter.MatchString(name) }

// proxyView is one way to look at a proxy.
type proxyView struct {
	short string
	read  func(context.Context, endpoint, proxyOptions) (view, error)
}

// lacker is a view that may have found that something lacks.
type lacker interface{ lacks() bool }

const (
	viewSummary = "summary"
	// viewDiff is the one view for which the control plane is asked, too.
	viewDiff = "diff"
)

func proxyViews() map[string]proxyView {
	return map[string]proxyView{
		viewSummary: {"version, certificate and what it holds, in numbers", readSummary},
		"clusters":  {"destinations that it knows", readClustersView},
		"listeners": {"listeners and their filter chains", readListenersView},
		"routes":    {"routes, and the scopes that lead to them", readRoutesView},
		"endpoints": {"addresses: health, and mTLS or plain", readEndpointsView},
		"certs":     {"certificates: identity, serial number, validity", readCertsView},
		"stats":     {"statistics that are not zero", readStatsView},
		"config":    {"the whole configuration, as Envoy gives it (JSON)", readConfigView},
	}
}

func viewNames() []string {
	return append(slices.Sorted(maps.Keys(proxyViews())), viewDiff)
}

func (a *app) proxyCommand() *cobra.Command {
	var format, filter string
	var all bool
	cmd := &cobra.Command{
		Use:   "proxy POD [VIEW]",
		Short: "What the Envoy in a pod really has",
		Long: a.text(`
Asks the admin endpoint of the Envoy in the pod, which listens on the pod's
loopback, by port-forward. POD is NAME, NAMESPACE/NAME, or a workload such as
deploy/NAME, of which the first ready pod is taken. The views:
`) + "\n\n" + describeViews() + "\n" + a.text(`
Private keys are never shown: Envoy redacts them, and so does this command.
JSON and YAML have the fields of the table, in full; of "config" they are what
Envoy gives.`),
		Example: a.text(`
  {tulle} proxy frontend-7d9f-abcde
  {tulle} proxy deploy/frontend -n shop endpoints --filter reviews
  {tulle} proxy shop/frontend-7d9f-abcde routes --all
  {tulle} proxy deploy/frontend certs -o json
  {tulle} proxy deploy/frontend stats --filter '_rq_5xx'`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return fmt.Errorf("want a pod, and one of %s", strings.Join(viewNames(), ", "))
			}
			if len(args) == 2 {
				return checkView(args[1])
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.completePods(cmd, args, prefix)
			case 1:
				return viewNames(), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			options := proxyOptions{all: all, now: a.now()}
			if filter != "" {
				re, err := regexp.Compile(filter)
				if err != nil {
					return fmt.Errorf("reading --filter: %w", err)
				}
				options.filter = re
			}
			name := viewSummary
			if len(args) == 2 {
				name = args[1]
			}
			if name == viewDiff {
				return a.diff(cmd.Context(), args[0], format)
			}
			return a.showProxy(cmd.Context(), args[0], proxyViews()[name], options, format)
		},
	}
	cmd.Flags().StringVar(&filter, "filter", "", "Only what has a name that this regular expression (RE2) matches")
	cmd.Flags().BoolVar(&all, "all", false, "Also what is not in use: destinations not asked for yet, statistics that are zero")
	outputFlag(cmd, &format)
	cmd.AddCommand(a.logCommand())
	return cmd
}

func checkView(name string) error {
	if !slices.Contains(viewNames(), name) {
		return fmt.Errorf("unknown view %q: want one of %s", name, strings.Join(viewNames(), ", "))
	}
	return nil
}

func describeViews() string {
	var b strings.Builder
	views := proxyViews()
	for _, name := range viewNames() {
		short := views[name].short
		if name == viewDiff {
			short = "what the control plane sent against what it has"
		}
		fmt.Fprintf(&b, "  %-10s %s\n", name, short)
	}
	return b.String()
}

// admin opens the admin endpoint of the pod that the user names.
func (c *cluster) admin(ctx context.Context, arg string) (*corev1.Pod, endpoint, error) {
	p, err := c.proxyPod(ctx, arg)
	if err != nil {
		return nil, nil, err
	}
	e, err := c.reach(p, portAdmin)
	return p, e, err
}

// showProxy reads the view of the pod's proxy and writes it.
func (a *app) showProxy(ctx context.Context, pod string, pv proxyView, options proxyOptions, format string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	p, admin, err := c.admin(ctx, pod)
	if err != nil {
		return err
	}
	defer admin.Close()
	v, err := pv.read(ctx, admin, options)
	if err != nil {
		return fmt.Errorf("pod %s: %w", podName(p), err)
	}
	if err := a.show(format, v); err != nil {
		return err
	}
	if l, ok := v.(lacker); ok && l.lacks() {
		return errLacking
	}
	return nil
}
