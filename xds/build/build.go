package build

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Certificate is a workload's certificate, for the secret "workload".
type Certificate struct {
	Chain, Key []byte // PEM
	Version    string
}

// Options are what a Builder needs.
type Options struct {
	// Config is the mesh's configuration until a change says otherwise.
	Config *mesh.Config
	// Issue makes, or remembers, the certificate of an identity. It may take
	// long, and is called again after a while if it fails: then there is none, also of
	// before, that is valid.
	Issue func(ctx context.Context, identity string) (Certificate, error)
	// Forget says that no stream needs the identity's certificate any longer.
	Forget func(identity string)
	// OnBuilt is called when [Builder.Built] is another, by the builder's own
	// goroutine: it must not block. May be nil.
	OnBuilt func()
	// Grace is how long a target outlives its last subscriber, so that a proxy
	// that reconnects finds it. The default is 30 s.
	Grace   time.Duration
	Log     logr.Logger
	Metrics prometheus.Registerer // may be nil
}

// Builder is an incremental build of the mesh. Its methods may be called by
// any goroutine.
type Builder struct {
	options Options
	metrics *metrics
	wake    chan struct{} // one pending wake-up

	in       sync.Mutex // guards what has come in
	changes  []mesh.Change
	since    time.Time // when the oldest of changes came in
	requests []request

	snapshot atomic.Pointer[mesh.Snapshot]
	built    atomic.Pointer[mesh.Snapshot] // the values are current for it
	uses     atomic.Uint64
	stakes   atomic.Uint64
	scopes   atomic.Pointer[Collection]

	// Owned by Run. values is also read by Value, under lock.
	lock     sync.RWMutex
	targets  map[Key]*target
	readers  map[mesh.Fact]map[*target]struct{}
	watchers map[Subscriber]struct{} // of all scopes
	// followers are told of facts themselves, not of what is built from them.
	followers map[mesh.Fact]map[Follower]struct{}
	leaving   []*target // without subscribers, the first to leave first
	work      work      // of the batch
}

// target is a value and who has to do with it.
type target struct {
	key         Key
	value       *Value
	reads       []mesh.Fact
	subscribers map[Subscriber]struct{}
	leaves      time.Time // when it is dropped; zero while it has subscribers
	issuing     bool
	again       bool   // it was invalidated while being issued
	failure     string // why it was not issued the last time
}

// request is a call that waits for Run.
type request struct {
	subscriber Subscriber
	keys       []Key
	follower   Follower
	fact       mesh.Fact
	op         op
	result     *issued
	changes    []mesh.Change     // that are supposed
	answer     chan<- candidates // never blocks
	gone       <-chan struct{}   // closed when nobody waits for it
}

type op uint8

const (
	subscribe op = iota
	unsubscribe
	invalidate
	publish
	follow
	unfollow
	suppose
)

// New makes a builder of an empty mesh.
func New(o Options) *Builder {
	if o.Grace == 0 {
		o.Grace = 30 * time.Second
	}
	if o.Config == nil {
		o.Config = &mesh.Config{}
	}
	b := &Builder{
		options: o, metrics: newMetrics(o.Metrics), wake: make(chan struct{}, 1),
		targets: map[Key]*target{}, readers: map[mesh.Fact]map[*target]struct{}{}, watchers: map[Subscriber]struct{}{},
		followers: map[mesh.Fact]map[Follower]struct{}{}, work: newWork(),
	}
	b.snapshot.Store(mesh.New(o.Config))
	b.built.Store(b.snapshot.Load())
	b.scopes.Store(newCollection())
	return b
}

// Apply hands over changes, in order.
func (b *Builder) Apply(changes ...mesh.Change) {
	b.in.Lock()
	if len(b.changes) == 0 {
		b.since = time.Now()
	}
	b.changes = append(b.changes, changes...)
	b.in.Unlock()
	b.signal()
}

// Subscribe asks for the targets. The subscriber is told when each has a value,
// at once for those that have one, and whenever it changes. The key
// {Scope "*"} stands for the collection of all scopes. The keys are the builder's own
// from then on.
func (b *Builder) Subscribe(s Subscriber, keys ...Key) {
	b.request(request{subscriber: s, keys: keys, op: subscribe})
}

