package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	filterchain "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	jwtauthn "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	setmetadata "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_metadata/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// believed is whose tokens are believed at a workload or at a listener of a gateway. The
// zero value is where no jwt section holds: tokens pass as they are, and nothing is
// known of them.
type believed struct {
	// policy is the one that holds.
	policy  *mesh.Policy
	issuers []tokenIssuer
}

// tokenIssuer is an issuer, and its keys as a JSON Web Key Set: one without any where
// they cannot be had, so that none of its tokens is valid.
type tokenIssuer struct {
	mesh.Issuer
	jwks string
}

// noKeys is a key set by which no token is valid: Envoy takes none that is empty. It is
// the point of P-256 whose x is the SHA-256 of a sentence, so that nobody has its private
// key (TestNobodyHasTheKeyOfNoKeys).
const noKeys = `{"keys":[{"kty":"EC","crv":"P-256","x":"WFQb12wEMcz_onl5kjbUhrxSKtBUCiGCptEtrb_Vxhk","y":"1mS1IIati1_uoYgGUecd0iAnp73Bn9IFhOpdorCzNro"}]}`

// tokensAt chooses among the policies, from the least specific to the most, and of
// equally specific ones the winner first: the last level that has any holds, as a whole.
// There a policy that cannot be understood wins, since it refuses.
func tokensAt(levels [][]*mesh.Policy, v *mesh.View) believed {
	var out believed
	for _, level := range slices.Backward(levels) {
		if len(level) == 0 {
			continue
		}
		out.policy = level[0]
		if i := slices.IndexFunc(level, func(p *mesh.Policy) bool { return p.Invalid != "" }); i >= 0 {
			out.policy = level[i]
			return out
		}
		break
	}
	if out.policy == nil {
		return out
	}
	for _, i := range out.policy.JWT.Issuers {
		one := tokenIssuer{Issuer: i, jwks: noKeys}
		if set := keySet(i, out.policy.Meta.Namespace, v); set != nil && set.JWKS != "" {
			one.jwks = set.JWKS
		}
		out.issuers = append(out.issuers, one)
	}
	return out
}

// keySet is nil where there is none (yet).
func keySet(i mesh.Issuer, namespace string, v *mesh.View) *mesh.KeySet {
	if i.Keys != nil {
		return i.Keys
	}
	name := cmp.Or(i.SecretKey, i.ConfigMapKey)
	if i.URI != "" {
		namespace, name = v.Config().RootNamespace, mesh.FetchedKey(i.URI)
	}
	set, _ := v.KeySet(namespace, i.SecretKey != "", name)
	return set
}

func (t believed) held() bool { return t.policy != nil }

const (
	// jwtMetadata is where Envoy's filter puts the payload of a valid token, under
	// payloadKey.
	jwtMetadata = "envoy.filters.http.jwt_authn"
	payloadKey  = "payload"
	// lookedKey is set in the metadata of requests whose tokens were looked at, under
	// metadataKey.
	lookedKey = "tokens"
)

// Claims that are lists written as one text with blanks (RFC 8693, section 4.2; "scp" is
// how some write it).
var spaced = []string{"scope", "scp"}

// filter looks at tokens: one that is there must be valid. It comes with the routes, so
// that other keys hold from the next request on, on every connection, and drain none.
// It is nil where no jwt section holds.
func (t believed) filter() *anypb.Any {
	if !t.held() {
		return nil
	}
	chain := &filterchain.FilterChain{}
	if once := t.once(); once != nil { // before anything is taken off
		chain.Filters = append(chain.Filters, once)
	}
	for n, only := range t.apart() {
		// Of several tokens Envoy takes a valid one for all, where none is required.
		chain.Filters = append(chain.Filters, only.verifier(fmt.Sprint("place ", n), placeKey(n)))
	}
	if len(t.issuers) > 0 {
		chain.Filters = append(chain.Filters, t.verifier("jwt", payloadKey))
	}
	chain.Filters = append(chain.Filters, &core.TypedExtensionConfig{Name: "looked", TypedConfig: typed(&setmetadata.Config{
		Metadata: []*setmetadata.Metadata{{
			MetadataNamespace: metadataKey,
			Value:             &structpb.Struct{Fields: map[string]*structpb.Value{lookedKey: structpb.NewBoolValue(true)}},
		}},
	})})
	return typed(&filterchain.FilterChainConfigPerRoute{FilterChain: chain})
}

