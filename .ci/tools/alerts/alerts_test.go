// Package alerts holds the rules of deploy/addons/prometheus against series that
// ought to have each of them fire, and ought not to. It is a module of its own, so
// that Prometheus is a dependency of nothing else.
package alerts

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/promqltest"
	"sigs.k8s.io/yaml"
)

// minutes are how long each of the series below is.
const minutes = 60

type rule struct {
	Alert string `json:"alert"`
	Expr  string `json:"expr"`
	For   string `json:"for"`
}

func rules(t *testing.T) []rule {
	t.Helper()
	content, err := os.ReadFile("../../../deploy/addons/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Spec struct {
			Groups []struct {
				Rules []rule `json:"rules"`
			} `json:"groups"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(content, &object); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range object.Spec.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// series of one value a minute, in promqltest's notation, for an hour from the
// epoch. "_" is none.
func cases() map[string]struct{ fires, silent []string } {
	const (
		healthy = `tulle_xds_streams{pod="a"} 3x60
tulle_xds_streams{pod="b"} 3x60`
		one = `tulle_xds_streams{pod="a"} 3x60`
	)
	return map[string]struct{ fires, silent []string }{
		"TulleControlPlaneDown": {
			fires:  []string{`up{job="other"} 1x60`, `tulle_xds_streams{pod="a"} 3x20 _x40`},
			silent: []string{healthy, one, `tulle_xds_streams{pod="a"} 0x60`},
		},
		"TulleReplicaAlone": {
			fires: []string{one, one + `
kube_deployment_spec_replicas{namespace="tulle-system",deployment="tulled"} 2x60`},
			silent: []string{healthy, one + `
kube_deployment_spec_replicas{namespace="tulle-system",deployment="tulled"} 1x60`},
		},
		"TulleCertManagerDoesNotSign": {
			fires: []string{
				`tulle_certificate_requests_total{outcome="denied",pod="a"} 0x40 1+1x20`,
				`tulle_certificate_requests_oldest_seconds{pod="a"} 0x30 60+60x30`,
			},
			silent: []string{
				`tulle_certificate_requests_total{outcome="signed",pod="a"} 0+3x60`, `tulle_certificate_requests_oldest_seconds{pod="a"} 5x60`,
			},
		},
		"TulleProxyRefusesConfiguration": {
			fires:  []string{`tulle_xds_nacks_total{type="lds",pod="a"} 0x54 1x10`},
			silent: []string{`tulle_xds_nacks_total{type="lds",pod="a"} 0x60`, `tulle_xds_nacks_total{type="lds",pod="a"} 0x10 7x50`},
		},
		"TulleTranslationFails": {
			fires:  []string{`tulle_build_faults_total{type="RDS",pod="a"} 0x54 1x10`},
			silent: []string{`tulle_build_faults_total{type="RDS",pod="a"} 0x60`, `tulle_build_faults_total{type="RDS",pod="a"} 0x10 2x50`},
		},
		"TulleSlowConvergence": {
			fires: []string{`tulle_xds_convergence_seconds_bucket{le="5"} 0+5x60
tulle_xds_convergence_seconds_bucket{le="10"} 0+10x60
tulle_xds_convergence_seconds_bucket{le="+Inf"} 0+10x60`},
			silent: []string{`tulle_xds_convergence_seconds_bucket{le="0.1"} 0+10x60
tulle_xds_convergence_seconds_bucket{le="5"} 0+10x60
tulle_xds_convergence_seconds_bucket{le="+Inf"} 0+10x60`, `tulle_xds_convergence_seconds_bucket{le="5"} 7x60
tulle_xds_convergence_seconds_bucket{le="+Inf"} 7x60`},
		},
		"TulleProxiesNotAuthenticated": {
			fires:  []string{`tulle_xds_authentication_failures_total{reason="expired"} 0+60x60`},
			silent: []string{`tulle_xds_authentication_failures_total{reason="expired"} 0x60`, `tulle_xds_authentication_failures_total{reason="expired"} 0x50 2x10`},
		},
		"TullePodsRefused": {
			fires: []string{
				`tulle_admission_responses_total{webhook="/inject",answer="refused"} 0x30 0+1x30`,
				`tulle_admission_responses_total{webhook="/inject",answer="failed"} 0x30 0+1x30`,
			},
			silent: []string{
				`tulle_admission_responses_total{webhook="/inject",answer="changed"} 0+5x60`,
				`tulle_admission_responses_total{webhook="/validate",answer="refused"} 0+5x60`,
				`tulle_admission_responses_total{webhook="/inject",answer="refused"} 0x58 1x2`,
			},
		},
		"TulleCertificatesNotIssued": {
			fires:  []string{`tulle_certificate_issue_errors_total{kind="workload"} 0+1x60`},
			silent: []string{`tulle_certificate_issue_errors_total{kind="workload"} 0x60`, `tulle_certificate_issue_errors_total{kind="workload"} 0x58 1x2`},
		},
		"TulleCertificateEnds": {
			fires:  []string{`tulle_certificate_least_life_left_ratio{kind="workload"} 0.2x60`},
			silent: []string{`tulle_certificate_least_life_left_ratio{kind="workload"} 0.45x60`},
		},
		"TulleClockWrong": {
			fires:  []string{`tulle_clock_ahead_seconds{pod="tulled-0"} -3600x60`},
			silent: []string{`tulle_clock_ahead_seconds{pod="tulled-0"} 2x60`, `tulle_clock_ahead_seconds{pod="tulled-0"} 0x50 3600x1 0x9`},
		},
		"TulleIssuerEnds": {
			fires:  []string{`tulle_ca_issuer_expiry_timestamp_seconds 2000000x60`},
			silent: []string{`tulle_ca_issuer_expiry_timestamp_seconds 3000000x60`},
		},
		"TulleRootEnds": {
			fires:  []string{`tulle_ca_root_expiry_timestamp_seconds 15000000x60`},
			silent: []string{`tulle_ca_root_expiry_timestamp_seconds 16000000x60`},
		},
		"TulleAuthorityStoreFails": {
			fires:  []string{`tulle_ca_store_errors_total 0+1x60`},
			silent: []string{`tulle_ca_store_errors_total 0x60`, `tulle_ca_store_errors_total 0x58 1x2`},
		},
	}
}

func TestEachAlertFiresWhenItOughtToAndNotOtherwise(t *testing.T) {
	known := cases()
	var found []string
	for _, r := range rules(t) {
		found = append(found, r.Alert)
		c, ok := known[r.Alert]
		if !ok {
			t.Errorf("%s is not tried", r.Alert)
		}
		for _, s := range c.fires {
			if !firing(t, r, s) {
				t.Errorf("%s is silent under\n%s", r.Alert, s)
			}
		}
		for _, s := range c.silent {
			if firing(t, r, s) {
				t.Errorf("%s fires under\n%s", r.Alert, s)
			}
		}
	}
	for name := range known {
		if !slices.Contains(found, name) {
			t.Errorf("there is no alert %s", name)
		}
	}
}

// firing reports whether the rule fires at the end of the series: its expression
// has had a result at each minute for as long as it asks for.
func firing(t *testing.T, r rule, series string) bool {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n  "+strings.ReplaceAll(series, "\n", "\n  "))
	engine := promqltest.NewTestEngine(t, false, 5*time.Minute, 1000)
	var pending time.Duration
	if r.For != "" {
		var err error
		if pending, err = time.ParseDuration(r.For); err != nil {
			t.Fatal(err)
		}
	}
	end := time.Unix(0, 0).Add(minutes * time.Minute)
	for at := end.Add(-pending); !at.After(end); at = at.Add(time.Minute) {
		q, err := engine.NewInstantQuery(t.Context(), storage, nil, r.Expr, at)
		if err != nil {
			t.Fatalf("%s: %v", r.Alert, err)
		}
		v, err := q.Exec(t.Context()).Vector()
		if err != nil {
			t.Fatalf("%s: %v", r.Alert, err)
		}
		q.Close()
		if len(v) == 0 {
			return false
		}
	}
	return true
}
