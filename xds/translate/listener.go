package translate

import (
	"net/netip"
	"slices"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// inspectionTimeout is how long a connection waits for first bytes before it
// counts as TCP.
const inspectionTimeout = time.Second

func listenerFor(k Key, v *mesh.View) *listener.Listener {
	switch k.Name {
	case ListenerOutbound:
		return outboundListener(v)
	case ListenerEgress:
		return egressListener(k.For, v)
	case ListenerInbound:
		return inboundListener(k.For, v)
	case ListenerStats:
		return directListener(ListenerStats, PortStats, v.Config(), &route.Route{
			Match: pathMatch("/stats/prometheus"),
			Action: &route.Route_Route{Route: &route.RouteAction{
				ClusterSpecifier: &route.RouteAction_Cluster{Cluster: ClusterAdmin}, Timeout: durationpb.New(0),
			}},
		})
	case ListenerReady:
		return directListener(ListenerReady, PortReady, v.Config(), &route.Route{
			Match:  pathMatch("/ready"),
			Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 200}},
		})
	}
	return &listener.Listener{Name: k.Name}
}

// baseListener binds every IPv4 address, and every IPv6 one where the cluster
// has such addresses: where there are none, the kernel may not let it.
func baseListener(name string, port uint32, c *mesh.Config) *listener.Listener {
	l := &listener.Listener{
		Name:                                 name,
		Address:                              socketAddress("0.0.0.0", port),
		ListenerFiltersTimeout:               seconds(inspectionTimeout),
		ContinueOnListenerFiltersTimeout:     true,
		PerConnectionBufferLimitBytes:        wrapperspb.UInt32(1 << 18),
		MaxConnectionsToAcceptPerSocketEvent: wrapperspb.UInt32(16),
	}
	if hasIPv6(c) {
		l.AdditionalAddresses = []*listener.AdditionalAddress{{Address: socketAddress("::", port)}}
	}
	return l
}

// hasIPv6 reports whether the cluster has addresses of IPv6.
func hasIPv6(c *mesh.Config) bool {
	return slices.ContainsFunc(slices.Concat(c.PodRanges, c.ServiceRanges), func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// directListener is a small HTTP server with a few routes.
func directListener(name string, port uint32, c *mesh.Config, routes ...*route.Route) *listener.Listener {
	return checkingListener(name, port, c, nil, routes...)
}

// checkingListener is one whose first filters may answer before any route.
func checkingListener(name string, port uint32, c *mesh.Config, first []*hcm.HttpFilter, routes ...*route.Route) *listener.Listener {
	l := baseListener(name, port, c)
	l.FilterChains = []*listener.FilterChain{checkingChain(name, first, routes...)}
	l.BypassOverloadManager = true // asked by the kubelet and Prometheus when it matters most
	return l
}

func checkingChain(name string, first []*hcm.HttpFilter, routes ...*route.Route) *listener.FilterChain {
	m := connectionManager(name, 0)
	m.UpgradeConfigs = nil // a probe that became a WebSocket would be a way in
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: routesOf(name, routes...)}
	m.HttpFilters = slices.Concat(first, httpFilters())
	return &listener.FilterChain{Filters: []*listener.Filter{networkFilter(hcmName, m)}}
}

func routesOf(name string, routes ...*route.Route) *route.RouteConfiguration {
	return &route.RouteConfiguration{Name: name, VirtualHosts: []*route.VirtualHost{{
		Name: name, Domains: []string{"*"}, Routes: routes,
	}}}
}

func pathMatch(path string) *route.RouteMatch {
	return &route.RouteMatch{PathSpecifier: &route.RouteMatch_Path{Path: path}}
}

func prefixMatch(path string) *route.RouteMatch {
	return &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: path}}
}

func listenerFilter(name string, m proto.Message) *listener.ListenerFilter {
	return &listener.ListenerFilter{Name: name, ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: typed(m)}}
}

func originalDst() *listener.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{})
}

func tlsInspector() *listener.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspector.TlsInspector{})
}

func httpInspector() *listener.ListenerFilter {
	return listenerFilter("envoy.filters.listener.http_inspector", &httpinspector.HttpInspector{})
}

// notOn leaves a listener filter out on the ports.
func notOn(f *listener.ListenerFilter, ports []uint16) *listener.ListenerFilter {
	if len(ports) == 0 {
		return f
	}
	rules := make([]*listener.ListenerFilterChainMatchPredicate, 0, len(ports)+1)
	for _, p := range ports {
		rules = append(rules, portPredicate(p))
	}
	if len(rules) == 1 { // a set of rules has two members at least
		f.FilterDisabled = rules[0]
		return f
	}
	f.FilterDisabled = &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listener.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
	return f
}

func networkFilter(name string, m proto.Message) *listener.Filter {
	return &listener.Filter{Name: name, ConfigType: &listener.Filter_TypedConfig{TypedConfig: typed(m)}}
}

func tcpProxy(stat, to string, c *mesh.Config, side logSide) *listener.Filter {
	return networkFilter(tcpProxyName, tcpProxyConfig(stat, to, c, side))
}

func tcpProxyConfig(stat, to string, c *mesh.Config, side logSide) *tcpproxy.TcpProxy {
	return &tcpproxy.TcpProxy{
		StatPrefix:       stat,
		ClusterSpecifier: &tcpproxy.TcpProxy_Cluster{Cluster: to},
		IdleTimeout:      durationpb.New(0), // how long a connection may be silent is for its ends to say
		AccessLog:        accessLog(c, side),
	}
}
