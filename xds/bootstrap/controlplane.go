package bootstrap

import (
	"path"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnscommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	injectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	connectTimeout = 2 * time.Second

	// A control plane that is frozen, or a path that swallows packets, is
	// noticed in keepAliveInterval + keepAliveTimeout and another replica is
	// tried.
	keepAliveInterval = 30 * time.Second
	keepAliveTimeout  = 10 * time.Second

	// The control plane's Service keeps its address for as long as it lives:
	// Envoy's default of 5 s would be three queries from each sidecar each time
	// (one for each search domain until there is an answer) for nothing, and
	// seven if IPv6 were asked for first. Failures are tried again soon, so
	// that a start does not wait for a slow DNS server.
	dnsRefresh        = 30 * time.Second
	dnsJitter         = 10 * time.Second
	dnsFailureBase    = 500 * time.Millisecond
	dnsFailureMax     = 5 * time.Second
	typedClusterDNS   = "envoy.cluster.dns"
	typedHTTPOptions  = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	filterCredential  = "envoy.filters.http.credential_injector"
	filterCodec       = "envoy.filters.http.upstream_codec"
	credentialGeneric = "envoy.http.injected_credentials.generic"
	transportTLS      = "envoy.transport_sockets.tls"
)

// controlPlane is the cluster that the ADS stream goes through.
func controlPlane(o Options) (*clusterv3.Cluster, error) {
	http, err := httpOptions(o)
	if err != nil {
		return nil, err
	}
	tls, err := transportSocket(o)
	if err != nil {
		return nil, err
	}
	c := &clusterv3.Cluster{
		Name:           ControlPlane,
		ConnectTimeout: durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: ControlPlane,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{
					HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
						Endpoint: &endpointv3.Endpoint{Address: socketAddress(o.Address, o.Port)},
					},
				}},
			}},
		},
		TransportSocket:               tls,
		TypedExtensionProtocolOptions: map[string]*anypb.Any{typedHTTPOptions: http},
	}
	if o.resolved() {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return c, nil
	}
	// With several addresses each is an endpoint of its own (what Envoy calls
	// strict DNS).
	dns, err := packed(&dnsv3.DnsCluster{
		DnsRefreshRate:  durationpb.New(dnsRefresh),
		DnsJitter:       durationpb.New(dnsJitter),
		DnsLookupFamily: dnscommonv3.DnsLookupFamily_V4_PREFERRED,
		DnsFailureRefreshRate: &dnsv3.DnsCluster_RefreshRate{
			BaseInterval: durationpb.New(dnsFailureBase),
			MaxInterval:  durationpb.New(dnsFailureMax),
		},
	})
	if err != nil {
		return nil, err
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{
		ClusterType: &clusterv3.Cluster_CustomClusterType{Name: typedClusterDNS, TypedConfig: dns},
	}
	return c, nil
}

// httpOptions speak HTTP/2 and put the token on every stream. The token is an
// SDS secret from a file, so that a renewed one is used by the next stream.
func httpOptions(o Options) (*anypb.Any, error) {
	credential, err := packed(&genericv3.Generic{
		Credential: &tlsv3.SdsSecretConfig{
			Name:      SecretToken,
			SdsConfig: fileSource(o.TokenPath),
		},
		Header:            "authorization",
		HeaderValuePrefix: "Bearer ",
	})
	if err != nil {
		return nil, err
	}
	injector, err := packed(&injectorv3.CredentialInjector{
		Overwrite:  true,
		Credential: &corev3.TypedExtensionConfig{Name: credentialGeneric, TypedConfig: credential},
	})
	if err != nil {
		return nil, err
	}
	codec, err := packed(&codecv3.UpstreamCodec{})
	if err != nil {
		return nil, err
	}
	return packed(&upstreamhttpv3.HttpProtocolOptions{
		// Each stream has a connection of its own: one that was ended so that
		// the proxy goes to another replica would else begin anew on the same.
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{MaxRequestsPerConnection: wrapperspb.UInt32(1)},
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Interval: durationpb.New(keepAliveInterval),
							Timeout:  durationpb.New(keepAliveTimeout),
						},
					},
				},
			},
		},
		HttpFilters: []*hcmv3.HttpFilter{
			{Name: filterCredential, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: injector}},
			{Name: filterCodec, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: codec}},
		},
	})
}

// transportSocket verifies the control plane by name against roots that are
// read again when they change. An inline trusted_ca would be read once.
func transportSocket(o Options) (*corev3.TransportSocket, error) {
	context, err := packed(&tlsv3.UpstreamTlsContext{
		Sni: o.ServerName,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols: []string{"h2"},
			TlsParams: &tlsv3.TlsParameters{
				TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
				TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext: &tlsv3.CertificateValidationContext{
						MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
							SanType: tlsv3.SubjectAltNameMatcher_DNS,
							Matcher: &matcherv3.StringMatcher{
								MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o.ServerName},
							},
						}},
					},
					ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{
						Name:      SecretRoots,
						SdsConfig: fileSource(o.RootsPath),
					},
				},
			},
		},
		// One stream, opened again at most every 200 ms: nothing to resume,
		// and a resumed session would not be verified against new roots.
		MaxSessionKeys: wrapperspb.UInt32(0),
	})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{
		Name:       transportTLS,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: context},
	}, nil
}

// fileSource reads an SDS resource from a file of a Kubernetes volume. A
// volume changes by the rename of a link beside the file, so the folder is
// watched, not the file.
func fileSource(file string) *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{
			PathConfigSource: &corev3.PathConfigSource{
				Path:             file,
				WatchedDirectory: &corev3.WatchedDirectory{Path: path.Dir(file)},
			},
		},
		ResourceApiVersion:  corev3.ApiVersion_V3,
		InitialFetchTimeout: durationpb.New(0),
	}
}
