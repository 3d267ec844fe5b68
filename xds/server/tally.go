package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// A count goes over all that all proxies hold. It is made only when somebody
// asks and something may have changed, and then rests for so many times as long
// as it took, or for the gap if that is longer: what counting costs is bounded
// by this, however large the mesh is and however much changes.
const (
	countRest = 40
	countGap  = 20 * time.Millisecond
)

// reporter hands out reports. All but moved belongs to whoever has the turn.
type reporter struct {
	moved  chan struct{} // holds one element when something may have changed
	turn   chan struct{} // holds one element while it is somebody's
	run    string        // tells this process's versions from another's
	number uint64
	last   *acks.Report
	next   time.Time // no count before
	// concerns is what was found out in the last count.
	concerns concerns
	// seen and stakes are the builder's, as its own goroutine noted them last.
	seen   *mesh.Snapshot
	stakes uint64
}

func newReporter() reporter {
	return reporter{moved: make(chan struct{}, 1), turn: make(chan struct{}, 1), run: rand.Text()}
}

// note says that what would be counted may have changed.
func (r *reporter) note() {
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

// Built is to be called when the builder has built for another mesh, by one
// goroutine. An endpoint that moved changes nothing that is counted, unless an object
// of the API has a part in that.
func (s *Server) Built() {
	now, stakes := s.options.Builder.Built(), s.options.Builder.Stakes()
	if r := &s.acks; r.seen == nil || !now.SameStanding(r.seen) || stakes != r.stakes {
		defer r.note()
	}
	s.acks.seen, s.acks.stakes = now, stakes
}

// Report waits until there is a report of another version than the one given,
// and returns the last that there is when the context ends before. Of the pods
// in released nothing is remembered any longer: other replicas have them.
func (s *Server) Report(ctx context.Context, version string, released []string) (*acks.Report, error) {
	r := &s.acks
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another reader of the report: %w", context.Cause(ctx))
	}
	s.release(released)
	if r.last == nil {
		s.count()
	}
	for r.last.Version == version {
		select {
		case <-ctx.Done():
			return r.last, nil
		case <-r.moved:
		}
		select {
		case <-ctx.Done():
			r.note() // for the next reader
			return r.last, nil
		case <-time.After(time.Until(r.next)):
		}
		s.count()
	}
	return r.last, nil
}

// count makes a report, and a new version of it if it differs from the last.
func (s *Server) count() {
	r := &s.acks
	start := time.Now()
	now := s.tally()
	took := time.Since(start)
	r.next = time.Now().Add(max(countRest*took, countGap))
	s.metrics.counting.Observe(took.Seconds())
	if r.last != nil {
		now.Version = r.last.Version
		if reflect.DeepEqual(now, r.last) {
			return
		}
	}
	r.number++
	now.Version = fmt.Sprintf("%s/%d", r.run, r.number)
	r.last = now
}

// tally is one count. Streams that hold the same are of one class, and what
// concerns a class is looked up once. A stream that has acknowledged everything
// adds one to its class; of any other only what is not settled is looked at.
type tally struct {
	snapshot *mesh.Snapshot
	values   func(build.Key) *build.Value
	objects  map[mesh.Ref]*counted
	uses     map[*build.Value]*uses
	classes  map[uint64]*class
	touched  []*counted // by the pod that is being counted
}

// counted is an object, and what the pod that is being counted makes of it.
type counted struct {
	acks.Object
	place   int
	since   mesh.Revision
	touched bool
	state   acks.State
	refusal *acks.Refusal
}

// uses are a value's objects.
type uses struct{ now, former []*counted }

// class is what concerns the streams that hold the same.
type class struct {
	objects []*counted
	settled int
}

// concerns remembers what concerns classes, as long as no value uses anything
// else.
type concerns struct {
	uses    uint64
	classes map[uint64][]mesh.Ref
}

// tally counts what all proxies make of all objects.
func (s *Server) tally() *acks.Report {
	known := s.acks.concerns
	if uses := s.options.Builder.Uses(); known.uses != uses {
		known = concerns{uses: uses}
	}
	t := tally{
		snapshot: s.options.Builder.Built(), values: s.options.Builder.Value,
		objects: map[mesh.Ref]*counted{}, uses: map[*build.Value]*uses{}, classes: map[uint64]*class{},
	}
	next := concerns{uses: known.uses, classes: map[uint64][]mesh.Ref{}} // without classes that are no more
	ordered := []*counted{}
	for ref, standing := range t.snapshot.Objects() {
		o := &counted{since: standing.Since, place: len(ordered), Object: acks.Object{
			Kind: ref.Kind, Namespace: ref.Name.Namespace, Name: ref.Name.Name, Generation: standing.Generation,
		}}
		t.objects[ref] = o
		ordered = append(ordered, o)
	}
	report := &acks.Report{Connected: []string{}, Absent: []acks.Absent{}, Objects: make([]acks.Object, 0, len(ordered))}
	streams, gone := s.pods()
	for _, st := range streams {
		if w := st.workload.Load(); w.Started && !w.Terminal {
			t.stream(st, known, next)
			report.Connected = append(report.Connected, st.peer.UID)
		}
	}
	for _, c := range t.classes {
		for _, o := range c.objects {
			o.Concerned += c.settled
			o.Programmed += c.settled
		}
	}
	s.acks.concerns = next
	slices.Sort(report.Connected)
	for _, a := range gone {
		if t.started(a.pod, a.uid) {
			report.Absent = append(report.Absent, t.absent(a))
		}
	}
	for _, o := range ordered {
		report.Objects = append(report.Objects, o.Object)
	}
	return report
}

