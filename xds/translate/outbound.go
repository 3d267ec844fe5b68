package translate

import (
	"net/netip"
	"strconv"
	"time"

	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	mutationrules "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	headermutation "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// How long a call waits for what the control plane has not answered.
const (
	onDemandTimeout = 5 * time.Second // then 503, or a closed connection
	routeTimeout    = 5 * time.Second // then 504: Envoy has no time-out of its own for routes
)

// Attempts of a TCP connection, each at an endpoint that is chosen anew: nothing was sent
// yet. A random part of the wait before has the endpoint that gave none be left out by then
// as a rule (absence): Envoy's workers hear of that from its main thread.
const (
	connectAttempts = 3
	connectBackOff  = 50 * time.Millisecond
)

// connectAgain has a connection be tried again.
func connectAgain(p *tcpproxy.TcpProxy) {
	p.MaxConnectAttempts = wrapperspb.UInt32(connectAttempts)
	// All connections of a filter have one back-off in Envoy, which would grow for good.
	p.BackoffOptions = &core.BackoffStrategy{BaseInterval: seconds(connectBackOff), MaxInterval: seconds(connectBackOff)}
}

// Names of the outbound listener's chains.
const (
	chainServiceHTTP = "service-http"
	chainServiceTCP  = "service-tcp"
	chainPodHTTP     = "pod-http"
	chainPodTCP      = "pod-tcp"
	chainElsewhere   = "elsewhere"
)

// outboundListener takes what a workload sends within the cluster. The
// original destination decides, never what a client claims: services go by
// scoped routes, pods' addresses by clusters, both fetched when first used, so
// the listener's size does not depend on how many there are.
func outboundListener(v *mesh.View) *listener.Listener {
	c, s := v.Config(), v.Sniffing()
	l := baseListener(ListenerOutbound, PortOutbound, c)
	l.TrafficDirection = core.TrafficDirection_OUTBOUND
	l.ListenerFilters = []*listener.ListenerFilter{originalDst(), notOn(httpInspector(), s.Off)}
	elsewhere := ClusterPassthrough
	if c.Egress == mesh.RegistryOnly {
		elsewhere = ClusterBlackhole
	}
	l.FilterChains = []*listener.FilterChain{
		{Name: chainServiceHTTP, Filters: []*listener.Filter{networkFilter(hcmName, serviceManager(c))}},
		{Name: chainServiceTCP, Filters: onDemandTCP(chainServiceTCP, prefixTCP+original, c, outboundLog)},
		{Name: chainPodHTTP, Filters: []*listener.Filter{networkFilter(hcmName, podManager(c))}},
		{Name: chainPodTCP, Filters: onDemandTCP(chainPodTCP, prefixTCP+original, c, outboundLog)},
		{Name: chainElsewhere, Filters: []*listener.Filter{tcpProxy(chainElsewhere, elsewhere, c, outboundLog)}},
	}
	l.FilterChainMatcher = outboundMatcher(c, s)
	return l
}

// outboundMatcher decides by address and by what the first bytes are. On ports
// where some service must not be looked at, addresses are exceptions.
func outboundMatcher(c *mesh.Config, s *mesh.Sniffing) *xdsmatcher.Matcher {
	general := func(http, tcp []netip.Addr) *xdsmatcher.Matcher {
		return byDestination([]destinations{
			{c.ServiceRanges, further(ifHTTP(chain(chainServiceHTTP), chain(chainServiceTCP)))},
			{c.PodRanges, further(ifHTTP(chain(chainPodHTTP), chain(chainPodTCP)))},
			{hosts(http), chain(chainServiceHTTP)},
			{hosts(tcp), chain(chainServiceTCP)},
		}, chain(chainElsewhere))
	}
	http, tcp := map[uint16][]netip.Addr{}, map[uint16][]netip.Addr{}
	for _, a := range s.HTTP {
		http[a.Port()] = append(http[a.Port()], a.Addr())
	}
	for _, a := range s.Opaque {
		tcp[a.Port()] = append(tcp[a.Port()], a.Addr())
	}
	exceptions := map[string]*xdsmatcher.Matcher_OnMatch{}
	for port, as := range http {
		exceptions[strconv.Itoa(int(port))] = further(general(as, nil))
	}
	for port, as := range tcp {
		exceptions[strconv.Itoa(int(port))] = further(general(nil, as))
	}
	if len(exceptions) == 0 {
		return general(nil, nil)
	}
	return byPort(exceptions, further(general(nil, nil)))
}

// original is the address and port that the client meant.
const original = "%DOWNSTREAM_LOCAL_ADDRESS%"

// keyed notes what the format says of the original destination on each request, before
// anything else looks at it; what a client wrote there is overwritten.
func keyed(m *hcm.HttpConnectionManager, format string) {
	m.EarlyHeaderMutationExtensions = []*core.TypedExtensionConfig{{
		Name: "destination",
		TypedConfig: typed(&headermutation.HeaderMutation{Mutations: []*mutationrules.HeaderMutation{{
			Action: &mutationrules.HeaderMutation_Append{Append: &core.HeaderValueOption{
				Header:       &core.HeaderValue{Key: dstHeader, Value: format},
				AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}},
		}}}),
	}}
}

// serviceManager routes requests to services by scope: one scope for each
// address and port, its routes fetched on demand.
func serviceManager(c *mesh.Config) *hcm.HttpConnectionManager {
	m := connectionManager("outbound", routeTimeout)
	keyed(m, original)
	m.AccessLog = accessLog(c, outboundLog)
	m.HttpFilters = httpFilters(filterCORS, filterOnDemand, filterFault)
	m.RouteSpecifier = &hcm.HttpConnectionManager_ScopedRoutes{ScopedRoutes: &hcm.ScopedRoutes{
		Name:            "outbound",
		RdsConfigSource: ads(),
		ScopeKeyBuilder: &hcm.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
			Type: &hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{
				HeaderValueExtractor: &hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor{
					Name:        dstHeader,
					ExtractType: &hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{Index: 0},
				},
			},
		}}},
		ConfigSpecifier: &hcm.ScopedRoutes_ScopedRds{ScopedRds: &hcm.ScopedRds{ScopedRdsConfigSource: ads()}},
	}}
	return m
}

