package observe

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// httpRoute converts an HTTPRoute. Its hostnames mean nothing where a parent is a
// Service (GEP-1294).
func httpRoute(r *gatewayv1.HTTPRoute) *mesh.Route {
	var bad problems
	out := &mesh.Route{Meta: meta(r.ObjectMeta), Of: mesh.KindHTTPRoute, Parents: parents(r.Namespace, r.Spec.ParentRefs), Hostnames: hostnames(r.Spec.Hostnames)}
	c := routing{namespace: r.Namespace, bad: &bad}
	for i, in := range r.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		var matches []mesh.RequestMatch
		for j, m := range in.Matches {
			matches = append(matches, c.httpMatch(fmt.Sprintf("%s.matches[%d]", field, j), m))
		}
		out.Rules = append(out.Rules, c.rule(field, matches, in))
	}
	out.Invalid = bad.sentence()
	return out
}

// grpcRoute converts a GRPCRoute. A method is a path: /service/method.
func grpcRoute(r *gatewayv1.GRPCRoute) *mesh.Route {
	var bad problems
	out := &mesh.Route{Meta: meta(r.ObjectMeta), Of: mesh.KindGRPCRoute, Parents: parents(r.Namespace, r.Spec.ParentRefs), Hostnames: hostnames(r.Spec.Hostnames)}
	c := routing{namespace: r.Namespace, bad: &bad}
	for i, in := range r.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		var matches []mesh.RequestMatch
		for j, m := range in.Matches {
			matches = append(matches, c.grpcMatch(fmt.Sprintf("%s.matches[%d]", field, j), m))
		}
		rest := gatewayv1.HTTPRouteRule{Name: in.Name, Filters: ofHTTP(in.Filters), SessionPersistence: in.SessionPersistence}
		for _, b := range in.BackendRefs {
			rest.BackendRefs = append(rest.BackendRefs, gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef, Filters: ofHTTP(b.Filters)})
		}
		out.Rules = append(out.Rules, c.rule(field, matches, rest))
	}
	if len(out.Rules) == 0 {
		bad.add("spec.rules: there are none, and every call would fail: write one, with backendRefs")
	}
	out.Invalid = bad.sentence()
	return out
}

// rule converts all of a rule but its matches.
func (c routing) rule(field string, matches []mesh.RequestMatch, in gatewayv1.HTTPRouteRule) mesh.RouteRule {
	out := mesh.RouteRule{Name: string(deref(in.Name)), Matches: matches}
	c.filters(field+".filters", in.Filters, &out)
	for j, b := range in.BackendRefs {
		out.Backends = append(out.Backends, c.backend(fmt.Sprintf("%s.backendRefs[%d]", field, j), b.BackendRef, b.Filters, &out))
	}
	if t := in.Timeouts; t != nil {
		out.Timeout = c.duration(field+".timeouts.request", t.Request)
		out.TryTimeout = c.duration(field+".timeouts.backendRequest", t.BackendRequest)
	}
	out.Retries = c.retries(field+".retry", in.Retry)
	if in.SessionPersistence != nil {
		c.unsupported(field+".sessionPersistence", &out)
	}
	return out
}

// ofHTTP are a GRPCRoute's filters as those of an HTTPRoute, of which they are some.
func ofHTTP(in []gatewayv1.GRPCRouteFilter) []gatewayv1.HTTPRouteFilter {
	out := make([]gatewayv1.HTTPRouteFilter, 0, len(in))
	for _, f := range in {
		out = append(out, gatewayv1.HTTPRouteFilter{
			Type:                  gatewayv1.HTTPRouteFilterType(f.Type),
			RequestHeaderModifier: f.RequestHeaderModifier, ResponseHeaderModifier: f.ResponseHeaderModifier,
			RequestMirror: f.RequestMirror,
		})
	}
	return out
}

func parents(namespace string, refs []gatewayv1.ParentReference) []mesh.Parent {
	var out []mesh.Parent
	for i, r := range refs {
		p := mesh.Parent{
			Index:   i,
			Name:    mesh.Name{Namespace: cmp.Or(string(deref(r.Namespace)), namespace), Name: string(r.Name)},
			Port:    uint16(deref(r.Port)), // 1 to 65535, or absent
			Section: string(deref(r.SectionName)),
		}
		group := gatewayv1.GroupName
		if r.Group != nil {
			group = string(*r.Group)
		}
		switch cmp.Or(string(deref(r.Kind)), "Gateway") {
		case "Service":
			p.Kind = mesh.KindService
			if group == "" {
				out = append(out, p)
			}
		case "Gateway":
			p.Kind = mesh.KindGateway
			if group == gatewayv1.GroupName {
				out = append(out, p)
			}
		}
	}
	return out
}

