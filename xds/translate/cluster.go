package translate

import (
	"net/netip"
	"strings"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	rawbuffer "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreams "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// connectTimeout is enough for a first packet that is lost, which TCP sends again
	// after a second (RFC 6298).
	connectTimeout = 2 * time.Second
	// originalTimeout is of connections that nobody asked us to look after: what is
	// far away may be slow, too.
	originalTimeout = 10 * time.Second
	// httpOptions is the extension key of a cluster's HTTP options.
	httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	// maxConnectionAge bounds how long a connection outlives the certificates
	// that it was opened with: Envoy drains none when they change. A quarter of
	// a certificate's life, an hour at most.
	maxConnectionAge      = time.Hour
	certificateLifeShares = 4
	// hairpin marks connections to workloads. One to the proxy's own pod, which
	// a service may choose, would go to the application over the loopback, past
	// the redirect; tulle-init redirects marked ones. It is a socket priority,
	// which needs no capability (socket(7), SO_PRIORITY).
	hairpin = 4
)

func clusterFor(k Key, v *mesh.View) Result {
	if c := staticCluster(k.Name); c != nil {
		return Result{Message: c}
	}
	if path, ok := strings.CutPrefix(k.Name, PrefixProbe); ok {
		return Result{Message: checkCluster(k, path, v)}
	}
	if called, ok := strings.CutPrefix(k.Name, prefixExternal); ok {
		return externalCluster(k, called, v)
	}
	if of, ok := strings.CutPrefix(k.Name, PrefixOut); ok {
		return outCluster(k, of, v)
	}
	d, ok := resolve(k.Name, v)
	switch {
	case !ok:
		return Result{Message: emptyCluster(k.Name)}
	case d.service != nil:
		return serviceCluster(k, d, v)
	default:
		return Result{Message: addressCluster(k.Name, d, v)}
	}
}

// staticCluster makes the clusters that every proxy has.
func staticCluster(name string) *cluster.Cluster {
	switch name {
	case ClusterInbound:
		// The application, at the address and port that the caller meant.
		c := originalDestination(name)
		c.TypedExtensionProtocolOptions = protocolOptions(&core.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(maxHeaders)})
		return c
	case ClusterPassthrough:
		return originalDestination(name)
	case ClusterPassthroughHTTP:
		c := originalDestination(name)
		c.TypedExtensionProtocolOptions = protocolOptions(&core.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(maxHeaders)})
		return c
	case ClusterExternalNames:
		return namesCluster()
	case ClusterProbes:
		return probeCluster(name, nil)
	case ClusterProbesTLS:
		// As a kubelet does: it verifies no certificate of an HTTPS probe.
		return probeCluster(name, &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{
			TypedConfig: typed(&tls.UpstreamTlsContext{CommonTlsContext: &tls.CommonTlsContext{}}),
		}})
	case ClusterBlackhole:
		return emptyCluster(name)
	case ClusterAdmin:
		c := emptyCluster(name)
		c.LoadAssignment = assignment(name, lbEndpoint(netip.MustParseAddrPort("127.0.0.1:15000"), false))
		return c
	}
	if c := applicationCluster(name); c != nil {
		return c
	}
	return nil
}

func originalDestination(name string) *cluster.Cluster {
	return &cluster.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST},
		LbPolicy:             cluster.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       seconds(originalTimeout),
		CircuitBreakers:      unlimited(),
	}
}

// probeCluster goes to the address in a header that the probes' routes set.
func probeCluster(name string, socket *core.TransportSocket) *cluster.Cluster {
	c := originalDestination(name)
	c.ConnectTimeout = seconds(time.Second)
	c.LbConfig = &cluster.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &cluster.Cluster_OriginalDstLbConfig{
		UseHttpHeader: true, HttpHeaderName: probeHeader,
	}}
	c.TransportSocket = socket
	return c
}

// emptyCluster answers at once: 503, or a reset.
func emptyCluster(name string) *cluster.Cluster {
	return &cluster.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		ConnectTimeout:       seconds(connectTimeout),
		LoadAssignment:       &endpoint.ClusterLoadAssignment{ClusterName: name},
	}
}

func assignment(name string, es ...*endpoint.LbEndpoint) *endpoint.ClusterLoadAssignment {
	return &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{LbEndpoints: es}}}
}

// serviceCluster is a service's endpoints, each spoken to in mesh mTLS or in
// the clear as its metadata says, or all in TLS of their own as a BackendTLSPolicy
// says. k.For is the clients' namespace.
func serviceCluster(k Key, d destination, v *mesh.View) Result {
	t := trafficFor(k.For, d.service.Name, d.port.Port, v)
	assignment := assignmentName(k.Name, k.For, d, &t, v)
	c := &cluster.Cluster{
		Name:                 k.Name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:       seconds(connectTimeout),
		UpstreamBindConfig:   bind(d.http),
	}
	servers := sanName(d.service.Name, d.port.Port)
	t.shape(c, d.http)
	if split := connectionSplit(d, v); split != nil {
		assignment, servers = prefixSplit+k.Name, servers+ofSplit
		c.CommonLbConfig.LocalityConfigSpecifier = byBackend()
	}
	if assignment != k.Name {
		c.EdsClusterConfig.ServiceName = assignment
	}
	c.TransportSocketMatches = meshOrPlain(alpn(d.http), validation(servers))
	if p := backendTLS(d.service.Name, d.port, v); p != nil && d.originates() {
		var secrets []*tls.SdsSecretConfig
		had := true
		if d.gateway != "" {
			secrets, had = shown(mesh.Name{Namespace: k.For, Name: d.gateway}, v)
		}
		if !had || !usable(p, v) {
			return Result{Message: emptyCluster(k.Name)}
		}
		c.TransportSocketMatches, c.TransportSocket = nil, originated(p, d.service.Name, d.port.Port, secrets)
	}
	if d.http {
		common := t.protocols(connectionAge(v))
		c.TypedExtensionProtocolOptions = protocolOptions(common)
		if d.prefix != prefixService {
			c.TypedExtensionProtocolOptions = explicitProtocol(common, d.prefix == prefixEdgeH2)
		}
	}
	return Result{Message: c, EDS: assignment}
}

