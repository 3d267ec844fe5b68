package translate

import (
	"fmt"
	"maps"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// guards are what policies ask of requests that come in by the listeners which have
// their routes in one route configuration.
type guards struct {
	// limits is of the configuration as a whole: a limit counts the requests of all
	// hosts together, which it would not if each had a filter configuration of its own.
	limits map[string]*anypb.Any
	// told says that limits tell listeners apart.
	told bool
	// clusters are those of services that are asked.
	clusters []string
	// authorization of each listener, by token too.
	authorization map[string]map[string]*anypb.Any
	// verdicts are that authorization before it is made filters.
	verdicts map[string]verdicts
	// spoofed are, of each, headers that the proxy alone may set.
	spoofed map[string][]string
}

// listenerKey is the name of a virtual host's listener in its metadata.
const listenerKey = "listener"

func guardsOf(g *mesh.Gateway, ls []mesh.Listener, v *mesh.View) guards {
	c := v.Config()
	out := guards{verdicts: map[string]verdicts{}, authorization: map[string]map[string]*anypb.Any{}, spoofed: map[string][]string{}}
	inside := ls[0].Protocol == mesh.ListenerEgress // callers are the mesh's, and have an identity
	var limits []*mesh.Policy
	at := map[*mesh.Policy][]string{} // the listeners at which each holds
	for _, l := range ls {
		tokens := tokensAt(attached(g, l.Name, mesh.SectionJWT, v), v)
		about := edge(c)
		if inside {
			about = sidecar(c, true)
		}
		about.tokens = tokens
		verdicts := about.authorization(slices.Concat(attached(g, l.Name, mesh.SectionAuthorization, v)...), v)
		if !inside && toldApart(g, l, v) {
			verdicts.deny = ofOneHost(verdicts.deny)
		}
		filters := verdicts.filters()
		if f := tokens.filter(); f != nil {
			filters[jwtName] = f
		}
		out.verdicts[l.Name] = verdicts
		out.authorization[l.Name], out.spoofed[l.Name] = filters, slices.Concat(verdicts.spoofed(), tokens.spoofed())
		out.clusters = append(out.clusters, verdicts.clusters()...)
		for _, p := range mostSpecificLimits(attached(g, l.Name, mesh.SectionRateLimit, v)) {
			if at[p] == nil {
				limits = append(limits, p)
			}
			at[p] = append(at[p], l.Name)
		}
	}
	limit, global, caller := noLimit(gatewayLimitStat), globalLimits{edge: !inside}, byAddress()
	if inside {
		caller = byCertificate()
	}
	for _, p := range limits {
		condition := ""
		if len(at[p]) < len(ls) {
			out.told = true
			condition = listenerIsOneOf(at[p])
		}
		addLimits(limit, p, c.TrustDomains(), condition, caller)
		global.add(p, c.TrustDomains(), condition)
	}
	filters := map[string]*anypb.Any{}
	if len(limit.Descriptors) > 0 {
		filters[rateLimitName] = typed(limit)
	}
	if l := global.config(); l != nil {
		filters[globalLimitName] = l
		out.clusters = append(out.clusters, askedClusters(limits, c)...)
	}
	if len(filters) > 0 {
		out.limits = filters
	}
	return out
}

// toldApart reports whether a policy names another listener of the port, so that it decides
// whose a request is.
func toldApart(g *mesh.Gateway, l mesh.Listener, v *mesh.View) bool {
	return slices.ContainsFunc(g.Listeners, func(other mesh.Listener) bool {
		return other.Port == l.Port && other.Name != l.Name &&
			len(attached(g, other.Name, mesh.SectionAuthorization, v)[1])+len(attached(g, other.Name, mesh.SectionJWT, v)[1]) > 0
	})
}

// oneHost is a host, and its port, if there are any, of which a gateway has taken the last
// dot. See plainHost: what else there is in it no listener's host is, and some application
// may find that of another listener.
const oneHost = `([A-Za-z0-9_~*-]+(\.[A-Za-z0-9_~*-]+)*|\[[0-9A-Fa-f:.]*\])?(:[0-9]*)?`

func ofOneHost(deny *rbacconfig.RBAC) *rbacconfig.RBAC {
	rules := ruleSet{policies: maps.Clone(deny.GetPolicies())}
	rules.put("ambiguous host", &rbacconfig.Policy{Permissions: []*rbacconfig.Permission{not(headerPermission(":authority", regex(oneHost)))}, Principals: anyPrincipal()})
	return rules.rules(rbacconfig.RBAC_DENY)
}

// edge is what is known of requests at a gateway, which hears from clients itself.
func edge(c *mesh.Config) known {
	return known{domains: c.TrustDomains(), http: true, hops: c.TrustedHops, sni: true, strangers: true}
}

// listenerIsOneOf is a condition in CEL about the virtual host of a request.
func listenerIsOneOf(names []string) string {
	var is []string
	for _, n := range names {
		is = append(is, fmt.Sprintf("xds.virtual_host_metadata.filter_metadata[%s][%s] == %s", quoted(metadataKey), quoted(listenerKey), quoted(n)))
	}
	return or(is)
}

// byAddress tells callers apart who have no identity. An IPv6 caller is its /64, since
// that is what one host is given (RFC 6177).
func byAddress() caller {
	return caller{key: "masked_remote_address", strangers: true, action: &route.RateLimit_Action{ActionSpecifier: &route.RateLimit_Action_MaskedRemoteAddress_{
		MaskedRemoteAddress: &route.RateLimit_Action_MaskedRemoteAddress{V4PrefixMaskLen: wrapperspb.UInt32(32), V6PrefixMaskLen: wrapperspb.UInt32(64)},
	}}}
}

// guard has what holds at the listener be enforced for a host of it, also for requests
// that no route is about: filters that the routes enable are not in the chain of a
// request without one.
func (g guards) guard(host *route.VirtualHost, listener string) {
	filters := g.authorization[listener]
	if len(filters) == 0 && g.limits == nil {
		return
	}
	host.TypedPerFilterConfig = filters
	host.RequestHeadersToRemove = append(host.RequestHeadersToRemove, g.spoofed[listener]...)
	host.Routes = append(host.Routes, &route.Route{Name: "none", Match: prefixMatch("/"), Action: answer(404)})
	if g.told {
		host.Metadata = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
			metadataKey: {Fields: map[string]*structpb.Value{listenerKey: structpb.NewStringValue(listener)}},
		}}
	}
}

