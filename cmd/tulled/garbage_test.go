package main

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheGarbageCollectorHasRoomWhileManyProxiesConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []int
		g := &garbage{percent: func(p int) { said = append(said, p) }}
		expect := func(when string, want ...int) {
			t.Helper()
			synctest.Wait()
			if !slices.Equal(said, want) {
				t.Fatalf("%s: %v percent, want %v", when, said, want)
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
		expect("once caches are filled", calmPercent)

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
		expect("after it", calmPercent)
		time.Sleep(time.Minute)
		expect("for good")
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
