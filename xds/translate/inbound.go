package translate

import (
	"slices"
	"strconv"
	"time"

	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
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

// certHeader says who called. Envoy takes away what clients write there, but not what they
// write under the names that some applications take for it.
const certHeader = "x-forwarded-client-cert"

// statPlain is the prefix of the metrics of HTTP that comes in without mesh mTLS. TCP's
// is the name of its chain.
const statPlain = "inbound-plain"

// handshakeTimeout is ample for a client in the same cluster.
const handshakeTimeout = 15 * time.Second

// inbound is what a profile's inbound configuration is made from.
type inbound struct {
	config   *mesh.Config
	modes    modes
	declared map[uint16]mesh.Protocol // of container ports
	ended    map[uint16]ended         // by container port
	served   map[uint16]bool          // of those, which clients are let in at
	policies []*mesh.Policy           // authorization
	tokens   believed                 // of the routes alone
	limits   []*mesh.Policy           // rateLimit
}

func inboundOf(p *mesh.Profile, v *mesh.View) inbound {
	in := inbound{
		config:   v.Config(),
		modes:    mtlsModes(p.Namespace, p.Labels, v),
		declared: declaredPorts(p, v),
		policies: authorizations(p.Namespace, p.Labels, v),
		limits:   rateLimits(p.Namespace, p.Labels, v),
		ended:    endedPorts(p.Namespace, p.Labels, v),
		served:   map[uint16]bool{},
	}
	for port, e := range in.ended {
		in.served[port] = e.served(v)
	}
	return in
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
		l.FilterChains = []*listener.FilterChain{closed(v.Config())}
		return l
	}
	in := inboundOf(p, v)
	var noHTTP []uint16
	for _, port := range in.special() {
		if in.declared[port].Opaque() {
			noHTTP = append(noHTTP, port)
		}
	}
	l.ListenerFilters = append(l.ListenerFilters, notOn(tlsInspector(), in.unencrypted()), notOn(httpInspector(), noHTTP))
	used := map[string]bool{}
	l.FilterChainMatcher = in.matcher(used)
	for _, c := range in.chains(v) {
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
	for p := range in.ended {
		out = append(out, p)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// unencrypted are the ports that TLS is not looked for on, sorted.
func (in inbound) unencrypted() []uint16 {
	return slices.DeleteFunc(in.special(), func(p uint16) bool {
		_, ends := in.ended[p]
		return ends || in.modes.at(p) != mesh.MTLSDisabled
	})
}

// matcher chooses the chain, and notes which are used.
func (in inbound) matcher(used map[string]bool) *xdsmatcher.Matcher {
	ports := map[string]*xdsmatcher.Matcher_OnMatch{}
	for _, p := range in.special() {
		if _, ends := in.ended[p]; ends {
			ports[strconv.Itoa(int(p))] = further(in.endedMatcher(p, used))
			continue
		}
		ports[strconv.Itoa(int(p))] = further(portMatcher(in.modes.at(p), in.declared[p], used))
	}
	rest := portMatcher(in.modes.all, mesh.Detect, used)
	if len(ports) == 0 {
		return rest
	}
	return byPort(ports, further(rest))
}

// portMatcher is the choice on one port. What is not taken is closed: all but the
// mesh's own mTLS under Strict, and on a port that is declared HTTP what is not HTTP,
// so that rules about requests cannot be passed by. Each case is said to be: what finds
// no match among a port's own choices would go on to those of all other ports.
func portMatcher(mode mesh.MTLSMode, p mesh.Protocol, used map[string]bool) *xdsmatcher.Matcher {
	to := func(name string) *xdsmatcher.Matcher_OnMatch {
		used[name] = true
		return chain(name)
	}
	rest := chainPlainTCP
	if mode == mesh.MTLSStrict || p.IsHTTP() {
		rest = chainClosed
	}
	tls, plain := to(rest), to(rest)
	if mode != mesh.MTLSDisabled {
		// A client that could not look at what it sends, on a port of a protocol
		// in which servers speak first, calls HTTP TCP as well.
		tcp := chainMeshTCP
		if p.IsHTTP() {
			tcp = chainMeshHTTP
		}
		tls = further(byProtocol(map[string]*xdsmatcher.Matcher_OnMatch{ALPNHTTP: to(chainMeshHTTP), ALPNTCP: to(tcp)}, tls))
	}
	if mode != mesh.MTLSStrict {
		plain = further(ifHTTP(to(chainPlainHTTP), plain))
	}
	return byTLS(tls, plain)
}

func (in inbound) chains(v *mesh.View) []*listener.FilterChain {
	tcp := func(stat string, k known) []*listener.Filter {
		filters := k.authorization(in.policies, v).network(stat)
		return append(filters, tcpProxy(stat, ClusterInbound, in.config, inboundTCPLog))
	}
	// What name an application's own TLS asks for is seen where it comes as it is, and
	// is looked at. In the mesh's TLS it is not.
	hidden := sidecar(in.config, false)
	seen := hidden
	seen.sni, seen.blind = true, in.unencrypted()
	tls := serverTLS(in.config.TrustDomains())
	// Whoever opens a connection and never completes the handshake is let go.
	handshake := seconds(handshakeTimeout)
	return append([]*listener.FilterChain{
		{Name: chainMeshHTTP, TransportSocket: tls, TransportSocketConnectTimeout: handshake, Filters: []*listener.Filter{networkFilter(hcmName, in.manager(true))}},
		{Name: chainMeshTCP, TransportSocket: tls, TransportSocketConnectTimeout: handshake, Filters: tcp(chainMeshTCP, hidden)},
		{Name: chainPlainHTTP, Filters: []*listener.Filter{networkFilter(hcmName, in.manager(false))}},
		{Name: chainPlainTCP, Filters: tcp(chainPlainTCP, seen)},
		closed(in.config),
	}, in.endedChains(tls)...)
}

// closed takes connections, and ends them.
func closed(c *mesh.Config) *listener.FilterChain {
	return &listener.FilterChain{Name: chainClosed, Filters: []*listener.Filter{tcpProxy(chainClosed, ClusterBlackhole, c, inboundLog)}}
}

// manager tells the application who called, in x-forwarded-client-cert, and
// never lets a client say so itself. Paths are normalised before rules see
// them, as the application will; where rules match paths, what could be read
// two ways is refused.
func (in inbound) manager(mtls bool) *hcm.HttpConnectionManager {
	// What comes in plaintext is counted apart: where nothing does, Strict is safe.
	stat := "inbound"
	if !mtls {
		stat = statPlain
	}
	m := connectionManager(stat, 0)
	m.AccessLog = accessLog(in.config, inboundLog)
	m.HttpFilters = askingService(inOrder(filterJWT, filterAudit, filterCustom, filterDeny, filterAllow, filterRateLimit, filterToApplication), in.config)
	m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: RouteInbound}}
	m.XffNumTrustedHops = hopsBefore(in.config)
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE
	if mtls {
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE_SET
		m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
		m.LocalReplyConfig = sayUnreached()
	}
	if in.matchesPaths() {
		m.NormalizePath = wrapperspb.Bool(true)
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_REJECT_REQUEST
	}
	return m
}

// matchesPaths reports whether a rule that decides or limits asks for paths.
func (in inbound) matchesPaths() bool { return matchesPaths(in.policies) || limitsPaths(in.limits) }

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
//
// The name is RouteInbound, or that of routes of a port at which TLS ends.
func inboundRoutes(name, profile string, v *mesh.View) Result {
	p, ok := v.Profile(profile)
	if !ok {
		return Result{Message: routesOf(name), Clusters: []string{ClusterInbound}} // 404
	}
	to := ClusterInbound
	e, ofClients, ok := endedRoutes(name, p, v)
	switch {
	case ok:
		to = e.clusterIn(name, declaredPorts(p, v))
	case name != RouteInbound:
		return Result{Message: routesOf(name), Clusters: []string{ClusterInbound}}
	}
	in := inbound{
		config: v.Config(), policies: authorizations(p.Namespace, p.Labels, v), limits: rateLimits(p.Namespace, p.Labels, v),
		tokens: tokensAt(selected(p.Namespace, p.Labels, mesh.SectionJWT, v), v),
	}
	safe := prefixMatch("/")
	safe.Headers = []*route.HeaderMatcher{{
		Name: ":method", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: regex("GET|HEAD|OPTIONS")},
	}}
	r := routesOf(name,
		toApplication(to, safe, "reset,reset-before-request"),
		toApplication(to, prefixMatch("/"), "reset-before-request"),
	)
	k := sidecar(in.config, true)
	if ofClients {
		// What these ask for is seen here first: of the name that they asked for nobody
		// made another, and whoever wrote X-Forwarded-For was none of the trusted proxies.
		k.sni, k.nameless, k.hops = true, false, 0
	}
	k.tokens = in.tokens
	verdicts := k.authorization(in.policies, v)
	filters := verdicts.filters()
	if look := in.tokens.filter(); look != nil {
		filters[jwtName] = look
	}
	if limit := rateLimit(in.limits, in.config.TrustDomains()); limit != nil {
		filters[rateLimitName] = typed(limit)
	}
	global := globalLimits{edge: false}
	for _, p := range in.limits {
		global.add(p, in.config.TrustDomains(), "")
	}
	if limit := global.config(); limit != nil {
		filters[globalLimitName] = limit
	}
	r.VirtualHosts[0].TypedPerFilterConfig = filters
	r.VirtualHosts[0].RequestHeadersToRemove = slices.Concat(otherSpellings(certHeader), verdicts.spoofed(), in.tokens.spoofed())
	// An answer of the application is never tried again, whatever it says.
	r.VirtualHosts[0].ResponseHeadersToRemove = []string{unreachedHeader}
	clusters := slices.Concat([]string{to}, verdicts.clusters(), askedClusters(in.limits, in.config))
	return Result{Message: r, Clusters: clusters}
}

// toApplication tries again when the application closes an idle connection just
// as a request is put on it, as it may at any time. One that was not sent yet
// goes on another connection; one that was is sent again where that is safe
// (RFC 9110, section 9.2.2) and nothing of an answer has come.
func toApplication(cluster string, m *route.RouteMatch, retryOn string) *route.Route {
	return &route.Route{
		Name:  "application",
		Match: m,
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: cluster},
			Timeout:          durationpb.New(0), IdleTimeout: durationpb.New(0),
			RetryPolicy: &route.RetryPolicy{RetryOn: retryOn, NumRetries: wrapperspb.UInt32(2)},
		}},
	}
}