// Unsubscribe takes a subscription back. The keys are the builder's own from then on.
func (b *Builder) Unsubscribe(s Subscriber, keys ...Key) {
	b.request(request{subscriber: s, keys: keys, op: unsubscribe})
}

// Follow has the follower told, at once and whenever the fact is another: when
// [Builder.Snapshot] has it, and values are built for that.
func (b *Builder) Follow(who Follower, f mesh.Fact) {
	b.request(request{follower: who, fact: f, op: follow})
}

// Unfollow takes that back.
func (b *Builder) Unfollow(who Follower, f mesh.Fact) {
	b.request(request{follower: who, fact: f, op: unfollow})
}

// Invalidate has the targets built again, though nothing that they read
// changed: a certificate that is due. The keys are the builder's own from then on.
func (b *Builder) Invalidate(keys ...Key) {
	b.request(request{keys: keys, op: invalidate})
}

func (b *Builder) request(r request) {
	b.in.Lock()
	b.requests = append(b.requests, r)
	b.in.Unlock()
	b.signal()
}

func (b *Builder) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Value is the target's current value; nil if there is none yet.
func (b *Builder) Value(k Key) *Value {
	b.lock.RLock()
	defer b.lock.RUnlock()
	if t := b.targets[k]; t != nil {
		return t.value
	}
	return nil
}

// Snapshot is the mesh as it is being built.
func (b *Builder) Snapshot() *mesh.Snapshot { return b.snapshot.Load() }

// Built is the mesh as it was last built: no value, certificates aside, is of
// an earlier one if it would be another now, and subscribers were told.
func (b *Builder) Built() *mesh.Snapshot { return b.built.Load() }

// Uses is another number after [Value.Uses] of some value has become another.
func (b *Builder) Uses() uint64 { return b.uses.Load() }

// Stakes is another number after a value in which objects of the API have a part,
// or had one, has become another, or which they are.
func (b *Builder) Stakes() uint64 { return b.stakes.Load() }

// Scopes are all scopes as they were last built.
func (b *Builder) Scopes() *Collection { return b.scopes.Load() }

// Run builds until the context ends.
func (b *Builder) Run(ctx context.Context) error {
	grace := time.NewTicker(max(b.options.Grace/2, time.Millisecond))
	defer grace.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
			b.step(ctx)
		case <-grace.C:
			b.sweep(time.Now())
		}
	}
}

// work is one batch's.
type work struct {
	dirty  map[*target]struct{}
	notify map[Subscriber][]Key  // one that is shared has no room for more
	facts  map[Follower]struct{} // those whose facts are others
	since  time.Time
}

func newWork() work {
	return work{dirty: map[*target]struct{}{}, notify: map[Subscriber][]Key{}, facts: map[Follower]struct{}{}}
}

// reset has it ready for the next batch, which most often is as small as the last. What
// is large is given back: a map never shrinks.
func (w *work) reset() {
	const keep = 1024
	if len(w.dirty)+len(w.notify)+len(w.facts) > keep {
		*w = newWork()
		return
	}
	clear(w.dirty)
	clear(w.notify)
	clear(w.facts)
	w.since = time.Time{}
}

// tell has the subscriber told that it has new values for the keys.
func (w *work) tell(s Subscriber, keys ...Key) {
	if told := w.notify[s]; told != nil {
		keys = append(told, keys...)
	}
	w.notify[s] = keys
}

// announce has all who subscribe to the target told.
func (w *work) announce(t *target) {
	one := []Key{t.key}
	for s := range t.subscribers {
		w.tell(s, one...)
	}
}

// step takes all that has come in, and builds what it makes dirty.
func (b *Builder) step(ctx context.Context) {
	b.in.Lock()
	changes, requests, since := b.changes, b.requests, b.since
	b.changes, b.requests = nil, nil
	b.in.Unlock()

	w := &b.work
	defer w.reset()
	if len(changes) > 0 {
		w.since = since
		b.apply(w, changes)
	}
	for _, r := range requests {
		b.serve(w, r)
	}
	b.rebuild(ctx, w)
	if len(b.leaving) > 2*mostLeaving {
		b.sweep(time.Now())
	}
	b.metrics.targets.Set(float64(len(b.targets)))
	// First: what is new of a class that a follower has left is not for it.
	for who := range w.facts {
		who.FactChanged()
	}
	for s, keys := range w.notify {
		s.Changed(keys)
	}
	// Last, so that whoever sees it knows that all subscribers were told.
	if next := b.snapshot.Load(); next != b.built.Swap(next) && b.options.OnBuilt != nil {
		b.options.OnBuilt()
	}
}

