package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tulle-mesh/tulle/xds/explain"
)

const (
	pathExplain = "/debug/explain"
	// outside is a caller that is nobody's pod.
	outside = "outside"
	// labelGateway is on the pods of a Gateway.
	labelGateway = "gateway.networking.k8s.io/gateway-name"
)

// explanation is the answer to `tulle explain`.
type explanation struct{ explain.Answer }

func (e *explanation) data() any { return &e.Answer }

// lacks reports whether the call is not allowed, whatever authorizers say and wherever
// it goes.
func (e *explanation) lacks() bool { return e.Verdict != explain.Allowed }

func (e *explanation) table(time.Time) *table {
	t := &table{header: []string{"VERDICT", "BACKEND", "SHARE", "PODS", "MTLS", "WHY"}}
	var sum uint64
	for _, b := range e.Backends {
		sum += uint64(b.Weight)
	}
	if in := e.Entrance; in != nil {
		t.row(string(in.Verdict), "Gateway "+in.Gateway, "", "", "", in.Reason)
	}
	for _, b := range e.Backends {
		name, share := backendName(b), fmt.Sprintf("%.3g%%", 100*float64(b.Weight)/float64(sum))
		if len(b.Pods) == 0 {
			why := "it has no endpoint that is ready"
			if b.Service == "" {
				why = "the rule names what does not exist, or may not be referred to: this share is answered with 500"
			}
			t.row("", name, share, fmt.Sprintf("0/%d", b.Endpoints), "", why)
		}
		for _, p := range b.Pods {
			t.row(string(p.Verdict), name, share, fmt.Sprintf("%d/%d", len(p.Endpoints), b.Endpoints), encryption(p), p.Reason)
		}
	}
	e.notes(t)
	return t
}

func backendName(b explain.Backend) string {
	if b.Service == "" {
		return ""
	}
	name := fmt.Sprintf("%s:%d", b.Service, b.Port)
	for _, k := range slices.Sorted(maps.Keys(b.Subset)) {
		name += fmt.Sprintf(" %s=%s", k, b.Subset[k])
	}
	return name
}

// encryption is how the caller speaks to the pods, and what they would take.
func encryption(p explain.Pods) string {
	how := "plaintext"
	if p.MTLS {
		how = "mTLS"
	}
	return fmt.Sprintf("%s (%s)", how, p.Mode)
}

// notes say who calls, what routes the call, and which rules match.
func (e *explanation) notes(t *table) {
	who := "The caller has no sidecar: no identity, and no route"
	switch {
	case e.Entrance != nil:
		who = "The caller is a client of the Gateway"
	case e.Caller.Meshed:
		who = "The caller is " + e.Caller.Identity
	}
	if e.Caller.Address != "" {
		who += ", from " + e.Caller.Address
	}
	t.note("%s.", who)
	answers := "the caller's sidecar"
	if in := e.Entrance; in != nil {
		answers = "the gateway"
		if in.Listener != "" {
			t.note("It comes in at listener %s of Gateway %s, port %d.", in.Listener, in.Gateway, e.Port)
		}
		for _, m := range in.Rules {
			t.note("  %s", ruleText(m))
		}
		dryRun(t, in.Decision)
	}
	if r := e.Route; r != nil {
		said := fmt.Sprintf("It is routed by %s %s", r.Kind, r.Name)
		if r.Rule != "" && r.Rule != r.Name {
			said += ", rule " + r.Rule
		}
		switch {
		case r.Kind == "":
			said = fmt.Sprintf("%s%s answers %s", strings.ToUpper(answers[:1]), answers[1:], r.Answer)
		case r.Answer != "":
			said += fmt.Sprintf(", and %s answers %s", answers, r.Answer)
		case r.Kind == "Gateway":
			said += "; the request is taken to leave it as it stands (ask for a URL to have its routes looked at)"
		}
		t.note("%s.", said)
	}
	for _, b := range e.Backends {
		for _, p := range b.Pods {
			if len(p.Rules)+len(p.Enforced)+len(p.Path) == 0 {
				continue
			}
			t.note("\n%s, port %d:", list(p.Endpoints, 3), p.Port)
			if p.Path != "" {
				t.note("  are asked for %s", p.Path)
			}
			for _, m := range p.Rules {
				t.note("  %s", ruleText(m))
			}
			dryRun(t, p.Decision)
		}
	}
}

func dryRun(t *table, d explain.Decision) {
	if d.Enforced != "" {
		t.note("  Enforced, the rules of DryRun would make this %s.", d.Enforced)
	}
}

