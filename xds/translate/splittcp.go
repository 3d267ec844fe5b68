package translate

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Connections that are not HTTP have no routes: a split of theirs is in the endpoints
// of the root's cluster, each backend a locality with its weight. Other weights are
// other endpoints, which leave connections alone.
const (
	// prefixSplit begins the name of the load assignment: split|cluster.
	prefixSplit = "split|"
	// ofSplit ends the name of who may answer: the backends' pods.
	ofSplit = "|split"
)

// connectionSplit is the split that holds for connections to the destination; nil:
// none. One that yields to a route holds for none either, nor for a route's backends.
func connectionSplit(d destination, v *mesh.View) *mesh.Split {
	if d.http || d.prefix != "" || len(routesFor(d.service, d.port, d.service.Namespace, v)) > 0 {
		return nil
	}
	return splitFor(d.service, d.port, v)
}

// byBackend has localities chosen by their weights.
func byBackend() *cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig_ {
	return &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
		LocalityWeightedLbConfig: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
	}
}

// splitTotal is what the weights of a split's localities add up to.
const splitTotal = 1_000_000_000

// splitEndpoints are those of all backends. The share of a backend that has none is the
// others'. Envoy has an endpoint but once, so that endpoints are told apart by which
// backends they are of: each such set is a locality, whose weight is its part of each
// backend's. There is no last resort: behind the root's own address are the root's pods.
func splitEndpoints(name string, d destination, v *mesh.View) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: name}
	s := connectionSplit(d, v)
	if s == nil { // any more: a cluster that is being replaced goes on with the root's
		s = &mesh.Split{Backends: []mesh.SplitBackend{{Service: d.service.Name, Weight: 1}}}
	}
	type set struct {
		endpoints []found
		weight    float64
	}
	sets := map[string]*set{}
	of := map[netip.AddrPort][]string{} // the backends that an endpoint is of
	backends := make([][]found, len(s.Backends))
	var sum float64
	for i, b := range s.Backends {
		svc, ok := v.Service(b.Service)
		if !ok || b.Weight == 0 {
			continue
		}
		port, _ := svc.Port(d.port.Port) // the split is sound
		backends[i] = d.ready(b.Service, port.Name, b.Labels, false, v)
		for _, x := range backends[i] {
			of[x.at] = append(of[x.at], backendText(b))
		}
		if len(backends[i]) > 0 {
			sum += float64(b.Weight)
		}
	}
	for i, b := range s.Backends {
		for _, x := range backends[i] {
			key := strings.Join(of[x.at], " ")
			if sets[key] == nil {
				sets[key] = &set{}
			}
			if of[x.at][0] == backendText(b) { // else it is there already
				sets[key].endpoints = append(sets[key].endpoints, x)
			}
			sets[key].weight += float64(b.Weight) / float64(len(backends[i]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sets)) {
		l := &endpoint.LocalityLbEndpoints{
			Locality:            &core.Locality{SubZone: key},
			LoadBalancingWeight: wrapperspb.UInt32(max(1, uint32(sets[key].weight/sum*splitTotal))),
		}
		for _, x := range sets[key].endpoints {
			l.LbEndpoints = append(l.LbEndpoints, lbEndpoint(x.at, x.mtls))
		}
		out.Endpoints = append(out.Endpoints, l)
	}
	return out
}

func backendText(b mesh.SplitBackend) string {
	if len(b.Labels) == 0 {
		return b.Service.String()
	}
	return b.Service.String() + "|" + labelsText(b.Labels)
}

// splitIdentities are the SPIFFE IDs of the pods of all backends, sorted.
func splitIdentities(root mesh.Name, number uint16, v *mesh.View) []string {
	svc, ok := v.Service(root)
	if !ok {
		return nil
	}
	port, ok := svc.Port(number)
	if !ok {
		return nil
	}
	s := connectionSplit(destination{service: svc, port: port}, v)
	if s == nil {
		return serverIdentities(root, v)
	}
	var ids []string
	for _, b := range s.Backends {
		ids = append(ids, serverIdentities(b.Service, v)...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
