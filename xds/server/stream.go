package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// stream is one proxy's stream.
type stream struct {
	server   *Server
	rpc      discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	close    context.CancelCauseFunc
	peer     Peer
	identity string
	node     mesh.Fact // the pod's, which it had before it could connect and stays on
	opened   time.Time
	log      logr.Logger
	// subscriber is the stream's while it serves, and then that of what is remembered of it,
	// if anything is.
	subscriber *subscriber

	// What the builder says, until the writer takes it in.
	in     sync.Mutex
	dirty  []build.Key // has new values; one may be there twice
	taking []build.Key // what was dirty and is being taken in
	// distinct is how many of dirty there were when those that were there twice were
	// left out last; 0: never.
	distinct int
	moved    atomic.Bool   // the stream's pod or its node is another
	told     atomic.Bool   // the builder follows these for the stream
	wake     chan struct{} // one pending wake-up
	// workload is the stream's pod as it was taken in last.
	workload atomic.Pointer[mesh.Workload]

	// turn is the reader's or the writer's: from a change of the state until its
	// effects are carried out, so that these come in the same order. It is taken
	// before any other lock, and never held while sending.
	turn    sync.Mutex
	left    bool // the state is at its end
	named   bool // the node's id was looked at
	counted bool // what the proxy holds was known with the last request

	// Changed in a turn, under the lock, so that others can read it.
	lock   sync.Mutex
	state  *delta.Stream
	proxy  proxy
	pushes uint64

	reminder reminder // the writer's own
}

// proxy is what decides which targets the names on a stream mean.
type proxy struct {
	pod, namespace, profile, identity string
	account                           string // whose calls leave the cluster (translate.ForEgress)
	drains                            bool   // its callers are to go elsewhere
	locality                          mesh.Locality
	gateway                           string // namespace/name of the Gateway whose proxy it is; empty: a sidecar
}

// gatewayOf names the Gateway whose proxy the pod is; empty for all others.
func gatewayOf(w *mesh.Workload) string {
	if w.Gateway == "" {
		return ""
	}
	return mesh.Name{Namespace: w.Namespace, Name: w.Gateway}.String()
}

func newStream(s *Server, rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, p Peer, w *mesh.Workload, identity string, cancel context.CancelCauseFunc) *stream {
	snapshot := s.options.Builder.Snapshot()
	st := &stream{
		server: s, rpc: rpc, close: cancel, peer: p, identity: identity, opened: time.Now(),
		node: mesh.Fact{Kind: mesh.FactNode, Name: w.Node},
		log:  s.options.Log.WithValues("pod", p.Pod.String()),
		wake: make(chan struct{}, 1),
		proxy: proxy{
			pod: p.Pod.String(), namespace: p.Pod.Namespace, identity: identity,
			profile: snapshot.Profile(w), drains: w.Drains(), locality: snapshot.Locality(w),
			gateway: gatewayOf(w), account: translate.ForEgress(w.Namespace, w.ServiceAccount),
		},
	}
	st.subscriber = &subscriber{}
	st.subscriber.to.Store(st)
	st.workload.Store(w)
	b := st.proxy.binding()
	b.Ahead, b.EagerScopes = s.siblings.known(st.proxy.profile)
	st.state = delta.New(b, s.options.Limits)
	return st
}

// subscriber is who subscribes to what a proxy holds. It lives on with what is remembered of
// the proxy after its stream, so that nothing is subscribed to anew for that.
type subscriber struct{ to atomic.Pointer[stream] } // nil: nobody is there to be sent anything

var _ build.Subscriber = (*subscriber)(nil)

// Changed has the stream take note. It is called by the builder.
func (s *subscriber) Changed(keys []build.Key) {
	if st := s.to.Load(); st != nil {
		st.changed(keys)
	}
}

// changed notes which keys have new values.
func (st *stream) changed(keys []build.Key) {
	st.in.Lock()
	before := len(st.dirty)
	st.dirty = append(st.dirty, keys...)
	if before > 0 && len(st.dirty) > max(severalKeys, 2*st.distinct) {
		// The writer may wait for a proxy that does not read.
		st.dirty = distinct(st.dirty)
		st.distinct = len(st.dirty)
	}
	st.in.Unlock()
	st.signal()
}

func distinct(keys []build.Key) []build.Key {
	seen := make(map[build.Key]struct{}, len(keys)/2)
	return slices.DeleteFunc(keys, func(k build.Key) bool {
		_, again := seen[k]
		seen[k] = struct{}{}
		return again
	})
}

// FactChanged notes that the stream's pod or its node is another now. It is called by
// the builder.
func (st *stream) FactChanged() {
	// Here, because the writer may wait for a proxy that does not read.
	if _, ok := st.current(st.server.options.Builder.Snapshot()); !ok {
		st.close(errPodGone)
		return
	}
	st.moved.Store(true)
	st.told.Store(true)
	st.signal()
}

