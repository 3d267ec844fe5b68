package translate

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
)

// Where tokens are looked for, applications may find others than Envoy does: a second one
// in the same place, or one in a spelling that Envoy does not take for the place. What it
// has not verified must not reach them as though it had.

// longestInCEL is how much of a name has room twice in a regular expression in CEL. Envoy
// takes none there that compiles to more than 100 instructions.
const longestInCEL = 30

// once refuses requests with tokens that Envoy would overlook. In CEL a header is all its
// lines, joined by commas; matchers look at each by itself.
func (t believed) once() *core.TypedExtensionConfig {
	var (
		lines           []string
		twice, misspelt []*rbacconfig.Permission
		done            []string
	)
	first := func(place string) bool {
		defer func() { done = append(done, place) }()
		return !slices.Contains(done, place)
	}
	header := func(name, pattern string) *rbacconfig.Permission {
		return headerPermission(name, regex("(?s)"+pattern))
	}
	for _, i := range t.issuers {
		for _, h := range i.headers() {
			name := strings.ToLower(h.Name)
			if len(i.Headers) > 0 && first(name+" twice "+h.Prefix) { // of "Authorization" by itself Envoy does not take two for valid
				test := `.contains(",")`
				if h.Prefix != "" { // other schemes have lists
					test += " && request.headers[" + quoted(name) + "].contains(" + quoted(h.Prefix) + ")"
				}
				lines = append(lines, and(quoted(name)+" in request.headers", "request.headers["+quoted(name)+"]"+test))
			}
			if scheme := strings.TrimRight(h.Prefix, " "); scheme != "" && scheme != h.Prefix && first(name+" "+scheme) {
				// In any case of letters it is the same one (RFC 9110, section 11.1).
				scheme = regexp.QuoteMeta(scheme)
				misspelt = append(misspelt, allPermissions([]*rbacconfig.Permission{
					header(name, `(.*,)?[ \t]*(?i:`+scheme+`)[ \t].*`), not(header(name, `[ \t]*`+scheme+` .*`)),
				}))
			}
			if first(name) && strings.Count(name, "-") <= 5 { // of more, which the API takes no longer, there are too many
				misspelt = append(misspelt, each(otherSpellings(name), headerPresent)...)
			}
		}
		for _, p := range i.Params {
			if name := anyEscape(p) + "="; first("?" + p) {
				twice = append(twice, header(":path", ".*[?&]"+name+".*[?&]"+name+".*"))
				misspelt = append(misspelt, header(":path", `[^?]*\?.*;`+name+".*")) // which separates parameters to some
			}
		}
		for _, c := range i.Cookies {
			if name := regexp.QuoteMeta(c); first("=" + c) {
				again := "(^|[;, ])" + name + "="
				if len(c) > longestInCEL { // none is like it that ends so
					again = regexp.QuoteMeta(c[len(c)-longestInCEL:]) + "="
				}
				lines = append(lines, and(`"cookie" in request.headers`, `request.headers["cookie"].matches(`+quoted(again+".*"+again)+")"))
				// Applications are generous with blanks around names, and with commas.
				misspelt = append(misspelt, header("cookie", `(.*[;, \t])?`+name+`[ \t]+=.*`), header("cookie", `.*([,\t]|[^; ] +)`+name+"=.*"))
			}
		}
	}
	rules := map[string]*rbacconfig.Policy{}
	if len(lines) > 0 {
		rules["more than one token in a place"] = &rbacconfig.Policy{Permissions: anyPermission(), Principals: anyPrincipal(), Condition: parsed(or(lines))}
	}
	if len(twice) > 0 {
		rules["more than one token in the query"] = &rbacconfig.Policy{Permissions: twice, Principals: anyPrincipal()}
	}
	if len(misspelt) > 0 {
		rules["a token in another spelling"] = &rbacconfig.Policy{Permissions: misspelt, Principals: anyPrincipal()}
	}
	if len(rules) == 0 {
		return nil
	}
	return &core.TypedExtensionConfig{Name: "once", TypedConfig: typed(&rbac.RBAC{
		Rules: &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: rules},
	})}
}

// anyEscape is a regular expression for a name in a query, any character of which may be
// escaped (RFC 3986, section 2.1).
func anyEscape(name string) string {
	var out strings.Builder
	for _, c := range []byte(name) {
		fmt.Fprintf(&out, "(?:%s|%%(?i:%02x))", regexp.QuoteMeta(string(c)), c)
	}
	return out.String()
}
