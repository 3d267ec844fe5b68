package translate

import (
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	filterchain "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	localratelimit "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	ondemand "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/on_demand/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	preservecase "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	hcmName      = "envoy.filters.network.http_connection_manager"
	tcpProxyName = "envoy.filters.network.tcp_proxy"
	routerName   = "envoy.filters.http.router"
)

// httpFilter is a filter of a connection manager. The order of these constants
// is the order in which filters run, everywhere. Before them all, on the probes'
// listener alone, is a filter for each probe that Envoy checks (probeFilter).
type httpFilter int

const (
	filterCORS       httpFilter = iota // what pages of other origins may do; preflights have no credentials
	filterJWT                          // whose token is valid
	filterAudit                        // authorization: who is noted
	filterCustom                       // authorization: who is told to come with a token (challenge); who is asked about
	filterDeny                         // authorization: who is refused
	filterAllow                        // authorization: who is let in
	filterRateLimit                    // how many of those who are let in; then what the mesh's service counts (askingService)
	filterOnDemand                     // routes and clusters that are fetched when first used
	filterFault                        // delays and errors that a policy asks for
	filterForward                      // names outside of the cluster that are looked up when called
	filterForwardOut                   // the same at a gateway
	filterOutside                      // where such a name may lead
	filterRouter
	filterToApplication // the router of what comes in
)

// These are in no request's chain but where the routes enable them
// (HttpFilter.disabled): one that has nothing to do would still cost each request one or
// two percent of what Envoy does for it (docs/performance.md). What they do comes with the
// routes, too, so that a changed policy holds from the next request on, on every
// connection, and drains none.
const (
	jwtName         = "tulle.jwt"
	auditName       = "tulle.audit"
	customName      = "tulle.custom"
	denyName        = "tulle.deny"
	allowName       = "tulle.allow"
	forwardName     = "tulle.forward"
	corsName        = "tulle.cors"
	rateLimitName   = "tulle.ratelimit"
	globalLimitName = "tulle.ratelimit.global" // where the mesh has a rate limit service
	faultName       = "tulle.fault"
	outsideName     = "tulle.outside"
)

func (f httpFilter) filter() *hcm.HttpFilter {
	switch f {
	case filterJWT:
		return disabled(typedFilter(jwtName, &filterchain.FilterChainConfig{}))
	case filterAudit:
		return disabled(typedFilter(auditName, &rbac.RBAC{}))
	case filterCustom:
		return disabled(typedFilter(customName, &filterchain.FilterChainConfig{}))
	case filterDeny:
		return disabled(typedFilter(denyName, &rbac.RBAC{}))
	case filterAllow:
		return disabled(typedFilter(allowName, &rbac.RBAC{}))
	case filterRateLimit:
		return disabled(typedFilter(rateLimitName, &localratelimit.LocalRateLimit{StatPrefix: rateLimitStat}))
	case filterCORS:
		return disabled(typedFilter(corsName, &cors.Cors{}))
	case filterFault:
		return disabled(typedFilter(faultName, &faultfilter.HTTPFault{}))
	case filterForward:
		return disabled(typedFilter(forwardName, forward()))
	case filterForwardOut:
		return disabled(typedFilter(forwardName, forwardOut()))
	case filterOutside:
		return disabled(typedFilter(outsideName, &rbac.RBAC{}))
	case filterOnDemand:
		return typedFilter("envoy.filters.http.on_demand", &ondemand.OnDemand{
			Odcds: &ondemand.OnDemandCds{Source: ads(), Timeout: seconds(onDemandTimeout)},
		})
	case filterToApplication:
		// What answers there are, and after what time, the manager counts, with those that
		// the proxy gives itself. To count them again for the cluster and its endpoint would
		// cost a twentieth of what Envoy does for a request (docs/performance.md).
		return typedFilter(routerName, &router.Router{SuppressEnvoyHeaders: true, DynamicStats: wrapperspb.Bool(false)})
	default:
		return typedFilter(routerName, &router.Router{SuppressEnvoyHeaders: true})
	}
}

func typedFilter(name string, m proto.Message) *hcm.HttpFilter {
	return &hcm.HttpFilter{Name: name, ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: typed(m)}}
}

func disabled(f *hcm.HttpFilter) *hcm.HttpFilter {
	f.Disabled = true
	return f
}

// httpFilters makes the filters, given in their order, and the router.
func httpFilters(fs ...httpFilter) []*hcm.HttpFilter {
	return inOrder(append(fs, filterRouter)...)
}

// inOrder makes the filters, given in their order, of which the last is a router.
func inOrder(fs ...httpFilter) []*hcm.HttpFilter {
	out := make([]*hcm.HttpFilter, 0, len(fs))
	for _, f := range fs {
		out = append(out, f.filter())
	}
	return out
}

// perRoute enforces rules, and notes under the prefix what shadow would decide; each
// may be nil. Rules are counted one by one where there is something to note.
func perRoute(rules, shadow *rbacconfig.RBAC, note string) *rbac.RBACPerRoute {
	out := &rbac.RBAC{Rules: rules}
	if shadow != nil {
		out.ShadowRules, out.ShadowRulesStatPrefix, out.TrackPerRuleStats = shadow, note, true
	}
	return &rbac.RBACPerRoute{Rbac: out}
}

// maxHeaders is how many headers a message may have. Envoy's default of 100 is
// below what servers take (Go has no limit, Java's Tomcat counts bytes).
const maxHeaders = 1000

// http1 keeps what an application may look at, in both directions: the case of
// header names, trailers, and HTTP/1.0.
func http1() *core.Http1ProtocolOptions {
	return &core.Http1ProtocolOptions{
		AcceptHttp_10:  true,
		EnableTrailers: true,
		HeaderKeyFormat: &core.Http1ProtocolOptions_HeaderKeyFormat{
			HeaderFormat: &core.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter{
				StatefulFormatter: &core.TypedExtensionConfig{
					Name:        "preserve_case",
					TypedConfig: typed(&preservecase.PreserveCaseFormatterConfig{}),
				},
			},
		},
	}
}

// nameless is the host of requests that name none, as those of HTTP/1.0 may. Envoy would
// refuse them. Policies are about it as they are about one that a client made up.
const nameless = "localhost"

// connectionManager is what all of ours have in common: nothing is added to or
// taken from what the application sees, and no time-out is imposed that a
// policy did not ask for. idle bounds the wait before a route is known; 0 is
// no bound. Under a listener that was replaced, Envoy would close idle connections
// of HTTP/1 in the drain's last seconds, each by not reading it for a second (5 s,
// drain_timeout, and delayed_close_timeout): what comes in meanwhile is lost. So the
// drain's own end is what ends them.
func connectionManager(stat string, idle time.Duration) *hcm.HttpConnectionManager {
	http1 := http1()
	http1.DefaultHostForHttp_10 = nameless
	return &hcm.HttpConnectionManager{
		StatPrefix:                 stat,
		CodecType:                  hcm.HttpConnectionManager_AUTO,
		StreamIdleTimeout:          durationpb.New(idle),
		DrainTimeout:               durationpb.New(mesh.DrainTime),
		ServerHeaderTransformation: hcm.HttpConnectionManager_PASS_THROUGH,
		UseRemoteAddress:           wrapperspb.Bool(false),
		SkipXffAppend:              true,
		GenerateRequestId:          wrapperspb.Bool(true),
		PreserveExternalRequestId:  true,
		HttpProtocolOptions:        http1,
		CommonHttpProtocolOptions:  &core.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(maxHeaders)},
		UpgradeConfigs:             []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
}
