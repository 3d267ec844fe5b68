package main

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"
)

// expect is a change that some of the sidecars are to receive: a resource of a type
// whose bytes contain the mark.
type expect struct {
	mark     []byte
	from     time.Time // the API server's answer to the write
	wanted   int64
	received []atomic.Int64 // by sidecar, nanoseconds since the board began; 0 is not yet
	n        atomic.Int64
	done     chan struct{}
}

// slot is where a change is looked for: in the resources of a type and name, or ("")
// of all types or names.
type slot struct{ url, name string }

// board is what is waited for.
type board struct {
	began time.Time
	all   int // sidecars
	lock  sync.RWMutex
	open  map[slot][]*expect
}

func newBoard(sidecars int) *board {
	return &board{began: time.Now(), all: sidecars, open: map[slot][]*expect{}}
}

// expect begins to look for a change that so many sidecars are to receive.
func (b *board) expect(at slot, mark []byte, wanted int) *expect {
	e := &expect{mark: mark, wanted: int64(wanted), received: make([]atomic.Int64, b.all), done: make(chan struct{})}
	if wanted == 0 {
		close(e.done)
	}
	b.lock.Lock()
	defer b.lock.Unlock()
	b.open[at] = append(b.open[at], e)
	return e
}

// forget ends looking.
func (b *board) forget() {
	b.lock.Lock()
	defer b.lock.Unlock()
	b.open = map[slot][]*expect{}
}

// received is called by a sidecar for each resource that it is sent.
func (b *board) received(sidecar int, url, name string, content []byte, now time.Time) {
	b.lock.RLock()
	defer b.lock.RUnlock()
	if len(b.open) == 0 {
		return
	}
	for _, at := range []slot{{url, name}, {}} {
		// Whoever has a later change of a resource has the earlier ones, too.
		have := false
		for i := len(b.open[at]) - 1; i >= 0; i-- {
			e := b.open[at][i]
			have = at.name != "" && have || bytes.Contains(content, e.mark)
			if have && e.received[sidecar].CompareAndSwap(0, int64(now.Sub(b.began))) && e.n.Add(1) == e.wanted {
				close(e.done)
			}
		}
	}
}

// delays are how long after the write each of the sidecars that have it received
// the change, in milliseconds.
func (b *board) delays(e *expect) (out []float64) {
	for i := range e.received {
		if at := e.received[i].Load(); at != 0 {
			out = append(out, float64(b.began.Add(time.Duration(at)).Sub(e.from).Microseconds())/1000)
		}
	}
	return out
}
