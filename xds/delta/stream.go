package delta

import (
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Types is the number of types of resources: those before
// [translate.Findings].
const Types = int(translate.Findings)

// AllScopes is the key of the whole collection of scopes.
var AllScopes = build.Key{Type: translate.Scope, Name: Wildcard}

// Wildcard is the name that subscribes to all resources of a type.
const Wildcard = "*"

// MaxName is the longest resource name that is answered, in bytes.
const MaxName = 512

// Binding says what the names on one proxy's stream mean.
type Binding struct {
	// Bind returns the key of the target that the proxy calls name, or false
	// when there is no such thing for this proxy.
	Bind func(t translate.Type, name string) (build.Key, bool)
	// Listeners and Clusters are what a proxy is given that subscribes to all
	// of them.
	Listeners []string
	Clusters  []string
	// Ready is a listener that is sent once, on this stream, everything that
	// the proxy has asked for was answered and acknowledged. It tells that the
	// proxy can carry traffic. Empty: none.
	Ready string
	// Needs are the types that every proxy asks for because of its listeners.
	// The ready listener waits until it has: a proxy that comes back while it
	// starts has the listeners already, and says so before it asks for these.
	Needs []translate.Type
	// Ahead are clusters that are sent though the proxy has not asked for
	// them, and EagerScopes are scopes whose routes it is made to ask for at
	// once. They are read when the proxy subscribes to all clusters and to all
	// scopes.
	Ahead       []string
	EagerScopes []string
}

// Source is where a stream reads current values. It is called by
// [Stream.Next] only, and must be cheap.
type Source interface {
	// Value is the current value of the key, nil when none was built yet.
	Value(build.Key) *build.Value
	// Scopes is the current set of all scopes, nil when there is none yet.
	Scopes() Collection
}

// Collection is an immutable set of resources that proxies hold in full.
type Collection interface {
	// At is the revision of the set: a later set has a higher one.
	At() uint64
	Len() int
	Get(name string) *build.Value
	// All yields the resources sorted by name.
	All() iter.Seq2[string, *build.Value]
	// Since returns the names that were changed, added or removed after the
	// revision, or false when that is not known any more.
	Since(revision uint64) ([]string, bool)
}

// Limits bound what one stream costs. A zero field means its default.
type Limits struct {
	// Names is how many names of one type a proxy may subscribe to; default
	// 4096. What it asks for beyond is refused.
	Names int
	// Bytes is about how large a response may be; default 1 MiB. A single
	// resource may be larger.
	Bytes int
	// Unacknowledged is how many responses of one type may wait for the
	// proxy's answer; default 8. Envoy withholds its answer while a cluster
	// warms, so that one is not enough.
	Unacknowledged int
}

func (l Limits) withDefaults() Limits {
	if l.Names == 0 {
		l.Names = 4096
	}
	if l.Bytes == 0 {
		l.Bytes = 1 << 20
	}
	if l.Unacknowledged == 0 {
		l.Unacknowledged = 8
	}
	return l
}

// Stream is the state of one stream. It is not safe for concurrent use.
type Stream struct {
	binding Binding
	limits  Limits
	types   [Types]subscriptions
	scopes  scopes
	eager   map[string]struct{} // the binding's EagerScopes
	ahead   map[string]struct{} // the binding's Ahead
	nonce   uint64
	live    bool // the ready listener may be sent
	print   uint64
	refused map[*subscription]struct{} // those with a rejection
	effects Effects
}

// New is the state of a stream on which nothing was said.
func New(b Binding, l Limits) *Stream {
	s := &Stream{binding: b, limits: l.withDefaults(), eager: set(b.EagerScopes), ahead: set(b.Ahead), refused: map[*subscription]struct{}{}}
	for t := range s.types {
		s.types[t].names = map[string]*subscription{}
	}
	return s
}

func set(names []string) map[string]struct{} {
	out := make(map[string]struct{}, len(names))
	for _, n := range names {
		out[n] = struct{}{}
	}
	return out
}

// Effects are what a call asks of the stream's owner.
type Effects struct {
	// Subscribe and Unsubscribe are keys for the builder: first those to
	// unsubscribe, then those to subscribe.
	Subscribe   []build.Key
	Unsubscribe []build.Key
	// Asked are the names that the proxy asked for of its own accord.
	Asked []build.Key
	// Acknowledged is the [Push.Since] of the response that the proxy took; zero
	// when it took none, or one that told of no change.
	Acknowledged time.Time
	// Refused is the response that it did not take.
	Refused *Nack
	// Ignored are parts of the request that were not answered, those for one reason
	// together.
	Ignored []Ignored
}

// Nack is a proxy's refusal of a response.
type Nack struct {
	Type  translate.Type
	Nonce string
	// Names are those of the resources in the response.
	Names   []string
	Message string
}

// Ignored are parts of a request that got no answer.
type Ignored struct {
	URL    string
	Name   string // the first
	Reason Reason
	Count  int
}

// Reason says why a part of a request got no answer.
type Reason string

// The reasons.
const (
	UnknownType  Reason = "unknown_type"
	LongName     Reason = "long_name"
	TooMany      Reason = "too_many"
	NotPermitted Reason = "not_permitted"
)

// Reasons are all of them.
func Reasons() []Reason { return []Reason{UnknownType, LongName, TooMany, NotPermitted} }

// why says for which reasons a stream holds a name.
type why uint8

const (
	explicit why = 1 << iota // the proxy named it
	chosen                   // every proxy has it
	implied                  // it goes with something else, or ahead of it
)

// subscription is one name on one stream.
type subscription struct {
	name, bound string // bound is the key's For
	// sent is the version that the proxy has or will have when it takes what
	// is under way; empty: none. acked is the last that it took.
	sent, acked string
	// sentAt and ackedAt are the [build.Value.At] of those; 0 where the proxy
	// brought it along from an earlier stream.
	sentAt, ackedAt mesh.Revision
	rejected        *Rejection
	searched        *build.Value // while it is queued: the clusters are held that this names
	nonce           uint64       // of the last response with it
	why             why
	queued          bool // it is in the queue or among the suspects
	force           bool // send it though it was sent
	suspect         bool // send it alone
	moved           bool // it was sent under another key: what is new is the key, not the value
}

// Rejection is what a proxy said to a resource that it did not take.
type Rejection struct {
	Version string
	Message string
}

func (s *subscription) key(t translate.Type) build.Key {
	return build.Key{Type: t, Name: s.name, For: s.bound}
}

// subscriptions are the names of one type.
type subscriptions struct {
	seen     bool // the proxy has said something about the type
	wildcard bool
	explicit int // how many the proxy named
	names    map[string]*subscription
	queue    []*subscription // may have something to send
	suspects []*subscription // the same, each alone
	gone     []string        // to be removed from the proxy
	unacked  []response      // in the order in which they were sent
}

// response is one that was sent and not answered yet.
type response struct {
	nonce uint64
	parts []part
	since time.Time // when the oldest of the changes came in of which it tells
}

// part is a resource in a response. Scopes have a name, all others a
// subscription.
type part struct {
	sub     *subscription
	name    string
	version string
	at      mesh.Revision
}

func (p *subscriptions) enqueue(s *subscription) {
	s.searched = nil
	if s.queued {
		return
	}
	s.queued = true
	to := &p.queue
	if s.suspect {
		to = &p.suspects
	}
	// What was dropped leaves a queue when it is sent from, which a proxy that takes
	// nothing can put off for as long as it drops.
	const few = 64
	if len(*to) >= 2*len(p.names)+few {
		*to = slices.DeleteFunc(*to, func(s *subscription) bool { return s.why == 0 })
	}
	*to = append(*to, s)
}

// Dirty says that the keys have new values.
func (s *Stream) Dirty(keys []build.Key) {
	for _, k := range keys {
		if int(k.Type) >= Types {
			continue
		}
		subs := &s.types[k.Type]
		if sub, ok := subs.names[k.Name]; ok && sub.bound == k.For {
			subs.enqueue(sub)
		}
	}
}

// Rebind gives names another meaning: what the stream holds is taken from the
// keys that the new binding says. Its Ahead and EagerScopes are not looked at.
func (s *Stream) Rebind(b Binding) Effects {
	b.Ahead, b.EagerScopes = s.binding.Ahead, s.binding.EagerScopes
	old := s.binding
	s.binding = b
	for t := range s.types {
		typ := translate.Type(t)
		subs := &s.types[t]
		for _, name := range slices.Sorted(maps.Keys(subs.names)) {
			sub := subs.names[name]
			k, ok := b.Bind(typ, name)
			switch {
			case !ok:
				s.drop(typ, sub)
				if sub.sent != "" && wild(typ) {
					subs.gone = append(subs.gone, name)
				}
			case k.For != sub.bound:
				s.effects.Unsubscribe = append(s.effects.Unsubscribe, sub.key(typ))
				s.print ^= print(sub.key(typ)) ^ print(k)
				sub.bound, sub.moved = k.For, true
				s.effects.Subscribe = append(s.effects.Subscribe, k)
				subs.enqueue(sub)
			}
		}
	}
	s.searchAgain()
	s.rechoose(translate.Cluster, old.Clusters, b.Clusters)
	s.rechoose(translate.Listener, old.Listeners, b.Listeners)
	return s.take()
}

// rechoose follows a change in what every proxy is given.
func (s *Stream) rechoose(t translate.Type, old, now []string) {
	subs := &s.types[t]
	if !subs.wildcard {
		return
	}
	keep := set(now)
	for _, name := range old {
		if _, ok := keep[name]; ok || name == s.binding.Ready {
			continue
		}
		if sub, ok := subs.names[name]; ok {
			s.release(t, sub, chosen)
			if sub.why == 0 && sub.sent != "" {
				subs.gone = append(subs.gone, name)
			}
		}
	}
	for _, name := range now {
		s.hold(t, name, chosen)
	}
}

// hold makes the stream hold the name for the reason; nil when it may not.
func (s *Stream) hold(t translate.Type, name string, because why) *subscription {
	subs := &s.types[t]
	sub, ok := subs.names[name]
	if !ok {
		k, ok := s.binding.Bind(t, name)
		if !ok {
			return nil
		}
		sub = &subscription{name: name, bound: k.For}
		subs.names[name] = sub
		s.print ^= print(k)
		s.effects.Subscribe = append(s.effects.Subscribe, k)
		subs.enqueue(sub)
	}
	if because == explicit && sub.why&explicit == 0 {
		subs.explicit++
	}
	sub.why |= because
	return sub
}

// release takes reasons away, and drops what is held for no reason.
func (s *Stream) release(t translate.Type, sub *subscription, because why) {
	if sub.why&because&explicit != 0 {
		s.types[t].explicit--
	}
	sub.why &^= because
	if sub.why == 0 {
		s.drop(t, sub)
	}
}

func (s *Stream) drop(t translate.Type, sub *subscription) {
	subs := &s.types[t]
	if sub.why&explicit != 0 {
		subs.explicit--
	}
	sub.why, sub.searched = 0, nil
	s.absolve(sub)
	s.print ^= print(sub.key(t))
	delete(subs.names, sub.name)
	s.effects.Unsubscribe = append(s.effects.Unsubscribe, sub.key(t))
}

// refuse notes a proxy's refusal, and absolve that it counts no longer.
func (s *Stream) refuse(sub *subscription, r *Rejection) {
	sub.rejected = r
	s.refused[sub] = struct{}{}
}

func (s *Stream) absolve(sub *subscription) {
	sub.rejected = nil
	delete(s.refused, sub)
}

// Close gives all keys that the stream subscribes to, when it ends.
func (s *Stream) Close() []build.Key {
	var out []build.Key
	for t := range s.types {
		for _, sub := range s.types[t].names {
			out = append(out, sub.key(translate.Type(t)))
		}
	}
	if s.types[translate.Scope].wildcard {
		out = append(out, AllScopes)
	}
	return out
}

func (s *Stream) take() Effects {
	e := s.effects
	s.effects = Effects{}
	return e
}

// wild reports whether a proxy may subscribe to all resources of the type.
func wild(t translate.Type) bool {
	return t == translate.Cluster || t == translate.Listener || t == translate.Scope
}
