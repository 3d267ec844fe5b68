package mesh

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

func pod(name, address string, terminating bool) *Workload {
	return &Workload{
		Name: Name{"shop", name}, UID: name, Terminating: terminating, Addresses: []netip.Addr{netip.MustParseAddr(address)},
	}
}

func who(s *Snapshot, address string) string {
	w, ok := NewView(s).WorkloadAt(netip.MustParseAddr(address))
	if !ok {
		return ""
	}
	return w.Name.Name
}

// Kubernetes gives an address away again as soon as its pod has ended, and what
// is then still said about that pod may come after what is said about the next.
func TestAddressIsTheNextPodsWhateverIsStillSaidOfTheOneBefore(t *testing.T) {
	s, _ := New(&Config{}).Apply(Put(pod("old", "10.0.0.1", false)))
	s, _ = s.Apply(Put(pod("new", "10.0.0.1", false)))
	s, facts := s.Apply(Put(pod("old", "10.0.0.1", true)))
	if got := who(s, "10.0.0.1"); got != "new" {
		t.Errorf("the address is %q's, want new's", got)
	}
	if !slices.Contains(facts, Fact{FactAddress, "10.0.0.1"}) {
		t.Error("who has read the address does not hear of the change")
	}
	s, _ = s.Apply(Delete(KindWorkload, Name{"shop", "old"}))
	if got := who(s, "10.0.0.1"); got != "new" {
		t.Errorf("after the end of the one before the address is %q's, want new's", got)
	}
	s, _ = s.Apply(Delete(KindWorkload, Name{"shop", "new"}))
	if got := who(s, "10.0.0.1"); got != "" {
		t.Errorf("the address is %q's, want nobody's", got)
	}
}

func TestChangeOfNothingIsNoRevision(t *testing.T) {
	s, _ := New(&Config{}).Apply(Put(pod("a", "10.0.0.1", false)))
	again, facts := s.Apply(Put(pod("a", "10.0.0.1", false)), Delete(KindService, Name{"shop", "none"}))
	if again != s || len(facts) != 0 {
		t.Errorf("a heartbeat makes revision %d and facts %v", again.Revision(), facts)
	}
}

