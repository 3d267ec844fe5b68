package delta

import (
	"hash/maphash"
	"iter"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Holding is what a proxy has of one target.
type Holding struct {
	Key build.Key
	// Sent is the version that was sent last, Acknowledged the one that the
	// proxy took last; empty: none.
	Sent, Acknowledged string
	// At is the revision of the mesh that the acknowledged version was built
	// for, or a later one for which it is the same; 0: not known.
	At mesh.Revision
	// Rejected is set when the proxy refused a version after that.
	Rejected *Rejection
}

// Pending reports whether the proxy still has to take what was sent, or is
// waiting to be sent something.
func (h Holding) Pending() bool {
	return h.Rejected == nil && (h.Sent == "" || h.Sent != h.Acknowledged)
}

// Holding returns what the proxy has of the key; false when the stream does not
// hold it. Scopes are held together, see [Stream.Scopes].
func (s *Stream) Holding(k build.Key) (Holding, bool) {
	if int(k.Type) >= Types {
		return Holding{}, false
	}
	sub, ok := s.types[k.Type].names[k.Name]
	if !ok || sub.bound != k.For {
		return Holding{}, false
	}
	return sub.holding(k.Type), true
}

func (s *subscription) holding(t translate.Type) Holding {
	h := Holding{Key: s.key(t), Sent: s.sent, Acknowledged: s.acked, At: s.ackedAt, Rejected: s.rejected}
	if t == translate.Endpoints { // see ofCluster
		h.Sent, h.Acknowledged = own(h.Sent), own(h.Acknowledged)
		if h.Rejected != nil {
			h.Rejected = &Rejection{Version: own(h.Rejected.Version), Message: h.Rejected.Message}
		}
	}
	return h
}

// Holdings yields what the proxy has, scopes excepted, in no order.
func (s *Stream) Holdings() iter.Seq[Holding] {
	return func(yield func(Holding) bool) {
		for t := range s.types {
			for _, sub := range s.types[t].names {
				if !yield(sub.holding(translate.Type(t))) {
					return
				}
			}
		}
	}
}

// Unsettled yields what the proxy may not have as it should, scopes excepted:
// what waits to be looked at or to be sent, what it has not answered, and what
// it refused. It may yield one thing twice. All else it has acknowledged as it
// was when [Stream.Dirty] was called last.
func (s *Stream) Unsettled() iter.Seq[Holding] {
	return func(yield func(Holding) bool) {
		for t := range s.types {
			subs := &s.types[t]
			for _, queue := range [...][]*subscription{subs.queue, subs.suspects} {
				for _, sub := range queue {
					if sub.why != 0 && !yield(sub.holding(translate.Type(t))) {
						return
					}
				}
			}
			for _, r := range subs.unacked {
				for _, p := range r.parts {
					if p.sub != nil && p.sub.why != 0 && !yield(p.sub.holding(translate.Type(t))) {
						return
					}
				}
			}
			for sub := range s.refused {
				if subs.names[sub.name] == sub && !yield(sub.holding(translate.Type(t))) {
					return
				}
			}
		}
	}
}

// Quiet reports whether the proxy has acknowledged all that there is for it.
func (s *Stream) Quiet() bool {
	for range s.Unsettled() {
		return false
	}
	scopes := &s.types[translate.Scope]
	return !scopes.wildcard || s.scopes.settled(scopes)
}

// Names is how many names the proxy holds, scopes excepted.
func (s *Stream) Names() int {
	n := 0
	for t := range s.types {
		n += len(s.types[t].names)
	}
	return n
}

// Print is a number that is the same for streams that hold the same keys,
// scopes excepted, and for no others but by an accident of one in 2^64.
func (s *Stream) Print() uint64 { return s.print }

var seed = maphash.MakeSeed()

func print(k build.Key) uint64 { return maphash.Comparable(seed, k) }

// ScopesHeld is what a proxy has of the collection of scopes.
type ScopesHeld struct {
	Subscribed bool
	// Revision is the set that was sent last, and Settled whether the proxy
	// took all of it but what is in Rejected.
	Revision uint64
	Count    int
	Settled  bool
	Rejected map[string]Rejection
}

// Scopes returns what the proxy has of the collection of scopes.
func (s *Stream) Scopes() ScopesHeld {
	subs := &s.types[translate.Scope]
	h := ScopesHeld{Subscribed: subs.wildcard, Settled: s.scopes.settled(subs)}
	if s.scopes.last != nil {
		h.Revision, h.Count = s.scopes.last.At(), s.scopes.last.Len()
	}
	if len(s.scopes.rejected) > 0 {
		h.Rejected = map[string]Rejection{}
		for name, r := range s.scopes.rejected {
			h.Rejected[name] = *r
		}
	}
	return h
}

// Known reports whether the stream knows what the proxy holds: it carries
// traffic, and has said what it has of the types that every proxy asks for.
func (s *Stream) Known() bool {
	for _, t := range s.binding.Needs {
		if !s.types[t].seen {
			return false
		}
	}
	return s.live
}
