package replicas

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"

	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// source reports what a test says.
type source struct {
	lock     sync.Mutex
	report   *acks.Report
	changed  chan struct{}
	released []string
}

func newSource(version string, connected ...string) *source {
	s := &source{changed: make(chan struct{})}
	s.say(version, connected)
	return s
}

func (s *source) say(version string, connected []string, absent ...acks.Absent) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.report = &acks.Report{
		Version: version, Connected: connected, Absent: absent,
		Objects: []acks.Object{{
			Kind: mesh.KindPolicy, Namespace: "shop", Name: "p", Generation: 1,
			Tally: acks.Tally{Concerned: len(connected), Programmed: len(connected)},
		}},
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) Report(ctx context.Context, version string, released []string) (*acks.Report, error) {
	for {
		s.lock.Lock()
		s.released = append(s.released, released...)
		released = nil
		report, changed := s.report, s.changed
		s.lock.Unlock()
		if report.Version != version {
			return report, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return report, nil
		}
	}
}

func (s *source) forgot(uid string) bool {
	s.lock.Lock()
	defer s.lock.Unlock()
	return slices.Contains(s.released, uid)
}

// fixedMesh is a Builder of one snapshot.
type fixedMesh struct{ mesh *mesh.Snapshot }

func (m fixedMesh) Snapshot() *mesh.Snapshot             { return m.mesh }
func (m fixedMesh) Built() *mesh.Snapshot                { return m.mesh }
func (fixedMesh) Follow(who build.Follower, _ mesh.Fact) { who.FactChanged() }
func (fixedMesh) Unfollow(build.Follower, mesh.Fact)     {}

var policy = mesh.Ref{Kind: mesh.KindPolicy, Name: mesh.Name{Namespace: "shop", Name: "p"}}

func pod(namespace, name, uid string, meshed bool) mesh.Change {
	return mesh.Put(&mesh.Workload{Name: mesh.Name{Namespace: namespace, Name: name}, UID: uid, Meshed: meshed, Started: meshed})
}