// addressCluster is one address: a pod's, spoken to as the pod wants it, or
// one in the pods' ranges that no known pod has.
func addressCluster(name string, d destination, v *mesh.View) *cluster.Cluster {
	c := emptyCluster(name)
	w, known := v.WorkloadAt(d.address.Addr())
	config := v.Config()
	if !known && (config.Egress == mesh.RegistryOnly || !within(config.PodRanges, d.address.Addr())) {
		return c
	}
	c.LoadAssignment = assignment(name, lbEndpoint(d.address, false))
	c.CircuitBreakers = unlimited()
	c.UpstreamBindConfig = bind(d.http)
	if d.http {
		c.TypedExtensionProtocolOptions = protocolOptions((&traffic{}).protocols(connectionAge(v)))
	}
	if known && d.takesMTLS(w, d.address.Port(), v) {
		ids := spellings(Identity(config.TrustDomain, w.Namespace, w.ServiceAccount), config.TrustDomains())
		c.TransportSocket = clientTLS(alpn(d.http), validation(SecretRoots, sans(ids)...))
	}
	return c
}

// silent is how long a server's machine may leave what it was sent unacknowledged.
// Nothing but this ends connections to one that is lost: many calls share one of
// HTTP/2, and all of them would wait for the kernel to give up, which takes it a
// quarter of an hour (tcp_retries2), or for their own time-outs, and those that come
// after them, too. A live kernel acknowledges whatever becomes of its processes.
const silent = 10 * time.Second

// bind marks connections for the redirect, and has those of HTTP end when their server
// is lost. Not those of other protocols: there a server that does not read for long may
// mean that, and to the kernel it is the same (tcp(7), TCP_USER_TIMEOUT).
func bind(http bool) *core.BindConfig {
	const solSocket, soPriority, ipprotoTCP, tcpUserTimeout = 1, 12, 6, 18
	option := func(description string, level, name int64, value int64) *core.SocketOption {
		return &core.SocketOption{
			Description: description, Level: level, Name: name,
			Value: &core.SocketOption_IntValue{IntValue: value}, State: core.SocketOption_STATE_PREBIND,
		}
	}
	out := &core.BindConfig{SocketOptions: []*core.SocketOption{option("hairpin", solSocket, soPriority, hairpin)}}
	if http {
		out.SocketOptions = append(out.SocketOptions, option("lost servers", ipprotoTCP, tcpUserTimeout, silent.Milliseconds()))
	}
	return out
}

func within(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func alpn(http bool) string {
	if http {
		return ALPNHTTP
	}
	return ALPNTCP
}

func meshOrPlain(alpn string, check *tls.CommonTlsContext_CombinedValidationContext) []*cluster.Cluster_TransportSocketMatch {
	return []*cluster.Cluster_TransportSocketMatch{
		{Name: "mtls", Match: meshMatch(), TransportSocket: clientTLS(alpn, check)},
		{Name: "plain", Match: &structpb.Struct{}, TransportSocket: &core.TransportSocket{
			Name:       "envoy.transport_sockets.raw_buffer",
			ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&rawbuffer.RawBuffer{})},
		}},
	}
}

func connectionAge(v *mesh.View) time.Duration {
	life := v.Config().CertificateLifetime
	if life <= 0 {
		return maxConnectionAge
	}
	return min(maxConnectionAge, life/certificateLifeShares)
}

// protocolOptions speaks to the server what the client spoke: HTTP/2 streams
// in both directions would deadlock over HTTP/1.
func protocolOptions(common *core.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{httpOptions: typed(&upstreams.HttpProtocolOptions{
		CommonHttpProtocolOptions: common,
		UpstreamProtocolOptions: &upstreams.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &upstreams.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions:  http1(),
				Http2ProtocolOptions: &core.Http2ProtocolOptions{},
			},
		},
	})}
}

// explicitProtocol is HTTP/1.1 or HTTP/2, whatever the client speaks.
func explicitProtocol(common *core.HttpProtocolOptions, http2 bool) map[string]*anypb.Any {
	explicit := &upstreams.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: http1()},
	}
	if http2 {
		explicit.ProtocolConfig = &upstreams.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &core.Http2ProtocolOptions{}}
	}
	return map[string]*anypb.Any{httpOptions: typed(&upstreams.HttpProtocolOptions{
		CommonHttpProtocolOptions: common,
		UpstreamProtocolOptions:   &upstreams.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
	})}
}

// unlimited is without bounds, and without a budget: nothing is tried again there.
func unlimited() *cluster.CircuitBreakers { return (&traffic{}).breakers() }
