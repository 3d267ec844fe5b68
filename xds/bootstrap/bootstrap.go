package bootstrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// The stream's back-off. Envoy's own grows to tens of seconds, which would be
// how long a proxy stays on old configuration after a control plane restart.
const (
	backOffBase = 200 * time.Millisecond
	backOffMax  = 2 * time.Second
)

// New returns the bootstrap of a proxy. It fails when an option is missing or
// cannot work; the error names all of them.
func New(o Options) (*bootstrapv3.Bootstrap, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("making an Envoy bootstrap: %w", err)
	}
	cluster, err := controlPlane(o)
	if err != nil {
		return nil, fmt.Errorf("making the cluster %q of an Envoy bootstrap: %w", ControlPlane, err)
	}
	overload, err := overloadManager(o)
	if err != nil {
		return nil, fmt.Errorf("making the overload manager of an Envoy bootstrap: %w", err)
	}
	runtime, err := layeredRuntime()
	if err != nil {
		return nil, fmt.Errorf("making the runtime layer of an Envoy bootstrap: %w", err)
	}
	return &bootstrapv3.Bootstrap{
		Node:  &corev3.Node{Id: o.NodeID, Cluster: o.NodeCluster},
		Admin: admin(o),
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Clusters: []*clusterv3.Cluster{cluster},
		},
		DynamicResources: dynamicResources(),
		OverloadManager:  overload,
		LayeredRuntime:   runtime,
	}, nil
}

// JSON returns the bootstrap in one line of JSON, the same bytes for the same
// bootstrap. It fails on a message that no JSON can express, which [New] never
// returns.
func JSON(b *bootstrapv3.Bootstrap) ([]byte, error) {
	// protojson adds blanks at random so that nobody depends on its bytes. The
	// order of fields is that of their numbers; without the blanks the bytes
	// are stable for one version of the library, which is what a pod needs.
	loose, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("writing an Envoy bootstrap as JSON: %w", err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, loose); err != nil {
		return nil, fmt.Errorf("writing an Envoy bootstrap as JSON: %w", err)
	}
	return out.Bytes(), nil
}

// adminPaths are the paths that read, each with or without a query, and the one
// that sets log levels. The application shares the loopback interface with the
// proxy, so nothing that changes what the proxy does, or ends it, is offered.
const adminPaths = `/(certs|clusters|config_dump|init_dump|listeners|logging|memory|ready|runtime|server_info|stats|stats/prometheus)(\?.*)?`

func admin(o Options) *bootstrapv3.Admin {
	return &bootstrapv3.Admin{
		Address: socketAddress("127.0.0.1", o.AdminPort),
		// A proxy at its limit is the one that people want to look into.
		IgnoreGlobalConnLimit: true,
		AllowPaths: []*matcherv3.StringMatcher{{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{
				SafeRegex: &matcherv3.RegexMatcher{Regex: adminPaths},
			},
		}},
	}
}

// dynamicResources opens one delta ADS stream for everything.
func dynamicResources() *bootstrapv3.Bootstrap_DynamicResources {
	return &bootstrapv3.Bootstrap_DynamicResources{
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:             corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
						ClusterName: ControlPlane,
						RetryPolicy: &corev3.RetryPolicy{
							RetryBackOff: &corev3.BackoffStrategy{
								BaseInterval: durationpb.New(backOffBase),
								MaxInterval:  durationpb.New(backOffMax),
							},
						},
					},
				},
			}},
			SetNodeOnFirstMessageOnly: true,
		},
		LdsConfig: ads(),
		CdsConfig: ads(),
	}
}

// ads waits for the control plane as long as it takes: by default Envoy goes
// live after 15 s with the listeners it has not got.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
	}
}

func overloadManager(o Options) (*overloadv3.OverloadManager, error) {
	config, err := anypb.New(&downstreamv3.DownstreamConnectionsConfig{
		MaxActiveDownstreamConnections: int64(o.MaxConnections),
	})
	if err != nil {
		return nil, err
	}
	return &overloadv3.OverloadManager{
		ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name:       "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: config},
		}},
	}, nil
}

// layeredRuntime has one static layer, so that no admin layer exists through
// which the application could change its proxy.
func layeredRuntime() (*bootstrapv3.LayeredRuntime, error) {
	values, err := structpb.NewStruct(map[string]any{
		// Regular expressions come from policies. RE2 is linear in the input
		// whatever they are, but a program's size is memory on every proxy;
		// the default of 100 instructions refuses ordinary paths.
		"re2.max_program_size.error_level": 1000,
	})
	if err != nil {
		return nil, err
	}
	return &bootstrapv3.LayeredRuntime{
		Layers: []*bootstrapv3.RuntimeLayer{{
			Name:           "static",
			LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: values},
		}},
	}, nil
}

func socketAddress(address string, port uint16) *corev3.Address {
	return &corev3.Address{
		Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{
				Address:       address,
				PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
			},
		},
	}
}

// packed wraps a message in an Any.
func packed(m proto.Message) (*anypb.Any, error) {
	a, err := anypb.New(m)
	if err != nil {
		return nil, fmt.Errorf("packing a %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return a, nil
}
