package build

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// serviceOf has one HTTP port for each of the addresses from first on.
func serviceOf(name string, first, count int) *mesh.Service {
	s := &mesh.Service{Name: mesh.Name{Namespace: "a", Name: name}, Ports: []mesh.ServicePort{{Name: "http", Port: 80, Protocol: mesh.HTTP}}}
	for i := first; i < first+count; i++ {
		s.Addresses = append(s.Addresses, netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}))
	}
	return s
}

// What a stream is told came since its revision, with what it had, is all that
// there is; or it is told that nobody knows.
func TestWhatCameSinceARevisionIsComplete(t *testing.T) {
	b := New(Options{Config: config()})
	held := []map[string]bool{{}} // of a stream at each revision
	for i := range 9 {
		b.Apply(mesh.Put(serviceOf(fmt.Sprint("s", i), i*1500, 1500)))
		b.step(t.Context())
		c := b.Scopes()
		now := map[string]bool{}
		for name := range c.All() {
			now[name] = true
		}
		held = append(held, now)
		for revision, has := range held {
			names, ok := c.Since(uint64(revision))
			if !ok {
				continue
			}
			heard := map[string]bool{}
			for _, n := range names {
				heard[n] = true
			}
			for name := range now {
				if !has[name] && !heard[name] {
					t.Fatalf("at revision %d, a stream that was at %d never hears of %s", c.Revision, revision, name)
				}
			}
		}
	}
}

func BenchmarkOneServiceAmongTenThousand(b *testing.B) {
	builder := New(Options{Config: config()})
	for i := range 10000 {
		builder.Apply(mesh.Put(serviceOf(fmt.Sprint("s", i), i, 1)))
	}
	builder.step(b.Context())
	for i := 0; b.Loop(); i++ {
		builder.Apply(mesh.Put(serviceOf("new", 20000+i%2, 1)))
		builder.step(b.Context())
	}
}