// verifier refuses tokens that are not valid, and puts the payload of one that is into
// the metadata under the key.
func (t believed) verifier(name, key string) *core.TypedExtensionConfig {
	providers := map[string]*jwtauthn.JwtProvider{}
	for _, i := range t.issuers {
		p := i.provider()
		p.PayloadInMetadata = key
		providers[p.Issuer] = p
	}
	return &core.TypedExtensionConfig{Name: name, TypedConfig: typed(&jwtauthn.JwtAuthentication{
		Providers: providers,
		Rules: []*jwtauthn.RequirementRule{{
			Match: prefixMatch("/"),
			RequirementType: &jwtauthn.RequirementRule_Requires{Requires: &jwtauthn.JwtRequirement{
				RequiresType: &jwtauthn.JwtRequirement_AllowMissing{},
			}},
		}},
	})}
}

func placeKey(n int) string { return fmt.Sprint("place", n) }

// apart are the same issuers at each of the places where tokens are looked for, by
// itself, and for nothing but to verify; none where there is one place.
func (t believed) apart() []believed {
	type place struct {
		header        mesh.TokenHeader
		param, cookie string
	}
	var places []place
	at := map[place][]tokenIssuer{}
	add := func(p place, i tokenIssuer) {
		if at[p] == nil {
			places = append(places, p)
		}
		i.ClaimsToHeaders, i.Strip = nil, false
		i.Headers, i.Params, i.Cookies = nil, nil, nil
		switch {
		case p.param != "":
			i.Params = []string{p.param}
		case p.cookie != "":
			i.Cookies = []string{p.cookie}
		default:
			i.Headers = []mesh.TokenHeader{p.header}
		}
		at[p] = append(at[p], i)
	}
	for _, i := range t.issuers {
		for _, h := range i.headers() {
			add(place{header: mesh.TokenHeader{Name: strings.ToLower(h.Name), Prefix: h.Prefix}}, i)
		}
		for _, p := range i.Params {
			add(place{param: p}, i)
		}
		for _, c := range i.Cookies {
			add(place{cookie: c}, i)
		}
	}
	if len(places) < 2 {
		return nil
	}
	return each(places, func(p place) believed { return believed{t.policy, at[p]} })
}

// headers are where tokens are looked for: without a word "Authorization: Bearer" (RFC
// 6750, section 2.1). Envoy would look into the query, too.
func (i tokenIssuer) headers() []mesh.TokenHeader {
	if len(i.Headers)+len(i.Params)+len(i.Cookies) == 0 {
		return []mesh.TokenHeader{{Name: "authorization", Prefix: "Bearer "}}
	}
	return i.Headers
}