func (b *Builder) apply(w *work, changes []mesh.Change) {
	next, facts := b.snapshot.Load().Apply(changes...)
	if len(facts) == 0 {
		return
	}
	b.snapshot.Store(next)
	var vips []string
	for _, f := range facts {
		if f.Kind == mesh.FactVIP {
			vips = append(vips, f.Name)
		}
		for t := range b.readers[f] {
			w.dirty[t] = struct{}{}
		}
		for who := range b.followers[f] {
			w.facts[who] = struct{}{}
		}
	}
	slices.Sort(vips)
	if c := b.scopes.Load().update(next, vips); c != b.scopes.Load() {
		b.scopes.Store(c)
		all := []Key{AllScopes}
		for s := range b.watchers {
			w.tell(s, all...)
		}
	}
}

// AllScopes is the key of the collection of scopes.
var AllScopes = Key{Type: translate.Scope, Name: "*"}

func (b *Builder) serve(w *work, r request) {
	switch r.op {
	case publish:
		b.finishIssue(w, r.result)
		return
	case suppose:
		select {
		case <-r.gone:
		default:
			r.answer <- b.suppose(r.changes)
		}
		return
	case follow:
		if b.followers[r.fact] == nil {
			b.followers[r.fact] = map[Follower]struct{}{}
		}
		b.followers[r.fact][r.follower] = struct{}{}
		w.facts[r.follower] = struct{}{}
		return
	case unfollow:
		delete(b.followers[r.fact], r.follower)
		if len(b.followers[r.fact]) == 0 {
			delete(b.followers, r.fact)
		}
		return
	case subscribe, unsubscribe, invalidate: // one key after the other
	}
	there := r.keys[:0] // those that have a value already
	for _, k := range r.keys {
		switch {
		case r.op == invalidate:
			if t := b.targets[k]; t != nil {
				w.dirty[t] = struct{}{}
			}
		case k == AllScopes && r.op == subscribe:
			b.watchers[r.subscriber] = struct{}{}
			there = append(there, k)
		case k == AllScopes:
			delete(b.watchers, r.subscriber)
		case r.op == subscribe:
			if b.subscribe(w, r.subscriber, k) {
				there = append(there, k)
			}
		default:
			b.unsubscribe(r.subscriber, k)
		}
	}
	if len(there) > 0 {
		w.tell(r.subscriber, there...)
	}
}

// subscribe reports whether the target has a value already, of which the subscriber is to
// be told even where it is dirty: the build may turn out the same.
func (b *Builder) subscribe(w *work, s Subscriber, k Key) bool {
	t := b.targets[k]
	if t == nil {
		t = &target{key: k, subscribers: map[Subscriber]struct{}{}}
		b.lock.Lock()
		b.targets[k] = t
		b.lock.Unlock()
	}
	t.subscribers[s] = struct{}{}
	t.leaves = time.Time{}
	if t.value == nil {
		w.dirty[t] = struct{}{}
		return false
	}
	return true
}

func (b *Builder) unsubscribe(s Subscriber, k Key) {
	t := b.targets[k]
	if t == nil {
		return
	}
	if _, ok := t.subscribers[s]; !ok {
		return
	}
	delete(t.subscribers, s)
	if len(t.subscribers) == 0 {
		t.leaves = time.Now().Add(b.options.Grace)
		b.leaving = append(b.leaving, t)
	}
}

// built is what a worker made.
type built struct {
	t     *target
	value *Value // nil: translation failed
	reads []mesh.Fact
	fault error
	took  time.Duration
}

// rebuild makes the dirty targets anew, those that nobody subscribes to aside,
// which are dropped.
func (b *Builder) rebuild(ctx context.Context, w *work) {
	todo := make([]*target, 0, len(w.dirty))
	for t := range w.dirty {
		switch {
		case len(t.subscribers) == 0:
			b.drop(t)
		case certificate(t.key):
			b.issue(ctx, t)
		default:
			todo = append(todo, t)
		}
	}
	for _, r := range compute(b.snapshot.Load(), todo) {
		b.accept(w, r)
	}
}

// parallelFrom is how many targets are worth waking other workers for; each
// takes some 20 to 100 µs.
const parallelFrom = 16

