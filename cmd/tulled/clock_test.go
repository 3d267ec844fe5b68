package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// clocks are a host's and the API server's, and what tulled makes of them.
type clocks struct {
	t         *testing.T
	began     time.Time     // by which both began
	passed    time.Duration // since
	host, api time.Duration // ahead of the truth
	*clock
}

func newClocks(t *testing.T) *clocks {
	t.Helper()
	h := &clocks{t: t, began: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)}
	c, err := newClock(testr.New(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	c.wall = func() time.Time { return h.began.Add(h.passed + h.host) }
	c.steady = func() time.Duration { return h.passed }
	h.clock = c
	c.set(c.wall())
	return h
}

// answer is one of the API server's, whose header has whole seconds.
func (h *clocks) answer(within time.Duration) {
	date := h.began.Add(h.passed + h.api).Truncate(time.Second)
	h.passed += within
	h.hear(date, within)
}

// is checks how far ahead of the truth Now is.
func (h *clocks) is(what string, ahead, tolerance time.Duration) {
	h.t.Helper()
	if got := h.Now().Sub(h.began.Add(h.passed)); (got - ahead).Abs() > tolerance {
		h.t.Errorf("%s: the time is ahead of the truth by %v, not by %v", what, got, ahead)
	}
}

func TestAClockThatJumpsIsNotFollowedUntilTheAPIServerAgrees(t *testing.T) {
	for _, jump := range []time.Duration{30 * time.Hour, -30 * time.Hour, time.Minute, -time.Minute} {
		h := newClocks(t)
		h.answer(0)
		h.passed += time.Hour
		h.is("at first", 0, 0)
		h.host = jump
		h.is("after the jump", 0, 0)
		for range 100 {
			h.passed += 1700 * time.Millisecond
			h.answer(40 * time.Millisecond)
			h.is("by the API server", 0, 2*time.Second)
		}
		if ahead := testutil.ToFloat64(h.ahead); time.Duration(ahead*float64(time.Second)-float64(jump)).Abs() > 2*time.Second {
			t.Errorf("a jump of %v is told as %v s", jump, ahead)
		}
		h.host = 0
		h.is("set right", 0, 2*time.Second)
		h.answer(0)
		h.is("set right, and heard of", 0, 0)
		h.passed += time.Hour
		h.host = 3 * time.Second
		h.is("after a small step", h.host, 0)
	}
}

func TestAClockThatIsSetRightIsFollowedOnceTheAPIServerAgrees(t *testing.T) {
	h := newClocks(t)
	h.host, h.api = -5*time.Hour, -5*time.Hour
	h.set(h.wall())
	h.answer(0)
	h.is("where both are wrong", -5*time.Hour, 0)
	h.host, h.api = 0, 0
	h.is("both set right, and not heard of", -5*time.Hour, 0)
	h.answer(0)
	h.is("heard of", 0, 0)
}

func TestTheAPIServersClockCountsAtTheStart(t *testing.T) {
	h := newClocks(t)
	h.host = 30 * time.Hour
	h.set(h.wall())
	h.is("alone", 30*time.Hour, 0)
	h.answer(0)
	h.is("after an answer", 0, time.Second)
	h.passed += time.Hour
	h.is("an hour after", 0, time.Second)
}

func TestTheAPIServersClockIsNotFollowedWhenItJumps(t *testing.T) {
	h := newClocks(t)
	h.answer(0)
	for _, h.api = range []time.Duration{30 * time.Hour, -30 * time.Hour, 0} {
		h.passed += time.Second
		h.answer(0)
		h.is("after an answer", 0, 0)
	}
}

func TestAJumpWhileTheAPIServerIsAwayIsNotFollowed(t *testing.T) {
	h := newClocks(t)
	h.answer(0)
	h.host = 30 * time.Hour
	h.passed += 2 * time.Hour
	h.is("two hours after", 0, 0)
	h.answer(time.Minute)
	h.is("after an answer that took a minute", 0, 0)
}

func TestTheClockHearsEachAnswer(t *testing.T) {
	h := newClocks(t)
	h.host = 30 * time.Hour
	h.set(h.wall())
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", h.began.Format(http.TimeFormat))
		w.WriteHeader(http.StatusForbidden)
	}))
	defer api.Close()
	client := &http.Client{Transport: h.listening(http.DefaultTransport)}
	response, err := client.Get(api.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	h.is("after an answer", 0, time.Second)
}

func TestTheRealClockIsTheHosts(t *testing.T) {
	c, err := newClock(testr.New(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now().Round(0)
	now := c.Now()
	if now.Before(before) || now.After(time.Now().Round(0)) {
		t.Errorf("%v is not the host's time %v", now, before)
	}
}
