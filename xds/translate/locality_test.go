package translate

import (
	"net/netip"
	"slices"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func TestNamesOfAssignments(t *testing.T) {
	at := mesh.Locality{Region: "r", Zone: "z", Node: "n"}
	for name, want := range map[string][2]string{
		"svc|shop/web|80":                        {"svc|shop/web|80", ""},
		"near|node|shop|svc|shop/web|80":         {"svc|shop/web|80", "r|z|n"},
		"near|zone|billing|tcp|10.96.0.1:80":     {"tcp|10.96.0.1:80", "r|z"},
		"near|region|shop|tcp|[fd00::1]:80":      {"tcp|[fd00::1]:80", "r"},
		"near|nowhere|shop|svc|shop/web|80":      {"near|nowhere|shop|svc|shop/web|80", ""},
		"near||shop|svc|shop/web|80":             {"near||shop|svc|shop/web|80", ""},
		"near|zone|svc":                          {"near|zone|svc", ""},
		"near|zone|a|near|zone|a|svc|shop/web|1": {"near|zone|a|svc|shop/web|1", "r|z"},
	} {
		if got := AssignedTo(name); got != want[0] {
			t.Errorf("%s is of cluster %s, want %s", name, got, want[0])
		}
		if got := ForEndpoints(name, at); got != want[1] {
			t.Errorf("%s is for %q, want %q", name, got, want[1])
		}
		if n, ok := nearFrom(name); ok && n.String() != name {
			t.Errorf("%s became %s", name, n)
		}
	}
	for _, f := range []string{"r|z|n", "r|z", "r", "", "||n", "|z"} {
		got := localityFor(f)
		for level, want := range map[string]string{"region": got.Region, "zone": got.Region + "|" + got.Zone} {
			if back := ForEndpoints("near|"+level+"|a|svc|a/b|1", got); back != want {
				t.Errorf("%q became %q", f, back)
			}
		}
	}
}

func TestWhatIsFartherHasALaterPriority(t *testing.T) {
	here := mesh.Locality{Region: "r1", Zone: "a", Node: "a1"}
	servers := map[string]mesh.Locality{
		"node":    here,
		"zone":    {Region: "r1", Zone: "a", Node: "a2"},
		"slice":   {Zone: "a"}, // an EndpointSlice that names no node
		"region":  {Region: "r1", Zone: "b", Node: "b1"},
		"other":   {Region: "r2", Zone: "c", Node: "c1"},
		"third":   {Region: "r3", Zone: "d", Node: "d1"},
		"nowhere": {},
		"twin":    {Region: "r2", Zone: "a", Node: "x"}, // a zone of that name elsewhere
	}
	type order [][]string
	list := []mesh.RegionFailover{{From: "r2", To: "r1"}, {From: "r1", To: "r3"}, {From: "r1", To: "r4"}, {From: "r1", To: "r2"}}
	for name, c := range map[string]struct {
		prefer   mesh.Near
		failover []mesh.RegionFailover
		client   mesh.Locality
		want     order
	}{
		"anywhere":     {mesh.Anywhere, nil, here, order{{"node", "nowhere", "other", "region", "slice", "third", "twin", "zone"}}},
		"region":       {mesh.SameRegion, nil, here, order{{"node", "region", "slice", "zone"}, {"nowhere", "other", "third", "twin"}}},
		"zone":         {mesh.SameZone, nil, here, order{{"node", "slice", "zone"}, {"region"}, {"nowhere", "other", "third", "twin"}}},
		"node":         {mesh.SameNode, nil, here, order{{"node"}, {"slice", "zone"}, {"region"}, {"nowhere", "other", "third", "twin"}}},
		"listed":       {mesh.SameZone, list, here, order{{"node", "slice", "zone"}, {"region"}, {"third"}, {"other", "twin"}, {"nowhere"}}},
		"no labels":    {mesh.SameZone, list, mesh.Locality{Node: "b1"}, order{{"node", "nowhere", "other", "region", "slice", "third", "twin", "zone"}}},
		"its node yet": {mesh.SameNode, nil, mesh.Locality{Node: "b1"}, order{{"region"}, {"node", "nowhere", "other", "slice", "third", "twin", "zone"}}},
		"zone alone":   {mesh.SameZone, nil, mesh.Locality{Zone: "b"}, order{{"region"}, {"node", "nowhere", "other", "slice", "third", "twin", "zone"}}},
		"region alone": {mesh.SameZone, nil, mesh.Locality{Region: "r2"}, order{{"other", "twin"}, {"node", "nowhere", "region", "slice", "third", "zone"}}},
	} {
		var all []found
		names := map[netip.AddrPort]string{}
		for n, l := range servers {
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(len(names))}), 80)
			names[at] = n
			all = append(all, found{locality: l, at: at})
		}
		got := make(order, byDistance(all, mesh.LocalityPreference{Prefer: c.prefer, Failover: c.failover}, c.client))
		for _, f := range all {
			got[f.priority] = append(got[f.priority], names[f.at])
			slices.Sort(got[f.priority])
		}
		if !slices.EqualFunc(got, c.want, slices.Equal[[]string]) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Clients of other namespaces share a load assignment with the service's own, unless
