package main

import (
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// How much may be allocated, in percent of what is in use, before garbage is collected (Go's
// own default is 100), and when. Little is allocated but when many proxies connect at once:
// that would cost a third more CPU with the room of calm times, in which less room costs a
// tenth more (docs/performance.md).
const (
	calmPercent  = 20
	stormPercent = 50

	stormStreams = 20 // that open within stormWindow begin a storm
	stormWindow  = time.Second
	stormLasts   = 10 * time.Second // after the last such stream
)

// garbage gives the garbage collector room while many proxies connect, and takes it back.
type garbage struct {
	percent func(int)

	lock   sync.Mutex
	storm  bool
	window time.Time // since when opened counts
	opened int
	last   time.Time // stream of a storm
}

// newGarbage begins as in a storm: caches are filled first. It is nil where the environment
// sets GOGC, which has the last word.
func newGarbage() *garbage {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	g := &garbage{percent: func(p int) { debug.SetGCPercent(p) }}
	g.begin(time.Now())
	return g
}

// stream notes that a proxy connects.
func (g *garbage) stream() {
	if g == nil {
		return
	}
	g.lock.Lock()
	defer g.lock.Unlock()
	now := time.Now()
	if now.Sub(g.window) > stormWindow {
		g.window, g.opened = now, 0
	}
	if g.opened++; g.opened < stormStreams {
		return
	}
	g.last = now
	if !g.storm {
		g.begin(now)
	}
}

func (g *garbage) begin(now time.Time) {
	g.storm, g.last = true, now
	g.percent(stormPercent)
	time.AfterFunc(stormLasts, g.settle)
}

// settle has garbage collected at once, where there is more than the new percentage. What
// is free then goes back to the system little by little (to ask for all of it, with
// debug.FreeOSMemory, held up everything for half a second).
func (g *garbage) settle() {
	g.lock.Lock()
	defer g.lock.Unlock()
	if rest := stormLasts - time.Since(g.last); rest > 0 {
		time.AfterFunc(rest, g.settle)
		return
	}
	g.storm = false
	g.percent(calmPercent)
}
