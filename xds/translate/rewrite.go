package translate

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// headerChanges are changes of headers as Envoy takes them.
type headerChanges struct {
	add    []*core.HeaderValueOption
	remove []string
}

func (c headerChanges) some() bool { return len(c.add)+len(c.remove) > 0 }

// then are these changes and later ones as one: Envoy removes first, then sets, then adds.
func (c headerChanges) then(later headerChanges) headerChanges {
	overruled := slices.Clone(later.remove)
	for _, h := range later.add {
		if h.AppendAction == core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			overruled = append(overruled, h.Header.Key)
		}
	}
	add := slices.DeleteFunc(slices.Clone(c.add), func(h *core.HeaderValueOption) bool { return slices.Contains(overruled, h.Header.Key) })
	return headerChanges{add: append(add, later.add...), remove: slices.Concat(c.remove, later.remove)}
}

func headersOf(c *mesh.HeaderChanges) headerChanges {
	var out headerChanges
	if c == nil {
		return out
	}
	option := func(h mesh.Header, action core.HeaderValueOption_HeaderAppendAction) *core.HeaderValueOption {
		return &core.HeaderValueOption{
			// A value is a format string to Envoy.
			Header:       &core.HeaderValue{Key: h.Name, Value: strings.ReplaceAll(h.Value, "%", "%%")},
			AppendAction: action, KeepEmptyValue: true,
		}
	}
	for _, h := range c.Set {
		out.add = append(out.add, option(h, core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	}
	for _, h := range c.Add {
		out.add = append(out.add, option(h, core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD))
	}
	out.remove = slices.Clone(c.Remove)
	return out
}

// pathRewrite is how Envoy changes a path that matched: the prefix, or what an
// expression finds, which is the way where a prefix is not to leave a slash behind.
type pathRewrite struct {
	prefix string
	regex  *matcher.RegexMatchAndSubstitute
}

func pathChange(c *mesh.PathChange, m *mesh.StringMatch) pathRewrite {
	substitute := func(expression, by string) pathRewrite {
		return pathRewrite{regex: &matcher.RegexMatchAndSubstitute{
			Pattern: regex(expression).GetSafeRegex(),
			// A backslash begins a reference to what a group found.
			Substitution: strings.ReplaceAll(by, `\`, `\\`),
		}}
	}
	if !c.Prefix {
		return substitute("^.*$", c.Value)
	}
	prefix, by := "", strings.TrimRight(c.Value, "/")
	if m != nil && m.Type == mesh.Prefix {
		prefix = strings.TrimRight(m.Value, "/")
	}
	if prefix == "" || by == "" {
		// "/a" after "/", and "/" after "/a", share a slash with what follows.
		return substitute("^"+regexp.QuoteMeta(prefix)+"/*", by+"/")
	}
	return pathRewrite{prefix: by}
}

// rewrite has a route change what backends see.
func rewrite(a *route.RouteAction, r *mesh.Rewrite, m *mesh.StringMatch) {
	if r == nil {
		return
	}
	if r.Host != "" {
		a.HostRewriteSpecifier = &route.RouteAction_HostRewriteLiteral{HostRewriteLiteral: r.Host}
	}
	if r.Path != nil {
		p := pathChange(r.Path, m)
		a.PrefixRewrite, a.RegexRewrite = p.prefix, p.regex
	}
}

// defaultPort is the one that a scheme has where an address names none.
func defaultPort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}

// redirect answers with the address where the client is to go, who called a port with
// the scheme. Its port is the one
// that is named, else that of the scheme that is, else the one that was called; one
// that is its scheme's is left out of the address where Envoy would have it so.
func redirect(r *mesh.Redirect, m *mesh.StringMatch, scheme string, called uint16) *route.RedirectAction {
	out := &route.RedirectAction{HostRedirect: r.Host}
	standard := called == defaultPort(scheme)
	port := cmp.Or(r.Port, called)
	if r.Scheme != "" {
		scheme = r.Scheme
		port = cmp.Or(r.Port, defaultPort(scheme))
		out.SchemeRewriteSpecifier = &route.RedirectAction_SchemeRedirect{SchemeRedirect: scheme}
	}
	if port != defaultPort(scheme) || r.Host == "" && !standard {
		out.PortRedirect = uint32(port)
	}
	switch r.Status {
	case 302:
		out.ResponseCode = route.RedirectAction_FOUND
	case 303:
		out.ResponseCode = route.RedirectAction_SEE_OTHER
	case 307:
		out.ResponseCode = route.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		out.ResponseCode = route.RedirectAction_PERMANENT_REDIRECT
	}
	if r.Path != nil {
		switch p := pathChange(r.Path, m); {
		case !r.Path.Prefix:
			out.PathRewriteSpecifier = &route.RedirectAction_PathRedirect{PathRedirect: r.Path.Value}
		case p.regex != nil:
			out.PathRewriteSpecifier = &route.RedirectAction_RegexRewrite{RegexRewrite: p.regex}
		default:
			out.PathRewriteSpecifier = &route.RedirectAction_PrefixRewrite{PrefixRewrite: p.prefix}
		}
	}
	return out
}
