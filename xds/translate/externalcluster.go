package translate

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commondns "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnscluster "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	forwardcluster "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	forwardcache "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	forwardfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	cares "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// externalCluster is what was called, by a host or an address: "host:port". Whose service
// account calls has been asked before.
func externalCluster(k Key, called string, v *mesh.View) Result {
	e, ok := calledExternal(k.For, called, v)
	switch {
	case !ok || e.Invalid != "":
		return Result{Message: emptyCluster(k.Name)}
	case e.Gateway != nil:
		return e.toGateway(k, k.For, v)
	case e.Resolution == mesh.ResolveNone && v.Config().Egress == mesh.AllowAny:
		c := e.leaving(k, k.For, nil, v)
		c.LoadAssignment, c.OutlierDetection, c.CommonLbConfig, c.LbConfig, c.TransportSocket = nil, nil, nil, nil, nil
		c.ClusterDiscoveryType = &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST}
		c.LbPolicy = cluster.Cluster_CLUSTER_PROVIDED
		return Result{Message: c}
	}
	return Result{Message: e.leaving(k, k.For, nil, v)}
}

// statName is the one by which statistics and access logs name it, however it was called.
func (e external) statName() string {
	return prefixExternal + e.Meta.Name.String() + "|" + strconv.Itoa(int(e.port.Number))
}

// leaving is the cluster of its servers, as the proxy calls them that leaves the cluster, and
// shows what is in the secrets to those whom it speaks TLS to.
func (e external) leaving(k Key, client string, secrets []*tls.SdsSecretConfig, v *mesh.View) *cluster.Cluster {
	c := emptyCluster(k.Name)
	c.AltStatName = e.statName()
	t := externalTraffic(client, e, v)
	c.ConnectTimeout = seconds(originalTimeout)
	t.shape(c, e.port.Protocol.IsHTTP())
	switch {
	case e.Resolution == mesh.ResolveStatic:
		c.LoadAssignment.Endpoints = e.servers()
	default: // where the name leads, whatever address the application had for it
		c.ClusterDiscoveryType = &cluster.Cluster_ClusterType{ClusterType: &cluster.Cluster_CustomClusterType{
			Name: "envoy.clusters.dns",
			TypedConfig: typed(&dnscluster.DnsCluster{
				RespectDnsTtl: true, DnsLookupFamily: commondns.DnsLookupFamily_V4_PREFERRED, TypedDnsResolverConfig: dnsResolver(),
			}),
		}}
		c.LoadAssignment.Endpoints = e.servers()
	}
	if e.port.Protocol.IsHTTP() {
		c.TypedExtensionProtocolOptions = protocolOptions(t.protocols(maxConnectionAge))
	}
	if e.TLS != nil {
		c.TransportSocket = originate(e, secrets)
	}
	return c
}

// calledExternal reads "host:port" or "address:port".
func calledExternal(client, called string, v *mesh.View) (external, bool) {
	if at, err := netip.ParseAddrPort(called); err == nil {
		return externalAt(client, at, v)
	}
	host, number, _ := strings.Cut(called, ":")
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return external{}, false
	}
	e, ok := externalNamed(client, host, uint16(port), v)
	return e, ok && (e.Gateway != nil || !wildHost(host))
}

// servers are the endpoints, or else the host itself.
func (e external) servers() []*endpoint.LocalityLbEndpoints {
	es := e.Endpoints
	if len(es) == 0 {
		es = []mesh.ExternalEndpoint{{Address: e.hostname()}}
	}
	out := &endpoint.LocalityLbEndpoints{}
	for _, s := range es {
		port := cmp.Or(e.port.Target, e.port.Number)
		if p, ok := s.Ports[e.port.Name]; ok && e.port.Name != "" {
			port = p
		}
		out.LbEndpoints = append(out.LbEndpoints, &endpoint.LbEndpoint{HostIdentifier: &endpoint.LbEndpoint_Endpoint{
			Endpoint: &endpoint.Endpoint{Address: socketAddress(s.Address, uint32(port))},
		}})
	}
	return []*endpoint.LocalityLbEndpoints{out}
}

// hostname is the one by which it was called; the first, where it was by an address.
func (e external) hostname() string { return cmp.Or(e.host, e.Hosts[0]) }

