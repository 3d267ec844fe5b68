package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// viewOf reads the named view of the proxy.
func viewOf(t *testing.T, e *envoyProcess, name string, o proxyOptions) view {
	t.Helper()
	o.now = time.Now()
	v, err := proxyViews()[name].read(t.Context(), e, o)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// cells is the view's table without the columns at the given places, which
// differ each time.
func cells(v view, without ...int) [][]string {
	rows := v.table(time.Now()).rows
	for _, r := range rows {
		for _, i := range without {
			r[i] = ""
		}
		for i := range r {
			r[i] = orNone(r[i])
		}
	}
	return rows
}

func lacking(v view) bool { return v.(lacker).lacks() }

func filter(s string) proxyOptions { return proxyOptions{filter: regexp.MustCompile(s)} }

func TestViewsOfARealEnvoy(t *testing.T) {
	e := startEnvoy(t)
	for name, c := range map[string]struct {
		view    string
		options proxyOptions
		without []int
		want    [][]string
	}{
		"clusters": {view: "clusters", without: []int{6}, want: [][]string{
			{"blackhole", "STATIC", "active", "-", "plain", "c1", "-"},
			{"passthrough", "ORIGINAL_DST", "active", "-", "plain", "c1", "-"},
			{testCluster, "EDS", "active", "1/3", "mTLS or plain", "c1", "-"},
			{"xds", "STATIC", "static", "1/1", "plain", "-", "-"},
		}},
		"clusters by name": {view: "clusters", options: filter("^pass"), without: []int{6}, want: [][]string{
			{"passthrough", "ORIGINAL_DST", "active", "-", "plain", "c1", "-"},
		}},
		"endpoints": {view: "endpoints", options: filter("reviews"), want: [][]string{
			{testCluster, "10.244.0.7:9080", "HEALTHY", "mTLS", "1", "a", "0", "0", "0"},
			{testCluster, "10.244.0.8:9080", "DRAINING", "plain", "2", "a", "0", "0", "0"},
			{testCluster, "[fd00::8]:9080", "UNHEALTHY", "plain", "1", "a", "0", "0", "0"},
		}},
		"listeners": {view: "listeners", want: [][]string{
			{"inbound", "127.0.0.1:15006", "active", "mtls", "port 9080 tls tulle-http", "mTLS", "HTTP, own routes in"},
			{"outbound", "127.0.0.1:15001, [::1]:15001", "active", "http", "http/1.1,h2c", "plain", "HTTP, routes by scope"},
			{`"`, `"`, `"`, "tcp", "otherwise", "plain", "TCP, cluster passthrough"},
		}},
		"routes": {view: "routes", want: [][]string{
			{"10.96.0.8:80", "reviews", "= /health", "answer 200", "-", "-", "rr1"},
			{"10.96.0.8:80", "reviews", "/*, x-user=beta", testCluster, "2s", "2 on 5xx,reset", "rr1"},
			{"10.96.0.8:80", "reviews", "/api/*", "90 " + testCluster + ", 10 blackhole", "-", "-", "rr1"},
			{"10.96.0.8:80", "reviews", "~ /x/.*", "redirect to /y", "-", "-", "rr1"},
			{"10.96.0.8:80", "reviews", "/*", "cluster named by header x-tulle-cluster", "-", "-", "rr1"},
			{"in", "v", "/*", "blackhole", "-", "-", "-"},
		}},
		"routes of destinations not used yet": {view: "routes", options: proxyOptions{all: true, filter: regexp.MustCompile(`^10\.96\.0\.7`)}, want: [][]string{
			{"10.96.0.7:9080", "-", "-", "not used yet", "-", "-", "-"},
		}},
		"certificates": {view: "certs", without: []int{3, 4}, want: [][]string{
			{"workload", testIdentity, "bb", "-", "-", "23h"},
			{"authority", "-", "aa", "-", "-", "9d"},
		}},
		"statistics": {view: "stats", options: filter(`^listener_manager\.(lds\.version_text|listener_added)$`), want: [][]string{
			{"listener_manager.lds.version_text", "l1"},
			{"listener_manager.listener_added", "2"},
		}},
		"summary": {view: "summary", without: []int{}, want: [][]string{
			{"listeners", "2"}, {"clusters", "4"}, {"endpoints", "4"}, {"routes", "2"}, {"destinations", "2"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			v := viewOf(t, e, c.view, c.options)
			got := cells(v, c.without...)
			if c.view == viewSummary {
				got = got[len(got)-len(c.want):] // above: times and versions
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if l, ok := v.(lacker); ok && l.lacks() {
				t.Error("says that something lacks in a sound proxy")
			}
		})
	}
	t.Run("statistics that are zero are left out unless asked for", func(t *testing.T) {
		used := viewOf(t, e, "stats", proxyOptions{}).(statsView)
		all := viewOf(t, e, "stats", proxyOptions{all: true}).(statsView)
		if len(used) == 0 || len(all) <= len(used) {
			t.Errorf("%d used, %d in all", len(used), len(all))
		}
	})
	t.Run("destinations not used yet are counted", func(t *testing.T) {
		notes := viewOf(t, e, "routes", proxyOptions{}).table(time.Now()).notes
		if len(notes) != 1 || !strings.HasPrefix(notes[0], "1 more destination is known") {
			t.Errorf("notes: %q", notes)
		}
	})
	t.Run("an answer that is not 200 is an error in Envoy's words", func(t *testing.T) {
		_, err := e.Get(t.Context(), "/stats?format=json&filter=(")
		if err == nil || !strings.Contains(err.Error(), "Invalid re2 regex") {
			t.Errorf("error: %v", err)
		}
	})
}

func TestEveryViewIsValidJSONAndHoldsNoPrivateKey(t *testing.T) {
	e := startEnvoy(t)
	secret := strings.Split(e.key, "\n")[1] // the first line of the key itself
	for _, name := range slices.Sorted(maps.Keys(proxyViews())) {
		for _, format := range formats() {
			var out bytes.Buffer
			a := &app{name: "tulle", streams: genericiooptions.IOStreams{Out: &out}, now: time.Now}
			if err := a.show(format, viewOf(t, e, name, proxyOptions{})); err != nil {
				t.Fatalf("%s as %s: %v", name, format, err)
			}
			if out.Len() == 0 {
				t.Errorf("%s as %s is empty", name, format)
			}
			if format == formatJSON && !json.Valid(out.Bytes()) {
				t.Errorf("%s is no JSON:\n%s", name, out.String())
			}
			if strings.Contains(out.String(), secret) || strings.Contains(out.String(), "PRIVATE KEY") {
				t.Errorf("%s as %s shows a private key", name, format)
			}
		}
	}
}

func TestWhatEnvoyRejectedOrWaitsForIsShown(t *testing.T) {
	e := startEnvoy(t)
	e.write(t, "lds", func(s string) string {
		return strings.NewReplacer("version_info: l1", "version_info: l2", "cluster: blackhole}", "cluster: nowhere}").Replace(s)
	})
	await(t, "the listener to be rejected", func() bool { return lacking(viewOf(t, e, "listeners", proxyOptions{})) })
	v := viewOf(t, e, "listeners", proxyOptions{})
	if notes := v.table(time.Now()).notes; len(notes) != 1 || !strings.Contains(notes[0], "update of inbound: route: unknown cluster 'nowhere'") {
		t.Errorf("notes: %q", notes)
	}
	if got := v.(listenersView)[0]; got.State != "active" || got.Version != "l1" {
		t.Errorf("the last good state is %s %s, want active l1", got.State, got.Version)
	}

	e.write(t, "cds", func(s string) string {
		return strings.Replace(s, "version_info: c1", "version_info: c2", 1) + `
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: slow
  type: EDS
  eds_cluster_config: {eds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}}
`
	})
	await(t, "the cluster to warm", func() bool { return lacking(viewOf(t, e, "clusters", proxyOptions{})) })
	want := [][]string{{"slow", "EDS", "warming", "0/0", "plain", "c2", "-"}}
	if diff := cmp.Diff(want, cells(viewOf(t, e, "clusters", filter("slow")), 6)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	s := viewOf(t, e, viewSummary, proxyOptions{}).(*summary)
	if s.Warming != 1 || len(s.Errors) != 1 || !s.lacks() {
		t.Errorf("summary: %+v", s)
	}
}
