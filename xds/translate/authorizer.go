package translate

import (
	"fmt"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	filterchain "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// What rules that do not decide are noted under: prefixes of keys in the metadata of
// a request, envoy.filters.http.rbac, and of metrics of connections.
const (
	noteAudit    = "audit_"
	noteDryDeny  = "dry_run_deny_"
	noteDryAllow = "dry_run_allow_"
)

// filters are the verdicts on requests as a virtual host has them, by the names of
// the filters.
func (v verdicts) filters() map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	if v.audit != nil {
		out[auditName] = typed(perRoute(nil, v.audit, noteAudit))
	}
	if len(v.questions)+len(v.challenge) > 0 {
		out[customName] = typed(asking(v.challenge, v.questions))
	}
	if v.deny != nil || v.dryDeny != nil {
		out[denyName] = typed(perRoute(v.deny, v.dryDeny, noteDryDeny))
	}
	if v.allow != nil || v.dryAllow != nil {
		out[allowName] = typed(perRoute(v.allow, v.dryAllow, noteDryAllow))
	}
	return out
}

// clusters are those that the filters refer to.
func (v verdicts) clusters() []string {
	return each(v.questions, func(q question) string { return authorizerCluster(q.authorizer) })
}

// spoofed are the names under which a client could send what the application takes for a
// header that an authorizer sets.
func (v verdicts) spoofed() []string {
	var out []string
	for _, q := range v.questions {
		for _, name := range q.authorizer.UpstreamHeaders {
			if strings.Count(name, "-") <= 5 { // of more there are too many
				out = append(out, otherSpellings(strings.ToLower(name))...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// network are the verdicts on connections.
func (v verdicts) network(stat string) []*listener.Filter {
	var out []*listener.Filter
	add := func(f *networkrbac.RBAC) {
		if f.Rules == nil && f.ShadowRules == nil {
			return
		}
		f.StatPrefix = stat
		out = append(out, networkFilter("envoy.filters.network.rbac", f))
	}
	if v.audit != nil {
		// Of rules that log only it would be counted that they were looked at.
		noted := &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: v.audit.GetPolicies()}
		add(&networkrbac.RBAC{ShadowRules: noted, ShadowRulesStatPrefix: noteAudit})
	}
	for _, f := range []*networkrbac.RBAC{
		{Rules: v.deny, ShadowRules: v.dryDeny, ShadowRulesStatPrefix: noteDryDeny},
		{Rules: v.allow, ShadowRules: v.dryAllow, ShadowRulesStatPrefix: noteDryAllow},
	} {
		if f.ShadowRules == nil {
			f.ShadowRulesStatPrefix = ""
		}
		add(f)
	}
	return out
}

// asking has each authorizer decide on the requests that one of its rules matches:
// RBAC that enforces nothing notes whether one does, and the authorizer is asked if
// so. All of it comes with the routes, so that it holds on every connection at once.
// Nobody is asked about requests that the first filters answer.
func asking(first []*core.TypedExtensionConfig, questions []question) *filterchain.FilterChainConfigPerRoute {
	chain := &filterchain.FilterChain{Filters: first}
	for _, q := range questions {
		note := "custom_" + q.authorizer.Name + "_"
		chain.Filters = append(chain.Filters,
			&core.TypedExtensionConfig{Name: "select." + q.authorizer.Name, TypedConfig: typed(&rbac.RBAC{
				ShadowRules: q.about, ShadowRulesStatPrefix: note,
			})},
			&core.TypedExtensionConfig{Name: "ask." + q.authorizer.Name, TypedConfig: typed(externalAuthorizer(q.authorizer, &matcher.MetadataMatcher{
				Filter: "envoy.filters.http.rbac",
				Path: []*matcher.MetadataMatcher_PathSegment{{
					Segment: &matcher.MetadataMatcher_PathSegment_Key{Key: note + "shadow_engine_result"},
				}},
				Value: &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_StringMatch{StringMatch: exact("denied")}},
			}))},
		)
	}
	return &filterchain.FilterChainConfigPerRoute{FilterChain: chain}
}

func externalAuthorizer(a mesh.Authorizer, when *matcher.MetadataMatcher) *extauthz.ExtAuthz {
	out := &extauthz.ExtAuthz{
		StatPrefix:            a.Name,
		TransportApiVersion:   core.ApiVersion_V3,
		FailureModeAllow:      a.FailOpen,
		FilterEnabledMetadata: when,
		ValidateMutations:     true,
		// Otherwise the outcome is counted among the application's.
		ChargeClusterResponseStats: wrapperspb.Bool(false),
	}
	host := fmt.Sprintf("%s.%s:%d", a.Service.Name, a.Service.Namespace, a.Port)
	if !a.HTTP {
		out.Services = &extauthz.ExtAuthz_GrpcService{GrpcService: &core.GrpcService{
			Timeout: seconds(a.Timeout),
			TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{
				ClusterName: authorizerCluster(a), Authority: host,
			}},
		}}
		return out
	}
	if len(a.RequestHeaders) > 0 {
		out.AllowedHeaders = headerNames(a.RequestHeaders)
	}
	service := &extauthz.HttpService{
		ServerUri: &core.HttpUri{
			Uri: "http://" + host, Timeout: seconds(a.Timeout),
			HttpUpstreamType: &core.HttpUri_Cluster{Cluster: authorizerCluster(a)},
		},
		PathPrefix: a.PathPrefix,
	}
	if len(a.UpstreamHeaders) > 0 {
		service.AuthorizationResponse = &extauthz.AuthorizationResponse{AllowedUpstreamHeaders: headerNames(a.UpstreamHeaders)}
	}
	out.Services = &extauthz.ExtAuthz_HttpService{HttpService: service}
	return out
}

func headerNames(names []string) *matcher.ListStringMatcher {
	return &matcher.ListStringMatcher{Patterns: each(names, func(n string) *matcher.StringMatcher {
		m := exact(strings.ToLower(n))
		m.IgnoreCase = true
		return m
	})}
}

// authorizerCluster speaks what the authorizer does, whatever the client speaks, and
// mesh mTLS where the authorizer's pods do.
func authorizerCluster(a mesh.Authorizer) string {
	of := endpointsOf{service: a.Service, port: a.Port}
	if a.HTTP {
		return of.name(prefixEdge)
	}
	return of.name(prefixEdgeH2)
}

// authorizerFault says why nobody can be asked.
func authorizerFault(name string, v *mesh.View) *fault {
	const refused = "until then what the rule matches is refused"
	a, ok := v.Config().Authorizer(name)
	if !ok {
		return &fault{conditionResolvedRefs, reasonAuthorizerNotFound, fmt.Sprintf("the MeshConfig has no externalAuthorizers entry named %q; add it, or correct provider; %s", name, refused)}
	}
	svc, ok := v.Service(a.Service)
	if !ok {
		return &fault{conditionResolvedRefs, reasonServiceNotFound, fmt.Sprintf("the external authorizer %s is Service %s, which does not exist; create it, or correct the MeshConfig; %s", name, a.Service, refused)}
	}
	if _, ok := svc.Port(a.Port); !ok {
		return &fault{conditionResolvedRefs, reasonPortNotFound, fmt.Sprintf("the external authorizer %s is port %d of Service %s, which has no such port; correct the MeshConfig; %s", name, a.Port, a.Service, refused)}
	}
	return nil
}

// authorizationFaults are what keeps a policy's rules from meaning what they say.
func authorizationFaults(p *mesh.Policy, v *mesh.View) []*fault {
	var out []*fault
	for i, r := range p.Authorization.Rules {
		if r.Action == mesh.Custom {
			out = append(out, authorizerFault(r.Authorizer, v))
		}
		if slices.ContainsFunc(r.From, func(s mesh.Source) bool { return s.HasRemote() }) && v.Config().TrustedHops == 0 {
			out = append(out, &fault{conditionAccepted, reasonClientUnknown, fmt.Sprintf(
				"rules[%d] asks for the client's address, which nobody is believed about: %s; write in the MeshConfig forwardedFor.trustedHops, 1 where clients connect to the mesh's gateways", i, unanswered(r))})
		}
		if asksTokens(r) && !tokensKnown(p, v) {
			whose, where := "for the workloads", "for this selector or the namespace"
			if len(p.Targets) > 0 {
				whose, where = "for the Gateway or listener", "with these targetRefs"
			}
			out = append(out, &fault{conditionAccepted, reasonTokensUnknown, fmt.Sprintf(
				"rules[%d] asks for tokens, and no MeshPolicy has a jwt section %s: %s; write one, %s", i, whose, unanswered(r), where)})
		}
		for _, op := range r.To {
			if name, port, ok := opaquePort(p, op, v); ok && op.HasHTTP() {
				out = append(out, &fault{conditionAccepted, reasonNotHTTP, fmt.Sprintf(
					"the object holds, but rules[%d] asks for HTTP attributes on port %d, which Service %s declares not to be HTTP: %s there; leave the port out of the rule, write a rule with ports alone, or correct the Service's appProtocol", i, port, name, unanswered(r))})
			}
		}
	}
	return out
}

// unanswered says what becomes of what a rule cannot be asked about.
func unanswered(r mesh.Rule) string {
	switch {
	case r.DryRun || r.Action == mesh.Audit:
		return "the rule is counted without it"
	case r.Action == mesh.Allow:
		return "the rule lets in nobody"
	}
	return "the rule is enforced without it, so that it refuses more"
}

// opaquePort finds a port that the operation names, and a Service of the policy's
// namespace, all of whose pods the policy selects, declares not to be HTTP.
func opaquePort(p *mesh.Policy, op mesh.Operation, v *mesh.View) (mesh.Name, uint16, bool) {
	if len(op.Ports) == 0 {
		return mesh.Name{}, 0, false
	}
	for _, s := range v.Services(p.Meta.Namespace) {
		if len(s.Selector) == 0 || !p.Selector.Matches(s.Selector) {
			continue
		}
		for _, sp := range s.Ports {
			if sp.TargetName == "" && sp.Protocol.Opaque() && slices.Contains(op.Ports, sp.Target) {
				if _, ends := endedPorts(p.Meta.Namespace, s.Selector, v)[sp.Target]; ends {
					continue // what is in it is HTTP
				}
				return s.Name, sp.Target, true
			}
		}
	}
	return mesh.Name{}, 0, false
}

// asksTokens reports whether a rule asks for the token of a request.
func asksTokens(r mesh.Rule) bool {
	return len(r.When.Claims) > 0 || slices.ContainsFunc(r.From, func(s mesh.Source) bool { return s.HasToken() })
}

// tokensKnown reports whether a jwt section holds for all workloads that the policy
// selects, as far as can be told from selectors, or at all Gateways that it names.
func tokensKnown(p *mesh.Policy, v *mesh.View) bool {
	some := func(level []*mesh.Policy) bool { return len(level) > 0 }
	if len(p.Targets) > 0 {
		return !slices.ContainsFunc(p.Targets, func(t mesh.Target) bool {
			g, ok := v.Gateway(t.Name)
			return t.Kind == mesh.KindGateway && ok && !slices.ContainsFunc(attached(g, t.Section, mesh.SectionJWT, v), some)
		})
	}
	var labels map[string]string
	if p.Selector != nil {
		labels = p.Selector.MatchLabels
	}
	return slices.ContainsFunc(selected(p.Meta.Namespace, labels, mesh.SectionJWT, v), some)
}
