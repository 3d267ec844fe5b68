package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Envoy's log levels, see /logging of its admin endpoint.
var logLevels = []string{"trace", "debug", "info", "warning", "error", "critical", "off"}

// loggers are the levels of a proxy's loggers.
type loggers struct {
	Pod    string            `json:"pod"`
	Levels map[string]string `json:"levels"`
}

func (l *loggers) data() any { return l }

func (l *loggers) table(time.Time) *table {
	by := map[string][]string{}
	for name, level := range l.Levels {
		by[level] = append(by[level], name)
	}
	t := &table{header: []string{"LEVEL", "LOGGERS"}}
	for _, level := range logLevels {
		if names := by[level]; len(names) > 0 {
			slices.Sort(names)
			t.row(level, list(names, 12))
		}
	}
	return t
}

func (a *app) logCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "log POD [LEVEL | LOGGER=LEVEL,...]",
		Short: "Show or set the log levels of the Envoy in a pod",
		Long: a.text(`
Shows the levels of Envoy's loggers, or sets that of all, or of those that are
named, until the proxy is restarted. Levels are ` + strings.Join(logLevels, ", ") + `.
For longer, use the annotation mesh.tulle.dev/proxy-log-level.`),
		Example: a.text(`
  {tulle} proxy log deploy/frontend -n shop
  {tulle} proxy log deploy/frontend -n shop debug
  {tulle} proxy log shop/frontend-7d9f-abcde rbac=debug,http=trace
  kubectl -n shop logs deploy/frontend -c ` + containerProxy + ` -f`),
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			set := ""
			if len(args) == 2 {
				var err error
				if set, err = logQuery(args[1]); err != nil {
					return err
				}
			}
			return a.log(cmd.Context(), args[0], set, format)
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

// logQuery is what Envoy is asked to set.
func logQuery(text string) (string, error) {
	if !strings.Contains(text, "=") {
		if !slices.Contains(logLevels, text) {
			return "", fmt.Errorf("%q is no log level: want one of %s", text, strings.Join(logLevels, ", "))
		}
		return url.Values{"level": {text}}.Encode(), nil
	}
	var paths []string
	for _, item := range strings.Split(text, ",") {
		logger, level, ok := strings.Cut(item, "=")
		if !ok || logger == "" || !slices.Contains(logLevels, level) {
			return "", fmt.Errorf("%q does not set a logger: write LOGGER=LEVEL, with a level of %s", item, strings.Join(logLevels, ", "))
		}
		paths = append(paths, logger+":"+level)
	}
	return url.Values{"paths": {strings.Join(paths, ",")}}.Encode(), nil
}

func (a *app) log(ctx context.Context, pod, set, format string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	p, admin, err := c.admin(ctx, pod)
	if err != nil {
		return err
	}
	defer admin.Close()
	path := "/logging"
	if set != "" {
		path += "?" + set
	}
	body, err := admin.Post(ctx, path, nil)
	if err != nil {
		return &advice{fmt.Errorf("pod %s: asking Envoy for its loggers: %w", podName(p), err), "proxies that were injected by an older version do not allow it: " + a.name + " restart"}
	}
	out := &loggers{Pod: podName(p), Levels: map[string]string{}}
	for line := range strings.Lines(string(body)) {
		if name, level, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			out.Levels[name] = level
		}
	}
	return a.show(format, out)
}
