package translate

import (
	"regexp"
	"slices"
	"strings"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/cel-go/common"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/parser"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// condition is what must hold besides: permissions, and an expression in CEL, which may
// be empty. It is false where an Allow rule asks for what is not known, or any for what
// there is not, and so never matches.
func (k known) condition(c mesh.Condition, strict bool) (all []*rbacconfig.Permission, expression string, possible bool) {
	if strict && (len(c.Headers) > 0 && !k.http || c.HasSNI() && !k.sni || len(c.Claims) > 0 && !k.tokens.held()) || len(c.SNI) > 0 && k.nameless {
		return nil, "", false
	}
	var terms []string
	if k.http {
		for _, h := range c.Headers {
			switch {
			case len(h.Values) > 0 && strict:
				terms = append(terms, onlyValue(h.Name, h.Values))
			case len(h.Values) > 0:
				all = append(all, someValue(h.Name, h.Values))
			}
			switch {
			case len(h.NotValues) > 0 && strict:
				all = append(all, not(someValue(h.Name, h.NotValues)))
			case len(h.NotValues) > 0:
				terms = append(terms, "!("+onlyValue(h.Name, h.NotValues)+")")
			}
		}
	}
	if k.tokens.held() {
		all = append(all, claims(c.Claims, strict)...)
	}
	if k.sni {
		all = append(all, k.serverName(c, strict)...)
	}
	if len(terms) > 0 {
		expression = and(terms...)
	}
	return all, expression, true
}

// someValue matches if one of a header's values does: a header may be sent in several
// lines, and each may be a list (RFC 9110, section 5.3). RBAC looks at each line by
// itself.
func someValue(name string, values []string) *rbacconfig.Permission {
	if slices.Contains(values, "*") {
		return headerPresent(name)
	}
	return anyOfPermissions(each(values, func(v string) *rbacconfig.Permission {
		text := regexp.QuoteMeta(v)
		if p, ok := strings.CutSuffix(v, "*"); ok {
			text = regexp.QuoteMeta(p) + ".*"
		} else if s, ok := strings.CutPrefix(v, "*"); ok {
			text = ".*" + regexp.QuoteMeta(s)
		}
		return headerPermission(name, regex(`(?s)(.*,)?[ \t]*`+text+`[ \t]*(,.*)?`))
	}))
}

// onlyValue is an expression that holds if the header has one value, and that matches.
// Which of several the application takes nobody can say. In CEL a header is all its
// lines, joined by commas: RBAC's own matchers could not tell that there are two.
func onlyValue(name string, values []string) string {
	header := "request.headers[" + quoted(name) + "]"
	matches := each(values, func(v string) string {
		if v == "*" {
			return header + ` != ""`
		}
		if p, ok := strings.CutSuffix(v, "*"); ok {
			return header + ".startsWith(" + quoted(p) + ")"
		}
		if s, ok := strings.CutPrefix(v, "*"); ok {
			return header + ".endsWith(" + quoted(s) + ")"
		}
		return header + " == " + quoted(v)
	})
	return and(quoted(name)+" in request.headers", "!"+header+`.contains(",")`, or(matches))
}

// parsed is an expression in CEL as RBAC takes it.
func parsed(expression string) *expr.Expr {
	// Nobody but this package writes expressions, out of texts that the API bounds.
	p, err := parser.NewParser(parser.ExpressionSizeCodePointLimit(-1), parser.MaxExpressionNodeCount(-1))
	if err != nil {
		panic(err) // the options are fixed
	}
	tree, faults := p.Parse(common.NewTextSource(expression))
	if len(faults.GetErrors()) > 0 {
		panic(faults.ToDisplayString()) // it is made of literals
	}
	out, err := ast.ExprToProto(tree.Expr())
	if err != nil {
		panic(err)
	}
	return out
}

func headerPresent(name string) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_Header{Header: &route.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &route.HeaderMatcher_PresentMatch{PresentMatch: true},
	}}}
}

// serverName matches the name that the client asked for. On a port whose first bytes
// are not looked at there is none to be seen, which no Deny rule is passed by with.
func (k known) serverName(c mesh.Condition, strict bool) []*rbacconfig.Permission {
	var all []*rbacconfig.Permission
	if len(c.SNI) > 0 {
		names := each(c.SNI, sniPermission)
		if !strict {
			names = append(names, each(k.blind, portPermission)...)
		}
		all = append(all, anyOfPermissions(names))
	}
	if len(c.NotSNI) > 0 {
		if strict {
			all = append(all, sniPermission("*"))
		}
		all = append(all, not(anyOfPermissions(each(c.NotSNI, sniPermission))))
	}
	return all
}

// sniPermission takes a name with the dot of a fully qualified one for the name, as some
// servers do, though no client is to send it (RFC 6066, section 3).
func sniPermission(name string) *rbacconfig.Permission {
	text := regexp.QuoteMeta(strings.TrimSuffix(name, "."))
	switch {
	case name == "*":
		text = ".+"
	case strings.HasSuffix(name, "*"):
		text = regexp.QuoteMeta(strings.TrimSuffix(name, "*")) + ".*"
	case strings.HasPrefix(name, "*"):
		text = ".*" + strings.TrimPrefix(text, `\*`)
	}
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_RequestedServerName{RequestedServerName: regex("(?is)" + text + `\.?`)}}
}
