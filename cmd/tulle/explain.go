package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

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

// call is what the flags of `tulle explain` say.
type call struct {
	headers []string
	claims  string // JSON, or @ and the name of a file
	explain.Question
}

// requestFlags are of a request of HTTP.
var requestFlags = []string{"method", "path", "host", "header", "jwt-claims"}

func (a *app) explainCommand() *cobra.Command {
	var format string
	var q call
	cmd := &cobra.Command{
		Use:   "explain CALLER SERVICE[:PORT] | [gateway/NAME | CALLER] [SCHEME://]HOST[:PORT]/PATH",
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
  {tulle} explain gateway/edge tls://db.example:5432
  {tulle} explain deploy/frontend api.outside.test:443 -n shop
  {tulle} explain frontend-7d9f-x2 mysql:3306 --tcp -o json`),
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			if q.SNI != "" && !slices.ContainsFunc(requestFlags, cmd.Flags().Changed) {
				q.Method, q.Path = "", "" // anything may be in it
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
	f.StringVar(&q.SNI, "sni", "", "The application's own TLS, for a server of this name, with HTTP in it where flags are of a request")
	for _, http := range requestFlags {
		cmd.MarkFlagsMutuallyExclusive(http, "tcp")
	}
	cmd.MarkFlagsMutuallyExclusive("sni", "tcp")
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
		err = outsideOf(service, &q.Question)
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

// isURL reports whether the argument is what a client asks a Gateway for, or something
// outside of the cluster: it has a scheme, or a host with a dot, which neither a namespace
// nor a Service has, or is an address of IPv6.
func isURL(arg string) bool {
	host, _, _ := strings.Cut(arg, "/")
	return strings.Contains(arg, "://") || strings.Contains(host, ".") || strings.HasPrefix(arg, "[")
}

// schemePorts are the schemes of URLs, with their ports; 0: it has none of its own.
var schemePorts = map[string]uint16{"http": 80, "https": 443, "tls": 443, "tcp": 0}

// urlOf reads HOST, HOST:PORT, each with a scheme and a path or without: what a client asks a
// Gateway for.
func urlOf(arg string, q *explain.Question) error {
	if !strings.Contains(arg, "://") {
		arg = "http://" + arg
	}
	if q.Host != "" || q.Path != "/" || q.TCP || q.SNI != "" {
		return errors.New("the URL says it all: leave out --host, --path, --tcp and --sni")
	}
	if err := readURL(arg, q); err != nil {
		return err
	}
	if q.Port == 0 {
		if q.Port = schemePorts[q.Scheme]; q.Port == 0 {
			return fmt.Errorf("%s says no port: write tcp://HOST:PORT", arg)
		}
	}
	return nil
}

// outsideOf reads the same of what is outside of the cluster.
func outsideOf(arg string, q *explain.Question) error {
	bare := !strings.Contains(arg, "://")
	if bare {
		arg = "http://" + arg
	}
	asked := *q
	asked.Path = "/"
	if err := readURL(arg, &asked); err != nil {
		return err
	}
	if q.Path != "/" && asked.Path != "/" || !bare && (q.TCP || q.SNI != "") {
		return errors.New("the URL says it: leave out --path, --tcp and --sni")
	}
	u, err := url.Parse(arg)
	if err != nil {
		return err
	}
	if asked.Path != "/" {
		q.Path = asked.Path
	}
	q.Outside, q.Port = u.Hostname(), asked.Port
	if !bare {
		q.Scheme = asked.Scheme
	}
	return nil
}

// readURL reads a URL. Without a port there is none.
func readURL(arg string, q *explain.Question) error {
	u, err := url.Parse(arg)
	if err != nil {
		return fmt.Errorf("%q is no URL: write http://HOST/PATH, https://HOST:PORT/PATH, tls://HOST or tcp://HOST:PORT", arg)
	}
	_, known := schemePorts[u.Scheme]
	if u.Hostname() == "" || !known {
		return fmt.Errorf("%q is no URL of HTTP, TLS or TCP: write http://HOST/PATH, https://HOST:PORT/PATH, tls://HOST or tcp://HOST:PORT", arg)
	}
	q.Scheme, q.Host = u.Scheme, u.Host
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
