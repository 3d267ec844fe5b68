package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// egressRoutes are the routes of requests that leave the cluster at ports where an external
// service is known by names. The clusters are fetched when first used, so that the table,
// which each proxy that it holds for has, is some 480 bytes for each host.
func egressRoutes(for_ string, v *mesh.View) *route.RouteConfiguration {
	account := egressFor(for_)
	table := named(externals(account.Namespace, v, every), mesh.Protocol.IsHTTP)
	rest := unknownHost(v.Config())
	c := &route.RouteConfiguration{
		Name: RouteEgress, IgnorePortInHostMatching: true, // the port is the connection's
		RequestHeadersToRemove: []string{dstHeader},
	}
	for _, h := range table.sortedHosts() {
		// With the dot of a fully qualified name, which saves a lookup the domains to search,
		// it is the same name: as an unknown one it would go round what the object says.
		vh := &route.VirtualHost{Name: h, Domains: []string{h, h + "."}}
		for _, port := range table.sortedPorts() {
			if e, ok := table.find(port, h); ok {
				r := externalRoute(e, account, h, v)
				r.Match.Headers = []*route.HeaderMatcher{headerIs(dstHeader, strconv.Itoa(int(port)))}
				if wildHost(e.host) {
					// Where the name is looked up, a port in Host would be the one that is called.
					r.Match.Headers = append(r.Match.Headers, &route.HeaderMatcher{
						Name:                 ":authority",
						HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: regex(fmt.Sprintf("[^:]+(:%d)?", port))},
					})
				}
				vh.Routes = append(vh.Routes, r)
			}
		}
		vh.Routes = append(vh.Routes, rest...)
		c.VirtualHosts = append(c.VirtualHosts, vh)
	}
	c.VirtualHosts = append(c.VirtualHosts, &route.VirtualHost{Name: "*", Domains: []string{"*"}, Routes: rest})
	return c
}

// egressRoutesAt are those of requests to addresses of external services, whatever their
// Host says.
func egressRoutesAt(for_ string, v *mesh.View) *route.RouteConfiguration {
	account := egressFor(for_)
	c := &route.RouteConfiguration{Name: RouteEgressAt, VhostHeader: dstHeader, RequestHeadersToRemove: []string{dstHeader}}
	known := map[netip.AddrPort]bool{}
	for _, e := range externals(account.Namespace, v, every) {
		for _, p := range e.Ports {
			if e.Resolution == mesh.ResolveNone || !p.Protocol.IsHTTP() {
				continue
			}
			for _, a := range e.At(p) {
				at := netip.AddrPortFrom(a.Addr(), p.Number)
				if known[at] || !a.IsSingleIP() {
					continue
				}
				known[at] = true
				c.VirtualHosts = append(c.VirtualHosts, &route.VirtualHost{
					Name: at.String(), Domains: []string{at.String()},
					Routes: []*route.Route{externalRoute(external{e, p, ""}, account, a.Addr().String(), v)},
				})
			}
		}
	}
	slices.SortFunc(c.VirtualHosts, func(a, b *route.VirtualHost) int { return strings.Compare(a.Name, b.Name) })
	return c
}

// unknownHost is what becomes of requests that no external service names.
func unknownHost(c *mesh.Config) []*route.Route {
	if c.Egress == mesh.RegistryOnly {
		return []*route.Route{refusing("unknown", 502, "no ExternalService names this host and port for the caller, and the mesh lets nothing else out (MeshConfig, egress.mode: RegistryOnly)")}
	}
	on := &route.RouteAction{
		ClusterSpecifier: &route.RouteAction_Cluster{Cluster: ClusterPassthroughHTTP},
		Timeout:          durationpb.New(0), IdleTimeout: durationpb.New(0),
	}
	return []*route.Route{
		{Name: "passthrough", Match: prefixMatch("/"), Action: &route.Route_Route{Route: on}},
		// A proxy outside of the cluster, which is asked for a tunnel.
		{
			Name:  "tunnel",
			Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_ConnectMatcher_{ConnectMatcher: &route.RouteMatch_ConnectMatcher{}}},
			Action: &route.Route_Route{Route: &route.RouteAction{
				ClusterSpecifier: on.ClusterSpecifier, Timeout: on.Timeout, IdleTimeout: on.IdleTimeout,
				UpgradeConfigs: []*route.RouteAction_UpgradeConfig{{UpgradeType: "CONNECT"}},
			}},
		},
	}
}

func refusing(name string, status uint32, why string) *route.Route {
	return &route.Route{Name: name, Match: prefixMatch("/"), Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{
		Status: status, Body: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: "tulle: " + why + "\n"}},
	}}}
}

// externalRoute is the route to what was called by a host or an address.
func externalRoute(e external, account mesh.Name, called string, v *mesh.View) *route.Route {
	name := e.Meta.Name.String()
	if status, why := e.refusal(account, v); status != 0 {
		return refusing(name, status, why)
	}
	t := externalTraffic(account.Namespace, e, v)
	r := &route.Route{Name: name, Match: prefixMatch("/"), TypedPerFilterConfig: t.faults()}
	to := &route.RouteAction{
		ClusterSpecifier: &route.RouteAction_Cluster{Cluster: e.name(called)},
		Timeout:          durationpb.New(t.timeout), IdleTimeout: t.idleBound(),
		RetryPolicy: externalRetries(t.retries), HashPolicy: t.hash(),
	}
	switch {
	case e.Gateway != nil:
		to.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: e.name(cmp.Or(e.host, called))}
	case !wildHost(e.host):
	case v.Config().Egress == mesh.AllowAny:
		to.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: ClusterPassthroughHTTP}
	default:
		to.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: ClusterExternalNames}
		if r.TypedPerFilterConfig == nil {
			r.TypedPerFilterConfig = forwarded()
		} else {
			r.TypedPerFilterConfig[forwardName] = forwarded()[forwardName]
		}
	}
	r.Action = &route.Route_Route{Route: to}
	return r
}

// externalRetries are without what sidecars alone say to one another.
func externalRetries(r mesh.Retries) *route.RetryPolicy {
	p := retryPolicy(r, mesh.Anywhere)
	if p != nil && p.RetriableHeaders != nil {
		p.RetriableHeaders, p.RetryPriority = nil, nil
		p.RetryOn = strings.TrimSuffix(p.RetryOn, ",retriable-headers")
	}
	return p
}
