package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

const (
	// tolerance is how far two clocks may differ that are both right; as far as a
	// token's.
	tolerance = 10 * time.Second
	// granularity is that of the header Date (RFC 9110, 6.6.1).
	granularity = time.Second
)

// clock is the wall clock that certificates are made and tokens are judged by. A host's
// that is set wrong would replace the certificates of all proxies by such as have ended
// or have not begun, and turn proxies away. So there are three witnesses: the host's
// wall clock; that clock as it was before, continued by one that nobody can set; and
// what the API server says with each of its answers. The host's wall clock is followed
// as long as it is continuous. After a jump it is followed again once the API server's
// agrees with it; until then time goes on as if it had not jumped. At the start, when
// there is no before, the API server's goes before.
type clock struct {
	// wall is the host's wall clock, without a monotonic reading.
	wall func() time.Time
	// steady is a time that only goes on, also while the host is suspended.
	steady func() time.Duration
	log    logr.Logger
	ahead  prometheus.Gauge

	lock   sync.Mutex
	heard  bool          // from the API server
	base   time.Time     // what the time was,
	at     time.Duration // when this was steady's
	differ bool          // from the API server's clock
}

func newClock(log logr.Logger, registerer prometheus.Registerer) (*clock, error) {
	c := &clock{
		wall: func() time.Time { return time.Now().Round(0) }, steady: sinceBoot, log: log,
		ahead: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tulle_clock_ahead_seconds",
			Help: "By how much this host's clock is ahead of the API server's, to a second or so; negative: behind.",
		}),
	}
	c.base, c.at = c.wall(), c.steady()
	if err := registerer.Register(c.ahead); err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	return c, nil
}

func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("reading the time since the host began: %v", err)) // Linux 2.6.39 and newer have it
	}
	return time.Duration(t.Nano())
}

// Now is the time, without a monotonic reading.
func (c *clock) Now() time.Time {
	c.lock.Lock()
	defer c.lock.Unlock()
	wall, continued := c.read()
	if near(wall, continued) {
		return c.set(wall)
	}
	return continued
}

// read is what the host's clock says, and what it would if it had not jumped.
func (c *clock) read() (wall, continued time.Time) {
	return c.wall(), c.base.Add(c.steady() - c.at)
}

func (c *clock) set(now time.Time) time.Time {
	c.base, c.at = now, c.steady()
	return now
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() <= tolerance }

// hear takes in that the API server wrote a date, at some time in the last while.
func (c *clock) hear(date time.Time, within time.Duration) {
	if within > tolerance {
		return // It says too little.
	}
	earliest, latest := date, date.Add(granularity+within)
	agrees := func(t time.Time) bool {
		return !t.Before(earliest.Add(-tolerance)) && !t.After(latest.Add(tolerance))
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	wall, continued := c.read()
	ahead := wall.Sub(earliest.Add(latest.Sub(earliest) / 2))
	c.ahead.Set(ahead.Seconds())
	if differ := !agrees(wall); differ != c.differ {
		c.differ = differ
		if differ {
			c.log.Info("this host's clock and the API server's differ: one of them is wrong", "ahead", ahead.Round(time.Second))
		} else {
			c.log.Info("this host's clock and the API server's agree again")
		}
	}
	switch {
	case agrees(wall):
		c.set(wall)
	case near(wall, continued) && c.heard: // It is the API server's that has jumped.
		c.set(wall)
	case agrees(continued) && continued.Before(earliest), !c.heard:
		c.set(earliest)
	case agrees(continued) && continued.After(latest):
		c.set(latest)
	}
	c.heard = true
}

// listening hears what the API server's answers say.
func (c *clock) listening(next http.RoundTripper) http.RoundTripper {
	return &listening{clock: c, next: next}
}

type listening struct {
	clock *clock
	next  http.RoundTripper
}

func (l *listening) RoundTrip(r *http.Request) (*http.Response, error) {
	begin := l.clock.steady()
	response, err := l.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		l.clock.hear(date, l.clock.steady()-begin)
	}
	return response, nil
}

// WrappedRoundTripper is for client-go, which looks for what is beneath.
func (l *listening) WrappedRoundTripper() http.RoundTripper { return l.next }