func service(name, address string, port uint16, p Protocol) *Service {
	s := &Service{Name: Name{"shop", name}, Ports: []ServicePort{{Port: port, Protocol: p}}}
	if address != "" {
		s.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	return s
}

func TestAddressOfAServiceMayMoveToAnotherInOneBatch(t *testing.T) {
	s, _ := New(&Config{}).Apply(Put(service("a", "10.96.0.1", 80, HTTP)))
	s, _ = s.Apply(Put(service("b", "10.96.0.1", 80, HTTP)), Delete(KindService, Name{"shop", "a"}))
	svc, _, ok := NewView(s).ServiceAt(netip.MustParseAddrPort("10.96.0.1:80"))
	if !ok || svc.Name.Name != "b" {
		t.Errorf("the address belongs to %v, want b", svc)
	}
}

func TestFirstBytesAreLeftAloneWhereServersMaySpeakFirst(t *testing.T) {
	at := func(texts ...string) (out []netip.AddrPort) {
		for _, x := range texts {
			out = append(out, netip.MustParseAddrPort(x))
		}
		return out
	}
	for name, c := range map[string]struct {
		services     []*Service
		off          bool // of port 9000
		http, opaque []netip.AddrPort
	}{
		"nobody declares":               {services: []*Service{service("a", "10.96.0.1", 9000, Detect)}},
		"TCP alone":                     {services: []*Service{service("a", "10.96.0.1", 9000, TCP)}, off: true},
		"a headless TCP service":        {services: []*Service{service("a", "", 9000, TCP)}, off: true},
		"TLS, whose clients speak":      {services: []*Service{service("a", "10.96.0.1", 9000, TLS)}},
		"TCP beside HTTP":               {services: []*Service{service("a", "10.96.0.1", 9000, TCP), service("b", "10.96.0.2", 9000, HTTP)}, off: true, http: at("10.96.0.2:9000")},
		"TCP beside undeclared":         {services: []*Service{service("a", "10.96.0.1", 9000, TCP), service("b", "10.96.0.2", 9000, Detect)}, opaque: at("10.96.0.1:9000")},
		"TCP beside headless HTTP":      {services: []*Service{service("a", "10.96.0.1", 9000, TCP), service("b", "", 9000, HTTP)}, opaque: at("10.96.0.1:9000")},
		"TCP beside undeclared and TLS": {services: []*Service{service("a", "10.96.0.1", 9000, TCP), service("b", "10.96.0.2", 9000, Detect), service("c", "10.96.0.3", 9000, TLS)}, opaque: at("10.96.0.1:9000")},
	} {
		s := New(&Config{})
		for _, svc := range c.services {
			s, _ = s.Apply(Put(svc))
		}
		got := NewView(s).Sniffing()
		if off := slices.Contains(got.Off, 9000); off != c.off || !slices.Equal(got.HTTP, c.http) || !slices.Equal(got.Opaque, c.opaque) {
			t.Errorf("%s: off %v, HTTP %v, opaque %v; want %v, %v, %v", name, off, got.HTTP, got.Opaque, c.off, c.http, c.opaque)
		}
		for _, svc := range c.services {
			s, _ = s.Apply(Delete(KindService, svc.Name))
		}
		if got := NewView(s).Sniffing(); slices.Contains(got.Off, 9000) || !slices.Contains(got.Off, 3306) || len(got.HTTP)+len(got.Opaque) > 0 {
			t.Errorf("%s: when all are gone, %v is left", name, got)
		}
	}
}

func TestProfileEndsWithItsLastMember(t *testing.T) {
	a, b := pod("a", "10.0.0.1", false), pod("b", "10.0.0.2", false)
	a.Meshed, b.Meshed = true, true
	a.Labels = map[string]string{"app": "web", "pod-template-hash": "1"}
	b.Labels = map[string]string{"app": "web", "pod-template-hash": "2"}
	s, _ := New(&Config{}).Apply(Put(a), Put(b))
	id := s.Profile(a)
	if id != s.Profile(b) {
		t.Fatal("two rollouts have two profiles")
	}
	s, facts := s.Apply(Delete(KindWorkload, a.Name))
	if _, ok := NewView(s).Profile(id); !ok || slices.Contains(facts, Fact{FactProfile, id}) {
		t.Error("the profile ends with its first member")
	}
	s, facts = s.Apply(Delete(KindWorkload, b.Name))
	if _, ok := NewView(s).Profile(id); ok || !slices.Contains(facts, Fact{FactProfile, id}) {
		t.Error("the profile outlives its last member")
	}
}

// What a snapshot knows must not depend on the way that led to it.
func TestSnapshotIsTheSameWhateverTheHistory(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := New(&Config{})
		for range 60 {
			var batch []Change
			for range 1 + r.IntN(3) {
				name := fmt.Sprint(r.IntN(5))
				switch r.IntN(4) {
				case 0:
					batch = append(batch, Delete(KindService, Name{"shop", name}))
				case 1:
					batch = append(batch, Put(pod(name, fmt.Sprint("10.0.0.", r.IntN(3)), r.IntN(3) == 0)))
				default:
					address := fmt.Sprint("10.96.0.", name) // a service's own
					if r.IntN(4) == 0 {
						address = ""
					}
					batch = append(batch, Put(service(name, address, []uint16{80, 3306, 9000}[r.IntN(3)], Protocol(r.IntN(6)))))
				}
			}
			s, _ = s.Apply(batch...)
		}
		var all []Change
		for svc := range s.Services() {
			all = append(all, Put(svc))
		}
		for w := range s.Workloads() {
			all = append(all, Put(w))
		}
		fresh, _ := New(&Config{}).Apply(all...)
		if !reflect.DeepEqual(s.sniffing, fresh.sniffing) {
			t.Fatalf("seed %d: first bytes: %+v, want %+v", seed, s.sniffing, fresh.sniffing)
		}
		for i := range 3 {
			if a := fmt.Sprint("10.0.0.", i); who(s, a) != who(fresh, a) {
				t.Fatalf("seed %d: %s is %q's, want %q's", seed, a, who(s, a), who(fresh, a))
			}
		}
		if got, want := slices.Collect(vips(s)), slices.Collect(vips(fresh)); !slices.Equal(got, want) {
			t.Fatalf("seed %d: addresses of services %v, want %v", seed, got, want)
		}
	}
}

func vips(s *Snapshot) iter.Seq[string] {
	return func(yield func(string) bool) { s.VIPs(func(v string) { yield(v) }) }
}
