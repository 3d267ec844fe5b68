package build

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// What is supposed of changes is what then comes of them, and nothing comes of
// supposing.
func TestASuppositionIsWhatComesOfTheChanges(t *testing.T) {
	differences := 0
	for seed := range uint64(50) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		ctx := context.Background()
		b := New(Options{Config: config(), Grace: time.Hour})
		c := &client{b: b, held: map[Key]string{}}
		for range 20 {
			b.Apply(w.change(), w.change())
			for range 6 {
				b.Subscribe(c, w.key(b.Snapshot()))
			}
			b.step(ctx)

			changes := []mesh.Change{w.change(), w.change()}
			before := map[Key]*Value{}
			for k := range b.targets {
				before[k] = b.Value(k)
			}
			scopes := b.Scopes()
			would, err := b.suppose(changes).compare(ctx)
			if err != nil {
				t.Fatal(err)
			}
			b.step(ctx)
			for k, v := range before {
				if b.Value(k) != v {
					t.Fatalf("seed %d: supposing changed %v", seed, k)
				}
			}

			b.Apply(changes...)
			b.step(ctx)
			for k, v := range before {
				if certificate(k) {
					continue
				}
				d, supposed := would.Differences[k]
				now := b.Value(k)
				changed := now.Version != v.Version || !sameButGeneration(now.Findings, v.Findings)
				if supposed != changed || supposed && d.Then.Version != now.Version {
					t.Fatalf("seed %d: %v: supposed to change %v, and changed %v", seed, k, supposed, changed)
				}
			}
			for name, d := range would.Scopes {
				differences++
				if was, is := scopes.Get(name), b.Scopes().Get(name); (was == nil) != (d.Now.Body == nil) || (is == nil) != (d.Then.Body == nil) {
					t.Fatalf("seed %d: scope %s: supposed %v, and is %v", seed, name, d, is)
				}
			}
			if now := b.Scopes(); len(would.Scopes) == 0 && now != scopes {
				t.Fatalf("seed %d: scopes changed, and were not supposed to", seed)
			}
			differences += len(would.Differences)
		}
	}
	if differences < 500 {
		t.Errorf("only %d differences: the histories prove little", differences)
	}
}

func TestNothingIsLookedUpForWhoHasGone(t *testing.T) {
	b := New(Options{Config: config()})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	answer := make(chan candidates, 1)
	b.request(request{op: suppose, answer: answer, gone: ctx.Done()})
	b.step(t.Context())
	if len(answer) > 0 {
		t.Error("it was")
	}
	b.request(request{op: suppose, answer: answer, gone: t.Context().Done()})
	b.step(t.Context())
	if len(answer) != 1 {
		t.Error("who waits is not answered")
	}
}
