package build

import (
	"iter"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Collection is the set of all resources of a type that every proxy holds in
// full, at one revision. It is immutable, so that what a stream has been sent
// is one pointer and not a map.
type Collection struct {
	// Revision is higher than that of every collection before.
	Revision uint64
	values   *iradix.Tree[*Value]
	log      []logged // ascending; Since looks here
}

type logged struct {
	revision uint64
	name     string
}

// logLength is how many changes are remembered, at least, for streams that are
// behind. One that is further behind compares in full.
const logLength = 4096

func newCollection() *Collection { return &Collection{values: iradix.New[*Value]()} }

// Get returns the value with the name; nil if there is none.
func (c *Collection) Get(name string) *Value {
	v, _ := c.values.Get([]byte(name))
	return v
}

// Len is the number of values.
func (c *Collection) Len() int { return c.values.Len() }

// All are the values, sorted by name.
func (c *Collection) All() iter.Seq2[string, *Value] {
	return func(yield func(string, *Value) bool) {
		c.values.Root().Walk(func(k []byte, v *Value) bool { return !yield(string(k), v) })
	}
}

// Since are the names that came, changed or went after the revision, with
// repetitions. It is not ok when that is too long ago to know.
func (c *Collection) Since(revision uint64) (names []string, ok bool) {
	if revision >= c.Revision {
		return nil, true
	}
	if len(c.log) == 0 || c.log[0].revision > revision+1 {
		return nil, false
	}
	for i := len(c.log) - 1; i >= 0 && c.log[i].revision > revision; i-- {
		names = append(names, c.log[i].name)
	}
	return names, true
}

// recent is the end of a log. It begins with a revision's first change, or a
// stream that is just before that revision would miss some of it.
func recent(log []logged) []logged {
	first := len(log) - logLength
	for first < len(log) && log[first].revision == log[first-1].revision {
		first++
	}
	return append([]logged(nil), log[first:]...)
}

// update returns the collection of the snapshot's scopes, of which those with
// the names may have come or gone: the receiver itself when they are the same.
func (c *Collection) update(s *mesh.Snapshot, names []string) *Collection {
	values := c.values.Txn()
	next := Collection{Revision: c.Revision + 1, log: c.log}
	if len(next.log) >= 2*logLength {
		next.log = recent(next.log)
	}
	changed := false
	for _, name := range names {
		_, had := values.Get([]byte(name))
		has := s.Routed(name)
		switch {
		case has == had:
			continue
		case has:
			v, _ := Scratch(s, Key{Type: translate.Scope, Name: name})
			values.Insert([]byte(name), v)
		default:
			values.Delete([]byte(name))
		}
		next.log = append(next.log, logged{next.Revision, name})
		changed = true
	}
	if !changed {
		return c
	}
	next.values = values.Commit()
	return &next
}
