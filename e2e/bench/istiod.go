package main

import (
	"context"
	"fmt"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// istiod is Istio's control plane (pilot-discovery), for comparison. Its sidecars
// subscribe to everything, in plaintext and without tokens, which spares it the
// cost of TLS and of authentication.
type istiod struct {
	program  string
	debounce bool // its default; without it every change is pushed at once
	traffic  *traffic

	xds, scraped string
}

func (p *istiod) start(ctx context.Context, w *world, scratch string) (*process, error) {
	var ports [5]string
	for i := range ports {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		ports[i] = "127.0.0.1:" + strconv.Itoa(port)
	}
	p.xds, p.scraped = ports[0], ports[1]
	env := []string{"KUBECONFIG=" + w.kubeconfig, "POD_NAMESPACE=" + istioNamespace, "PILOT_ENABLE_GATEWAY_API=false", "ENABLE_LEADER_ELECTION=false"}
	if !p.debounce {
		env = append(env, "PILOT_DEBOUNCE_AFTER=0ms", "PILOT_ENABLE_EDS_DEBOUNCE=false")
	}
	return launch(ctx, scratch, "http://"+ports[2]+"/ready", env,
		p.program, "discovery", "--kubeconfig="+w.kubeconfig, "--grpcAddr="+p.xds, "--monitoringAddr="+p.scraped, "--httpAddr="+ports[2],
		"--secureGRPCAddr=", "--httpsAddr=", "--ctrlz_port=0", "--registries=Kubernetes")
}

func (p *istiod) prepare(context.Context, *world) error { return nil }

func (p *istiod) address() string { return p.xds }

func (p *istiod) dial(int) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStatsHandler(p.traffic), grpc.WithNoProxy(), grpc.WithStaticStreamWindowSize(receiveWindow), grpc.WithStaticConnWindowSize(receiveWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30)),
	}
}

func (p *istiod) credentials(ctx context.Context, _ int) (context.Context, error) { return ctx, nil }

func (p *istiod) node(i int) *core.Node {
	ip, name := fmt.Sprintf("10.%d.%d.%d", 200+i/62500, i/250%250, i%250+1), fmt.Sprintf("pod-%05d", i)
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": namespace, "SERVICE_ACCOUNT": "default", "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.31.0",
		"INSTANCE_IPS": ip, "NAME": name, "WORKLOAD_NAME": "client", "PROXY_CONFIG": map[string]any{},
	})
	if err != nil {
		panic(err) // it is the same for every sidecar
	}
	return &core.Node{Id: fmt.Sprintf("sidecar~%s~%s.%s~%[3]s.svc.cluster.local", ip, name, namespace), Cluster: "client." + namespace, Metadata: metadata}
}

func (p *istiod) begin(s *sidecar) error { return s.ask(urlCluster, "*") }

func (p *istiod) follow(s *sidecar, r *discovery.DeltaDiscoveryResponse) error {
	switch r.GetTypeUrl() {
	case urlCluster:
		if err := s.follow(r); err != nil {
			return err
		}
		if !s.asked[urlListener] {
			return s.ask(urlListener, "*")
		}
	case urlListener:
		if names := routesOf(r, s.subscribed[urlRoute]); len(names) > 0 {
			return s.ask(urlRoute, names...)
		}
	}
	return nil
}

// routesOf are the names by which listeners get their routes, those aside that are
// known.
func routesOf(r *discovery.DeltaDiscoveryResponse, known map[string]bool) (names []string) {
	for _, one := range r.GetResources() {
		var l listener.Listener
		if proto.Unmarshal(one.GetResource().GetValue(), &l) != nil {
			continue
		}
		for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
			for _, f := range chain.GetFilters() {
				var m hcm.HttpConnectionManager
				if f.GetTypedConfig().UnmarshalTo(&m) == nil && m.GetRds().GetRouteConfigName() != "" && !known[m.GetRds().GetRouteConfigName()] {
					names = append(names, m.GetRds().GetRouteConfigName())
				}
			}
		}
	}
	return names
}

func (p *istiod) complete(s *sidecar) error {
	if len(s.versions[urlEndpoints]) == 0 || !s.asked[urlRoute] {
		return fmt.Errorf("endpoints or routes")
	}
	return nil
}

func (p *istiod) endpoints(service int) slot {
	return slot{urlEndpoints, fmt.Sprintf("outbound|%d||%s.%s.svc.cluster.local", servicePort, serviceName(service), namespace)}
}

func (p *istiod) added(service int, address string) (slot, string) {
	return p.endpoints(service), address
}

func (p *istiod) policies() bool { return false }

func (p *istiod) metrics() (string, string) { return "http://" + p.scraped + "/metrics", "pilot_xds" }
