package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

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

// endpoints is the load assignment with the name: the ready endpoints of the
// service, by zone, and by how near they are where the client prefers that. A
// workload that is ending, or gone, is left out the moment that is known, whatever the
// slice still says; of one that is not known yet nothing says whether it takes mTLS.
func endpoints(k Key, v *mesh.View) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: k.Name}
	d, ok := resolve(AssignedTo(k.Name), v)
	if !ok || d.service == nil {
		return out
	}
	if strings.HasPrefix(k.Name, prefixSplit) {
		return splitEndpoints(k.Name, d, v)
	}
	preference := mesh.LocalityPreference{}
	n, nearby := nearFrom(k.Name)
	if nearby {
		preference = trafficFor(n.namespace, d.service.Name, d.port.Port, v).locality
	}
	all := d.ready(d.service.Name, d.port.Name, d.labels, nearby, v)
	priorities := byDistance(all, preference, localityFor(k.For))
	for i, x := range all {
		n := len(out.Endpoints)
		if i == 0 || x.priority != all[i-1].priority || x.locality != all[i-1].locality {
			out.Endpoints = append(out.Endpoints, &endpoint.LocalityLbEndpoints{Priority: x.priority, Locality: locality(x.locality)})
			n++
		}
		out.Endpoints[n-1].LbEndpoints = append(out.Endpoints[n-1].LbEndpoints, lbEndpoint(x.at, x.mtls))
	}
	resort := lastResort(out, priorities, d, all)
	switch {
	case priorities > 1:
		out.Policy = overprovisioned(preference.Overprovisioning)
	case resort:
		out.Policy = overprovisioned(neverSpilled)
	}
	return out
}

// found is a ready endpoint.
type found struct {
	locality mesh.Locality
	at       netip.AddrPort
	mtls     bool
	distance int
	priority uint32
}

// ready are the ready endpoints of a service's port, sorted by zone and address: those
// of pods with the labels, where there are any. placed says whether their nodes and
// regions matter.
func (d destination) ready(service mesh.Name, portName string, labels map[string]string, placed bool, v *mesh.View) []found {
	var all []found
	for _, s := range v.Slices(service) {
		port, ok := slicePort(s, portName)
		if !ok {
			continue
		}
		for _, e := range s.Endpoints {
			if !e.Ready {
				continue
			}
			w, known := workloadOf(s, e, v)
			if e.Workload != "" && !known || known && w.Terminating {
				continue
			}
			if len(labels) > 0 && !(known && (&mesh.Selector{MatchLabels: labels}).Matches(w.Labels)) {
				continue
			}
			at := netip.AddrPortFrom(e.Address, port)
			f := found{locality: mesh.Locality{Zone: e.Zone}, at: at, mtls: known && d.takesMTLS(w, port, v)}
			if placed {
				f.locality = place(e, v)
			}
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.locality.Zone, b.locality.Zone), cmp.Compare(a.at.String(), b.at.String()))
	})
	return slices.CompactFunc(all, func(a, b found) bool { return a.at == b.at })
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
// there is none, nor where some of the service's pods are meant.
//
// Envoy has one overprovisioning factor for all priorities. Where endpoints have
// several, it is what the policy says of them, and the last resort gets what is missing
// when all of them together are not good for the whole, each for 1.4 times the part of
// its endpoints that can be called (with 140): of a zone of two with one left, and
// nothing else, 30 percent.
func lastResort(a *endpoint.ClusterLoadAssignment, priority uint32, d destination, all []found) bool {
	if d.service.Headless() || len(all) == 0 || len(d.labels) > 0 ||
		slices.ContainsFunc(all, func(f found) bool { return f.mtls != all[0].mtls }) {
		return false
	}
	at := netip.AddrPortFrom(d.service.Addresses[0], d.port.Port)
	a.Endpoints = append(a.Endpoints, &endpoint.LocalityLbEndpoints{Priority: priority, LbEndpoints: []*endpoint.LbEndpoint{lbEndpoint(at, all[0].mtls)}})
	return true
}

func overprovisioned(percent uint32) *endpoint.ClusterLoadAssignment_Policy {
	return &endpoint.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(percent)}
}

func locality(at mesh.Locality) *core.Locality {
	if at == (mesh.Locality{}) {
		return nil
	}
	return &core.Locality{Region: at.Region, Zone: at.Zone}
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
