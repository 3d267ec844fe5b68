package main

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// Report gathers the samples of a load and counts them at its end.
type Report struct {
	report.Load

	keepTimeline bool
	mu           sync.Mutex
	samples      []sample
}

// sample is one call of a load.
type sample struct {
	due, sent, done time.Time
	answer          answer
	err             error
}

func newReport(timeline bool) *Report {
	return &Report{
		keepTimeline: timeline,
		Load: report.Load{
			Failures: map[string]int{},
			Status:   map[string]int{},
			Versions: map[string]int{},
			Pods:     map[string]int{},
		},
	}
}

func (r *Report) add(s sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples = append(r.samples, s)
}

// finish counts the samples.
func (r *Report) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.End = time.Now()
	slices.SortFunc(r.samples, func(a, b sample) int { return a.done.Compare(b.done) })
	var latency, service []float64
	for _, s := range r.samples {
		r.count(s)
		latency = append(latency, ms(s.done.Sub(s.due)))
		service = append(service, ms(s.done.Sub(s.sent)))
	}
	r.Latency, r.Service = quantiles(latency), quantiles(service)
}

func (r *Report) count(s sample) {
	r.Requests++
	if s.answer.retried {
		r.ClientRetries++
	}
	switch {
	case s.err != nil:
		f := failureOf(s.err)
		r.fail(f.Kind, f.Text, s.done)
		return
	case s.answer.status >= 500:
		r.fail("status-"+strconv.Itoa(s.answer.status), "", s.done)
	}
	if s.answer.status != 0 {
		r.Status[strconv.Itoa(s.answer.status)]++
	}
	if s.answer.pod != "" {
		r.Pods[s.answer.pod]++
	}
	if s.answer.version != "" {
		r.Versions[s.answer.version]++
		r.extend(s.answer.version, s.done)
	}
}

func (r *Report) fail(kind, text string, at time.Time) {
	r.Failed++
	r.Failures[kind]++
	if r.FailedAt == nil {
		r.Example, r.FailedAt = cmp.Or(text, kind), &at
	}
}

// extend adds an answer to the timeline; they come in order.
func (r *Report) extend(version string, at time.Time) {
	if !r.keepTimeline {
		return
	}
	if n := len(r.Timeline); n == 0 || r.Timeline[n-1].Version != version {
		r.Timeline = append(r.Timeline, report.Run{Version: version, First: at})
	}
	last := &r.Timeline[len(r.Timeline)-1]
	last.Last = at
	last.Answers++
}

// quantiles are by nearest rank; of nothing they are 0.
func quantiles(values []float64) report.Quantiles {
	if len(values) == 0 {
		return report.Quantiles{}
	}
	slices.Sort(values)
	rank := func(q float64) float64 { return values[max(0, int(math.Ceil(q*float64(len(values))))-1)] }
	return report.Quantiles{P50: rank(0.50), P99: rank(0.99), Max: values[len(values)-1]}
}