// pods are the streams that count, one for each pod, and the pods that have
// none any more, sorted by UID. What is remembered of pods that are gone or
// back is forgotten.
func (s *Server) pods() ([]*stream, []*absent) {
	snapshot := s.options.Builder.Snapshot()
	s.lock.Lock()
	defer s.lock.Unlock()
	streams := make([]*stream, 0, len(s.byPod))
	for uid, mine := range s.byPod {
		for _, st := range slices.Backward(mine) {
			if st.known() {
				streams = append(streams, st)
				s.forget(uid)
				break
			}
		}
	}
	gone := make([]*absent, 0, len(s.absent))
	for _, uid := range slices.Sorted(maps.Keys(s.absent)) {
		a := s.absent[uid]
		if w, ok := snapshot.Workload(a.pod); !ok || w.UID != uid || w.Terminal {
			s.forget(uid)
			continue
		}
		gone = append(gone, a)
	}
	return streams, gone
}

func (st *stream) known() bool {
	st.lock.Lock()
	defer st.lock.Unlock()
	return st.state.Known()
}

// started reports whether traffic goes through the pod's proxy.
func (t *tally) started(pod mesh.Name, uid string) bool {
	w, ok := t.snapshot.Workload(pod)
	return ok && w.UID == uid && w.Started && !w.Terminal
}

// stream counts a stream's pod.
func (t *tally) stream(st *stream, known, next concerns) {
	st.lock.Lock()
	pod := st.proxy.pod
	c := t.class(st.state, known, next)
	st.unsettled(func(h *delta.Holding) {
		if !ownCertificate(h.Key) {
			t.holding(pod, h)
		}
	})
	// It has a version that it should, and may be another issuer's.
	if h, ok := st.state.Holding(certificateOf(st.proxy.identity)); ok && !t.current(&h) {
		t.certificate(pod, &h)
	}
	st.lock.Unlock()
	if len(t.touched) == 0 {
		c.settled++
		return
	}
	for _, o := range c.objects {
		if !o.touched {
			o.Count(pod, acks.Programmed, nil)
		}
	}
	for _, o := range t.touched {
		o.Count(pod, o.state, o.refusal)
	}
	t.next()
}

// next is for the next pod.
func (t *tally) next() {
	for _, o := range t.touched {
		o.touched, o.refusal = false, nil
	}
	t.touched = t.touched[:0]
}

// unsettled calls f with what the proxy may not have as it is built now, with one
// thing perhaps more than once. The caller holds the lock.
func (st *stream) unsettled(f func(*delta.Holding)) {
	st.in.Lock()
	for _, keys := range [...][]build.Key{st.dirty, st.taking} {
		for _, k := range keys {
			if h, ok := st.state.Holding(k); ok {
				f(&h)
			}
		}
	}
	st.in.Unlock()
	for h := range st.state.Unsettled() {
		f(&h)
	}
}

// class is that of the stream.
func (t *tally) class(s *delta.Stream, known, next concerns) *class {
	print := s.Print()
	c := t.classes[print]
	if c != nil {
		return c
	}
	refs, ok := known.classes[print]
	if !ok {
		all := map[mesh.Ref]struct{}{}
		for h := range s.Holdings() {
			if v := t.values(h.Key); v != nil {
				for _, r := range v.Uses {
					all[r] = struct{}{}
				}
			}
		}
		refs = slices.Collect(maps.Keys(all))
	}
	next.classes[print] = refs
	c = &class{objects: t.counted(refs)}
	t.classes[print] = c
	return c
}

func (t *tally) absent(a *absent) acks.Absent {
	out := acks.Absent{UID: a.uid, Pod: a.pod.String(), Left: a.left}
	for i := range a.held {
		if h := &a.held[i]; ownCertificate(h.Key) {
			t.certificate(out.Pod, h)
		} else {
			t.holding(out.Pod, h)
		}
	}
	for _, o := range t.touched {
		switch o.state {
		case acks.Programmed:
			out.Programmed = append(out.Programmed, o.place)
		case acks.Waiting:
			out.Waiting = append(out.Waiting, o.place)
		case acks.Rejected:
			out.Rejected = append(out.Rejected, o.place)
			out.Refusal = o.refusal
		}
	}
	for _, places := range [...][]int{out.Programmed, out.Waiting, out.Rejected} {
		slices.Sort(places)
	}
	t.next()
	return out
}

