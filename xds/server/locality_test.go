package server

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// placed is a proxy whose pod is on a node.
func (h *harness) placed(name, node string) *ads {
	w := workload(name)
	w.Node, w.Started = node, true
	h.builder.Apply(mesh.Put(w))
	a := h.connect(h.api.token(peer(name)))
	a.start()
	return a
}

// nearest are the addresses that a load assignment has first.
func (a *ads) nearest(name string) (out []string) {
	r := a.got[translate.Endpoints][name]
	if r == nil {
		return nil
	}
	var c endpoint.ClusterLoadAssignment
	if err := r.Resource.UnmarshalTo(&c); err != nil {
		a.t.Fatal(err)
	}
	for _, l := range c.Endpoints {
		for _, e := range l.LbEndpoints {
			if l.Priority == 0 {
				out = append(out, e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
			}
		}
	}
	return out
}

func inZones(addresses map[string]string) *mesh.Slice {
	s := slice("db")
	for _, zone := range []string{"a", "b", "c"} {
		s.Endpoints = append(s.Endpoints, mesh.Endpoint{Address: netip.MustParseAddr(addresses[zone]), Ready: true, Zone: zone})
	}
	return s
}

// Six proxies on six nodes in three zones. What nobody asks for costs nothing; what is
// asked for costs an assignment for each zone, and none for each proxy.
func TestAnAssignmentIsBuiltForEachZoneAndOnlyWhereZonesMatter(t *testing.T) {
	h := newHarness(t, nil)
	var proxies []*ads
	for i := range 6 {
		node, zone := fmt.Sprint("node", i), string(rune('a'+i%3))
		h.builder.Apply(mesh.Put(&mesh.Node{Name: node, Zone: zone, Region: "r"}))
		proxies = append(proxies, h.placed(fmt.Sprint("pod", i), node))
	}
	places := map[string]string{"a": "10.244.1.1", "b": "10.244.2.1", "c": "10.244.3.1"}
	h.builder.Apply(mesh.Put(inZones(places)))
	move := func(name, zone, to string) map[string]uint64 {
		t.Helper()
		before := h.builds()
		places[zone] = to
		h.builder.Apply(mesh.Put(inZones(places)))
		for i, a := range proxies {
			seen := a.got[translate.Endpoints][name].GetVersion()
			a.until(fmt.Sprintf("proxy %d: the endpoint that moved", i), func() bool { return a.got[translate.Endpoints][name].GetVersion() != seen })
		}
		return h.since(before)
	}
	ask := func(name string) {
		t.Helper()
		for _, a := range proxies {
			a.subscribe(translate.Endpoints, name)
			a.until("the endpoints", a.has(translate.Endpoints, name))
		}
	}
	ask(dbCluster)
	if got, want := move(dbCluster, "b", "10.244.2.2"), map[string]uint64{"Endpoints": 1}; !maps.Equal(got, want) {
		t.Errorf("nobody asks for zones: an endpoint that moves cost %v, want %v", got, want)
	}

	db := service("db", "10.96.0.1")
	db.Distribution = mesh.SameZone
	h.builder.Apply(mesh.Put(db))
	near := "near|zone|shop|" + dbCluster
	ask(near)
	for _, a := range proxies { // as Envoy does when it has replaced the cluster
		a.unsubscribe(translate.Endpoints, dbCluster)
	}
	eventually(t, "that nobody wants the other assignment", func() bool {
		return !h.builder.wanted(func(k translate.Key) bool { return k.Type == translate.Endpoints && k.Name == dbCluster })
	})
	for i, a := range proxies {
		if got, want := fmt.Sprint(a.nearest(near)), fmt.Sprint([]string{places[string(rune('a'+i%3))]}); got != want {
			t.Errorf("proxy %d calls %s first, want %s", i, got, want)
		}
	}
	if got, want := move(near, "b", "10.244.2.3"), map[string]uint64{"Endpoints": 3}; !maps.Equal(got, want) {
		t.Errorf("the Service asks for zones: an endpoint that moves cost %v, want %v", got, want)
	}
}

// A node whose labels change takes its pods along, and one that has none leaves them
// as without a preference.
func TestAProxyFollowsItsNode(t *testing.T) {
	h := newHarness(t, nil)
	db := service("db", "10.96.0.1")
	db.Distribution = mesh.SameZone
	places := map[string]string{"a": "10.244.1.1", "b": "10.244.2.1", "c": "10.244.3.1"}
	h.builder.Apply(mesh.Put(db), mesh.Put(inZones(places)))
	a := h.placed("pod", "node")
	near := "near|zone|shop|" + dbCluster
	a.subscribe(translate.Endpoints, near)
	for _, step := range []struct {
		change mesh.Change
		want   []string
	}{
		{mesh.Put(&mesh.Node{Name: "other", Zone: "c"}), []string{places["a"], places["b"], places["c"]}},
		{mesh.Put(&mesh.Node{Name: "node", Zone: "a"}), []string{places["a"]}},
		{mesh.Put(&mesh.Node{Name: "node", Zone: "b"}), []string{places["b"]}},
		{mesh.Delete(mesh.KindNode, mesh.Name{Name: "node"}), []string{places["a"], places["b"], places["c"]}},
	} {
		h.builder.Apply(step.change)
		a.until(fmt.Sprintf("the endpoints after %v", step.change), func() bool { return fmt.Sprint(a.nearest(near)) == fmt.Sprint(step.want) })
	}
}