func (st *stream) signal() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// pod is the fact of the mesh that the stream's pod is.
func (st *stream) pod() mesh.Fact {
	return mesh.Fact{Kind: mesh.FactWorkload, Name: st.peer.Pod.String()}
}

// current is the stream's pod in the snapshot; false when it is gone or has
// ended.
func (st *stream) current(s *mesh.Snapshot) (*mesh.Workload, bool) {
	w, ok := s.Workload(st.peer.Pod)
	return w, ok && w.UID == st.peer.UID && !w.Terminal
}

// follow takes in a change of the stream's pod, or of its node. It comes before new values are
// looked at: what is built for a class that the pod has left is not for it.
// Workloads that did not change are the same pointers from one snapshot to the
// next.
func (st *stream) follow() {
	snapshot := st.server.options.Builder.Snapshot()
	w, ok := st.current(snapshot)
	if !ok {
		return
	}
	now := st.proxy
	now.locality = snapshot.Locality(w)
	if w != st.workload.Load() {
		st.workload.Store(w)
		defer st.server.acks.note() // whether the pod has started is counted, too
		now.profile, now.drains = snapshot.Profile(w), w.Drains()
		if gatewayOf(w) != st.proxy.gateway {
			// It is another kind of proxy, or none any more, and may have other secrets.
			st.close(errors.New("the pod is of another Gateway than it was"))
			return
		}
	}
	if now == st.proxy {
		return
	}
	st.lock.Lock()
	st.proxy = now
	effects := st.state.Rebind(st.proxy.binding())
	st.lock.Unlock()
	st.carryOut(effects)
}

// read takes in what the proxy says, until the end of the stream. Most of it is
// acknowledgements, of which nothing follows: the writer sleeps on.
func (st *stream) read() {
	for {
		r, err := st.rpc.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errDone
			}
			st.close(err)
			return
		}
		if st.request(r) {
			st.signal()
		}
	}
}

// write sends what there is for the proxy, until the end of the stream.
func (st *stream) write(ctx context.Context) {
	defer st.leave()
	st.server.options.Builder.Follow(st, st.pod())
	st.server.options.Builder.Follow(st, st.node)
	defer st.reminder.stop()
	defer context.AfterFunc(ctx, st.signal)()
	for range st.wake {
		if ctx.Err() != nil {
			return
		}
		if st.reminder.due(time.Now()) {
			st.remind()
		}
		if err := st.flush(ctx); err != nil {
			st.close(err)
			return
		}
	}
}

func (st *stream) leave() {
	st.server.options.Builder.Unfollow(st, st.pod())
	st.server.options.Builder.Unfollow(st, st.node)
	st.turn.Lock()
	defer st.turn.Unlock()
	st.left = true
	remembered := st.server.remember(st)
	st.subscriber.to.Store(nil) // only now: as long as it counts it is told
	st.lock.Lock()
	keys := st.state.Close()
	st.lock.Unlock()
	if remembered {
		keys = slices.DeleteFunc(keys, lasts)
	}
	if len(keys) > 0 {
		st.server.options.Builder.Unsubscribe(st.subscriber, keys...)
	}
}

