package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// How much may be allocated, in percent of what is in use, before garbage is collected (Go's
// own default is 100). Little is allocated but when many proxies connect at once, and where
// little is in use it is collected in some milliseconds. So a control plane of some hundred
// proxies stays as small as it can be. With more in use, what changes while garbage is
// collected comes later, so that it is not done more often than it must be (docs/performance.md).
const (
	usualPercent = 50
	stormPercent = 30       // where little is in use, while many proxies connect
	smallPercent = 20       // and at rest
	smallHeap    = 64 << 20 // bytes in use that are little

	stormStreams = 20 // that open within stormWindow begin a storm
	stormWindow  = time.Second
	stormLasts   = 5 * time.Second // after the last such stream
)

// garbage gives the garbage collector room by what is in use, and more while many proxies
// connect. It looks at the end of a storm and as a stream opens, which happens now and then
// wherever there are proxies: streams have a greatest age.
type garbage struct {
	percent func(int)
	inUse   func() uint64 // bytes of the heap, when garbage was collected last
	release func()        // collect now, and give back to the system what is free

	lock   sync.Mutex
	set    int // percent
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
	g := &garbage{percent: func(p int) { debug.SetGCPercent(p) }, inUse: heapInUse, release: release}
	g.begin(time.Now())
	return g
}

func heapInUse() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// release gives back what is free after three collections: a pool's content goes with the
// second at which nobody took it, and a stack shrinks by half at each.
func release() {
	runtime.GC()
	runtime.GC()
	debug.FreeOSMemory()
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
	if g.opened++; g.opened >= stormStreams {
		g.last = now
		if !g.storm {
			g.begin(now)
		}
	}
	g.adjust()
}

// begin is the beginning of a storm. The caller holds the lock.
func (g *garbage) begin(now time.Time) {
	g.storm, g.last = true, now
	g.adjust()
	time.AfterFunc(stormLasts, g.settle)
}

// adjust looks at what is in use. The caller holds the lock.
func (g *garbage) adjust() {
	p := smallPercent
	switch {
	case g.inUse() > smallHeap:
		p = usualPercent
	case g.storm:
		p = stormPercent
	}
	if p != g.set {
		g.set = p
		g.percent(p)
	}
}

// settle is the end of a storm, if no more of it came.
func (g *garbage) settle() {
	g.lock.Lock()
	defer g.lock.Unlock()
	if rest := stormLasts - time.Since(g.last); rest > 0 {
		time.AfterFunc(rest, g.settle)
		return
	}
	g.storm = false
	g.adjust()
	if g.set == smallPercent {
		go g.release() // streams may open meanwhile
	}
}
