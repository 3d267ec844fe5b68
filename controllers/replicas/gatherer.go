package replicas

import (
	"context"
	"iter"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// silence is how long nothing may be heard of a ready replica before its
	// report counts as missing: two polls, and a moment.
	silence = 5 * time.Second
	// pause follows a poll that failed.
	pause = 500 * time.Millisecond
	// Merging rests as counting does, see xds/server.
	mergeRest = 40
	mergeGap  = 20 * time.Millisecond
)

// Builder is what is needed of a *build.Builder.
type Builder interface {
	Snapshot() *mesh.Snapshot
	Built() *mesh.Snapshot
	Follow(who build.Follower, f mesh.Fact)
	Unfollow(who build.Follower, f mesh.Fact)
}

// Options of a Gatherer; all are required.
type Options struct {
	Builder Builder
	// Self is this replica's pod, and Local what it reports itself.
	Self  string
	Local Source
	// Service is one whose endpoints are the replicas, those of all revisions.
	Service mesh.Name
	Peers   Peers
	// Concerning are the objects that may concern a pod of which nothing is
	// known: of the same mesh the same.
	Concerning func(*mesh.Snapshot, *mesh.Workload) []mesh.Ref
	Log        logr.Logger
}

// Gatherer gathers, where it is started, the reports of all replicas.
type Gatherer struct {
	options Options
	moved   chan struct{} // one pending: the replicas may be others
	// unsettled says that the last verdicts may become others by time alone, or
	// by a change of which no report tells.
	unsettled bool
	last      basis // of those verdicts

	lock     sync.Mutex
	verdicts map[mesh.Ref]acks.Verdict // nil until all replicas were heard, or given up
	notify   func([]mesh.Ref)
}

var _ build.Follower = (*Gatherer)(nil)

// New makes a Gatherer.
func New(o Options) *Gatherer {
	return &Gatherer{options: o, moved: make(chan struct{}, 1)}
}

// Notify has the function called with the objects whose verdict is another. It
// must not block. It is called once, before the start.
func (g *Gatherer) Notify(f func([]mesh.Ref)) { g.notify = f }

// Verdict is what is known of the object; false while that is nothing.
func (g *Gatherer) Verdict(r mesh.Ref) (acks.Verdict, bool) {
	g.lock.Lock()
	defer g.lock.Unlock()
	v, ok := g.verdicts[r]
	return v, ok
}

// FactChanged takes note that the replicas may be others.
func (g *Gatherer) FactChanged() {
	select {
	case g.moved <- struct{}{}:
	default:
	}
}

// basis is what verdicts are made of: of the same, they are the same.
type basis struct {
	mesh    mesh.Revision
	reports map[string]*acks.Report // by replica
	missing []string                // replicas
}

func (b basis) equals(c basis) bool {
	return b.mesh == c.mesh && maps.Equal(b.reports, c.reports) && slices.Equal(b.missing, c.missing)
}

// member is one replica.
type member struct {
	cancel   context.CancelFunc
	report   *acks.Report // nil: never heard
	heard    time.Time    // or, until then, when it was seen first
	required bool         // it is ready: its report must not be missing
	released chan []string
}

// heard is a poll's result.
type heard struct {
	name   string
	member *member
	report *acks.Report
}

// Start gathers until the context ends.
func (g *Gatherer) Start(ctx context.Context) error {
	fact := mesh.Fact{Kind: mesh.FactEndpoints, Name: g.options.Service.String()}
	g.options.Builder.Follow(g, fact)
	defer g.options.Builder.Unfollow(g, fact)
	members := map[string]*member{}
	results := make(chan heard)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var resting <-chan time.Time
	for due := true; ; {
		if due && resting == nil {
			g.follow(ctx, members, results)
			resting, due = time.After(g.merge(members)), false
		}
		select {
		case <-ctx.Done():
			return nil
		case r := <-results:
			due = r.take(members) || due
		case <-g.moved:
			due = true
		case <-tick.C:
			due = due || g.unsettled || overdue(members)
		case <-resting:
			resting = nil
		}
	}
}

// overdue reports whether a replica that should be heard of is not.
func overdue(members map[string]*member) bool {
	for _, m := range members {
		if time.Since(m.heard) >= silence {
			return true
		}
	}
	return false
}

// take notes what was heard; false when there is nothing new in it.
func (h heard) take(members map[string]*member) bool {
	m := members[h.name]
	if m != h.member {
		return false
	}
	changed := m.report == nil || m.report.Version != h.report.Version
	m.report, m.heard = h.report, time.Now()
	return changed
}

// follow starts to poll replicas that are new and stops where they are gone.
func (g *Gatherer) follow(ctx context.Context, members map[string]*member, results chan<- heard) {
	now := g.replicas()
	for name, m := range members {
		if _, ok := now[name]; !ok {
			m.cancel()
			delete(members, name)
		}
	}
	for name, r := range now {
		m := members[name]
		if m == nil {
			source := g.options.Local
			if name != g.options.Self {
				source = &remote{peers: g.options.Peers, address: r.address}
			}
			polling, cancel := context.WithCancel(ctx)
			m = &member{cancel: cancel, heard: time.Now(), released: make(chan []string, 1)}
			members[name] = m
			go g.poll(polling, name, m, source, results)
		}
		m.required = r.ready
	}
}

type replica struct {
	address string
	ready   bool
}

