package translate

import (
	"slices"
	"strconv"
	"time"

	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// metadataKey is where metadata of ours is.
const metadataKey = "mesh.tulle.dev"

// Names of the inbound listener's chains.
const (
	chainMeshHTTP  = "mesh-http"
	chainMeshTCP   = "mesh-tcp"
	chainPlainHTTP = "plain-http"
	chainPlainTCP  = "plain-tcp"
	chainClosed    = "closed"
)

// handshakeTimeout is ample for a client in the same cluster.
const handshakeTimeout = 15 * time.Second

// inbound is what a profile's inbound configuration is made from.
type inbound struct {
	config   *mesh.Config
	modes    modes
	declared map[uint16]mesh.Protocol // of container ports
	policies []*mesh.Policy           // authorization
	limits   []*mesh.Policy           // rateLimit
}

func inboundOf(p *mesh.Profile, v *mesh.View) inbound {
	return inbound{
		config:   v.Config(),
		modes:    mtlsModes(p.Namespace, p.Labels, v),
		declared: declaredPorts(p, v),
		policies: authorizations(p.Namespace, p.Labels, v),
		limits:   rateLimits(p.Namespace, p.Labels, v),
	}
}

// declaredPorts are the protocols of container ports, as the services that
// select the workload declare them. Where two disagree, it is found out.
func declaredPorts(p *mesh.Profile, v *mesh.View) map[uint16]mesh.Protocol {
	out := map[uint16]mesh.Protocol{}
	for _, s := range v.Services(p.Namespace) {
		if len(s.Selector) == 0 || !(&mesh.Selector{MatchLabels: s.Selector}).Matches(p.Labels) {
			continue
		}
		for _, sp := range s.Ports {
			port, ok := targetPort(sp, p)
			if !ok {
				continue
			}
			if had, ok := out[port]; ok && !sameForm(had, sp.Protocol) {
				out[port] = mesh.Detect
				continue
			}
			out[port] = sp.Protocol
		}
	}
	return out
}

func sameForm(a, b mesh.Protocol) bool {
	return a.IsHTTP() == b.IsHTTP() && a.Opaque() == b.Opaque()
}

func targetPort(sp mesh.ServicePort, p *mesh.Profile) (uint16, bool) {
	if sp.TargetName == "" {
		return sp.Target, sp.Target != 0
	}
	for _, c := range p.Ports {
		if c.Name == sp.TargetName {
			return c.Port, true
		}
	}
	return 0, false
}

// inboundListener takes what is sent to a workload. The mesh's own TLS is told
// by its ALPN, so that an application's own TLS passes where plaintext may.
// Where the profile is gone, nothing is let in.
//
// For a pod that is ending the listener is the same but for its metadata. That
// is enough for Envoy to replace it: who is connected is told to go elsewhere
// (connection: close, GOAWAY), and who connects anew is served as before.
func inboundListener(class string, v *mesh.View) *listener.Listener {
	profile, ending := inboundFor(class)
	l := baseListener(ListenerInbound, PortInbound, v.Config())
	if ending {
		l.Metadata = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
			metadataKey: {Fields: map[string]*structpb.Value{"ending": structpb.NewBoolValue(true)}},
		}}
	}
	l.TrafficDirection = core.TrafficDirection_INBOUND
	l.ListenerFilters = []*listener.ListenerFilter{originalDst()}
	p, ok := v.Profile(profile)
	if !ok {
		l.FilterChains = []*listener.FilterChain{{Name: chainClosed, Filters: []*listener.Filter{tcpProxy(chainClosed, ClusterBlackhole, v.Config(), inboundLog)}}}
		return l
	}
	in := inboundOf(p, v)
	var noTLS, noHTTP []uint16
	for _, port := range in.special() {
		if in.modes.at(port) == mesh.MTLSDisabled {
			noTLS = append(noTLS, port)
		}
		if in.declared[port].Opaque() {
			noHTTP = append(noHTTP, port)
		}
	}
	l.ListenerFilters = append(l.ListenerFilters, notOn(tlsInspector(), noTLS), notOn(httpInspector(), noHTTP))
	used := map[string]bool{}
	l.FilterChainMatcher = in.matcher(used)
	for _, c := range in.chains() {
		if used[c.Name] {
			l.FilterChains = append(l.FilterChains, c)
		}
	}
	return l
}

