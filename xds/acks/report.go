package acks

import (
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Report is what one replica knows. It is sent as JSON between replicas of
// neighbouring versions: fields are added, and never change their meaning.
type Report struct {
	// Version differs whenever anything else does.
	Version string `json:"version"`
	// Objects are all that the replica knows of, sorted by kind and name.
	Objects []Object `json:"objects"`
	// Connected are the UIDs of the pods whose proxies are connected here,
	// sorted: they are in the objects' tallies.
	Connected []string `json:"connected"`
	// Absent are pods that were connected here and that have not come back
	// here. They are in no tally, since they may be connected elsewhere.
	Absent []Absent `json:"absent"`
}

// Object is what the proxies that are connected to one replica make of an
// object.
type Object struct {
	Kind      mesh.Kind `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name,omitempty"`
	// Generation is the one that the replica has built for.
	Generation int64 `json:"generation"`
	Tally
}

// Ref names the object.
func (o Object) Ref() mesh.Ref {
	return mesh.Ref{Kind: o.Kind, Name: mesh.Name{Namespace: o.Namespace, Name: o.Name}}
}

// Tally counts pods.
type Tally struct {
	Concerned  int `json:"concerned"`
	Programmed int `json:"programmed"`
	Rejected   int `json:"rejected"`
	// Waiting are up to [Examples] pods that are concerned, and neither
	// programmed nor rejected.
	Waiting []string `json:"waiting,omitempty"`
	// Refusal is what one of the proxies said that rejected.
	Refusal *Refusal `json:"refusal,omitempty"`
}

// Refusal is a proxy's refusal of a resource.
type Refusal struct {
	Pod      string `json:"pod"`
	Resource string `json:"resource"`
	Words    string `json:"words"` // Envoy's own
}

// Examples is how many pods are named, of those that are waited for.
const Examples = 3

// State is what one pod's proxy makes of an object.
type State uint8

// The states, in the order in which one resource's state outweighs another's.
const (
	Programmed State = iota // it runs the present generation
	Waiting                 // it has not acknowledged it yet
	Rejected                // it refused it
)

// Absent is a pod whose stream has ended.
type Absent struct {
	UID string `json:"uid"`
	Pod string `json:"pod"` // namespace/name
	// Left is when it ended, by the replica's clock.
	Left time.Time `json:"left"`
	// What its proxy makes of objects, by their place in [Report.Objects].
	Programmed []int    `json:"programmed,omitempty"`
	Waiting    []int    `json:"waiting,omitempty"`
	Rejected   []int    `json:"rejected,omitempty"`
	Refusal    *Refusal `json:"refusal,omitempty"`
}

// Count adds a pod in the state.
func (t *Tally) Count(pod string, s State, r *Refusal) {
	t.Concerned++
	switch s {
	case Programmed:
		t.Programmed++
	case Waiting:
		t.Waiting = examples(t.Waiting, pod)
	case Rejected:
		t.Rejected++
		t.Refusal = first(t.Refusal, r)
	}
}

// add adds what another replica counted.
func (t *Tally) add(o Tally) {
	t.Concerned += o.Concerned
	t.Programmed += o.Programmed
	t.Rejected += o.Rejected
	t.Waiting = examples(t.Waiting, o.Waiting...)
	t.Refusal = first(t.Refusal, o.Refusal)
}

// examples keeps the first few in the order of their names, so that they do not
// depend on the order of counting.
func examples(have []string, more ...string) []string {
	if len(more) == 0 {
		return have
	}
	out := slices.Concat(have, more)
	slices.Sort(out)
	return out[:min(len(out), Examples)]
}

func first(a, b *Refusal) *Refusal {
	if a == nil || b != nil && b.Pod < a.Pod {
		return b
	}
	return a
}