// ruleText is a rule that matches, the one that decides marked.
func ruleText(m explain.Match) string {
	mark := " "
	if m.Decides {
		mark = "*"
	}
	text := fmt.Sprintf("%s %s rule %s of MeshPolicy %s", mark, m.Action, m.Rule, m.Policy)
	if m.Authorizer != "" {
		text += ", which asks " + m.Authorizer
	}
	if m.Unasked {
		text += " (there is nobody to ask, so that it denies)"
	}
	if m.DryRun {
		text += " (DryRun: it decides nothing)"
	}
	return text
}

// call is what the flags of `tulle explain` say.
type call struct {
	headers []string
	claims  string // JSON, or @ and the name of a file
	explain.Question
}

func (a *app) explainCommand() *cobra.Command {
	var format string
	var q call
	cmd := &cobra.Command{
		Use:   "explain CALLER SERVICE[:PORT] | gateway/NAME [SCHEME://]HOST[:PORT]/PATH",
		Short: "Is a call allowed, by which rule, and where does it go",
		Long: a.text(`
Says what becomes of a call: whether the pods that it may go to let it in, which
rule of which MeshPolicy decides that (marked with *) and which others match,
rules of Audit and DryRun too; whether it is encrypted, and who the caller is by
its certificate; which route or TrafficSplit takes it, to which backends, with
which weights and how many endpoints. The control plane works it out from the
mesh as it knows it: nothing is called.

CALLER is NAME, NAMESPACE/NAME or a workload such as deploy/NAME; sa/NAME or
NAMESPACE/sa/NAME, a pod of the mesh that runs as that service account;
gateway/NAME, the proxy of a Gateway; or 'outside', who is in no pod of the mesh.
SERVICE is NAME or NAMESPACE/NAME, in the namespace of -n.

What a client outside of the mesh asks a Gateway for is gateway/NAME and a URL,
such as https://shop.example/cart: which listener takes it, what its policies
say, which rule of which route it is sent on by, and what the backends say to
it, as the gateway's proxy calls them. Without a scheme it is http, and the host
has a dot in it.

It is about the mesh's rules: rate limits, faults, NetworkPolicies and the
application itself may refuse what is allowed here.

Exit codes: 0 allowed, 1 error, 2 denied; also where an external authorizer is
asked, or pods differ, or no backend has any.`),
		Example: a.text(`
  {tulle} explain deploy/frontend reviews:9080 --path /reviews/1 -n shop
  {tulle} explain sa/frontend reviews --method DELETE --header x-role=admin
  {tulle} explain outside shop/reviews --source-ip 192.0.2.7
  {tulle} explain sa/frontend reviews --jwt-claims '{"iss":"https://accounts.example","sub":"alice"}'
  {tulle} explain gateway/edge https://shop.example/cart --source-ip 192.0.2.7
  {tulle} explain frontend-7d9f-x2 mysql:3306 --tcp -o json`),
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			return a.explain(cmd.Context(), args[0], args[1], q, format)
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Method, "method", "GET", "Method of the request")
	f.StringVar(&q.Path, "path", "/", "Path of the request, with its query")
	f.StringVar(&q.Host, "host", "", "Host of the request (default: the Service's name)")
	f.StringArrayVar(&q.headers, "header", nil, "Header of the request, as name=value; may be repeated")
	f.StringVar(&q.claims, "jwt-claims", "", "Claims of the request's token, as JSON or @FILE; it is taken to be well signed, in its time and in its place")
	f.StringVar(&q.Address, "source-ip", "", "Address that the call comes from (default: the pod's)")
	f.BoolVar(&q.TCP, "tcp", false, "A connection that is not HTTP")
	f.StringVar(&q.SNI, "sni", "", "A connection of the application's own TLS, for a server of this name")
	for _, http := range []string{"method", "path", "host", "header", "jwt-claims"} {
		cmd.MarkFlagsMutuallyExclusive(http, "tcp")
		cmd.MarkFlagsMutuallyExclusive(http, "sni")
	}
	outputFlag(cmd, &format)
	return cmd
}

