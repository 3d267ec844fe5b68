package translate

import (
	"cmp"
	"net/netip"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

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
	var all []found
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
			all = append(all, found{e.Zone, at, known && takesMTLS(w, port, v)})
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.zone, b.zone), cmp.Compare(a.at.String(), b.at.String()))
	})
	all = slices.CompactFunc(all, func(a, b found) bool { return a.at == b.at })
	for _, x := range all {
		n := len(out.Endpoints)
		if n == 0 || out.Endpoints[n-1].Locality.GetZone() != x.zone {
			out.Endpoints = append(out.Endpoints, &endpoint.LocalityLbEndpoints{Locality: locality(x.zone)})
			n++
		}
		out.Endpoints[n-1].LbEndpoints = append(out.Endpoints[n-1].LbEndpoints, lbEndpoint(x.at, x.mtls))
	}
	lastResort(out, d, all)
	return out
}

// found is a ready endpoint.
type found struct {
	zone string
	at   netip.AddrPort
	mtls bool
}

// neverSpilled is an overprovisioning factor, in percent, with which one endpoint in
// a hundred is enough for the last resort to get nothing of its own.
const neverSpilled = 10000

// lastResort puts the service's own address behind its endpoints, where nothing goes
// but the last attempt of a request that reached none of them (retryPolicy), and
// everything while none can be reached (outlierDetection): what a proxy knows is old
// when its control plane is down or cut off, and by that address kube-proxy, which
// does not depend on it, finds a pod that is there. Whom that is, the certificate
// tells as for any endpoint; so where some pods take mesh mTLS and others do not,
// there is none.
func lastResort(a *endpoint.ClusterLoadAssignment, d destination, all []found) {
	if d.service.Headless() || len(all) == 0 ||
		slices.ContainsFunc(all, func(f found) bool { return f.mtls != all[0].mtls }) {
		return
	}
	at := netip.AddrPortFrom(d.service.Addresses[0], d.port.Port)
	a.Endpoints = append(a.Endpoints, &endpoint.LocalityLbEndpoints{Priority: 1, LbEndpoints: []*endpoint.LbEndpoint{lbEndpoint(at, all[0].mtls)}})
	a.Policy = &endpoint.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(neverSpilled)}
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