// flush sends until there is nothing to send.
func (st *stream) flush(ctx context.Context) error {
	for {
		push, more := st.next()
		if push == nil || ctx.Err() != nil {
			return nil
		}
		st.server.metrics.sent(push)
		if err := st.rpc.SendMsg(push); err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
}

// next is what to send next, nil for nothing, and whether there may be more before
// the writer is woken again.
func (st *stream) next() (push *delta.Push, more bool) {
	st.turn.Lock()
	defer st.turn.Unlock()
	st.takeIn()
	st.lock.Lock()
	push, effects := st.state.Next(source{st.server.options.Builder})
	if push != nil {
		st.pushes++
	}
	more = st.state.Waits()
	unanswered := st.state.Unanswered(translate.Cluster)
	st.lock.Unlock()
	st.reminder.watch(unanswered, st)
	st.carryOut(effects)
	return push, more
}

const (
	// fewKeys is how many keys a change of one thing is.
	fewKeys = 64
	// keptKeys are as many as there is room kept for.
	keptKeys = 8
	// severalKeys are more than come before a writer that waits for nothing looks.
	severalKeys = 256
)

// takeIn takes in what the builder says.
func (st *stream) takeIn() {
	st.in.Lock()
	st.taking, st.dirty, st.distinct = st.dirty, st.taking, 0
	st.in.Unlock()
	if st.moved.Swap(false) || !st.told.Load() {
		st.follow()
	}
	if len(st.taking) == 0 {
		return
	}
	st.lock.Lock()
	defer st.lock.Unlock()
	st.state.Dirty(st.taking)
	st.in.Lock()
	defer st.in.Unlock()
	if cap(st.taking) > keptKeys {
		st.taking = nil
		return
	}
	clear(st.taking)
	st.taking = st.taking[:0]
}

// request takes in what the proxy says, and reports whether there may be something
// to send, or to wait for, because of it.
func (st *stream) request(r *discovery.DeltaDiscoveryRequest) bool {
	st.turn.Lock()
	defer st.turn.Unlock()
	if st.left {
		return false
	}
	st.checkNode(r)
	st.in.Lock()
	many := len(st.dirty) > fewKeys
	st.in.Unlock()
	if many { // the writer may wait for the proxy, whose names come and go all the same
		st.takeIn()
	}
	st.lock.Lock()
	note := !st.counted || st.stake()
	unanswered := st.state.Unanswered(translate.Cluster)
	effects := st.state.Request(r)
	st.counted = st.state.Known()
	more := st.state.Waits() || st.state.Unanswered(translate.Cluster) != unanswered
	st.lock.Unlock()
	st.carryOut(effects)
	if note {
		st.server.acks.note()
	}
	return more
}

// stake reports whether there is something that the proxy is still to acknowledge and
// that objects of the API have a part in. The caller holds the lock.
func (st *stream) stake() bool {
	for h := range st.state.Unsettled() {
		if v := st.server.options.Builder.Value(h.Key); v == nil || v.Concerns() {
			return true
		}
	}
	return false
}

// checkNode notices a proxy that calls itself something else than its token
// does. Nothing follows from what it calls itself.
func (st *stream) checkNode(r *discovery.DeltaDiscoveryRequest) {
	if st.named || r.GetNode() == nil {
		return
	}
	st.named = true
	if id, want := r.GetNode().GetId(), st.peer.Pod.Name+"."+st.peer.Pod.Namespace; id != want {
		st.server.metrics.mismatches.Inc()
		st.log.V(1).Info("a proxy's node id is not its pod's; its token counts", "node", id)
	}
}

func (st *stream) carryOut(e delta.Effects) {
	b := st.server.options.Builder
	if len(e.Unsubscribe) > 0 {
		b.Unsubscribe(st.subscriber, e.Unsubscribe...)
		st.server.acks.note() // what they say may concern the proxy no longer
	}
	if len(e.Subscribe) > 0 {
		b.Subscribe(st.subscriber, e.Subscribe...)
	}
	if len(e.Asked) > 0 {
		st.server.siblings.learn(st.proxy.profile, e.Asked)
	}
	for _, i := range e.Ignored {
		st.server.metrics.ignored.WithLabelValues(string(i.Reason)).Add(float64(i.Count))
		st.log.V(1).Info("a proxy asked for what it cannot have", "type", i.URL, "name", i.Name, "reason", i.Reason, "count", i.Count)
	}
	if since := e.Acknowledged; !since.IsZero() {
		st.server.metrics.convergence.Observe(time.Since(since).Seconds())
	}
	if n := e.Refused; n != nil {
		st.server.metrics.nacks.WithLabelValues(typeName(n.Type)).Inc()
		st.log.Info("a proxy refused what it was sent", "type", typeName(n.Type), "names", few(n.Names), "error", n.Message)
	}
}

// few keeps a log line short.
func few(names []string) []string {
	const most = 5
	if len(names) > most {
		return append(names[:most:most], "…")
	}
	return names
}

func (st *stream) remind() {
	st.turn.Lock()
	defer st.turn.Unlock()
	st.lock.Lock()
	st.state.Remind()
	st.lock.Unlock()
	st.log.V(1).Info("a proxy has not answered to its clusters for long; sending their endpoints again")
}

// reminder is due when the proxy's answer to clusters is late.
type reminder struct {
	timer      *time.Timer
	at         time.Time // zero while nothing is awaited
	unanswered int
}

// Clusters warm in milliseconds once their endpoints are there.
const late = 5 * time.Second

// watch has the stream's writer woken when the answer is late.
func (r *reminder) watch(unanswered int, st *stream) {
	if unanswered == r.unanswered {
		return
	}
	r.unanswered = unanswered
	r.stop()
	if unanswered > 0 {
		r.at, r.timer = time.Now().Add(late), time.AfterFunc(late, st.signal)
	}
}

// due reports, once, that the answer is late.
func (r *reminder) due(now time.Time) bool {
	if r.at.IsZero() || now.Before(r.at) {
		return false
	}
	r.at = time.Time{}
	return true
}

func (r *reminder) stop() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	r.at = time.Time{}
}

// source reads the builder for the state of a stream.
type source struct{ Builder }

func (s source) Scopes() delta.Collection {
	if c := s.Builder.Scopes(); c != nil {
		return collection{c}
	}
	return nil
}

// collection is a builder's collection as delta reads it.
type collection struct{ *build.Collection }

func (c collection) At() uint64 { return c.Revision }