func (a *app) explain(ctx context.Context, caller, service string, q call, format string) error {
	for _, h := range q.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return fmt.Errorf("--header %q: write it as name=value", h)
		}
		q.Headers = append(q.Headers, explain.Header{Name: name, Value: value})
	}
	if err := claimsOf(q.claims, &q.Question); err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	atGateway := strings.HasPrefix(caller, "gateway/") || strings.Contains(caller, "/gateway/")
	switch {
	case isURL(service) && !atGateway:
		return fmt.Errorf("%s is asked of a Gateway: name gateway/NAME before it, or else a SERVICE", service)
	case isURL(service):
		err = urlOf(service, &q.Question)
	default:
		err = serviceOf(service, c.namespace, &q.Question)
	}
	if err != nil {
		return err
	}
	if err := c.callerOf(ctx, caller, &q.Question); err != nil {
		return err
	}
	v := &explanation{}
	if err := c.askControlPlane(ctx, pathExplain, q.Question, &v.Answer); err != nil {
		return err
	}
	if err := a.show(format, v); err != nil {
		return err
	}
	if v.lacks() {
		return errLacking
	}
	return nil
}

// isURL reports whether the argument is what a client asks a Gateway for: it has a scheme,
// or a host with a dot, which neither a namespace nor a Service has.
func isURL(arg string) bool {
	host, _, _ := strings.Cut(arg, "/")
	return strings.Contains(arg, "://") || strings.Contains(host, ".")
}

// urlOf reads HOST, HOST:PORT, each with a scheme and a path or without.
func urlOf(arg string, q *explain.Question) error {
	if !strings.Contains(arg, "://") {
		arg = "http://" + arg
	}
	u, err := url.Parse(arg)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q is no URL of HTTP: write http://HOST/PATH, or https://HOST:PORT/PATH", arg)
	}
	if q.Host != "" || q.Path != "/" || q.TCP || q.SNI != "" {
		return errors.New("the URL says it all: leave out --host, --path, --tcp and --sni")
	}
	q.Scheme, q.Host, q.Port = u.Scheme, u.Host, map[string]uint16{"http": 80, "https": 443}[u.Scheme]
	// As it is written, escapes and dots too.
	_, rest, _ := strings.Cut(arg, "://")
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		q.Path = "/" + strings.TrimPrefix(rest[i:], "/")
	}
	if p := u.Port(); p != "" {
		port, err := strconv.ParseUint(p, 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("%q is no port", p)
		}
		q.Port = uint16(port)
	}
	return nil
}

// claimsOf reads the claims of a token.
func claimsOf(arg string, q *explain.Question) error {
	text := []byte(arg)
	if file, ok := strings.CutPrefix(arg, "@"); ok {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return fmt.Errorf("--jwt-claims: %w", err)
		}
	}
	if len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, &q.Claims); err != nil || len(q.Claims) == 0 {
		return errors.New(`--jwt-claims: these are no claims: write a JSON object, such as '{"iss":"https://accounts.example","sub":"alice"}', or @FILE with one`)
	}
	return nil
}

// serviceOf reads NAME, NAMESPACE/NAME, each with :PORT or without.
func serviceOf(arg, namespace string, q *explain.Question) error {
	name, number, hasPort := strings.Cut(arg, ":")
	if !strings.Contains(name, "/") {
		name = namespace + "/" + name
	}
	q.Service = name
	if !hasPort {
		return nil
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q is no port of a Service: want SERVICE, or SERVICE:PORT with its number", number)
	}
	q.Port = uint16(port)
	return nil
}

// callerOf finds who calls.
func (c *cluster) callerOf(ctx context.Context, arg string, q *explain.Question) error {
	if arg == outside {
		return nil
	}
	parts := strings.Split(arg, "/")
	if len(parts) == 2 && (parts[0] == "sa" || parts[0] == "gateway") {
		parts = []string{c.namespace, parts[0], parts[1]}
	}
	if len(parts) == 3 && parts[1] == "sa" {
		q.ServiceAccount = parts[0] + "/" + parts[2]
		return nil
	}
	if len(parts) == 3 && parts[1] == "gateway" {
		pods, err := c.listPods(ctx, parts[0], labelGateway+"="+parts[2])
		if err != nil {
			return err
		}
		if len(pods) == 0 {
			return &advice{fmt.Errorf("the Gateway %s/%s has no pods", parts[0], parts[2]), fmt.Sprintf("kubectl -n %s get gateways", parts[0])}
		}
		q.Pod = podName(&pods[0])
		return nil
	}
	t, err := parseTarget(arg, c.namespace)
	if err != nil {
		return err
	}
	pods, err := c.pods(ctx, t)
	if err != nil {
		return err
	}
	q.Pod = podName(&pods[0])
	for i := range pods {
		if !over(&pods[i]) {
			q.Pod = podName(&pods[i])
			break
		}
	}
	return nil
}