// replicas are those of the mesh of which FactChanged tells. Built is that only a moment
// later, of which nobody would tell.
func (g *Gatherer) replicas() map[string]replica {
	return behind(g.options.Builder.Snapshot(), g.options.Service, g.options.Self)
}

// behind are the pods behind the control plane's Service, those that are not
// ready and those that are ending included: proxies may be connected to them.
// This replica counts as ready.
func behind(s *mesh.Snapshot, service mesh.Name, self string) map[string]replica {
	out := map[string]replica{self: {ready: true}}
	v := mesh.NewView(s)
	for _, slice := range v.Slices(service) {
		for _, e := range slice.Endpoints {
			if e.Workload == "" || e.Workload == self {
				continue
			}
			w, ok := v.Workload(mesh.Name{Namespace: service.Namespace, Name: e.Workload})
			if ok && !w.Terminal {
				out[e.Workload] = replica{address: e.Address.String(), ready: e.Ready && !w.Terminating}
			}
		}
	}
	return out
}

// Ready is how many of the pods behind the control plane's Service serve
// proxies, this one included.
func Ready(s *mesh.Snapshot, service mesh.Name, self string) int {
	n := 0
	for _, r := range behind(s, service, self) {
		if r.ready {
			n++
		}
	}
	return n
}

// poll asks a replica again and again.
func (g *Gatherer) poll(ctx context.Context, name string, m *member, source Source, results chan<- heard) {
	version := ""
	silent := false
	for ctx.Err() == nil {
		var released []string
		select {
		case released = <-m.released:
		default:
		}
		report, err := ask(ctx, source, version, released)
		if err != nil || report == nil {
			if err != nil && !silent && ctx.Err() == nil {
				g.options.Log.Info("a replica does not report", "replica", name, "error", err.Error())
			}
			silent = true
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		silent = false
		version = report.Version
		select {
		case <-ctx.Done():
		case results <- heard{name, m, report}:
		}
	}
}

func ask(ctx context.Context, source Source, version string, released []string) (*acks.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, silence-pause)
	defer cancel()
	if _, far := source.(*remote); !far {
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	return source.Report(ctx, version, released)
}

// merge makes verdicts of what was heard, tells who wants to know, and returns
// how long to rest.
func (g *Gatherer) merge(members map[string]*member) time.Duration {
	start := time.Now()
	built := g.options.Builder.Built()
	now := basis{mesh: built.Revision(), reports: map[string]*acks.Report{}}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		switch m := members[name]; {
		case time.Since(m.heard) < silence && m.report != nil:
			now.reports[name] = m.report
		case time.Since(m.heard) < silence && m.required:
			g.unsettled = true
			return mergeGap // it is heard for the first time in a moment
		case m.required:
			now.missing = append(now.missing, name)
		}
	}
	if !now.equals(g.last) {
		g.unsettled = len(now.missing) > 0
		g.publish(acks.Merge(now.reports, now.missing, uids(built), g.stray(built)))
		g.last = now
	}
	release(members)
	return max(mergeRest*time.Since(start), mergeGap)
}

// running are the pods whose traffic goes through a proxy of ours.
func running(s *mesh.Snapshot) iter.Seq[*mesh.Workload] {
	return func(yield func(*mesh.Workload) bool) {
		for w := range s.Workloads() {
			if (w.Meshed || w.Gateway != "") && w.Started && !w.Terminal && !yield(w) {
				return
			}
		}
	}
}

// uids are those pods, by UID.
func uids(s *mesh.Snapshot) map[string]mesh.Name {
	out := map[string]mesh.Name{}
	for w := range running(s) {
		out[w.UID] = w.Name
	}
	return out
}

// stray asks about pods, and remembers the answers for others of their kind.
func (g *Gatherer) stray(s *mesh.Snapshot) func(mesh.Name) []mesh.Ref {
	type kind struct{ profile, namespace string }
	known := map[kind][]mesh.Ref{}
	return func(n mesh.Name) []mesh.Ref {
		g.unsettled = true
		w, ok := s.Workload(n)
		if !ok {
			return nil
		}
		k := kind{s.Profile(w), w.Namespace}
		if _, ok := known[k]; !ok {
			known[k] = g.options.Concerning(s, w)
		}
		return known[k]
	}
}

func (g *Gatherer) publish(now map[mesh.Ref]acks.Verdict) {
	g.lock.Lock()
	before := g.verdicts
	g.verdicts = now
	g.lock.Unlock()
	var changed []mesh.Ref
	for ref, v := range now {
		if was, ok := before[ref]; !ok || !reflect.DeepEqual(was, v) {
			changed = append(changed, ref)
		}
	}
	if len(changed) > 0 && g.notify != nil {
		g.notify(changed)
	}
}

// release has replicas forget the pods that another has.
func release(members map[string]*member) {
	connected := map[string]struct{}{}
	for _, m := range members {
		if m.report != nil {
			for _, uid := range m.report.Connected {
				connected[uid] = struct{}{}
			}
		}
	}
	for _, m := range members {
		if m.report == nil {
			continue
		}
		var uids []string
		for _, a := range m.report.Absent {
			if _, ok := connected[a.UID]; ok {
				uids = append(uids, a.UID)
			}
		}
		if len(uids) > 0 {
			select {
			case m.released <- uids:
			default: // it has not taken the last ones yet
			}
		}
	}
}
