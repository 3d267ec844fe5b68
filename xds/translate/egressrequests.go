package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	sniforward "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	addressmatcher "github.com/envoyproxy/go-control-plane/envoy/extensions/rbac/matchers/upstream_ip_port/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// outManager is of requests that leave by a gateway. Clients are the mesh's own, as at a
// workload's sidecar; what they say about themselves stays here.
func outManager(g *mesh.Gateway, at mesh.Listener, v *mesh.View) *hcm.HttpConnectionManager {
	c := v.Config()
	m := connectionManager("egress", 0)
	keyed(m, requestedName)
	m.AccessLog = accessLog(c, egressLog)
	m.HttpFilters = askingService(httpFilters(
		filterJWT, filterAudit, filterCustom, filterDeny, filterAllow, filterRateLimit, filterOnDemand, filterForwardOut, filterOutside,
	), c)
	m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: gatewayRouteName(at)}}
	m.XffNumTrustedHops = hopsBefore(c)
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE
	if outMatchesPaths(g, at, v) {
		m.NormalizePath = wrapperspb.Bool(true)
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_REJECT_REQUEST
	}
	return m
}

// outMatchesPaths reports whether a rule at the listener asks for paths, or limits by them.
func outMatchesPaths(g *mesh.Gateway, at mesh.Listener, v *mesh.View) bool {
	return matchesPaths(slices.Concat(attached(g, at.Name, mesh.SectionAuthorization, v)...)) ||
		limitsPaths(mostSpecificLimits(attached(g, at.Name, mesh.SectionRateLimit, v)))
}

// outRoutes are those of an egress listener: a virtual host for each host of a port, found
// by the server name of the connection, whatever Host says. Whom the object does not admit
// is refused, and its clusters are fetched when first used.
func outRoutes(g *mesh.Gateway, at mesh.Listener, v *mesh.View) Result {
	root, domains := v.Config().RootNamespace, v.Config().TrustDomains()
	guards := guardsOf(g, []mesh.Listener{at}, v)
	c := &route.RouteConfiguration{Name: gatewayRouteName(at), VhostHeader: dstHeader, TypedPerFilterConfig: guards.limits}
	for _, e := range outs(g, v) {
		if !e.port.Protocol.IsHTTP() {
			continue
		}
		verdicts := guards.verdicts[at.Name]
		verdicts.deny = denying(verdicts.deny, e.Meta.Name.String()+"#from", otherThan(admitted(e.External, root, domains)))
		filters := verdicts.filters()
		if f, looks := guards.authorization[at.Name][jwtName]; looks {
			filters[jwtName] = f
		}
		c.VirtualHosts = append(c.VirtualHosts, &route.VirtualHost{
			Name: e.called(), Domains: []string{outID(e)}, Routes: []*route.Route{e.outRoute(v)},
			TypedPerFilterConfig:   filters,
			RequestHeadersToRemove: append([]string{dstHeader}, guards.spoofed[at.Name]...),
		})
	}
	return Result{Message: c, Clusters: guards.clusters}
}

// denying adds a rule to what is refused.
func denying(had *rbacconfig.RBAC, name string, who []*rbacconfig.Principal) *rbacconfig.RBAC {
	out := &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: map[string]*rbacconfig.Policy{}}
	maps.Copy(out.Policies, had.GetPolicies())
	out.Policies[name] = &rbacconfig.Policy{Permissions: anyPermission(), Principals: who}
	return out
}

// otherThan are all peers but those of the identities.
func otherThan(ids []string) []*rbacconfig.Principal {
	if len(ids) == 0 {
		return anyPrincipal()
	}
	same := each(ids, func(id string) *rbacconfig.Principal { return authenticated(identityPattern(id)) })
	return []*rbacconfig.Principal{noPrincipal(oneOf(same))}
}

// outRoute leads on to the server. Time-outs and retries are the caller's; again is tried
// what no server has seen.
func (e external) outRoute(v *mesh.View) *route.Route {
	to := &route.RouteAction{
		ClusterSpecifier: &route.RouteAction_Cluster{Cluster: e.outName() + outID(e)},
		Timeout:          durationpb.New(0), IdleTimeout: durationpb.New(0),
		RetryPolicy: &route.RetryPolicy{RetryOn: "connect-failure,reset-before-request", NumRetries: wrapperspb.UInt32(connectAttempts - 1)},
	}
	r := &route.Route{Name: e.Meta.Name.String(), Match: prefixMatch("/"), Action: &route.Route_Route{Route: to}}
	if !wildHost(e.host) {
		return r
	}
	// The name that is looked up is what was named, and the port the one that was called.
	r.Match.Headers = []*route.HeaderMatcher{{
		Name: ":authority", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{
			StringMatch: regex(fmt.Sprintf(`%s\.?(:%d)?`, belowWildcard(e.host), e.port.Number)),
		},
	}}
	to.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: ClusterExternalNames}
	r.TypedPerFilterConfig = forwarded()
	r.TypedPerFilterConfig[outsideName] = typed(perRoute(outside(v.Config()), nil, ""))
	return r
}

// notOutside are addresses that no name below a wildcard is followed to, if DNS has them first:
// the gateway's own, its node's, and those of no single server (RFC 6890).
var notOutside = [...]string{
	"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "::ffff:0:0/96", "64:ff9b::/96", "fe80::/10", "ff00::/8",
}

// outside lets on what leads out of the cluster. Where it is not known where, it does not.
func outside(c *mesh.Config) *rbacconfig.RBAC {
	ranges := slices.Concat(c.ServiceRanges, c.PodRanges)
	for _, text := range notOutside {
		ranges = append(ranges, netip.MustParsePrefix(text))
	}
	anywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	return &rbacconfig.RBAC{Action: rbacconfig.RBAC_ALLOW, Policies: map[string]*rbacconfig.Policy{"outside": {
		Permissions: []*rbacconfig.Permission{allPermissions([]*rbacconfig.Permission{
			anyOfPermissions(each(anywhere, leadingTo)), not(anyOfPermissions(each(ranges, leadingTo))),
		})},
		Principals: anyPrincipal(),
	}}}
}

// leadingTo is about the address that a name was found to have.
func leadingTo(p netip.Prefix) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_Matcher{Matcher: &core.TypedExtensionConfig{
		Name: "envoy.rbac.matchers.upstream_ip_port", TypedConfig: typed(&addressmatcher.UpstreamIpPortMatcher{UpstreamIp: cidr(p)}),
	}}}
}

// forwardTLS has the server name of a connection looked up, and noted to what it leads.
func forwardTLS(noted bool) *listener.Filter {
	return networkFilter("envoy.filters.network.sni_dynamic_forward_proxy", &sniforward.FilterConfig{
		DnsCacheConfig: dnsCache(), SaveUpstreamAddress: noted,
	})
}
