package server

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// An alert on an increase does not see the first event of a series that begins with
// it.
func TestCountersAreThereBeforeTheirFirstEvent(t *testing.T) {
	r := prometheus.NewRegistry()
	if _, err := newMetrics(r); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]int{}
	for _, f := range families {
		series[f.GetName()] = len(f.GetMetric())
	}
	for name, want := range map[string]int{
		"tulle_xds_nacks_total":                   len(typeNames),
		"tulle_xds_authentication_failures_total": len(authReasons()),
		"tulle_xds_refused_subscriptions_total":   4,
		"tulle_xds_ended_streams_total":           2,
	} {
		if series[name] != want {
			t.Errorf("%s has %d series, want %d", name, series[name], want)
		}
	}
}