// podManager sends requests to pods' own addresses, each a cluster that is
// fetched on demand.
func podManager(c *mesh.Config) *hcm.HttpConnectionManager {
	m := connectionManager("outbound", routeTimeout)
	keyed(m, prefixHTTP+original)
	m.AccessLog = accessLog(c, outboundLog)
	m.HttpFilters = httpFilters(filterOnDemand)
	byAddress := routesOf("pods", &route.Route{
		Name:  "pod",
		Match: prefixMatch("/"),
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_ClusterHeader{ClusterHeader: dstHeader},
			Timeout:          durationpb.New(0), IdleTimeout: durationpb.New(0),
		}},
		RequestHeadersToRemove:  []string{dstHeader},
		ResponseHeadersToRemove: []string{unreachedHeader},
	})
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: byAddress}
	return m
}

// onDemandProxy is a TCP proxy whose cluster is asked for when it is first called.
func onDemandProxy(stat, to string, c *mesh.Config, side logSide) *tcpproxy.TcpProxy {
	proxy := tcpProxyConfig(stat, to, c, side)
	proxy.OnDemand = &tcpproxy.TcpProxy_OnDemand{OdcdsConfig: ads(), Timeout: seconds(onDemandTimeout)}
	return proxy
}

// onDemandTCP sends a connection to the cluster whose name the format gives.
func onDemandTCP(stat, format string, c *mesh.Config, side logSide) []*listener.Filter {
	proxy := onDemandProxy(stat, ClusterBlackhole, c, side)
	connectAgain(proxy)
	return []*listener.Filter{connectionState("envoy.tcp_proxy.cluster", format), networkFilter(tcpProxyName, proxy)}
}

// connectionState notes a value about a connection where Envoy's own filters look for it
// (https://www.envoyproxy.io/docs, "well known filter state objects").
func connectionState(key, format string) *listener.Filter {
	return stateFor(key, format, setfilterstate.FilterStateValue_NONE)
}

// upstreamState is connectionState for the connection that is made in consequence.
func upstreamState(key, format string) *listener.Filter {
	return stateFor(key, format, setfilterstate.FilterStateValue_ONCE)
}

func stateFor(key, format string, shared setfilterstate.FilterStateValue_SharedWithUpstream) *listener.Filter {
	return networkFilter("envoy.filters.network.set_filter_state", &networkstate.Config{
		OnNewConnection: []*setfilterstate.FilterStateValue{{
			SharedWithUpstream: shared,
			Key:                &setfilterstate.FilterStateValue_ObjectKey{ObjectKey: key},
			Value: &setfilterstate.FilterStateValue_FormatString{FormatString: &core.SubstitutionFormatString{
				Format: &core.SubstitutionFormatString_TextFormatSource{TextFormatSource: &core.DataSource{
					Specifier: &core.DataSource_InlineString{InlineString: format},
				}},
			}},
		}},
	})
}

// scope maps an address and port to its routes, which have the same name and
// are fetched when first used.
func scope(k Key) *route.ScopedRouteConfiguration {
	return &route.ScopedRouteConfiguration{
		Name: k.Name, OnDemand: true, RouteConfigurationName: k.Name,
		Key: &route.ScopedRouteConfiguration_Key{Fragments: []*route.ScopedRouteConfiguration_Key_Fragment{{
			Type: &route.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: k.Name},
		}}},
	}
}
