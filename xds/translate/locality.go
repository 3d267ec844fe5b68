package translate

import (
	"cmp"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// prefixNear begins the names of load assignments that differ by where the client
// is: near|zone|namespace|cluster. The cluster, which reads the policies, asks for
// its endpoints under such a name only where something prefers what is near; under
// its own name it has the one assignment that all proxies share. The name says how
// finely clients differ, so that those of a zone share one where the zone decides,
// and whose policies say how: the client's namespace where these have a say of their
// own, and else the service's, so that its clients everywhere share.
const prefixNear = "near|"

var nearNames = [...]string{mesh.SameRegion: "region", mesh.SameZone: "zone", mesh.SameNode: "node"}

// near is a load assignment's name, taken apart.
type near struct {
	level     mesh.Near
	namespace string // whose policies hold
	cluster   string
}

func (n near) String() string {
	return prefixNear + nearNames[n.level] + "|" + n.namespace + "|" + n.cluster
}

func nearFrom(name string) (near, bool) {
	rest, ok := strings.CutPrefix(name, prefixNear)
	if !ok {
		return near{}, false
	}
	level, rest, _ := strings.Cut(rest, "|")
	namespace, cluster, ok := strings.Cut(rest, "|")
	i := slices.Index(nearNames[:], level)
	return near{mesh.Near(i), namespace, cluster}, ok && i > int(mesh.Anywhere)
}

// AssignedTo is the name of the cluster whose load assignment has the name.
func AssignedTo(assignment string) string {
	if n, ok := nearFrom(assignment); ok {
		return n.cluster
	}
	return strings.TrimPrefix(assignment, prefixSplit)
}

// ForEndpoints is the For of a load assignment's key: where the client is, no finer
// than the name asks.
func ForEndpoints(name string, at mesh.Locality) string {
	n, ok := nearFrom(name)
	switch {
	case !ok:
		return ""
	case n.level == mesh.SameRegion:
		return at.Region
	case n.level == mesh.SameZone:
		return at.Region + "|" + at.Zone
	default:
		return at.Region + "|" + at.Zone + "|" + at.Node
	}
}

func localityFor(f string) mesh.Locality {
	region, rest, _ := strings.Cut(f, "|")
	zone, node, _ := strings.Cut(rest, "|")
	return mesh.Locality{Region: region, Zone: zone, Node: node}
}

// assignmentName is the name of the load assignment of a service's cluster for
// clients of the namespace, who prefer what t says.
func assignmentName(cluster, client string, d destination, t *traffic, v *mesh.View) string {
	if t.locality.Prefer == mesh.Anywhere {
		return cluster
	}
	n := near{t.locality.Prefer, client, cluster}
	if client != d.service.Namespace {
		everybody := trafficFor(d.service.Namespace, d.service.Name, d.port.Port, v)
		if sameLocality(everybody.locality, t.locality) {
			n.namespace = d.service.Namespace
		}
	}
	return n.String()
}

func sameLocality(a, b mesh.LocalityPreference) bool {
	return a.Prefer == b.Prefer && a.Overprovisioning == b.Overprovisioning && slices.Equal(a.Failover, b.Failover)
}

// distance tells how far an endpoint is from a client, in terms of what is
// preferred: a smaller one is called first. That of all is the same where the
// client's place is not known.
func distance(p mesh.LocalityPreference, client, server mesh.Locality) int {
	const node, zone, region, listed = 0, 1, 2, 3
	same := func(a, b string) bool { return a != "" && a == b }
	inZone := same(client.Zone, server.Zone) && (client.Region == server.Region || client.Region == "" || server.Region == "")
	switch {
	case p.Prefer >= mesh.SameNode && same(client.Node, server.Node):
		return node
	case p.Prefer >= mesh.SameZone && inZone:
		return zone
	case p.Prefer >= mesh.SameRegion && (inZone || same(client.Region, server.Region)):
		return region
	}
	next := 0
	for _, f := range p.Failover {
		if f.From != client.Region {
			continue
		}
		if f.To == server.Region {
			return listed + next
		}
		next++
	}
	return listed + next
}

// place is where an endpoint is. Its zone and node are the slice's word (the hints
// there, forZones and forNodes, are not looked at: for spec.trafficDistribution they
// repeat the endpoint's own), its region is its node's.
func place(e mesh.Endpoint, v *mesh.View) mesh.Locality {
	out := mesh.Locality{Zone: e.Zone, Node: e.Node}
	if n, ok := v.Node(e.Node); ok {
		out.Region = n.Region
		out.Zone = cmp.Or(e.Zone, n.Zone)
	}
	return out
}

// byDistance sorts endpoints by how far they are from the client, and gives each the
// priority that follows from that: Envoy wants them from 0 on, without a gap. It
// returns how many there are.
func byDistance(all []found, p mesh.LocalityPreference, client mesh.Locality) (priorities uint32) {
	for i := range all {
		all[i].distance = distance(p, client, all[i].locality)
	}
	slices.SortStableFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.locality.Region, b.locality.Region), cmp.Compare(a.locality.Zone, b.locality.Zone))
	})
	for i := range all {
		if i == 0 || all[i].distance != all[i-1].distance {
			priorities++
		}
		all[i].priority = priorities - 1
		all[i].locality.Node = "" // Envoy has no such level
	}
	return priorities
}
