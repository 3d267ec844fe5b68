package translate

import (
	"cmp"
	"net/netip"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// An endpoint's metadata says which transport socket a cluster uses for it:
// meshMatch for mesh mTLS.
const (
	socketMatch  = "envoy.transport_socket_match"
	meshMatchKey = "mesh"
)

// endpoints is the load assignment of the cluster with the name: the ready
// endpoints of the service, by zone. A workload that is ending is left out the
// moment its deletion is known, whatever the slice still says.
func endpoints(name string, v *mesh.View) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: name}
	d, ok := resolve(name, v)
	if !ok || d.service == nil {
		return out
	}
	type lb struct {
		zone, at string
		e        *endpoint.LbEndpoint
	}
	var all []lb
	for _, s := range v.Slices(d.service.Name) {
		port, ok := slicePort(s, d.port.Name)
		if !ok {
			continue
		}
		for _, e := range s.Endpoints {
			if !e.Ready {
				continue
			}
			w, known := workloadOf(s, e, v)
			if known && w.Terminating {
				continue
			}
			at := netip.AddrPortFrom(e.Address, port)
			all = append(all, lb{e.Zone, at.String(), lbEndpoint(at, known && takesMTLS(w, port, v))})
		}
	}
	slices.SortFunc(all, func(a, b lb) int { return cmp.Or(cmp.Compare(a.zone, b.zone), cmp.Compare(a.at, b.at)) })
	all = slices.CompactFunc(all, func(a, b lb) bool { return a.at == b.at })
	for _, x := range all {
		n := len(out.Endpoints)
		if n == 0 || out.Endpoints[n-1].Locality.GetZone() != x.zone {
			out.Endpoints = append(out.Endpoints, &endpoint.LocalityLbEndpoints{Locality: locality(x.zone)})
			n++
		}
		out.Endpoints[n-1].LbEndpoints = append(out.Endpoints[n-1].LbEndpoints, x.e)
	}
	return out
}

func locality(zone string) *core.Locality {
	if zone == "" {
		return nil
	}
	return &core.Locality{Zone: zone}
}

func slicePort(s *mesh.Slice, name string) (uint16, bool) {
	for _, p := range s.Ports {
		if p.Name == name {
			return p.Port, true
		}
	}
	return 0, false
}

func workloadOf(s *mesh.Slice, e mesh.Endpoint, v *mesh.View) (*mesh.Workload, bool) {
	if e.Workload == "" {
		return nil, false
	}
	return v.Workload(mesh.Name{Namespace: s.Namespace, Name: e.Workload})
}

func lbEndpoint(at netip.AddrPort, mtls bool) *endpoint.LbEndpoint {
	e := &endpoint.LbEndpoint{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address(at)}}}
	if mtls {
		e.Metadata = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{socketMatch: meshMatch()}}
	}
	return e
}

func meshMatch() *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{meshMatchKey: structpb.NewStringValue("1")}}
}
