package build

import (
	"context"
	"fmt"
	"slices"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Supposition is what some changes would make of the mesh, and of what is built
// from it. It is immutable.
type Supposition struct {
	Now, Then *mesh.Snapshot
	// Differences are the targets with a subscriber that would have another
	// value, certificates aside; of findings, another but for the generation.
	Differences map[Key]Difference
	// Scopes are the differences in the collection of all scopes.
	Scopes map[string]Difference
}

// Difference is a target as it is and as it would be. A Body of nil is no
// resource.
type Difference struct{ Now, Then *Value }

// candidate is a target that reads something that would be another.
type candidate struct {
	key   Key
	value *Value
}

// candidates is the builder's own part of a supposition.
type candidates struct {
	now, then *mesh.Snapshot
	targets   []candidate
	scopes    map[string]Difference
}

// Suppose builds what the changes would make another, on the mesh as it is being
// built, and leaves no trace. The builder's goroutine only looks up who would be
// touched; the caller's builds. It fails when the context ends.
func (b *Builder) Suppose(ctx context.Context, changes ...mesh.Change) (*Supposition, error) {
	asked := make(chan candidates, 1)
	b.request(request{op: suppose, changes: changes, answer: asked, gone: ctx.Done()})
	var c candidates
	select {
	case c = <-asked:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the builder: %w", context.Cause(ctx))
	}
	return c.compare(ctx)
}

// compare builds the candidates on the mesh that would be.
func (c candidates) compare(ctx context.Context) (*Supposition, error) {
	out := &Supposition{Now: c.now, Then: c.then, Differences: map[Key]Difference{}, Scopes: c.scopes}
	for _, t := range c.targets {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("building what would be: %w", err)
		}
		then, _ := Scratch(c.then, t.key)
		if then.Version != t.value.Version || !sameButGeneration(t.value.Findings, then.Findings) {
			out.Differences[t.key] = Difference{Now: t.value, Then: then}
		}
	}
	return out, nil
}

// suppose finds the targets that read what the changes would make another.
func (b *Builder) suppose(changes []mesh.Change) candidates {
	now := b.snapshot.Load()
	then, facts := now.Apply(changes...)
	c := candidates{now: now, then: then, scopes: map[string]Difference{}}
	seen := map[*target]struct{}{}
	for _, f := range facts {
		if f.Kind == mesh.FactVIP {
			if was, is := now.Routed(f.Name), then.Routed(f.Name); was != is {
				c.scopes[f.Name] = Difference{Now: scope(now, f.Name, was), Then: scope(then, f.Name, is)}
			}
		}
		for t := range b.readers[f] {
			_, ok := seen[t]
			if ok || len(t.subscribers) == 0 || t.value == nil || certificate(t.key) {
				continue
			}
			seen[t] = struct{}{}
			c.targets = append(c.targets, candidate{t.key, t.value})
		}
	}
	return c
}

func scope(s *mesh.Snapshot, name string, exists bool) *Value {
	if !exists {
		return &Value{}
	}
	v, _ := Scratch(s, Key{Type: translate.Scope, Name: name})
	return v
}

// sameButGeneration reports whether findings say the same, whatever the generation
// of their object is.
func sameButGeneration(a, b []mesh.Finding) bool {
	return slices.EqualFunc(a, b, func(x, y mesh.Finding) bool {
		x.Generation, y.Generation = 0, 0
		return x == y
	})
}