// special are the ports that differ from the rest, sorted.
func (in inbound) special() []uint16 {
	var out []uint16
	for p, proto := range in.declared {
		if proto != mesh.Detect {
			out = append(out, p)
		}
	}
	for p := range in.modes.ports {
		out = append(out, p)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// matcher chooses the chain, and notes which are used.
func (in inbound) matcher(used map[string]bool) *xdsmatcher.Matcher {
	ports := map[string]*xdsmatcher.Matcher_OnMatch{}
	for _, p := range in.special() {
		ports[strconv.Itoa(int(p))] = further(portMatcher(in.modes.at(p), in.declared[p], used))
	}
	rest := portMatcher(in.modes.all, mesh.Detect, used)
	if len(ports) == 0 {
		return rest
	}
	return byPort(ports, further(rest))
}

// portMatcher is the choice on one port. What no branch takes is closed: all
// but the mesh's own mTLS under Strict, and on a port that is declared HTTP
// what is not HTTP, so that rules about requests cannot be passed by.
func portMatcher(mode mesh.MTLSMode, p mesh.Protocol, used map[string]bool) *xdsmatcher.Matcher {
	to := func(name string, allowed bool) *xdsmatcher.Matcher_OnMatch {
		if !allowed {
			return nil
		}
		used[name] = true
		return chain(name)
	}
	plainTCP := to(chainPlainTCP, mode != mesh.MTLSStrict && !p.IsHTTP())
	var tls, plain *xdsmatcher.Matcher_OnMatch
	if mode == mesh.MTLSDisabled {
		tls = plainTCP
	} else {
		// A client that could not look at what it sends, on a port of a protocol
		// in which servers speak first, calls HTTP TCP as well.
		tcp := chainMeshTCP
		if p.IsHTTP() {
			tcp = chainMeshHTTP
		}
		choices := map[string]*xdsmatcher.Matcher_OnMatch{ALPNHTTP: to(chainMeshHTTP, true), ALPNTCP: to(tcp, true)}
		tls = further(byProtocol(choices, plainTCP))
	}
	if http := to(chainPlainHTTP, mode != mesh.MTLSStrict); http != nil {
		plain = further(ifHTTP(http, plainTCP))
	}
	return byTLS(tls, plain)
}

func (in inbound) chains() []*listener.FilterChain {
	v := authorization(in.policies, in.config.TrustDomain, false)
	tcp := func(stat string) []*listener.Filter {
		var out []*listener.Filter
		for _, rules := range []*rbacconfig.RBAC{v.deny, v.allow} {
			if rules != nil {
				out = append(out, networkFilter("envoy.filters.network.rbac", &rbac.RBAC{StatPrefix: stat, Rules: rules}))
			}
		}
		return append(out, tcpProxy(stat, ClusterInbound, in.config, inboundLog))
	}
	tls := serverTLS(in.config.TrustDomain)
	// Whoever opens a connection and never completes the handshake is let go.
	handshake := seconds(handshakeTimeout)
	return []*listener.FilterChain{
		{Name: chainMeshHTTP, TransportSocket: tls, TransportSocketConnectTimeout: handshake, Filters: []*listener.Filter{networkFilter(hcmName, in.manager(true))}},
		{Name: chainMeshTCP, TransportSocket: tls, TransportSocketConnectTimeout: handshake, Filters: tcp(chainMeshTCP)},
		{Name: chainPlainHTTP, Filters: []*listener.Filter{networkFilter(hcmName, in.manager(false))}},
		{Name: chainPlainTCP, Filters: tcp(chainPlainTCP)},
	}
}

// manager tells the application who called, in x-forwarded-client-cert, and
// never lets a client say so itself. Paths are normalised before rules see
// them, as the application will; where rules match paths, what could be read
// two ways is refused.
func (in inbound) manager(mtls bool) *hcm.HttpConnectionManager {
	stat := "inbound"
	m := connectionManager(stat, 0)
	m.AccessLog = accessLog(in.config, inboundLog)
	m.HttpFilters = askingService(httpFilters(filterDeny, filterAllow, filterRateLimit), in.config)
	m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: RouteInbound}}
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE
	if mtls {
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE_SET
		m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
		m.LocalReplyConfig = sayUnreached()
	}
	if matchesPaths(in.policies) || limitsPaths(in.limits) {
		m.NormalizePath = wrapperspb.Bool(true)
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_REJECT_REQUEST
	}
	return m
}