// gathering starts the leader, tulled-0, of two replicas; the other is remote.
func gathering(t *testing.T, local, other Source) *Gatherer {
	t.Helper()
	server := httptest.NewTLSServer(Handler(other, func(_ context.Context, token string) error {
		if token != "ours" {
			return errors.New("not ours")
		}
		return nil
	}, testr.New(t)))
	t.Cleanup(server.Close)
	snapshot, peers := twoReplicas(t, server)
	g := New(Options{
		Builder: fixedMesh{snapshot}, Self: "tulled-0", Local: local,
		Service:    mesh.Name{Namespace: "tulle-system", Name: "tulled"},
		Peers:      peers,
		Concerning: func(*mesh.Snapshot, *mesh.Workload) []mesh.Ref { return []mesh.Ref{policy} },
		Log:        testr.New(t),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

// twoReplicas are a mesh with tulled-0, and with tulled-1 at the server, and how
// that is asked.
func twoReplicas(t *testing.T, server *httptest.Server) (*mesh.Snapshot, Peers) {
	t.Helper()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, _ := mesh.New(&mesh.Config{}).Apply(
		pod("tulle-system", "tulled-0", "t0", false), pod("tulle-system", "tulled-1", "t1", false),
		pod("shop", "a", "1", true), pod("shop", "b", "2", true),
		mesh.Put(&mesh.Slice{
			Name: mesh.Name{Namespace: "tulle-system", Name: "tulled-x"}, Service: "tulled",
			Endpoints: []mesh.Endpoint{
				{Address: netip.MustParseAddr("192.0.2.1"), Workload: "tulled-0", Ready: true},
				{Address: netip.MustParseAddr(host), Workload: "tulled-1", Ready: true},
			},
		}),
	)
	return snapshot, Peers{Client: server.Client(), Port: number, Token: func() (string, error) { return "ours", nil }}
}

// until waits for a verdict about the policy.
func until(t *testing.T, g *Gatherer, what string, is func(acks.Verdict) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(30 * time.Second)
	for {
		v, ok := g.Verdict(policy)
		if ok && is(v) {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s did not come about, but %+v", what, v)
		}
	}
}

func TestTheLeaderAddsUpWhatAllReplicasReport(t *testing.T) {
	local, other := newSource("1", "1"), newSource("1", "2")
	g := gathering(t, local, other)
	until(t, g, "both", func(v acks.Verdict) bool { return v.Concerned == 2 && v.Programmed == 2 && v.Missing == nil })
	other.say("2", nil)
	until(t, g, "the loss of a pod", func(v acks.Verdict) bool { return v.Concerned == 2 && v.Programmed == 1 })
}

// What is unsettled is looked at every second, and nothing is made of it but where something
// is another than it was.
func TestWhatConcernsUnknownPodsIsFoundOutOnce(t *testing.T) {
	asked := 0
	m := &fixedMesh{}
	m.mesh, _ = mesh.New(&mesh.Config{}).Apply(pod("shop", "a", "1", true))
	g := New(Options{Builder: m, Log: testr.New(t), Concerning: func(*mesh.Snapshot, *mesh.Workload) []mesh.Ref {
		asked++
		return []mesh.Ref{policy}
	}})
	members := map[string]*member{"tulled-0": {report: newSource("1").report, heard: time.Now()}}
	merge := func(what string, want, concerned int) {
		t.Helper()
		g.merge(members)
		if v, _ := g.Verdict(policy); asked != want || v.Concerned != concerned {
			t.Errorf("%s: asked %d times and found %d pods, want %d and %d", what, asked, v.Concerned, want, concerned)
		}
	}
	merge("a pod of which nothing is known", 1, 1)
	merge("the same", 1, 1)
	m.mesh, _ = m.mesh.Apply(pod("shop", "b", "2", true))
	merge("another such pod", 2, 2)
	members["tulled-0"].report = newSource("2", "1").report
	merge("one is connected", 3, 2)
	members["tulled-0"].report = newSource("3", "1", "2").report
	merge("both are", 3, 2)
	m.mesh, _ = m.mesh.Apply(pod("shop", "c", "3", true))
	merge("a third", 4, 3)
	members["tulled-1"] = &member{heard: time.Now(), required: true}
	merge("a replica that is heard for the first time in a moment", 4, 3)
	members["tulled-1"].heard = time.Time{}
	merge("it is not", 5, 3)
	if v, _ := g.Verdict(policy); !slices.Equal(v.Missing, []string{"tulled-1"}) {
		t.Errorf("missing: %v, want tulled-1", v.Missing)
	}
}

func TestAReplicaIsToldOfPodsThatAnotherHas(t *testing.T) {
	local, other := newSource("1", "1", "2"), newSource("1")
	other.say("2", nil, acks.Absent{UID: "2", Pod: "shop/b", Waiting: []int{0}})
	gathering(t, local, other)
	deadline := time.Now().Add(30 * time.Second)
	for !other.forgot("2") {
		if time.Now().After(deadline) {
			t.Fatal("it was not told")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// broken is a replica that never answers in time.
type broken struct{}

func (broken) Report(ctx context.Context, _ string, _ []string) (*acks.Report, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAReadyReplicaThatDoesNotReportIsMissing(t *testing.T) {
	g := gathering(t, newSource("1", "1", "2"), broken{})
	until(t, g, "the missing report", func(v acks.Verdict) bool { return slices.Equal(v.Missing, []string{"tulled-1"}) && v.Programmed == 2 })
}

func TestOnlyOurReplicasAreAnswered(t *testing.T) {
	h := Handler(newSource("1"), func(_ context.Context, token string) error {
		if token != "ours" {
			return errors.New("not ours")
		}
		return nil
	}, testr.New(t))
	for _, c := range []struct {
		method, authorization, body string
		want                        int
	}{
		{http.MethodPost, "", "{}", http.StatusUnauthorized},
		{http.MethodPost, "Basic ours", "{}", http.StatusUnauthorized},
		{http.MethodPost, "Bearer theirs", "{}", http.StatusForbidden},
		{http.MethodGet, "Bearer ours", "{}", http.StatusMethodNotAllowed},
		{http.MethodPost, "Bearer ours", "nonsense", http.StatusBadRequest},
		{http.MethodPost, "Bearer ours", "{}", http.StatusOK},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, Path, strings.NewReader(c.body))
		r.Header.Set("Authorization", c.authorization)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s as %q with %s: %d, want %d", c.method, c.authorization, c.body, w.Code, c.want)
		}
	}
}