func (i tokenIssuer) provider() *jwtauthn.JwtProvider {
	out := &jwtauthn.JwtProvider{
		Issuer: i.Issuer.Issuer, Audiences: i.Audiences,
		JwksSourceSpecifier: &jwtauthn.JwtProvider_LocalJwks{LocalJwks: inline([]byte(i.jwks))},
		FromParams:          i.Params, FromCookies: i.Cookies,
		NormalizePayloadInMetadata: &jwtauthn.JwtProvider_NormalizePayload{
			SpaceDelimitedClaims: spaced,
		},
		Forward:          !i.Strip,
		ClockSkewSeconds: uint32(i.ClockSkew / time.Second),
	}
	for _, h := range i.headers() {
		out.FromHeaders = append(out.FromHeaders, &jwtauthn.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	for _, c := range i.ClaimsToHeaders {
		out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtauthn.JwtClaimToHeader{HeaderName: c.Header, ClaimName: c.Claim})
	}
	return out
}

// refuse adds what is refused wherever tokens are looked at: requests at which nobody
// looked, on a connection that is older than the filter, and all of them where the
// policy cannot be understood.
func (t believed) refuse(deny *ruleSet) {
	if !t.held() {
		return
	}
	if t.policy.Invalid != "" {
		deny.put(t.policy.Meta.Name.String()+"#invalid", &rbacconfig.Policy{Permissions: anyPermission(), Principals: anyPrincipal()})
	}
	// Nobody could say which of two the application takes (RFC 6750, section 2: one
	// method in each request).
	var two []*rbacconfig.Permission
	for n := range t.apart() {
		for m := range n {
			two = append(two, allPermissions([]*rbacconfig.Permission{tokenUnder(placeKey(m)), tokenUnder(placeKey(n))}))
		}
	}
	if len(two) > 0 {
		deny.put("more than one token", &rbacconfig.Policy{Permissions: []*rbacconfig.Permission{anyOfPermissions(two)}, Principals: anyPrincipal()})
	}
	deny.put("tokens not looked at", &rbacconfig.Policy{Permissions: []*rbacconfig.Permission{not(tokensLookedAt())}, Principals: anyPrincipal()})
}

// spoofed are the names under which a client could send what the application takes for
// a header with a claim. The header itself is removed by the filter, before it is set.
func (t believed) spoofed() []string {
	var out []string
	for _, i := range t.issuers {
		for _, c := range i.ClaimsToHeaders {
			out = append(out, otherSpellings(c.Header)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func metadataOf(filter string, m *matcher.ValueMatcher, path ...string) *rbacconfig.SourcedMetadata {
	return &rbacconfig.SourcedMetadata{MetadataMatcher: &matcher.MetadataMatcher{
		Filter: filter, Value: m,
		Path: each(path, func(key string) *matcher.MetadataMatcher_PathSegment {
			return &matcher.MetadataMatcher_PathSegment{Segment: &matcher.MetadataMatcher_PathSegment_Key{Key: key}}
		}),
	}}
}

func metadataPermission(filter string, m *matcher.ValueMatcher, path ...string) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_SourcedMetadata{SourcedMetadata: metadataOf(filter, m, path...)}}
}

// claim matches a claim of the valid token that a request has.
func claim(m *matcher.ValueMatcher, path ...string) *rbacconfig.Principal {
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_SourcedMetadata{
		SourcedMetadata: metadataOf(jwtMetadata, m, append([]string{payloadKey}, path...)...),
	}}
}

func text(m *matcher.StringMatcher) *matcher.ValueMatcher {
	return &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_StringMatch{StringMatch: m}}
}

func there() *matcher.ValueMatcher {
	return &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_PresentMatch{PresentMatch: true}}
}

// tokenUnder matches a request with a valid token whose payload is under the key.
func tokenUnder(key string) *rbacconfig.Permission {
	return metadataPermission(jwtMetadata, there(), key, "iss")
}

// anyToken matches a request with a valid token: each has its issuer in it.
func anyToken() *rbacconfig.Principal { return claim(there(), "iss") }

func requestPrincipal(p mesh.RequestPrincipal) *rbacconfig.Principal {
	if p.Issuer == "" {
		return anyToken()
	}
	issuer := claim(text(exact(p.Issuer)), "iss")
	if p.Subject == "*" {
		return issuer
	}
	return allPrincipals([]*rbacconfig.Principal{issuer, claim(text(pattern(p.Subject)), "sub")})
}

// claims are what a rule asks of the token. An Allow rule that asks for a claim that the
// token is not to have asks for a valid token all the same.
func claims(cs []mesh.ClaimCondition, strict bool) []*rbacconfig.Permission {
	var all []*rbacconfig.Permission
	for _, c := range cs {
		path := append([]string{payloadKey}, c.Path...)
		one := func(lenient bool) func(string) *rbacconfig.Permission {
			return func(value string) *rbacconfig.Permission {
				return metadataPermission(jwtMetadata, claimValue(value, lenient), path...)
			}
		}
		if len(c.Values) > 0 {
			all = append(all, anyOfPermissions(each(c.Values, one(!strict))))
		}
		if len(c.NotValues) > 0 {
			if strict {
				all = append(all, tokenUnder(payloadKey))
			}
			all = append(all, not(anyOfPermissions(each(c.NotValues, one(strict)))))
		}
	}
	return all
}