// theirs have a say.
func TestClientsShareALoadAssignmentUnlessTheirNamespaceHasASay(t *testing.T) {
	web := mesh.Name{Namespace: "shop", Name: "web"}
	service := func(d mesh.Near) *mesh.Service {
		return &mesh.Service{Name: web, Distribution: d, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}}
	}
	policy := func(namespace string, p *mesh.LocalityPreference) *mesh.Policy {
		return &mesh.Policy{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: namespace, Name: "p"}}, Targets: []mesh.Target{{Kind: mesh.KindService, Name: web}},
			Traffic: &mesh.Traffic{Locality: p, LoadBalancer: &mesh.LoadBalancer{Type: mesh.Random}},
		}
	}
	zone := &mesh.LocalityPreference{Prefer: mesh.SameZone, Overprovisioning: 140}
	none := &mesh.LocalityPreference{Overprovisioning: 140}
	strict := &mesh.LocalityPreference{Prefer: mesh.SameZone, Overprovisioning: 1000}
	for name, c := range map[string]struct {
		es   []mesh.Entity
		want string
	}{
		"nobody says anything":           {[]mesh.Entity{service(mesh.Anywhere)}, ""},
		"the Service":                    {[]mesh.Entity{service(mesh.SameZone)}, "near|zone|shop|"},
		"the producer":                   {[]mesh.Entity{service(mesh.Anywhere), policy("shop", zone)}, "near|zone|shop|"},
		"the producer over the Service":  {[]mesh.Entity{service(mesh.SameNode), policy("shop", none)}, ""},
		"a policy about something else":  {[]mesh.Entity{service(mesh.SameNode), policy("shop", nil)}, "near|node|shop|"},
		"the consumer":                   {[]mesh.Entity{service(mesh.Anywhere), policy("billing", zone)}, "near|zone|billing|"},
		"the consumer, who agrees":       {[]mesh.Entity{service(mesh.SameZone), policy("billing", zone)}, "near|zone|shop|"},
		"the consumer, who does not":     {[]mesh.Entity{service(mesh.SameZone), policy("billing", strict)}, "near|zone|billing|"},
		"the consumer, who wants none":   {[]mesh.Entity{service(mesh.SameZone), policy("billing", none)}, ""},
		"another consumer":               {[]mesh.Entity{service(mesh.Anywhere), policy("bank", zone)}, ""},
		"the consumer over the producer": {[]mesh.Entity{service(mesh.Anywhere), policy("shop", strict), policy("billing", zone)}, "near|zone|billing|"},
	} {
		const cluster = "svc|shop/web|80"
		if got := clusterFor(Key{Type: Cluster, Name: cluster, For: "billing"}, view(c.es...)).EDS; got != c.want+cluster {
			t.Errorf("%s: the cluster asks for %s, want %s", name, got, c.want+cluster)
		}
	}
}

// The factor is the policy's where there is anything to spill over to, and what keeps
// the last resort from a share otherwise.
func TestTheFactorIsThePolicysWhereThereIsSomethingFarther(t *testing.T) {
	service := &mesh.Service{
		Name: mesh.Name{Namespace: "shop", Name: "web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Distribution: mesh.SameZone,
		Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}},
	}
	assign := func(zones ...string) *endpoint.ClusterLoadAssignment {
		s := &mesh.Slice{Name: mesh.Name{Namespace: "shop", Name: "web-1"}, Service: "web", Ports: []mesh.SlicePort{{Name: "http", Port: 80}}}
		for i, z := range zones {
			s.Endpoints = append(s.Endpoints, mesh.Endpoint{Address: netip.AddrFrom4([4]byte{10, 244, 0, byte(i)}), Ready: true, Zone: z})
		}
		return endpoints(Key{Type: Endpoints, Name: "near|zone|shop|svc|shop/web|80", For: "|a"}, view(service, s))
	}
	for _, c := range []struct {
		zones      []string
		factor     uint32
		priorities []uint32
	}{
		{nil, 0, nil},
		{[]string{"a", "a"}, neverSpilled, []uint32{0, 1}},
		{[]string{"b", "c"}, neverSpilled, []uint32{0, 0, 1}},
		{[]string{"a", "b"}, 140, []uint32{0, 1, 2}},
		{[]string{"a", "b", "c", "a"}, 140, []uint32{0, 1, 1, 2}},
	} {
		a := assign(c.zones...)
		var got []uint32
		for _, e := range a.Endpoints {
			got = append(got, e.Priority)
		}
		if f := a.GetPolicy().GetOverprovisioningFactor().GetValue(); f != c.factor || !slices.Equal(got, c.priorities) {
			t.Errorf("pods in %v: priorities %v with factor %d, want %v with %d", c.zones, got, f, c.priorities, c.factor)
		}
	}
}
