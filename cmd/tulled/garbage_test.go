package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheGarbageCollectorHasRoomWhileManyProxiesConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			lock  sync.Mutex
			said  []int
			inUse atomic.Uint64
		)
		say := func(p int) {
			lock.Lock()
			defer lock.Unlock()
			said = append(said, p)
		}
		g := &garbage{percent: say, inUse: inUse.Load, release: func() { say(0) }}
		inUse.Store(smallHeap)
		expect := func(when string, want ...int) {
			t.Helper()
			synctest.Wait()
			lock.Lock()
			defer lock.Unlock()
			if !slices.Equal(said, want) {
				t.Fatalf("%s: %v, want %v (percent; 0: released)", when, said, want)
			}
			said = nil
		}
		connect := func(n int) {
			for range n {
				g.stream()
			}
		}
		g.begin(time.Now())
		expect("at the start", stormPercent)
		time.Sleep(stormLasts)
		expect("once caches are filled", smallPercent, 0)

		for range 30 {
			connect(stormStreams / 2)
			time.Sleep(stormWindow + time.Millisecond)
		}
		expect("while some come again and again")

		for range 3 {
			connect(stormStreams)
			time.Sleep(stormLasts / 2)
		}
		expect("in a storm", stormPercent)
		time.Sleep(stormLasts)
		expect("after it", smallPercent, 0)
		time.Sleep(time.Minute)
		expect("for good")

		connect(stormStreams)
		expect("in another", stormPercent)
		inUse.Add(1)
		connect(1)
		expect("in which much comes to be in use", usualPercent)
		time.Sleep(2 * stormLasts)
		expect("after it, with much in use")
		inUse.Store(smallHeap)
		connect(1)
		expect("when others have left", smallPercent)
	})
}

func TestTheEnvironmentHasTheLastWordAboutGarbage(t *testing.T) {
	t.Setenv("GOGC", "80")
	g := newGarbage()
	if g != nil {
		t.Error("GOGC is not heeded")
	}
	g.stream()
}
