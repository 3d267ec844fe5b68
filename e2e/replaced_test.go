package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// What all listeners have in common changes, while connections idle. Whoever uses one of them
// as the drain ends, of which nobody can be told by HTTP/1, is answered.
func TestConnectionsThatIdleWhileListenersAreReplacedLoseNoCall(t *testing.T) {
	s := newSpace(t, "replaced", true)
	const (
		pairs = 5
		drain = 30 * time.Second // of proxies: mesh.DrainTime
	)
	var apps []app
	for i := range pairs {
		apps = append(apps, app{name: fmt.Sprint("server", i)}, app{name: fmt.Sprint("client", i)})
	}
	s.deploy(apps...)
	load := func(i int, lasts string) {
		r := s.load(s.in(fmt.Sprint("client", i)), "http", s.url(fmt.Sprint("server", i)), "--rate", "400", "--duration", lasts)
		if r.Failed > 0 {
			t.Errorf("pair %d: %d of %d calls failed: %v, %s", i, r.Failed, r.Requests, r.Failures, r.Example)
		}
	}
	together := func(do func(int)) {
		var all sync.WaitGroup
		for i := range pairs {
			all.Go(func() { do(i) })
		}
		all.Wait()
	}
	together(func(i int) {
		s.callUntil(s.in(fmt.Sprint("client", i)), answered(200), "http", s.url(fmt.Sprint("server", i)))
		load(i, "1s")
	})

	const config = "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {accessLog: {mode: Disabled}}\n"
	must(t, s.c.Apply(t.Context(), config))
	replaced := time.Now()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, s.c.Delete(ctx, config))
	})
	together(func(i int) {
		time.Sleep(time.Until(replaced.Add(drain - time.Second + time.Duration(i)*150*time.Millisecond)))
		load(i, "1500ms")
	})
}
