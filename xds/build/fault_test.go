package build

import (
	"net/netip"
	"testing"

	"github.com/go-logr/logr/funcr"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// No object comes in with invalid UTF-8; here one does, to have translation fail.
func TestAnObjectThatTranslationFailsAtHoldsUpNoOther(t *testing.T) {
	var logged int
	b := New(Options{Config: config(), Log: funcr.New(func(string, string) { logged++ }, funcr.Options{})})
	c := &client{b: b, held: map[Key]string{}}
	policy := func(path string) mesh.Change {
		return mesh.Put(&mesh.Policy{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: "a", Name: "p"}}, Selector: &mesh.Selector{MatchLabels: map[string]string{"app": "one"}},
			Authorization: &mesh.Authorization{Rules: []mesh.Rule{{To: []mesh.Operation{{Paths: []string{path}}}}}},
		})
	}
	pod := func(app string, last byte) *mesh.Workload {
		return &mesh.Workload{Name: mesh.Name{Namespace: "a", Name: app}, ServiceAccount: "sa", Labels: map[string]string{"app": app}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, last})}, Meshed: true}
	}
	b.Apply(policy("/one"), mesh.Put(pod("one", 1)), mesh.Put(pod("two", 2)))
	b.step(t.Context())
	inbound := func(app string) Key {
		w, _ := b.Snapshot().Workload(mesh.Name{Namespace: "a", Name: app})
		return Key{Type: translate.Route, Name: translate.RouteInbound, For: b.Snapshot().Profile(w)}
	}
	one, two := inbound("one"), inbound("two")
	b.Subscribe(c, one, two)
	b.step(t.Context())
	was := b.Value(one)

	b.Apply(policy("/\xff"), mesh.Put(&mesh.Policy{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "a", Name: "all"}}, Authorization: &mesh.Authorization{DefaultDeny: true},
	}))
	b.step(t.Context())
	if b.Value(one) != was || c.held[one] != was.Version {
		t.Error("what a proxy has is not what it had")
	}
	if v := b.Value(two); v.Version == was.Version || c.held[two] != v.Version {
		t.Error("the other workload's policy is not built")
	}
	if logged == 0 {
		t.Error("nothing is logged")
	}
	b.Apply(policy("/other"))
	b.step(t.Context())
	if v := b.Value(one); v.At <= was.At || v.Version == was.Version || c.held[one] != v.Version {
		t.Error("the object is mended, and what it is in is not built")
	}
}
