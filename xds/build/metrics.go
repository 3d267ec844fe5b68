package build

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tulle-mesh/tulle/xds/translate"
)

type metrics struct {
	targets prometheus.Gauge
	seconds *prometheus.HistogramVec
	same    *prometheus.CounterVec
	faults  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		targets: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tulle_build_targets", Help: "Targets that are kept current because somebody subscribes to them, or did a moment ago.",
		}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tulle_build_seconds", Help: "Time to build one target, by type.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 4, 8),
		}, []string{"type"}),
		same: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_build_unchanged_total", Help: "Builds that gave the same bytes as before, so that nothing was sent.",
		}, []string{"type"}),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_build_faults_total", Help: "Targets that could not be built, for a fault of the control plane's own; proxies keep what they have.",
		}, []string{"type"}),
	}
	for t := range translate.Types { // so that all are there from the beginning
		m.seconds.WithLabelValues(translate.Type(t).String())
		m.same.WithLabelValues(translate.Type(t).String())
		m.faults.WithLabelValues(translate.Type(t).String())
	}
	if r != nil {
		r.MustRegister(m.targets, m.seconds, m.same, m.faults)
	}
	return m
}

func (m *metrics) built(t translate.Type, took time.Duration, same bool) {
	m.seconds.WithLabelValues(t.String()).Observe(took.Seconds())
	if same {
		m.same.WithLabelValues(t.String()).Inc()
	}
}