func hostnames(in []gatewayv1.Hostname) []string {
	out := make([]string, 0, len(in))
	for _, h := range in {
		out = append(out, strings.ToLower(string(h)))
	}
	return out
}

// routing converts the parts of one route.
type routing struct {
	namespace string
	bad       *problems
}

func (c routing) httpMatch(field string, m gatewayv1.HTTPRouteMatch) mesh.RequestMatch {
	out := mesh.RequestMatch{Method: string(deref(m.Method))}
	if p := m.Path; p != nil {
		value := cmp.Or(deref(p.Value), "/")
		out.Path = &mesh.StringMatch{Value: value}
		switch t := deref(p.Type); t {
		case gatewayv1.PathMatchExact:
			out.Path.Type = mesh.Exact
		case "", gatewayv1.PathMatchPathPrefix:
			out.Path.Type = mesh.Prefix
		case gatewayv1.PathMatchRegularExpression:
			out.Path.Type = mesh.Regex
			expression(field+".path", value, c.bad)
		default:
			c.bad.add("%s.path.type: %q is not known", field, t)
		}
	}
	for i, h := range m.Headers {
		out.Headers = append(out.Headers, c.valueMatch(fmt.Sprintf("%s.headers[%d]", field, i), string(deref(h.Type)), strings.ToLower(string(h.Name)), h.Value))
	}
	for i, q := range m.QueryParams {
		out.Query = append(out.Query, c.valueMatch(fmt.Sprintf("%s.queryParams[%d]", field, i), string(deref(q.Type)), string(q.Name), q.Value))
	}
	out.Headers, out.Query = firsts(out.Headers), firsts(out.Query)
	return out
}

// firsts leaves out what names a header again: the first counts, says the API.
func firsts(in []mesh.HeaderMatch) []mesh.HeaderMatch {
	var out []mesh.HeaderMatch
	seen := map[string]bool{}
	for _, h := range in {
		if !seen[h.Name] {
			out = append(out, h)
		}
		seen[h.Name] = true
	}
	return out
}

func (c routing) valueMatch(field, kind, name, value string) mesh.HeaderMatch {
	out := mesh.HeaderMatch{Name: name, Value: value}
	switch kind {
	case "", string(gatewayv1.HeaderMatchExact):
	case string(gatewayv1.HeaderMatchRegularExpression):
		out.Type = mesh.Regex
		expression(field, value, c.bad)
	default:
		c.bad.add("%s.type: %q is not known", field, kind)
	}
	return out
}

func (c routing) grpcMatch(field string, m gatewayv1.GRPCRouteMatch) mesh.RequestMatch {
	var out mesh.RequestMatch
	out.GRPC = &mesh.MethodMatch{}
	if p := m.Method; p != nil {
		service, method := deref(p.Service), deref(p.Method)
		out.GRPC.Service, out.GRPC.Method = len(service), len(method)
		const something = "[^/]+"
		switch t := deref(p.Type); t {
		case "", gatewayv1.GRPCMethodMatchExact:
			switch {
			case service != "" && method != "":
				out.Path = &mesh.StringMatch{Type: mesh.Exact, Value: "/" + service + "/" + method}
			case service != "":
				out.Path = &mesh.StringMatch{Type: mesh.Prefix, Value: "/" + service}
			case method != "":
				out.Path = &mesh.StringMatch{Type: mesh.Regex, Value: "/" + something + "/" + regexp.QuoteMeta(method)}
			}
		case gatewayv1.GRPCMethodMatchRegularExpression:
			out.Path = &mesh.StringMatch{Type: mesh.Regex, Value: "/(?:" + cmp.Or(service, something) + ")/(?:" + cmp.Or(method, something) + ")"}
			expression(field+".method", out.Path.Value, c.bad)
		default:
			c.bad.add("%s.method.type: %q is not known", field, t)
		}
	}
	for i, h := range m.Headers {
		out.Headers = append(out.Headers, c.valueMatch(fmt.Sprintf("%s.headers[%d]", field, i), string(deref(h.Type)), strings.ToLower(string(h.Name)), h.Value))
	}
	out.Headers = firsts(out.Headers)
	return out
}

