package e2e

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// newSplit is a namespace with a client and two versions of "server".
func newSplit(t *testing.T) *space {
	t.Helper()
	s := newSpace(t, "split", true)
	s.deploy(app{name: "client"},
		app{name: "server-v1", label: "server", version: "v1"},
		app{name: "server-v2", label: "server", version: "v2"})
	s.service("server", map[string]string{"app": "server"})
	return s
}

// weights is the spec of a split of "server".
func weights(v1, v2 int) string {
	return fmt.Sprintf("service: server\nbackends: [{service: server-v1, weight: %d}, {service: server-v2, weight: %d}]", v1, v2)
}

// onlyVersion waits until ten answers in a row are of one version.
func (s *space) onlyVersion(from kube.Pod, version string, args ...string) {
	s.t.Helper()
	eventually(s.t, 20*time.Second, "answers of "+version+" alone", func(ctx context.Context) error {
		var all []report.Call
		err := s.c.Echo(ctx, from, &all, append([]string{"call", "http", s.url("server"), "--times", "10"}, args...)...)
		if err != nil {
			return err
		}
		for _, r := range all {
			if err := works(&r); err != nil {
				return err
			}
			if r.Reply == nil || r.Reply.Version != version {
				return fmt.Errorf("answered by %+v", r.Reply)
			}
		}
		return nil
	})
}

func TestASplitSharesOutCallsByWeight(t *testing.T) {
	t.Parallel()
	s := newSplit(t)
	from := s.in("client")
	s.apply("TrafficSplit", "server", weights(0, 1))
	s.onlyVersion(from, "v2")
	n, rate := 2000, 250
	if os.Getenv("TULLE_E2E_LONG") != "" {
		n, rate = 20000, 500
	}
	for _, v1 := range []int{90, 99, 0} {
		s.apply("TrafficSplit", "server", weights(v1, 100-v1))
		if v1 == 0 {
			s.onlyVersion(from, "v2")
		} else {
			s.callUntil(from, func(r *report.Call) error {
				if r.Reply == nil || r.Reply.Version != "v1" {
					return fmt.Errorf("answered by %+v", r.Reply)
				}
				return nil
			}, "http", s.url("server"))
		}
		load := s.load(from, "http", s.url("server"), "--requests", fmt.Sprint(n), "--rate", fmt.Sprint(rate), "--new-connection-share", "0.25")
		noFailure(s, load)
		figure(t, "split %d/%d: version 1 answered %d of %d", v1, 100-v1, load.Versions["v1"], load.Requests)
		// Of a fair draw, one in ten thousand is further off than four deviations.
		p := float64(v1) / 100
		if off := math.Abs(float64(load.Versions["v1"]) - p*float64(n)); off > 4*math.Sqrt(p*(1-p)*float64(n)) {
			t.Errorf("version 1 answered %d of %d, want %d %%, and was off by %.0f", load.Versions["v1"], n, v1, off)
		}
	}
	s.apply("TrafficSplit", "server", weights(90, 10))
	s.callUntil(from, func(r *report.Call) error {
		if r.Reply == nil || r.Reply.Version != "v1" {
			return fmt.Errorf("answered by %+v", r.Reply)
		}
		return nil
	}, "http", s.url("server"))
	grpc := s.load(from, "grpc", s.host("server")+":9000", "--requests", "500", "--rate", "250")
	noFailure(s, grpc)
	if n := grpc.Versions["v2"]; n < 10 || n > 100 {
		t.Errorf("version 2 answered %d of 500 gRPC calls, want some 50: each call is split, not each connection", n)
	}
	s.remove("TrafficSplit", "server")
	eventually(t, 20*time.Second, "both versions alike", func(context.Context) error {
		l := s.load(from, "http", s.url("server"), "--requests", "100", "--rate", "500")
		if n := l.Versions["v2"]; n < 25 || l.Failed > 0 {
			return fmt.Errorf("version 2 answered %d of 100, %d failed", n, l.Failed)
		}
		return nil
	})
}

