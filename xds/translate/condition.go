package translate

import (
	"regexp"
	"slices"
	"strings"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// condition is what must hold besides; false where an Allow rule asks for what is not
// known, and so never matches.
func (k known) condition(c mesh.Condition, strict bool) ([]*rbacconfig.Permission, bool) {
	if strict && (len(c.Headers) > 0 && !k.http || c.HasSNI() && !k.sni) {
		return nil, false
	}
	var all []*rbacconfig.Permission
	if k.http {
		for _, h := range c.Headers {
			if len(h.Values) > 0 {
				all = append(all, headerValues(h.Name, h.Values, strict))
			}
			if len(h.NotValues) > 0 {
				all = append(all, not(headerValues(h.Name, h.NotValues, !strict)))
			}
		}
	}
	if k.sni {
		all = append(all, k.serverName(c, strict)...)
	}
	return all, true
}

// headerValues matches a header. Envoy compares all of its lines, joined by commas,
// and a list in one line means the same (RFC 9110, section 5.3). Which value an
// application takes nobody can say: strict wants all of them to match, else one is
// enough.
func headerValues(name string, values []string, strict bool) *rbacconfig.Permission {
	if slices.Contains(values, "*") {
		if strict {
			return headerPermission(name, regex(`\C*[^ \t,]\C*`)) // any byte; something besides blanks
		}
		return headerPresent(name)
	}
	// A class, such as [^,], takes no byte that is not of UTF-8, \C takes all. So what
	// is to be refused cannot be hidden behind such a byte, and who sends one is not
	// let in.
	rest := `\C*`
	if strict {
		rest = `[^,]*`
	}
	one := "(" + strings.Join(each(values, func(v string) string { return valueExpression(v, rest) }), "|") + ")"
	const blank = `[ \t]*`
	if strict {
		return headerPermission(name, regex(blank+one+blank+"(,"+blank+one+blank+")*"))
	}
	return headerPermission(name, regex(`(\C*,)?`+blank+one+blank+`(,\C*)?`))
}

func valueExpression(value, rest string) string {
	if p, ok := strings.CutSuffix(value, "*"); ok {
		return regexp.QuoteMeta(p) + rest
	}
	if s, ok := strings.CutPrefix(value, "*"); ok {
		return rest + regexp.QuoteMeta(s)
	}
	return regexp.QuoteMeta(value)
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

func sniPermission(name string) *rbacconfig.Permission {
	m := regex("(?s).+")
	if name != "*" {
		m = pattern(name)
		m.IgnoreCase = true
	}
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_RequestedServerName{RequestedServerName: m}}
}

