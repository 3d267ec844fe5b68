package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tulle-mesh/tulle/xds/delta"
)

type metrics struct {
	streams     prometheus.Gauge
	pushes      *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	resources   *prometheus.CounterVec
	nacks       *prometheus.CounterVec
	failures    *prometheus.CounterVec
	ignored     *prometheus.CounterVec
	ended       *prometheus.CounterVec
	mismatches  prometheus.Counter
	convergence prometheus.Histogram
	counting    prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	byType := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
	}
	byReason := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reason"})
	}
	m := &metrics{
		streams:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "tulle_xds_streams", Help: "Streams of proxies that are open."}),
		pushes:     byType("tulle_xds_pushes_total", "Responses sent to proxies."),
		bytes:      byType("tulle_xds_sent_bytes_total", "Bytes of the resources sent to proxies."),
		resources:  byType("tulle_xds_sent_resources_total", "Resources sent to proxies."),
		nacks:      byType("tulle_xds_nacks_total", "Responses that proxies refused."),
		failures:   byReason("tulle_xds_authentication_failures_total", "Streams that were refused because of who opened them."),
		ignored:    byReason("tulle_xds_refused_subscriptions_total", "Names and types that proxies asked for and cannot have."),
		ended:      byReason("tulle_xds_ended_streams_total", "Streams that this replica ended so that proxies spread over all replicas."),
		mismatches: prometheus.NewCounter(prometheus.CounterOpts{Name: "tulle_xds_node_mismatches_total", Help: "Streams whose node id was not that of the token's pod."}),
		convergence: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tulle_xds_convergence_seconds", Help: "From a change's arrival to a proxy's acknowledgement of it.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},
		}),
		counting: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tulle_xds_acknowledgement_count_seconds", Help: "Time to count what all proxies have acknowledged, for the status of objects.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 4, 8),
		}),
	}
	m.begin()
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.streams, m.pushes, m.bytes, m.resources, m.nacks, m.failures, m.ignored, m.ended, m.mismatches, m.convergence, m.counting} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// begin has every counter be there from the beginning, at zero: an increase over
// a series that appears with its first event is nothing, and no alert would tell
// of that event.
func (m *metrics) begin() {
	for _, name := range typeNames {
		for _, c := range []*prometheus.CounterVec{m.pushes, m.bytes, m.resources, m.nacks} {
			c.WithLabelValues(name)
		}
	}
	for _, reason := range authReasons() {
		m.failures.WithLabelValues(reason)
	}
	for _, reason := range delta.Reasons() {
		m.ignored.WithLabelValues(string(reason))
	}
	for _, reason := range []string{endedAge, endedBalance} {
		m.ended.WithLabelValues(reason)
	}
}

func (m *metrics) sent(p *delta.Push) {
	t := typeName(p.Type)
	m.pushes.WithLabelValues(t).Inc()
	m.bytes.WithLabelValues(t).Add(float64(p.Bytes))
	m.resources.WithLabelValues(t).Add(float64(len(p.Resources)))
}