func TestASplitMatchesHeadersAndPaths(t *testing.T) {
	t.Parallel()
	s := newSplit(t)
	from := s.in("client")
	s.apply("TrafficSplit", "server", `
service: server
rules:
- matches:
  - headers: [{name: x-group, type: Exact, value: b}]
  - path: {type: PathPrefix, value: /beta}
  - {method: POST, path: {type: Exact, value: /orders}}
  - queryParams: [{name: version, value: "2"}, {name: tier, type: RegularExpression, value: "gold|silver"}]
  backends: [{service: server-v2, weight: 1}]
backends: [{service: server-v1, weight: 1}]`)
	s.onlyVersion(from, "v1")
	s.onlyVersion(from, "v2", "--header", "X-Group: b")
	s.onlyVersion(from, "v1", "--header", "X-Group: c")
	for path, version := range map[string]string{
		"/beta/x": "v2", "/beta": "v2", "/betamax": "v1", "/": "v1", "/orders": "v1",
		"/?version=2&tier=gold": "v2", "/x?a=b&tier=silver&version=2": "v2", "/?version=2": "v1", "/?version=2&tier=golden": "v1",
	} {
		r := s.call(from, "http", s.url("server")+path)
		if err := works(r); err != nil || r.Reply.Version != version {
			t.Errorf("%s was answered by %+v (%v), want %s", path, r.Reply, err, version)
		}
	}
	if r := s.call(from, "http", s.url("server")+"/orders", "--method", "POST"); r.Reply == nil || r.Reply.Version != "v2" {
		t.Errorf("POST /orders was answered by %+v, want v2", r.Reply)
	}
}

// A mirror gets copies, and the caller hears nothing of it.
func TestAMirrorGetsAShareOfWhatIsCalled(t *testing.T) {
	t.Parallel()
	s := newSplit(t)
	from := s.in("client")
	s.apply("TrafficSplit", "server", "service: server\nbackends: [{service: server-v1}]\nmirrors: [{service: server-v2, percent: 30}]")
	s.onlyVersion(from, "v1")
	pods, err := s.c.Client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{LabelSelector: "version=v2"})
	must(t, err)
	mirror := pods.Items[0].Name
	before := s.inbound(mirror)
	r := s.load(from, "http", s.url("server"), "--requests", "600", "--rate", "300")
	noFailure(s, r)
	var copies int
	eventually(t, 5*time.Second, "copies", func(context.Context) error {
		if copies = s.inbound(mirror) - before; copies < 120 {
			return fmt.Errorf("%d of %d calls were mirrored, want some 30 %%", copies, r.Requests)
		}
		return nil
	})
	figure(t, "%d of %d calls were mirrored at 30 %%; %v answered", copies, r.Requests, r.Versions)
	if copies > 240 || r.Versions["v2"] > 0 {
		t.Errorf("%d of %d calls were mirrored, and %v answered", copies, r.Requests, r.Versions)
	}
	// One that cannot answer costs the caller nothing.
	s.toggle(kube.Pod{Namespace: s.name, Name: mirror, Container: "app"}, "fail", true)
	noFailure(s, s.load(from, "http", s.url("server"), "--requests", "100", "--rate", "100"))
}

// Subsets by label, an affinity, and connections that are not HTTP. All pods are the
// root's own.
func TestASplitOfPodsByTheirLabels(t *testing.T) {
	t.Parallel()
	s := newSplit(t)
	s.strict()
	from := s.in("client")
	subsets := func(v1, v2 int) string {
		return fmt.Sprintf("service: server\nsessionAffinity: {header: x-user}\nbackends: [{matchLabels: {version: v1}, weight: %d}, {matchLabels: {version: v2}, weight: %d}]", v1, v2)
	}
	s.apply("TrafficSplit", "server", subsets(0, 1))
	s.onlyVersion(from, "v2")
	s.apply("TrafficSplit", "server", subsets(800, 200))
	users := map[string]string{} // their versions
	for i := range 40 {
		user := fmt.Sprint("user-", i)
		r := s.call(from, "http", s.url("server"), "--header", "X-User: "+user)
		must(t, answered(200)(r))
		users[user] = r.Reply.Version
	}
	of := func(version string) (n int) {
		for _, v := range users {
			if v == version {
				n++
			}
		}
		return n
	}
	figure(t, "of 40 users, %d have version 2 at 20 %%", of("v2"))
	if n := of("v2"); n < 1 || n > 20 {
		t.Errorf("%d of 40 users have version 2, want some 8", n)
	}
	s.apply("TrafficSplit", "server", subsets(600, 400))
	moved := 0
	for user, before := range users {
		for range 2 {
			r := s.call(from, "http", s.url("server"), "--header", "X-User: "+user)
			must(t, answered(200)(r))
			if before == "v2" && r.Reply.Version != "v2" {
				t.Errorf("%s was moved back to version 1 as version 2 got more", user)
			}
			if users[user] != r.Reply.Version {
				users[user] = r.Reply.Version
				moved++
			}
		}
	}
	figure(t, "as version 2 went from 20 to 40 %%, %d of 40 users moved, all of them to it", moved)

	tcp := s.load(from, "tcp", s.host("server")+":9001", "--requests", "400", "--rate", "200", "--new-connection-share", "1")
	noFailure(s, tcp)
	if n := tcp.Versions["v2"]; n < 110 || n > 210 {
		t.Errorf("version 2 answered %d of 400 TCP connections, want some 160: %v", n, tcp.Versions)
	}
	// Weights change under connections that stay: none is cut.
	load := s.startLoad(from, "tcp", s.host("server")+":9001", "--rate", "50", "--connections", "10", "--duration", "6s")
	for _, w := range [][2]int{{1, 999}, {999, 1}, {0, 1}} {
		s.apply("TrafficSplit", "server", subsets(w[0], w[1]))
	}
	noFailure(s, load.wait())
	tcp = s.load(from, "tcp", s.host("server")+":9001", "--requests", "50", "--rate", "100", "--new-connection-share", "1")
	noFailure(s, tcp)
	if tcp.Versions["v2"] != 50 {
		t.Errorf("all connections should be version 2's: %v", tcp.Versions)
	}
}

