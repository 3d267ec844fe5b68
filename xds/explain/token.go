package explain

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// refused is why a request of HTTP is, and with what status; 0: it is not said.
type refused struct {
	status int
	why    string
}

// read learns of the request's token what the sidecar does, and why it refuses the request.
func (k *facts) read(t translate.Tokens) refused {
	if !t.Held() {
		return refused{}
	}
	if p := t.Invalid(); p != nil {
		return refused{http.StatusForbidden, fmt.Sprintf("MeshPolicy %s cannot be understood, and so denies every request: %s", p.Meta.Name, p.Invalid)}
	}
	k.tokens = true
	for _, i := range t.Issuers() {
		for _, c := range i.ClaimsToHeaders { // nobody else may say so
			change(k.http, &mesh.HeaderChanges{Remove: []string{c.Header}})
		}
	}
	if k.http.Claims == nil {
		return refused{}
	}
	of, no := issuerOf(k.http.Claims, t)
	if no.why != "" {
		return no
	}
	k.claims = maps.Clone(k.http.Claims)
	for _, name := range []string{"scope", "scp"} { // RFC 8693, section 4.2
		if text, ok := k.claims[name].(string); ok {
			k.claims[name] = words(text)
		}
	}
	for _, c := range of.ClaimsToHeaders {
		value, _ := valueAt(k.http.Claims, strings.Split(c.Claim, "."))
		if text := headerText(value); text != "" {
			change(k.http, &mesh.HeaderChanges{Add: []mesh.Header{{Name: c.Header, Value: text}}})
		}
	}
	return refused{}
}

// issuerOf is who made the token, or why it is not valid.
func issuerOf(claims map[string]any, t translate.Tokens) (of mesh.Issuer, no refused) {
	invalid := func(format string, args ...any) refused {
		return refused{http.StatusUnauthorized, fmt.Sprintf(format, args...)}
	}
	for _, name := range []string{"iss", "sub", "jti"} { // RFC 7519, section 4.1
		if v, has := claims[name]; has {
			if _, ok := v.(string); !ok {
				return of, invalid("the claim %s of a token is a text, and this one's is none: it is not valid", name)
			}
		}
	}
	audiences, ok := texts(claims["aud"])
	if !ok {
		return of, invalid("the claim aud of a token is a text or a list of some, and this one's is neither: it is not valid")
	}
	issuers := t.Issuers()
	name, _ := claims["iss"].(string)
	n := slices.IndexFunc(issuers, func(i mesh.Issuer) bool { return i.Issuer == name })
	if n < 0 {
		return of, invalid("the token is of the issuer %q, which the jwt section that holds there does not name", name)
	}
	of = issuers[n]
	if len(of.Audiences) > 0 && !slices.ContainsFunc(audiences, func(a string) bool {
		return slices.ContainsFunc(of.Audiences, func(b string) bool { return bare(a) == bare(b) })
	}) {
		return of, refused{http.StatusForbidden, "the token is for none of the audiences that are asked for: " + strings.Join(of.Audiences, ", ")}
	}
	if !t.HasKeys(name) {
		return of, invalid("the keys of the issuer %s cannot be had, so that none of its tokens is valid", name)
	}
	return of, refused{}
}

// bare is an audience as Envoy compares it: without the scheme and the last slash.
func bare(audience string) string {
	rest, secure := strings.CutPrefix(audience, "https://")
	if !secure {
		rest = strings.TrimPrefix(audience, "http://")
	}
	return strings.TrimSuffix(rest, "/")
}

// texts are what a claim says that is a text or a list of some; nil says nothing.
func texts(claim any) (out []string, ok bool) {
	switch c := claim.(type) {
	case nil:
		return nil, true
	case string:
		return []string{c}, true
	case []any:
		for _, v := range c {
			s, ok := v.(string)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

func words(text string) []any {
	var out []any
	for w := range strings.SplitSeq(text, " ") {
		if w != "" {
			out = append(out, w)
		}
	}
	return out
}

// headerText is a claim as the application gets it in a header; empty: it gets none.
func headerText(claim any) string {
	switch c := claim.(type) {
	case nil:
		return ""
	case string:
		return c
	case bool:
		return strconv.FormatBool(c)
	case float64:
		if c == math.Trunc(c) && math.Abs(c) < 1<<63 {
			return strconv.FormatInt(int64(c), 10)
		}
		return strconv.FormatFloat(c, 'f', 6, 64)
	}
	b, err := json.Marshal(claim)
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(b)
}

// valueAt is what stands in the claims under the names, from the outermost.
func valueAt(claims map[string]any, path []string) (value any, ok bool) {
	value = claims
	for _, name := range path {
		members, is := value.(map[string]any)
		if !is {
			return nil, false
		}
		if value, ok = members[name]; !ok {
			return nil, false
		}
	}
	return value, ok
}

// requestPrincipal compares who the token speaks of.
func (m matcher) requestPrincipal(s mesh.Source) bool {
	switch {
	case !s.HasToken() || m.anyToken:
		return true
	case !m.tokens:
		return !m.strict
	case m.strict && m.claims == nil: // none of those who are not meant
		return false
	}
	return either(s.RequestPrincipals, s.NotRequestPrincipals, func(p mesh.RequestPrincipal) bool {
		if m.claims == nil || p.Issuer != "" && m.claims["iss"] != p.Issuer {
			return false
		}
		subject, ok := m.claims["sub"].(string)
		return p.Subject == "*" || ok && matchesOpen(p.Subject, subject)
	})
}

// claim compares a claim of the token.
func (m matcher) claim(c mesh.ClaimCondition) bool {
	switch {
	case m.anyToken:
		return true
	case !m.tokens:
		return !m.strict
	case m.strict && m.claims == nil:
		return false
	}
	value, has := valueAt(m.claims, c.Path)
	is := func(lenient bool) func(string) bool {
		return func(want string) bool { return has && claimIs(value, want, lenient) }
	}
	return either(c.Values, nil, is(!m.strict)) && !slices.ContainsFunc(c.NotValues, is(m.strict))
}

// claimIs compares a claim, or each of its members if it is a list. "*" is any that is
// there. Where that lets in, a number is one that is written so.
func claimIs(claim any, want string, lenient bool) bool {
	is := func(v any) bool {
		switch v := v.(type) {
		case string:
			return matchesOpen(want, v)
		case bool:
			return strconv.FormatBool(v) == want
		case float64:
			n, err := strconv.ParseFloat(want, 64)
			return err == nil && n == v && (lenient || mesh.IsNumber(want))
		}
		return false
	}
	list, _ := claim.([]any)
	return want == "*" || is(claim) || slices.ContainsFunc(list, is)
}