// targetFault looks for what keeps a policy from a Gateway or route that it names.
func targetFault(t mesh.Target, v *mesh.View) *fault {
	none := func(format string, args ...any) *fault {
		return &fault{conditionResolvedRefs, reasonTargetNotFound, fmt.Sprintf(format, args...)}
	}
	if t.Kind != mesh.KindGateway {
		if _, ok := v.Route(mesh.Ref{Kind: t.Kind, Name: t.Name}); !ok {
			return none("there is no %s %s; create it, or correct targetRefs", kindName(t.Kind), t.Name)
		}
		return nil
	}
	g, ok := v.Gateway(t.Name)
	switch {
	case !ok:
		return none("there is no Gateway %s; create it, or correct targetRefs", t.Name)
	case !v.Class(g.Class):
		return none("Gateway %s is of class %s, which is not Tulle's: nothing of the policy is enforced there", t.Name, g.Class)
	case t.Section != "" && !slices.ContainsFunc(g.Listeners, func(l mesh.Listener) bool { return l.Name == t.Section }):
		return none("Gateway %s has no listener %s; correct sectionName in targetRefs", t.Name, t.Section)
	}
	return nil
}

// leadsOut reports whether callers of the Gateway, or listener, may be the mesh's own.
func leadsOut(t mesh.Target, v *mesh.View) bool {
	g, ok := v.Gateway(t.Name)
	return ok && slices.ContainsFunc(g.Listeners, func(l mesh.Listener) bool {
		return l.Protocol == mesh.ListenerEgress && (t.Section == "" || t.Section == l.Name)
	})
}

// unmatched names a rule of a policy for Gateways that never matches, since it asks for
// identities; empty: there is none.
func unmatched(p *mesh.Policy, v *mesh.View) string {
	if !slices.ContainsFunc(p.Targets, func(t mesh.Target) bool { return t.Kind == mesh.KindGateway && !leadsOut(t, v) }) {
		return ""
	}
	identity := func(s mesh.Source) bool {
		return len(s.Identities)+len(s.TrustDomains)+len(s.Namespaces)+len(s.ServiceAccounts) > 0
	}
	never := func(from []mesh.Source, allows bool) bool {
		return len(from) > 0 && !slices.ContainsFunc(from, func(s mesh.Source) bool { return !identity(s) && !(allows && s.ExceptsIdentity()) })
	}
	const why = "%s.rules[%d] never matches: it asks for identities, trustDomains, namespaces or serviceAccounts, which callers of a Gateway do not have"
	if p.Authorization != nil {
		for i, r := range p.Authorization.Rules {
			if never(r.From, r.Action == mesh.Allow) {
				return fmt.Sprintf(why, "authorization", i)
			}
		}
	}
	if p.RateLimit != nil {
		for i, r := range p.RateLimit.Rules {
			if never(r.From, false) {
				return fmt.Sprintf(why, "rateLimit", i)
			}
		}
	}
	return ""
}