// originate is TLS to a server that must show a certificate for its name.
func originate(e external, secrets []*tls.SdsSecretConfig) *core.TransportSocket {
	sni, names := origination(e)
	vc := &tls.CertificateValidationContext{TrustedCa: &core.DataSource{Specifier: &core.DataSource_Filename{Filename: systemRoots}}}
	if e.TLS.CA != "" {
		vc.TrustedCa = inline([]byte(e.TLS.CA))
	}
	for _, n := range names {
		vc.MatchTypedSubjectAltNames = append(vc.MatchTypedSubjectAltNames, &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_DNS, Matcher: exact(n)})
	}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&tls.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tls.CommonTlsContext{
			TlsParams: &tls.TlsParameters{
				TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3,
			},
			TlsCertificateSdsSecretConfigs: secrets,

			ValidationContextType: &tls.CommonTlsContext_ValidationContext{ValidationContext: vc},
		},
	})}}
}

// origination is the server name that is asked for, and the names of which the certificate
// must have one.
func origination(e external) (sni string, names []string) {
	sni = cmp.Or(e.TLS.SNI, e.hostname())
	if len(e.TLS.SubjectAltNames) > 0 {
		return sni, e.TLS.SubjectAltNames
	}
	return sni, []string{sni}
}

// dnsResolver, wherever names are looked up, asks as the pod's resolv.conf says, but takes names as they are: one in the
// list of domains to search could be had by whoever may make a namespace of that name.
func dnsResolver() *core.TypedExtensionConfig {
	return &core.TypedExtensionConfig{
		Name: "envoy.network.dns_resolver.cares",
		TypedConfig: typed(&cares.CaresDnsResolverConfig{
			DnsResolverOptions: &core.DnsResolverOptions{NoDefaultSearchDomain: true},
		}),
	}
}

// dnsCache is of names that are looked up when called; all that use it must have it alike.
func dnsCache() *forwardcache.DnsCacheConfig {
	return &forwardcache.DnsCacheConfig{
		Name: "external", DnsLookupFamily: cluster.Cluster_V4_PREFERRED, TypedDnsResolverConfig: dnsResolver(),
		MaxHosts: wrapperspb.UInt32(maxNames),
	}
}

// maxNames bounds the names below wildcards that a proxy remembers; it forgets one five
// minutes after its last use.
const maxNames = 1024

// namesCluster connects to where the name leads that was called.
func namesCluster() *cluster.Cluster {
	c := emptyCluster(ClusterExternalNames)
	c.LoadAssignment = nil
	c.ConnectTimeout = seconds(originalTimeout)
	c.CircuitBreakers = unlimited()
	c.LbPolicy = cluster.Cluster_CLUSTER_PROVIDED
	c.ClusterDiscoveryType = &cluster.Cluster_ClusterType{ClusterType: &cluster.Cluster_CustomClusterType{
		Name: "envoy.clusters.dynamic_forward_proxy",
		TypedConfig: typed(&forwardcluster.ClusterConfig{
			ClusterImplementationSpecifier: &forwardcluster.ClusterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache()},
			AllowInsecureClusterOptions:    true, // it speaks no TLS of its own
		}),
	}}
	c.TypedExtensionProtocolOptions = protocolOptions(&core.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(maxHeaders)})
	return c
}

// forward has names looked up, and the port be that of the connection's destination.
func forward() *forwardfilter.FilterConfig {
	return &forwardfilter.FilterConfig{
		ImplementationSpecifier:         &forwardfilter.FilterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache()},
		AllowDynamicHostFromFilterState: true,
	}
}

// forwardOut notes besides to what address a name leads.
func forwardOut() *forwardfilter.FilterConfig {
	out := forward()
	out.SaveUpstreamAddress = true
	return out
}

// forwarded enables that for a route.
func forwarded() map[string]*anypb.Any {
	return map[string]*anypb.Any{forwardName: typed(&route.FilterConfig{Config: typed(&forwardfilter.PerRouteConfig{})})}
}

// externalTarget looks for what keeps a policy's target from being one.
func externalTarget(t mesh.Target, v *mesh.View) *fault {
	e, ok := v.External(t.Name)
	if !ok {
		return &fault{conditionResolvedRefs, reasonServiceNotFound, "there is no ExternalService " + t.Name.String() + "; create it, or correct targetRefs"}
	}
	if _, ok := e.Port(t.Port); t.Port != 0 && !ok {
		return &fault{conditionResolvedRefs, reasonPortNotFound, "ExternalService " + t.Name.String() + " has no port " + strconv.Itoa(int(t.Port)) + "; name one of its ports in targetRefs"}
	}
	return nil
}
