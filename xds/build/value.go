package build

import (
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Key names a target, see [translate.Key].
type Key = translate.Key

// Value is what was built for a Key. It is immutable and shared by all
// streams that hold it.
type Value struct {
	// Version is the hash of the bytes, or for a certificate what identifies
	// it. Two values with equal versions are the same to a proxy.
	Version string
	// Body is the resource, marshalled once; nil for a target that is no
	// resource of a proxy (findings).
	Body *anypb.Any
	// Clusters are the names of the clusters that the resource refers to and a
	// proxy must have been sent first.
	Clusters []string
	// EDS is the name of the load assignment of a cluster for which it is a
	// resource of its own; empty: it is none.
	EDS      string
	Findings []mesh.Finding
	// Uses are the objects of the API that had a part in the value, sorted;
	// Former are those that had one in an earlier value of the target and have
	// none in this: a proxy that has not taken this value may still do what
	// they say.
	Uses, Former []mesh.Ref
	// At is the revision of the mesh that the value was last found current for
	// when it was built.
	At mesh.Revision
	// Since is when the oldest of the changes that led to it came in; zero
	// where a subscription did.
	Since time.Time
}

// Concerns reports whether an object of the API has a part in the value, or had one.
func (v *Value) Concerns() bool { return len(v.Uses)+len(v.Former) > 0 }

// Subscriber is told which of its targets have a new value. Changed is called by the
// builder's own goroutine, without locks; it must not block, nor change keys, which
// others are given, too.
type Subscriber interface {
	Changed(keys []Key)
}

// Follower is told that a fact is another, see [Builder.Follow]. FactChanged is called
// by the builder's own goroutine, without locks; it must not block.
type Follower interface {
	FactChanged()
}