// compute builds the targets against one snapshot.
func compute(s *mesh.Snapshot, todo []*target) []built {
	out := make([]built, len(todo))
	one := func(i int) {
		start := time.Now()
		v, reads, fault := attempt(s, todo[i].key)
		out[i] = built{todo[i], v, reads, fault, time.Since(start)}
	}
	workers := runtime.GOMAXPROCS(0)
	if len(todo) < parallelFrom || workers == 1 {
		for i := range todo {
			one(i)
		}
		return out
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(todo); i = int(next.Add(1)) - 1 {
				one(i)
			}
		})
	}
	wg.Wait()
	return out
}

// accept publishes a result: its reads take the place of those before, and
// subscribers hear of it if it is not the same. A target that could not be built stays
// what it was, which is not current, or nothing: one object that we fail at takes the
// control plane from nobody else.
func (b *Builder) accept(w *work, r built) {
	b.index(r.t, r.reads)
	if r.value == nil {
		b.metrics.faults.WithLabelValues(r.t.key.Type.String()).Inc()
		b.options.Log.Error(r.fault, "translation failed, which is a fault of this program; proxies keep what they have", "type", r.t.key.Type.String(), "name", r.t.key.Name, "for", r.t.key.For)
		return
	}
	old := r.t.value
	r.value.Since = w.since
	same := old != nil && old.Version == r.value.Version && slices.Equal(old.Findings, r.value.Findings)
	if old != nil {
		r.value.Former = b.former(old, r.value.Uses)
	}
	if same {
		// The bytes stay the ones that streams hold; that they are current for
		// a later revision is for whoever asks.
		kept := *old
		kept.At, kept.Uses, kept.Former = r.value.At, r.value.Uses, r.value.Former
		r.value = &kept
	}
	b.lock.Lock()
	r.t.value = r.value
	b.lock.Unlock()
	if old == nil || !slices.Equal(old.Uses, r.value.Uses) {
		b.uses.Add(1)
		b.stakes.Add(1)
	} else if r.value.Concerns() {
		b.stakes.Add(1)
	}
	b.metrics.built(r.t.key.Type, r.took, same)
	if same {
		return
	}
	w.announce(r.t)
}

// former are the objects that had a part in the value before and have none now,
// as long as they exist.
func (b *Builder) former(before *Value, uses []mesh.Ref) []mesh.Ref {
	if len(before.Former) == 0 && slices.Equal(before.Uses, uses) {
		return nil
	}
	var out []mesh.Ref
	for _, r := range slices.Concat(before.Uses, before.Former) {
		_, exists := b.snapshot.Load().Standing(r)
		if _, used := slices.BinarySearchFunc(uses, r, mesh.Ref.Compare); exists && !used && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

// index makes the target a reader of the facts, and of no others.
func (b *Builder) index(t *target, reads []mesh.Fact) {
	for _, f := range t.reads {
		delete(b.readers[f], t)
		if len(b.readers[f]) == 0 {
			delete(b.readers, f)
		}
	}
	for _, f := range reads {
		rs := b.readers[f]
		if rs == nil {
			rs = map[*target]struct{}{}
			b.readers[f] = rs
		}
		rs[t] = struct{}{}
	}
	t.reads = reads
}

func (b *Builder) drop(t *target) {
	if b.targets[t.key] != t {
		return
	}
	b.index(t, nil)
	b.lock.Lock()
	delete(b.targets, t.key)
	b.lock.Unlock()
	if certificate(t.key) && b.options.Forget != nil {
		b.options.Forget(t.key.For)
	}
}

// mostLeaving is how many targets without subscribers are kept at least, while their
// grace lasts: a proxy may ask for any number of names, one after the other.
const mostLeaving = 1 << 14

// sweep drops the targets whose grace is over, and the first of too many.
func (b *Builder) sweep(now time.Time) {
	kept, over := b.leaving[:0], len(b.leaving)-mostLeaving
	for i, t := range b.leaving {
		switch {
		case len(t.subscribers) > 0 || t.leaves.IsZero(): // it is wanted again
		case now.Before(t.leaves) && i >= over:
			kept = append(kept, t)
		default:
			b.drop(t)
		}
	}
	clear(b.leaving[len(kept):])
	b.leaving = kept
	b.metrics.targets.Set(float64(len(b.targets)))
}
