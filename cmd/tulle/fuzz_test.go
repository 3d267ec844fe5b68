package main

import (
	"bytes"
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// said is an endpoint that answers every question with the same bytes.
type said []byte

func (s said) Get(context.Context, string) ([]byte, error)          { return s, nil }
func (s said) Post(context.Context, string, []byte) ([]byte, error) { return s, nil }
func (said) Close() error                                           { return nil }

// Whatever a pod's Envoy, or who has taken its place, answers: a view is an error, or a
// table that does nothing to a terminal but write lines.
func FuzzAnswersOfEnvoy(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"configs":[{"@type":"type.googleapis.com/envoy.admin.v3.ClustersConfigDump","dynamic_active_clusters":[{"version_info":"1","last_updated":"2026-01-02T03:04:05Z","cluster":{"name":"a\u001b[2J\u009b1m","type":"EDS"},"error_state":{"details":"no\r\n\u202eyes"}}]}]}`,
		`{"configs":[{"@type":"envoy.admin.v3.ListenersConfigDump","dynamic_listeners":[{"name":"in","active_state":{"listener":{"name":"in","address":{"socket_address":{"address":"::1","port_value":80}},"filter_chains":[{"filter_chain_match":{"destination_port":1},"filters":[{"typed_config":{"@type":"x.HttpConnectionManager","rds":{"route_config_name":"r"}}}]}],"default_filter_chain":{}}}}]}]}`,
		`{"configs":[{"@type":".RoutesConfigDump","dynamic_route_configs":[{"route_config":{"name":"r","virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[{"name":"c","weight":1}]}}}]}]}}]},{"@type":".ScopedRoutesConfigDump","dynamic_scoped_route_configs":[{"scoped_route_configs":[{"name":"s"}]}]}]}`,
		`{"cluster_statuses":[{"name":"c","host_statuses":[{"address":{"pipe":{"path":"/x"}},"health_status":{"eds_health_status":"DRAINING","failed_outlier_check":true},"stats":[{"name":"rq_total","value":"18446744073709551615"}]}]}]}`,
		`{"certificates":[{"ca_cert":[{"serial_number":"aa","valid_from":"2026-01-02T03:04:05Z","expiration_time":"2026-01-03T03:04:05Z"}],"cert_chain":[{"subject_alt_names":[{"uri":"spiffe://a/ns/b/sa/c"}]}]}]}`,
		`{"stats":[{"name":"a","value":1},{"histograms":{}}],"version":"1","state":"LIVE"}`, "a: 1\nb: \"x\"\n", `[`, ``,
	} {
		f.Add([]byte(text))
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	views := viewNames()
	f.Fuzz(func(t *testing.T, answer []byte) {
		for _, name := range views {
			if name == viewDiff || name == "config" { // the one asks a control plane too, the other is what Envoy says
				continue
			}
			for _, o := range []proxyOptions{{now: now, all: true}, {now: now, filter: regexp.MustCompile("^a")}} {
				v, err := proxyViews()[name].read(t.Context(), said(answer), o)
				if err != nil {
					continue
				}
				var out bytes.Buffer
				if err := v.table(now).write(&out); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				odd := func(r rune) bool { return unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Bidi_Control, r) }
				if i := strings.IndexFunc(out.String(), odd); i >= 0 {
					t.Errorf("%s of %q writes %q", name, answer, out.String()[i:])
				}
				v.data()
			}
		}
	})
	if !slices.Contains(views, "clusters") {
		f.Error("there is no view of clusters")
	}
}
