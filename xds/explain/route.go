package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// chosen is the first rule that matches; the zero value, where none does.
func chosen(rules []translate.Rule, r *HTTP) translate.Rule {
	for _, rule := range rules {
		if r == nil || routed(rule.Match, r) {
			return rule
		}
	}
	return translate.Rule{}
}

// routed reports whether the match is of the request.
func routed(m mesh.RequestMatch, r *HTTP) bool {
	path, query, _ := strings.Cut(r.Path, "?")
	if m.Path != nil && !pathRouted(*m.Path, path) || m.Method != "" && m.Method != r.Method {
		return false
	}
	if !all(m.Headers, func(h mesh.HeaderMatch) bool {
		// Each line is compared by itself.
		return slices.ContainsFunc(r.values(h.Name), func(line string) bool { return valueRouted(h, line) })
	}) {
		return false
	}
	return all(m.Query, func(q mesh.HeaderMatch) bool {
		value, ok := parameter(query, q.Name)
		return ok && valueRouted(q, value)
	})
}

// parameter is the first of the name, as it stands: routes are compared with what is
// sent, escapes and all.
func parameter(query, name string) (string, bool) {
	for p := range strings.SplitSeq(query, "&") {
		if key, value, _ := strings.Cut(p, "="); key == name {
			return value, true
		}
	}
	return "", false
}

func pathRouted(m mesh.StringMatch, path string) bool {
	switch m.Type {
	case mesh.Exact:
		return path == m.Value
	case mesh.Prefix:
		rest, ok := strings.CutPrefix(path, strings.TrimRight(m.Value, "/"))
		return ok && (rest == "" || rest[0] == '/')
	default:
		return whole(m.Value, path)
	}
}

func valueRouted(m mesh.HeaderMatch, value string) bool {
	if m.Type == mesh.Regex {
		return whole(m.Value, value)
	}
	return value == m.Value
}

// whole reports whether the expression matches all of the text.
func whole(expression, text string) bool {
	re, err := regexp.Compile("^(?:" + expression + ")$")
	return err == nil && re.MatchString(text)
}

// taken is where a request goes that the rule matches: which backends it is shared out
// among, and as what it is sent to each.
func taken(rule translate.Rule, r *HTTP) (*Route, []translate.Share, func(int) *HTTP) {
	none := func(int) *HTTP { return r }
	if rule.Of == (mesh.Ref{}) {
		return &Route{Answer: "404: no rule matches"}, nil, none
	}
	out := &Route{Kind: kindName(rule.Of.Kind), Name: rule.Of.Name.String(), Rule: rule.Name}
	sum := uint32(0)
	for _, b := range rule.Backends {
		if b.Service != (mesh.Name{}) {
			sum += b.Weight
		}
	}
	failing := 500
	if rule.Match.GRPC != nil {
		failing = 503
	}
	switch {
	case rule.Route != nil && rule.Route.Unsupported != "":
		out.Answer = fmt.Sprintf("%d: the rule asks for what is not supported: %s", failing, rule.Route.Unsupported)
	case rule.Route != nil && rule.Route.Filters.Redirect != nil:
		out.Answer = fmt.Sprintf("%d: a redirect", max(rule.Route.Filters.Redirect.Status, 301))
	case sum == 0:
		out.Answer = fmt.Sprintf("%d: the rule has no backend that exists and has a weight", failing)
	}
	if out.Answer != "" {
		return out, nil, none
	}
	return out, rule.Backends, func(i int) *HTTP { return sent(rule, i, r) }
}

func kindName(k mesh.Kind) string {
	switch k {
	case mesh.KindHTTPRoute:
		return translate.KindHTTPRoute
	case mesh.KindGRPCRoute:
		return translate.KindGRPCRoute
	case mesh.KindTLSRoute:
		return translate.KindTLSRoute
	case mesh.KindTCPRoute:
		return translate.KindTCPRoute
	case mesh.KindSplit:
		return translate.KindSplit
	default:
		return mesh.BackendService
	}
}

// sent is the request as the rule has it sent to its i-th backend.
func sent(rule translate.Rule, i int, r *HTTP) *HTTP {
	if r == nil || rule.Route == nil {
		return r
	}
	out := *r
	out.Headers = slices.Clone(r.Headers)
	change(&out, rule.Route.Filters.Request)
	change(&out, rule.Route.Backends[i].Request)
	if w := rule.Route.Filters.Rewrite; w != nil {
		if w.Host != "" {
			out.Host = w.Host
		}
		if w.Path != nil {
			out.Path = rewritten(*w.Path, rule.Match.Path, r.Path)
		}
	}
	return &out
}

func change(r *HTTP, c *mesh.HeaderChanges) {
	if c == nil {
		return
	}
	without := func(name string) {
		r.Headers = slices.DeleteFunc(r.Headers, func(h mesh.Header) bool { return strings.EqualFold(h.Name, name) })
	}
	for _, name := range c.Remove {
		without(name)
	}
	for _, h := range c.Set {
		without(h.Name)
		r.Headers = append(r.Headers, h)
	}
	r.Headers = append(r.Headers, c.Add...)
}

// rewritten is the path with the change, or with it of the prefix that matched.
func rewritten(c mesh.PathChange, m *mesh.StringMatch, path string) string {
	path, query, hasQuery := strings.Cut(path, "?")
	out := c.Value
	if c.Prefix {
		prefix := ""
		if m != nil && m.Type == mesh.Prefix {
			prefix = strings.TrimRight(m.Value, "/")
		}
		rest, by := strings.TrimPrefix(path, prefix), strings.TrimRight(c.Value, "/")
		if prefix == "" || by == "" {
			rest = "/" + strings.TrimLeft(rest, "/")
		}
		out = by + rest
	}
	if hasQuery {
		out += "?" + query
	}
	return out
}