// sayUnreached tells the client's sidecar when there was no connection to the
// application: at its start, at its end, or when it has crashed. It is for
// sidecars alone, so not for callers in the clear.
func sayUnreached() *hcm.LocalReplyConfig {
	return &hcm.LocalReplyConfig{Mappers: []*hcm.ResponseMapper{{
		Filter: &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslog.ResponseFlagFilter{Flags: []string{"UF"}}, // upstream connection failure
		}},
		HeadersToAdd: []*core.HeaderValueOption{{
			Header:       &core.HeaderValue{Key: unreachedHeader, Value: "1"},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}
}

// inboundRoutes send everything to the application, after the authorization
// that they carry.
func inboundRoutes(profile string, v *mesh.View) *route.RouteConfiguration {
	p, ok := v.Profile(profile)
	if !ok {
		return routesOf(RouteInbound) // 404
	}
	in := inbound{config: v.Config(), policies: authorizations(p.Namespace, p.Labels, v), limits: rateLimits(p.Namespace, p.Labels, v)}
	safe := prefixMatch("/")
	safe.Headers = []*route.HeaderMatcher{{
		Name: ":method", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: regex("GET|HEAD|OPTIONS")},
	}}
	r := routesOf(RouteInbound,
		toApplication(safe, "reset,reset-before-request"),
		toApplication(prefixMatch("/"), "reset-before-request"),
	)
	filters := authorizationFilters(in.policies, in.config)
	if limit := rateLimit(in.limits, in.config.TrustDomain); limit != nil {
		filters[rateLimitName] = typed(limit)
	}
	global := globalLimits{edge: false}
	for _, p := range in.limits {
		global.add(p, in.config.TrustDomain, "")
	}
	if limit := global.config(); limit != nil {
		filters[globalLimitName] = limit
	}
	r.VirtualHosts[0].TypedPerFilterConfig = filters
	// An answer of the application is never tried again, whatever it says.
	r.VirtualHosts[0].ResponseHeadersToRemove = []string{unreachedHeader}
	return r
}

// inboundClusters are the application's, and those of services that are asked about its
// requests.
func inboundClusters(profile string, v *mesh.View) []string {
	out := []string{ClusterInbound}
	if p, ok := v.Profile(profile); ok {
		out = append(out, askedClusters(rateLimits(p.Namespace, p.Labels, v), v.Config())...)
	}
	return out
}

// authorizationFilters are what the two filters enforce on requests.
func authorizationFilters(policies []*mesh.Policy, c *mesh.Config) map[string]*anypb.Any {
	filters := map[string]*anypb.Any{}
	verdicts := authorization(policies, c.TrustDomain, true)
	if verdicts.deny != nil {
		filters[denyName] = typed(perRoute(verdicts.deny))
	}
	if verdicts.allow != nil {
		filters[allowName] = typed(perRoute(verdicts.allow))
	}
	return filters
}

// toApplication tries again when the application closes an idle connection just
// as a request is put on it, as it may at any time. One that was not sent yet
// goes on another connection; one that was is sent again where that is safe
// (RFC 9110, section 9.2.2) and nothing of an answer has come.
func toApplication(m *route.RouteMatch, retryOn string) *route.Route {
	return &route.Route{
		Name:  "application",
		Match: m,
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: ClusterInbound},
			Timeout:          durationpb.New(0), IdleTimeout: durationpb.New(0),
			RetryPolicy: &route.RetryPolicy{RetryOn: retryOn, NumRetries: wrapperspb.UInt32(2)},
		}},
	}
}
