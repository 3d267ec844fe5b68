package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime/debug"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Scratch builds the target from nothing, and says what it read. All that the
// builder knows is made by it; what the builder adds is when not to call it.
func Scratch(s *mesh.Snapshot, k Key) (*Value, []mesh.Fact) {
	view := mesh.NewView(s)
	return of(s, k, view), view.Reads()
}

// attempt is Scratch that survives a fault of translation's own: without a value, and with
// what was read until then, so that it is tried again when some of that changes.
func attempt(s *mesh.Snapshot, k Key) (v *Value, reads []mesh.Fact, fault error) {
	view := mesh.NewView(s)
	defer func() {
		if p := recover(); p != nil {
			v, reads, fault = nil, view.Reads(), fmt.Errorf("%v\n%s", p, debug.Stack())
		}
	}()
	return of(s, k, view), view.Reads(), nil
}

func of(s *mesh.Snapshot, k Key, view *mesh.View) *Value {
	r := translate.Build(k, view)
	v := &Value{Clusters: r.Clusters, EDS: r.EDS, Findings: r.Findings, Uses: view.Uses(), At: s.Revision()}
	if r.Message != nil {
		v.Body = marshal(r.Message)
		v.Version = hash(v.Body)
	}
	return v
}

// marshal packs the message so that equal messages have equal bytes.
func marshal(m proto.Message) *anypb.Any {
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err) // only invalid UTF-8 can do this, and Kubernetes checks names
	}
	return a
}

// hash is short, since each proxy is sent one with every resource: 60 bits.
// A collision would have to be between two versions of one resource.
func hash(a *anypb.Any) string {
	sum := sha256.Sum256(a.Value)
	return hex.EncodeToString(sum[:])[:15]
}