// unsupported notes what of a rule Tulle does not do.
func (c routing) unsupported(field string, rule *mesh.RouteRule) {
	if rule.Unsupported == "" {
		rule.Unsupported = field + " is not supported: take it out; requests that match the rule are answered with 500"
	}
}

func (c routing) filters(field string, in []gatewayv1.HTTPRouteFilter, rule *mesh.RouteRule) {
	for i, f := range in {
		at := fmt.Sprintf("%s[%d]", field, i)
		out := &rule.Filters
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out.Request = c.headerChanges(at+".requestHeaderModifier", f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out.Response = c.headerChanges(at+".responseHeaderModifier", f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			r := f.RequestRedirect
			out.Redirect = &mesh.Redirect{
				Scheme: deref(r.Scheme), Host: string(deref(r.Hostname)), Port: uint16(deref(r.Port)),
				Path: c.pathChange(at, r.Path), Status: uint32(cmp.Or(deref(r.StatusCode), 302)), // one of five, says the API
			}
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			out.Rewrite = &mesh.Rewrite{Host: string(deref(f.URLRewrite.Hostname)), Path: c.pathChange(at, f.URLRewrite.Path)}
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
			out.Mirrors = append(out.Mirrors, c.mirror(f.RequestMirror))
		case f.Type == gatewayv1.HTTPRouteFilterCORS && f.CORS != nil:
			out.CORS = cors(f.CORS)
		default:
			c.unsupported(at+" (type "+string(f.Type)+")", rule)
		}
	}
}

// token is the name of a header (RFC 9110, section 5.6.2). Envoy refuses all that comes
// with another, and with a value that is more than a line.
var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_|~`-]+$")

func (c routing) line(field, value string) string {
	if strings.ContainsAny(value, "\x00\r\n") {
		c.bad.add("%s: %q is more than a line: take the line break out", field, value)
	}
	return value
}

func (c routing) headerChanges(field string, in *gatewayv1.HTTPHeaderFilter) *mesh.HeaderChanges {
	out := &mesh.HeaderChanges{}
	name := func(n string) string {
		n = strings.ToLower(n)
		if !token.MatchString(n) {
			c.bad.add("%s: %q is no name of a header", field, n)
		}
		if strings.HasPrefix(n, ":") || n == "host" {
			c.bad.add("%s: the header %q cannot be changed; a host is changed by a filter of type URLRewrite", field, n)
		}
		return n
	}
	for _, h := range in.Set {
		out.Set = append(out.Set, mesh.Header{Name: name(string(h.Name)), Value: c.line(field, h.Value)})
	}
	for _, h := range in.Add {
		out.Add = append(out.Add, mesh.Header{Name: name(string(h.Name)), Value: c.line(field, h.Value)})
	}
	for _, h := range in.Remove {
		out.Remove = append(out.Remove, name(h))
	}
	return out
}

func (c routing) pathChange(field string, p *gatewayv1.HTTPPathModifier) *mesh.PathChange {
	if p == nil {
		return nil
	}
	out := &mesh.PathChange{Value: deref(p.ReplaceFullPath)}
	if p.Type == gatewayv1.PrefixMatchHTTPPathModifier {
		out.Prefix, out.Value = true, deref(p.ReplacePrefixMatch)
	}
	// A prefix may become nothing, and leaves the slash that follows it.
	if !strings.HasPrefix(out.Value, "/") && (!out.Prefix || out.Value != "") {
		c.bad.add("%s: the path %q does not begin with a slash: write one", field, out.Value)
	}
	c.line(field, out.Value)
	return out
}

// defaultCORSAge is the API's default, in seconds.
const defaultCORSAge = 5

// cors converts a CORS filter, whose values the API has checked.
func cors(in *gatewayv1.HTTPCORSFilter) *mesh.CORS {
	out := &mesh.CORS{Credentials: deref(in.AllowCredentials), MaxAge: uint32(max(0, cmp.Or(in.MaxAge, defaultCORSAge)))}
	for _, o := range in.AllowOrigins {
		out.Origins = append(out.Origins, strings.ToLower(string(o)))
	}
	for _, m := range in.AllowMethods {
		out.Methods = append(out.Methods, string(m))
	}
	for _, h := range in.AllowHeaders {
		out.Headers = append(out.Headers, string(h))
	}
	for _, h := range in.ExposeHeaders {
		out.Expose = append(out.Expose, string(h))
	}
	return out
}

func (c routing) mirror(m *gatewayv1.HTTPRequestMirrorFilter) mesh.RouteMirror {
	out := mesh.RouteMirror{Backend: c.target(m.BackendRef), Numerator: 100, Denominator: 100}
	switch {
	case m.Percent != nil:
		out.Numerator = uint32(*m.Percent) // 0 to 100
	case m.Fraction != nil: // the numerator is at most the denominator
		out.Numerator, out.Denominator = uint32(m.Fraction.Numerator), uint32(cmp.Or(deref(m.Fraction.Denominator), 100))
	}
	return out
}

// backend converts a backend. Its filters are those of its share of the requests.
func (c routing) backend(field string, b gatewayv1.BackendRef, filters []gatewayv1.HTTPRouteFilter, rule *mesh.RouteRule) mesh.RouteBackend {
	out := mesh.RouteBackend{Backend: c.target(b.BackendObjectReference), Weight: 1}
	if b.Weight != nil {
		out.Weight = uint32(*b.Weight) // 0 to 1,000,000
	}
	var own mesh.RouteRule
	c.filters(field+".filters", filters, &own)
	out.Request, out.Response = own.Filters.Request, own.Filters.Response
	if own.Unsupported == "" && (own.Filters.Redirect != nil || own.Filters.Rewrite != nil || own.Filters.Mirrors != nil || own.Filters.CORS != nil) {
		c.unsupported(field+".filters: of a backend's, what is no header modifier,", rule)
	}
	rule.Unsupported = cmp.Or(rule.Unsupported, own.Unsupported)
	return out
}

func (c routing) target(b gatewayv1.BackendObjectReference) mesh.Backend {
	kind := string(deref(b.Kind))
	if b.Kind == nil {
		kind = mesh.BackendService
	}
	if g := string(deref(b.Group)); g != "" {
		kind = g + "/" + kind
	}
	return mesh.Backend{
		Kind: kind,
		Name: mesh.Name{Namespace: cmp.Or(string(deref(b.Namespace)), c.namespace), Name: string(b.Name)},
		Port: uint16(deref(b.Port)),
	}
}

// duration converts a duration of the Gateway API, which Go can parse (GEP-2257).
func (c routing) duration(field string, d *gatewayv1.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	out, err := time.ParseDuration(string(*d))
	if err != nil {
		c.bad.add("%s: %q is no duration: write one such as 2s", field, *d)
	}
	return &out
}

// maxAttempts is more than anybody tries.
const maxAttempts = 100

// retries converts a rule's retries: of what got no response, and of responses with the
// codes.
func (c routing) retries(field string, in *gatewayv1.HTTPRouteRetry) *mesh.Retries {
	if in == nil {
		return nil
	}
	out := &mesh.Retries{Attempts: uint32(min(max(0, deref(in.Attempts)), maxAttempts))}
	if in.Attempts == nil {
		out.Attempts = 1
	}
	for _, code := range in.Codes {
		out.Codes = append(out.Codes, uint32(code)) // 400 to 599
	}
	if d := c.duration(field+".backoff", in.Backoff); d != nil {
		out.Base = *d
	}
	return out
}

// grant converts a ReferenceGrant.
func grant(g *gatewayv1beta1.ReferenceGrant) *mesh.Grant {
	out := &mesh.Grant{Name: mesh.Name{Namespace: g.Namespace, Name: g.Name}}
	for _, f := range g.Spec.From {
		out.From = append(out.From, mesh.GrantFrom{Group: string(f.Group), Kind: string(f.Kind), Namespace: string(f.Namespace)})
	}
	for _, t := range g.Spec.To {
		out.To = append(out.To, mesh.GrantTo{Group: string(t.Group), Kind: string(t.Kind), Name: string(deref(t.Name))})
	}
	return out
}

// deref is what a field says, or nothing.
func deref[T any](p *T) T {
	if p == nil {
		var none T
		return none
	}
	return *p
}