// ownCertificate reports whether the key is that of a workload's own certificate.
func ownCertificate(k build.Key) bool {
	return k.Type == translate.Secret && k.Name == translate.SecretWorkload
}

func certificateOf(identity string) build.Key {
	return build.Key{Type: translate.Secret, Name: translate.SecretWorkload, For: identity}
}

// current reports whether the proxy presents a certificate of the present issuer.
func (t *tally) current(h *delta.Holding) bool {
	return ca.SignedBy(h.Acknowledged, t.snapshot.Trust().Issuer)
}

// certificate looks at the pod's own certificate. The present issuer is
// acknowledged by presenting one of its certificates, whichever.
func (t *tally) certificate(pod string, h *delta.Holding) {
	o := t.objects[mesh.Ref{Kind: mesh.KindIssuer}]
	if o == nil {
		return
	}
	state, refusal := acks.Waiting, (*acks.Refusal)(nil)
	switch {
	case t.current(h):
		state = acks.Programmed
	case h.Rejected != nil && ca.SignedBy(h.Rejected.Version, t.snapshot.Trust().Issuer):
		state = acks.Rejected
		refusal = &acks.Refusal{Pod: pod, Resource: typeName(h.Key.Type) + " " + h.Key.Name, Words: h.Rejected.Message}
	}
	if !o.touched {
		o.touched = true
		t.touched = append(t.touched, o)
	}
	o.state, o.refusal = state, refusal
}

// holding looks at one resource of the pod.
func (t *tally) holding(pod string, h *delta.Holding) {
	v := t.values(h.Key)
	if v == nil {
		return
	}
	u := t.uses[v]
	if u == nil {
		u = &uses{now: t.counted(v.Uses), former: t.counted(v.Former)}
		t.uses[v] = u
	}
	switch {
	case h.Rejected != nil && h.Rejected.Version == v.Version:
		refusal := &acks.Refusal{Pod: pod, Resource: typeName(h.Key.Type) + " " + h.Key.Name, Words: h.Rejected.Message}
		t.mark(u.now, acks.Rejected, h, refusal)
		t.mark(u.former, acks.Rejected, h, refusal)
	case h.Acknowledged == v.Version && h.Sent == v.Version:
		t.mark(u.now, acks.Programmed, h, nil)
	default:
		t.mark(u.now, acks.Waiting, h, nil)
		t.mark(u.former, acks.Waiting, h, nil)
	}
}

// mark notes a state of the objects at the pod that is being counted. Where the
// proxy has acknowledged a version that was built for the object's present
// generation, it runs that, though there is a newer one for another reason.
func (t *tally) mark(objects []*counted, s acks.State, h *delta.Holding, refusal *acks.Refusal) {
	for _, o := range objects {
		state := s
		if h.At >= o.since {
			state = acks.Programmed
		}
		if !o.touched {
			o.touched, o.state = true, state
			t.touched = append(t.touched, o)
		}
		o.state = max(o.state, state)
		if state == acks.Rejected && (o.refusal == nil || refusal.Resource < o.refusal.Resource) {
			o.refusal = refusal
		}
	}
}

func (t *tally) counted(refs []mesh.Ref) []*counted {
	out := make([]*counted, 0, len(refs))
	for _, r := range refs {
		if o := t.objects[r]; o != nil {
			out = append(out, o)
		}
	}
	return out
}

// Concerning are the objects that may concern a pod of which nothing is known
// but what it is: all that its own inbound traffic depends on, and all that say
// how others are called.
func Concerning(s *mesh.Snapshot, w *mesh.Workload) []mesh.Ref {
	p := proxy{
		pod: w.Name.String(), namespace: w.Namespace, profile: s.Profile(w), drains: w.Drains(), gateway: gatewayOf(w),
		account: translate.ForEgress(w.Namespace, w.ServiceAccount),
	}
	refs := map[mesh.Ref]struct{}{{Kind: mesh.KindTrust}: {}, {Kind: mesh.KindIssuer}: {}}
	for _, name := range p.binding().Listeners {
		k, _ := p.bind(translate.Listener, name)
		add(refs, s, k)
	}
	if p.gateway == "" {
		k, _ := p.bind(translate.Route, translate.RouteInbound)
		add(refs, s, k)
	}
	for policy := range s.Policies() {
		if policy.Traffic != nil {
			refs[mesh.Ref{Kind: mesh.KindPolicy, Name: policy.Meta.Name}] = struct{}{}
		}
	}
	for split := range s.Splits() {
		refs[mesh.Ref{Kind: mesh.KindSplit, Name: split.Meta.Name}] = struct{}{}
	}
	for route := range s.Routes() {
		refs[route.Ref()] = struct{}{}
	}
	return slices.SortedFunc(maps.Keys(refs), mesh.Ref.Compare)
}

func add(refs map[mesh.Ref]struct{}, s *mesh.Snapshot, k build.Key) {
	v, _ := build.Scratch(s, k)
	for _, r := range v.Uses {
		refs[r] = struct{}{}
	}
}
