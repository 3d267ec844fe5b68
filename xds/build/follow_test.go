package build

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// calls counts how often a follower was told.
type calls struct{ n int }

func (c *calls) FactChanged() { c.n++ }

func TestFollowerIsToldOfItsFactAlone(t *testing.T) {
	b := New(Options{Config: config()})
	c := &calls{}
	pod := func(name string, ending bool) mesh.Change {
		return mesh.Put(&mesh.Workload{Name: mesh.Name{Namespace: "a", Name: name}, Terminating: ending})
	}
	own := mesh.Fact{Kind: mesh.FactWorkload, Name: "a/own"}
	for _, step := range []struct {
		what string
		do   func()
		told int
	}{
		{"it begins to follow", func() { b.Follow(c, own) }, 1},
		{"the pod comes", func() { b.Apply(pod("own", false)) }, 1},
		{"the pod stays as it is", func() { b.Apply(pod("own", false)) }, 0},
		{"another pod comes", func() { b.Apply(pod("other", false)) }, 0},
		{"the pod begins to end", func() { b.Apply(pod("own", true)) }, 1},
		{"the pod is gone", func() { b.Apply(mesh.Delete(mesh.KindWorkload, mesh.Name{Namespace: "a", Name: "own"})) }, 1},
		{"it no longer follows", func() { b.Unfollow(c, own) }, 0},
		{"the pod comes again", func() { b.Apply(pod("own", false)) }, 0},
	} {
		before := c.n
		step.do()
		b.step(t.Context())
		if got := c.n - before; got != step.told {
			t.Errorf("%s: told %d times, want %d", step.what, got, step.told)
		}
	}
	if len(b.followers) > 0 {
		t.Errorf("%d facts are still followed", len(b.followers))
	}
}

// order notes what a subscriber that follows is told, and what there is by then.
type order struct {
	b    *Builder
	key  Key
	told []string
}

func (o *order) note(what string) {
	o.told = append(o.told, fmt.Sprint(what, " with values of ", o.b.Value(o.key).At))
}

func (o *order) Changed([]Key) { o.note("keys") }

func (o *order) FactChanged() { o.note("fact") }

// Who follows takes from then on what is built for another class than before: that is to
// be there, and no more of the class that it has left is to come.
func TestFollowerIsToldWhenValuesAreBuiltAndBeforeSubscribers(t *testing.T) {
	b := New(Options{Config: config()})
	slice := func(ip string) mesh.Change {
		return mesh.Put(&mesh.Slice{Name: mesh.Name{Namespace: "a", Name: "x-1"}, Service: "x", Ports: []mesh.SlicePort{{Name: "http", Port: 8080}}, Endpoints: []mesh.Endpoint{{Address: netip.MustParseAddr(ip), Ready: true}}})
	}
	o := &order{b: b, key: Key{Type: translate.Endpoints, Name: "svc|a/x|80"}}
	b.Apply(mesh.Put(&mesh.Service{
		Name: mesh.Name{Namespace: "a", Name: "x"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}},
	}), slice("10.244.0.1"))
	b.Subscribe(o, o.key)
	b.Follow(o, mesh.Fact{Kind: mesh.FactEndpoints, Name: "a/x"})
	b.step(t.Context())
	o.told = nil
	b.Apply(slice("10.244.0.2"))
	b.step(t.Context())
	at := b.Snapshot().Revision()
	if want := []string{fmt.Sprint("fact with values of ", at), fmt.Sprint("keys with values of ", at)}; !slices.Equal(o.told, want) {
		t.Errorf("it is told %q, want %q", o.told, want)
	}
}