// claimValue matches a value as a text, a number or a bool, or a list that has it. Where
// it lets in it is a number if that is written so alone: a text 007 is not the number 7,
// and of those beyond 2^53 one cannot be told from the next (RFC 8259, section 6).
func claimValue(value string, lenient bool) *matcher.ValueMatcher {
	if value == "*" {
		return there()
	}
	single := []*matcher.ValueMatcher{text(pattern(value))}
	if value == "true" || value == "false" {
		single = append(single, &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_BoolMatch{BoolMatch: value == "true"}})
	}
	if n, err := strconv.ParseFloat(value, 64); err == nil && (lenient || mesh.IsNumber(value)) {
		single = append(single, &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_DoubleMatch{
			DoubleMatch: &matcher.DoubleMatcher{MatchPattern: &matcher.DoubleMatcher_Exact{Exact: n}},
		}})
	}
	listed := &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_ListMatch{ListMatch: &matcher.ListMatcher{
		MatchPattern: &matcher.ListMatcher_OneOf{OneOf: oneOfValues(single)},
	}}}
	return oneOfValues(append(slices.Clone(single), listed))
}

func oneOfValues(ms []*matcher.ValueMatcher) *matcher.ValueMatcher {
	if len(ms) == 1 {
		return ms[0]
	}
	return &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_OrMatch{OrMatch: &matcher.OrMatcher{ValueMatchers: ms}}}
}

// jwtFaults are what keeps a policy's jwt section from meaning what it says.
func jwtFaults(p *mesh.Policy, v *mesh.View) []*fault {
	out := []*fault{jwtConflict(p, v)}
	var incomplete []*fault // what is missing goes before
	for i, issuer := range p.JWT.Issuers {
		const refused = "until then every token of the issuer is refused"
		set := keySet(issuer, p.Meta.Namespace, v)
		var where, fix string
		switch {
		case issuer.URI != "":
			where, fix = issuer.URI, "it is fetched by the control plane soon, of 64 URIs in the mesh at most"
		case issuer.SecretKey != "":
			where = fmt.Sprintf("the key %s of Secret %s/%s", issuer.SecretKey, p.Meta.Namespace, mesh.JWKSName)
			fix = "create it, or correct secretKey"
		case issuer.Keys == nil:
			where = fmt.Sprintf("the key %s of ConfigMap %s/%s", issuer.ConfigMapKey, p.Meta.Namespace, mesh.JWKSName)
			fix = "create it, or correct configMapKey"
		default:
			where, fix = "inline", "write the issuer's public keys"
		}
		switch {
		case set == nil:
			out = append(out, &fault{conditionResolvedRefs, reasonKeysNotFound, fmt.Sprintf("the keys of jwt.issuers[%d] are not there: %s: %s; %s", i, where, fix, refused)})
		case set.JWKS == "":
			out = append(out, &fault{conditionResolvedRefs, reasonKeysNotFound, fmt.Sprintf("jwt.issuers[%d] has no keys: %s: %s; %s", i, where, set.Problem, refused)})
		case set.Problem != "":
			incomplete = append(incomplete, &fault{conditionResolvedRefs, reasonKeysIncomplete, fmt.Sprintf("the object holds, with the keys of jwt.issuers[%d] that can be used: %s: %s", i, where, set.Problem)})
		}
	}
	return append(out, incomplete...)
}

// jwtConflict finds a policy with the same selector that wins over this one, or one of the
// mesh's namespace that picks all of its workloads: of equally specific ones those go
// before.
func jwtConflict(p *mesh.Policy, v *mesh.View) *fault {
	root := v.Config().RootNamespace
	if p.Selector != nil && p.Meta.Namespace != root {
		for _, q := range v.Policies(root, mesh.SectionJWT, all) {
			if q.Selector != nil && q.Selector.Matches(p.Selector.MatchLabels) {
				return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s has a jwt section for the same workloads, which holds as a whole: those of %s go before; have it leave out the workloads, or delete this one", q.Meta.Name, root)}
			}
		}
	}
	for _, q := range v.Policies(p.Meta.Namespace, mesh.SectionJWT, all) {
		if q.Meta.Name == p.Meta.Name || !sameSelector(p.Selector, q.Selector) || !slices.Equal(p.Targets, q.Targets) {
			continue
		}
		older := cmp.Or(q.Created.Compare(p.Created), strings.Compare(q.Meta.Name.Name, p.Meta.Name.Name)) < 0
		switch {
		case q.Invalid != "":
			return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s selects the same workloads and cannot be understood, so that every request to them is refused; correct it, or delete it", q.Meta.Name)}
		case older:
			return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s is older and has a jwt section for the same workloads, which holds as a whole; merge the two, or delete one", q.Meta.Name)}
		}
	}
	return nil
}
