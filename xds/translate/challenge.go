package translate

import (
	"fmt"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	jwtauthn "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// A request without a token that rules refuse, and of which a rule asks for one, is
// answered with 401 and what is asked for (RFC 9110, section 15.5.2; RFC 6750, section 3)
// instead of 403. Who it is that is refused does not change: it is looked for before
// authorizers are asked and rules decide, among requests that they would refuse.

const (
	// noteChallenge is where RBAC notes the rule, see noteAudit.
	noteChallenge = "challenge_"
	// challengeState is the name of the rule in a request's filter state.
	challengeState = "mesh.tulle.dev/challenge"
	// RBAC takes the first rule that matches by name (envoy.config.rbac.v3.RBAC), so that
	// rules which refuse who has no token go before those that let a request in, and these
	// before those that would if it had a token.
	orderRefuses, orderLetsIn, orderWould = "1 ", "2 ", "3 "
)

// challenges are the rules by which a request is challenged, and those of allow, which
// let it in without a token; nil: no rule asks for a token.
func (k known) challenges(policies []*mesh.Policy, allow *ruleSet) *rbacconfig.RBAC {
	if !k.http || len(k.tokens.issuers) == 0 || slices.ContainsFunc(policies, func(p *mesh.Policy) bool { return p.Invalid != "" }) {
		return nil
	}
	var out ruleSet
	for _, p := range policies {
		for i, r := range p.Authorization.Rules {
			asking, order := withoutToken(r)
			if asking == nil {
				continue
			}
			policy := k.policy(*asking, p.Meta.Namespace)
			if policy == nil {
				continue
			}
			policy.Permissions = []*rbacconfig.Permission{allPermissions([]*rbacconfig.Permission{
				tokensLookedAt(), not(tokenUnder(payloadKey)), anyOfPermissions(policy.Permissions),
			})}
			out.put(ruleID(out.policies, order, p, i), policy)
		}
	}
	if !out.exists {
		return nil
	}
	for id, policy := range allow.policies {
		out.put(orderLetsIn+id, policy)
	}
	return out.rules(rbacconfig.RBAC_ALLOW)
}

// withoutToken is the rule as it is about requests without a token that would fare better
// with one: an Allow rule without what it asks of the token, of a Deny rule what refuses
// who has none. It is nil where that makes no difference, or the rule decides nothing.
func withoutToken(r mesh.Rule) (out *mesh.Rule, order string) {
	claims := func(asked func(mesh.ClaimCondition) bool) bool { return slices.ContainsFunc(r.When.Claims, asked) }
	from := func(asked func(mesh.Source) bool) bool { return slices.ContainsFunc(r.From, asked) }
	absent := func(s mesh.Source) bool { return len(s.NotRequestPrincipals) > 0 }
	switch {
	case r.DryRun:
		return nil, ""
	case r.Action == mesh.Allow && (len(r.When.Claims) > 0 || from(func(s mesh.Source) bool { return s.HasToken() })):
		r.When.Claims = nil
		r.From = each(r.From, func(s mesh.Source) mesh.Source {
			s.RequestPrincipals, s.NotRequestPrincipals = nil, nil
			return s
		})
		return &r, orderWould
	case r.Action == mesh.Deny && claims(func(c mesh.ClaimCondition) bool { return len(c.NotValues) > 0 }):
		return &r, orderRefuses
	case r.Action == mesh.Deny && from(absent):
		r.From = slices.DeleteFunc(slices.Clone(r.From), func(s mesh.Source) bool { return !absent(s) })
		return &r, orderRefuses
	}
	return nil, ""
}

func tokensLookedAt() *rbacconfig.Permission {
	return metadataPermission(metadataKey, &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_BoolMatch{BoolMatch: true}}, lookedKey)
}

// challenge answers requests that one of the rules is about, but those that let in.
func (t believed) challenge(rules *rbacconfig.RBAC) []*core.TypedExtensionConfig {
	demand := t.issuers[0].provider()
	demand.JwksSourceSpecifier = &jwtauthn.JwtProvider_LocalJwks{LocalJwks: inline([]byte(noKeys))} // there is no token to verify
	demand.ClaimToHeaders, demand.NormalizePayloadInMetadata = nil, nil
	requires := map[string]*jwtauthn.JwtRequirement{}
	for id := range rules.GetPolicies() {
		if order := id[:len(orderLetsIn)]; order != orderLetsIn {
			requires[id] = &jwtauthn.JwtRequirement{RequiresType: &jwtauthn.JwtRequirement_ProviderName{ProviderName: "token"}}
		}
	}
	return []*core.TypedExtensionConfig{
		{Name: "challenge.select", TypedConfig: typed(&rbac.RBAC{ShadowRules: rules, ShadowRulesStatPrefix: noteChallenge})},
		{Name: "challenge.note", TypedConfig: typed(&httpstate.Config{OnRequestHeaders: []*filterstate.FilterStateValue{{
			Key:        &filterstate.FilterStateValue_ObjectKey{ObjectKey: challengeState},
			FactoryKey: "envoy.string",
			Value: &filterstate.FilterStateValue_FormatString{FormatString: &core.SubstitutionFormatString{
				Format: &core.SubstitutionFormatString_TextFormatSource{TextFormatSource: &core.DataSource{Specifier: &core.DataSource_InlineString{
					InlineString: fmt.Sprintf("%%DYNAMIC_METADATA(envoy.filters.http.rbac:%sshadow_effective_policy_id)%%", noteChallenge),
				}}},
			}},
		}}})},
		{Name: "challenge", TypedConfig: typed(&jwtauthn.JwtAuthentication{
			Providers:        map[string]*jwtauthn.JwtProvider{"token": demand},
			FilterStateRules: &jwtauthn.FilterStateRule{Name: challengeState, Requires: requires},
		})},
	}
}
