package ca

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what is issued. Without a registerer it counts unseen.
type metrics struct {
	issues, errors, signed *prometheus.CounterVec
	limited                prometheus.Counter
}

func newMetrics(r prometheus.Registerer, look func(Kind) (outlook, bool)) (*metrics, error) {
	m := &metrics{
		issues: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_certificates_issued_total",
			Help: "Certificates issued by this replica.",
		}, []string{"kind"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_certificate_issue_errors_total",
			Help: "Certificates that this replica asked the issuer for in vain.",
		}, []string{"kind"}),
		signed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_certificates_signed_total",
			Help: "Certificates issued by this replica, by the id of the issuer's key (in hexadecimal, as in the certificates).",
		}, []string{"issuer"}),
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tulle_certificates_rate_limited_total",
			Help: "Certificates that were not issued because their identity had too many in too short a time.",
		}),
	}
	for _, kind := range []Kind{Workload, Serving} { // so that both are there from the beginning
		m.issues.WithLabelValues(string(kind))
		m.errors.WithLabelValues(string(kind))
	}
	return m, register(r, m.issues, m.errors, m.signed, m.limited, expiry{
		outlook: look,
		soonest: prometheus.NewDesc(
			"tulle_certificate_soonest_expiry_timestamp_seconds",
			"When the first of the certificates in use expires, in seconds since 1970. Absent where there is none.",
			[]string{"kind"}, nil,
		),
		least: prometheus.NewDesc(
			"tulle_certificate_least_life_left_ratio",
			"The smallest part of its life that any certificate in use has left: they are renewed at about 0.5, and have ended at 0. Absent where there is none.",
			[]string{"kind"}, nil,
		),
	})
}

func (m *metrics) issued(kind Kind, issuer string) {
	m.issues.WithLabelValues(string(kind)).Inc()
	m.signed.WithLabelValues(issuer).Inc()
}

func (m *metrics) failed(kind Kind) { m.errors.WithLabelValues(string(kind)).Inc() }

// expiry collects when certificates end, at the time of the scrape.
type expiry struct {
	soonest, least *prometheus.Desc
	outlook        func(Kind) (outlook, bool)
}

// Describe sends the descriptions.
func (e expiry) Describe(out chan<- *prometheus.Desc) {
	out <- e.soonest
	out <- e.least
}

// Collect sends the values of each kind that has a certificate.
func (e expiry) Collect(out chan<- prometheus.Metric) {
	for _, kind := range []Kind{Workload, Serving} {
		if o, ok := e.outlook(kind); ok {
			out <- prometheus.MustNewConstMetric(e.soonest, prometheus.GaugeValue, float64(o.soonest.Unix()), string(kind))
			out <- prometheus.MustNewConstMetric(e.least, prometheus.GaugeValue, o.least, string(kind))
		}
	}
}

// register registers the metrics of the built-in authority.
func (a *Authority) register(r prometheus.Registerer) error {
	a.failures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tulle_ca_store_errors_total",
		Help: "Failures to follow the authority's store or to write what is rotated into it.",
	})
	err := register(r, a.failures,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tulle_ca_issuer_expiry_timestamp_seconds",
			Help: "When the issuing certificate, or one between it and the root, expires, in seconds since 1970.",
		}, func() float64 { return float64(a.material.Load().notAfter().Unix()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tulle_ca_root_expiry_timestamp_seconds",
			Help: "When the first of the root certificates expires, in seconds since 1970.",
		}, func() float64 { return float64(a.material.Load().rootsNotAfter().Unix()) }),
	)
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	return nil
}

func register(r prometheus.Registerer, collectors ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	var errs []error
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			errs = append(errs, fmt.Errorf("register metrics: %w", err))
		}
	}
	return errors.Join(errs...)
}
