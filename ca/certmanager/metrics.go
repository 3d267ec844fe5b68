package certmanager

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tulle-mesh/tulle/ca"
)

// signed is the outcome of a request that has a certificate.
const signed = "signed"

// metrics counts what is asked for. Without a registerer it counts unseen.
type metrics struct {
	outcomes *prometheus.CounterVec
	seconds  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, oldest func() time.Duration) (*metrics, error) {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_certificate_requests_total",
			Help: "What became of certificates that this replica had cert-manager sign: signed, denied, failed, invalid (what was answered is not taken), refused, unavailable, or pending, once for each time that an answer was waited for in vain.",
		}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tulle_certificate_request_seconds", Help: "How long cert-manager took to sign.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 10),
		}),
	}
	for _, outcome := range []string{signed, ca.ReasonDenied, ca.ReasonFailed, ca.ReasonInvalid, ca.ReasonRefused, ca.ReasonUnavailable, ca.ReasonPending} {
		m.outcomes.WithLabelValues(strings.ToLower(outcome)) // so that all are there from the beginning
	}
	if r == nil {
		return m, nil
	}
	age := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tulle_certificate_requests_oldest_seconds",
		Help: "How long the first of this replica's requests to cert-manager has been waiting; 0 where none is.",
	}, func() float64 { return oldest().Seconds() })
	for _, c := range []prometheus.Collector{m.outcomes, m.seconds, age} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) outcome(failed *ca.NotSigned, took time.Duration) {
	if failed != nil {
		m.outcomes.WithLabelValues(strings.ToLower(failed.Reason)).Inc()
		return
	}
	m.outcomes.WithLabelValues(signed).Inc()
	m.seconds.Observe(took.Seconds())
}
