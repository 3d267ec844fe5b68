package mesh

// Node is a machine of the cluster, as far as it says where it is.
type Node struct {
	Name string
	// Region and Zone are its labels topology.kubernetes.io/region and zone; one
	// that has neither is not known to the mesh.
	Region, Zone string
}

// Locality is where something runs. What is empty is not known.
type Locality struct {
	Region, Zone, Node string
}

// Locality is where the workload runs: of a node that is not known, or says nothing,
// the name alone.
func (s *Snapshot) Locality(w *Workload) Locality {
	out := Locality{Node: w.Node}
	if n, ok := s.nodes.get(w.Node); ok {
		out.Region, out.Zone = n.Region, n.Zone
	}
	return out
}

// Near is how near to a client endpoints are preferred.
type Near uint8

// From no preference to the nearest. Each prefers what the ones before it do, where
// there is nothing nearer.
const (
	Anywhere Near = iota
	SameRegion
	SameZone
	SameNode
)

// LocalityPreference says which endpoints a client calls first, and which then.
type LocalityPreference struct {
	Prefer Near
	// Failover are regions that come next, in order, after a client's own.
	Failover []RegionFailover
	// Overprovisioning is in percent how much more than its share what is nearer is
	// trusted to carry, before the next gets some of it.
	Overprovisioning uint32
}

// RegionFailover says where clients of the region From turn next.
type RegionFailover struct{ From, To string }

// DefaultOverprovisioning is Envoy's own, in percent.
// See https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority.
const DefaultOverprovisioning = 140
