package translate

import (
	"cmp"
	"fmt"
	"slices"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// tlsChains are those of a TLS listener: one for each route, by the names that it has at
// the listener, and one that closes what is the listener's and no route's. A name that
// several routes have is the oldest one's; one that another listener of the port says more
// about is that listener's.
func (o *outbound) tlsChains(g *mesh.Gateway, at mesh.Listener, served bool, held []mesh.Listener) []*listener.FilterChain {
	c := o.view.Config()
	if !served {
		return []*listener.FilterChain{closing(at, c)}
	}
	anothers := func(host string) bool {
		return slices.ContainsFunc(held, func(r mesh.Listener) bool {
			return r.Port == at.Port && covers(r.Hostname, host) && specificity(r.Hostname) > specificity(at.Hostname)
		})
	}
	prefix := prefixDecoded
	if at.Passthrough {
		prefix = prefixBytes
	}
	admit := o.admission(g, at)
	var out []*listener.FilterChain
	var taken []string
	for _, r := range attachedRoutes(g, at, o.view) {
		var hosts []string
		for _, h := range hostsOf(at, r) {
			if !slices.Contains(taken, h) && !anothers(h) {
				hosts, taken = append(hosts, h), append(taken, h)
			}
		}
		if len(hosts) == 0 {
			continue
		}
		chain := encryptedChain(at, hosts...)
		chain.Name += "|" + r.Meta.Name.String()
		chain.Filters = append(slices.Clone(admit), o.connections(at, r, prefix))
		if at.Terminates() {
			chain.TransportSocket = certified(g, at)
		}
		out = append(out, chain)
	}
	if !slices.Contains(taken, cmp.Or(at.Hostname, "*")) {
		out = append(out, closing(at, c))
	}
	return out
}

// tcpChain is that of a TCP listener, all of whose connections are the oldest route's.
func (o *outbound) tcpChain(g *mesh.Gateway, at mesh.Listener) *listener.FilterChain {
	out := &listener.FilterChain{
		Name:             fmt.Sprint(at.Port),
		FilterChainMatch: &listener.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(at.Port))},
		Filters:          []*listener.Filter{tcpProxy("gateway", ClusterBlackhole, o.view.Config(), gatewayLog)},
	}
	if rs := attachedRoutes(g, at, o.view); len(rs) > 0 {
		out.Filters = append(o.admission(g, at), o.connections(at, rs[0], prefixBytes))
	}
	return out
}

// admission is what policies that name the Gateway or the listener ask of connections.
func (o *outbound) admission(g *mesh.Gateway, at mesh.Listener) []*listener.Filter {
	k := known{domains: o.view.Config().TrustDomains(), sni: at.Encrypted(), strangers: true}
	policies := slices.Concat(attached(g, at.Name, mesh.SectionAuthorization, o.view)...)
	return k.authorization(policies, o.view).network("gateway")
}

// connections shares out a listener's connections between a route's backends. The share of a
// backend that does not exist is closed, and the others' does not grow.
func (o *outbound) connections(at mesh.Listener, r *mesh.Route, prefix string) *listener.Filter {
	p := tcpProxyConfig("gateway", ClusterBlackhole, o.view.Config(), gatewayLog)
	p.IdleTimeout = nil // Envoy's own, an hour: clients from outside vanish without a word
	connectAgain(p)
	if at.Clients != nil && !at.Clients.Insecure {
		// Backends hear of nobody who has not shown a certificate.
		p.UpstreamConnectMode = tcpproxy.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
		p.MaxEarlyDataBytes = wrapperspb.UInt32(earlyData)
	}
	w := &tcpproxy.TcpProxy_WeightedCluster{}
	for _, b := range r.Rules[0].Backends {
		if b.Weight == 0 {
			continue
		}
		to := ClusterBlackhole
		if of, f := backendOf(mesh.Name{}, r, b.Backend, o.view); f == nil {
			if of.external {
				to = o.clusterOut(of)
			} else {
				to = of.name(prefix)
				if prefix == prefixDecoded {
					to = o.own(to, of)
				}
				o.clusters = append(o.clusters, to)
			}
		}
		w.Clusters = append(w.Clusters, &tcpproxy.TcpProxy_WeightedCluster_ClusterWeight{Name: to, Weight: b.Weight})
	}
	switch len(w.Clusters) {
	case 0: // closed
	case 1:
		p.ClusterSpecifier = &tcpproxy.TcpProxy_Cluster{Cluster: w.Clusters[0].Name}
	default:
		p.ClusterSpecifier = &tcpproxy.TcpProxy_WeightedClusters{WeightedClusters: w}
	}
	return networkFilter(tcpProxyName, p)
}