// Twenty times all calls go from one version to the other, under load on
// connections that are kept. What counts is the time from the API server's
// answer to the last answer of the old version.
func TestASplitSwitchedUnderLoadTakesMillisecondsAndFailsNothing(t *testing.T) {
	const (
		switches = 20
		between  = 1500 * time.Millisecond
		rate     = 200
	)
	s := newSplit(t)
	from := s.in("client")
	s.apply("TrafficSplit", "server", weights(1, 0))
	s.onlyVersion(from, "v1")
	load := s.startLoad(from, "http", s.url("server"), "--timeline", "--rate", fmt.Sprint(rate), "--connections", "16",
		"--duration", fmt.Sprint((switches+2)*between))
	type turn struct {
		asked, at time.Time // when the API server was asked, and had answered
		old       string
	}
	var turns []turn
	next := time.NewTicker(between)
	defer next.Stop()
	for i := range switches {
		<-next.C
		patch, old := `{"spec":{"backends":[{"service":"server-v2","weight":1}]}}`, "v1"
		if i%2 == 1 {
			patch, old = `{"spec":{"backends":[{"service":"server-v1","weight":1}]}}`, "v2"
		}
		asked := time.Now()
		must(t, s.c.MergePatch(t.Context(), kube.MeshKind("TrafficSplit"), s.name, "server", patch))
		turns = append(turns, turn{asked, time.Now(), old})
	}
	r := load.wait()
	noFailure(s, r)
	var after []float64
	for i, turn := range turns {
		// The next switch may be seen before the API server has answered.
		end := r.End
		if i+1 < len(turns) {
			end = turns[i+1].asked
		}
		after = append(after, lastOf(r, turn.old, turn.at, end))
	}
	slices.Sort(after)
	p50, p99 := after[len(after)/2-1], after[len(after)-1]
	figure(t, "split switched %d times at %d rps: the last old answer came p50 %.1f ms, p99 (of 20: the worst) %.1f ms after the API server's answer; all: %.1f; %d requests, %d failed, %d sent again by the client",
		switches, rate, p50, p99, after, r.Requests, r.Failed, r.ClientRetries)
	// The aim is 20 ms on a quiet machine; a busy one must not fail the test.
	if p50 > 100 || p99 > 1000 {
		t.Errorf("p50 %.1f ms, p99 %.1f ms: want the switch within 100 ms, and never over a second", p50, p99)
	}
}

// lastOf is how many milliseconds after begin the last answer of a version came
// before end; 0 if none did.
func lastOf(r *report.Load, version string, begin, end time.Time) float64 {
	last := begin
	for _, run := range r.Timeline {
		if run.Version == version && run.Last.After(last) && run.First.Before(end) {
			last = run.Last
		}
	}
	return float64(last.Sub(begin).Microseconds()) / 1000
}

func TestLastOfLooksOnlyAtItsWindow(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	r := &report.Load{Timeline: []report.Run{
		{Version: "v1", First: at(0), Last: at(105)},
		{Version: "v2", First: at(106), Last: at(107)},
		{Version: "v1", First: at(108), Last: at(109)},
		{Version: "v2", First: at(110), Last: at(203)},
		{Version: "v1", First: at(204), Last: at(300)},
	}}
	for _, c := range []struct {
		version    string
		begin, end int
		want       float64
	}{{"v1", 100, 200, 9}, {"v2", 200, 300, 3}, {"v2", 210, 300, 0}} {
		if got := lastOf(r, c.version, at(c.begin), at(c.end)); got != c.want {
			t.Errorf("last of %s in %d to %d: %v ms after, want %v", c.version, c.begin, c.end, got, c.want)
		}
	}
}
