package delta

import (
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Push is a response to send: what a DeltaDiscoveryResponse says, without a message for
// each resource, and what its sender may want to count.
type Push struct {
	Type      translate.Type
	Nonce     string
	Resources []Resource
	Removed   []string
	// Bytes is about the size on the wire.
	Bytes int
	// Since is when the oldest of the changes came in of which this tells; zero
	// when the proxy was merely given what it asked for.
	Since time.Time
}

// Resource is one in a Push.
type Resource struct {
	Name, Version string
	Body          *anypb.Any // shared by all streams
}

// Next is the next response to send; nil when there is none until the next
// call of Request, Dirty, Rebind or Remind, or until the set of all scopes is
// another. The effects are to be carried out first.
// What Next returns is taken to be sent.
func (s *Stream) Next(src Source) (*Push, Effects) {
	s.imply(src)
	scopes := &s.types[translate.Scope]
	if scopes.wildcard {
		s.scopes.sync(src.Scopes(), s.eager)
	}
	for t := range s.types {
		if p := s.fill(translate.Type(t), src); p != nil {
			return p, s.take()
		}
	}
	for t := Types - 1; t >= 0; t-- {
		if p := s.remove(translate.Type(t)); p != nil {
			return p, s.take()
		}
	}
	return nil, s.take()
}

// imply subscribes to the clusters that listeners and routes name which may be
// sent now.
func (s *Stream) imply(src Source) {
	if !s.types[translate.Cluster].wildcard {
		return // a proxy ignores clusters that it did not ask for
	}
	for t, sub := range s.naming() {
		if sub.searched != nil || sub.why == 0 {
			continue
		}
		sub.searched = src.Value(sub.key(t))
		if sub.searched != nil {
			for _, name := range sub.searched.Clusters {
				s.hold(translate.Cluster, name, implied)
			}
		}
	}
}

// naming yields what is queued and may name clusters.
func (s *Stream) naming() iter.Seq2[translate.Type, *subscription] {
	return func(yield func(translate.Type, *subscription) bool) {
		for _, t := range [...]translate.Type{translate.Listener, translate.Route} {
			for _, queue := range [...][]*subscription{s.types[t].suspects, s.types[t].queue} {
				for _, sub := range queue {
					if !yield(t, sub) {
						return
					}
				}
			}
		}
	}
}

// searchAgain is for when clusters may be held that were not before.
func (s *Stream) searchAgain() {
	for _, sub := range s.naming() {
		sub.searched = nil
	}
}

// verdict says what becomes of a subscription in the queue.
type verdict uint8

const (
	idle verdict = iota // nothing to send: out of the queue
	wait                // something else has to be sent first
	send
)

// judge says what becomes of what is queued. of is the version of the cluster that a load
// assignment goes with; empty for all else.
func (s *Stream) judge(t translate.Type, sub *subscription, of string, src Source) (*build.Value, verdict) {
	if sub.why == 0 {
		return nil, idle
	}
	v := src.Value(sub.key(t))
	if v == nil || v.Body == nil {
		return nil, idle // Dirty comes when it is built
	}
	if !sub.force {
		if is(sub.sent, t, v, of) {
			if sub.sent == v.Version {
				sub.sent = v.Version // the shared string, not the request's
			}
			if sub.acked == sub.sent {
				sub.acked = sub.sent
				s.absolve(sub)
			}
			return nil, idle
		}
		if sub.rejected != nil && is(sub.rejected.Version, t, v, of) {
			return nil, idle
		}
	}
	if !s.ripe(t, sub, v, src) {
		return nil, wait
	}
	return v, send
}

// ofCluster stands in the version of a load assignment between its own and
// that of the cluster that it was sent for. A cluster that Envoy
// replaces needs its load assignment once more. Were the stream to end between
// the two, Envoy would say on the next that it has both, and wait: so a load
// assignment is new when its cluster is.
const ofCluster = "@"

// cluster is the version of the load assignment's cluster that was sent; empty for none,
// and for all else that a subscription may be of.
func (s *Stream) cluster(t translate.Type, sub *subscription) string {
	if t == translate.Endpoints {
		if c, ok := s.types[translate.Cluster].names[translate.AssignedTo(sub.name)]; ok {
			return c.sent
		}
	}
	return ""
}

// own is the version without that of the cluster: what a change of the resource
// itself makes differ.
func own(version string) string {
	version, _, _ = strings.Cut(version, ofCluster)
	return version
}

// is reports whether a version on a stream is that of the value; of is as for judge.
func is(version string, t translate.Type, v *build.Value, of string) bool {
	if t != translate.Endpoints {
		return version == v.Version
	}
	assignment, cluster, _ := strings.Cut(version, ofCluster)
	return assignment == v.Version && (of == "" || of == cluster)
}

// ripe reports whether all that has to be sent before the value was sent.
func (s *Stream) ripe(t translate.Type, sub *subscription, v *build.Value, src Source) bool {
	switch t {
	case translate.Endpoints:
		// Envoy drops what is of a type that it never asked for, and does not
		// answer.
		return s.types[t].seen
	case translate.Listener:
		return s.provided(sub, v, src) && (sub.name != s.binding.Ready || s.warm())
	case translate.Route:
		return s.provided(sub, v, src)
	case translate.Cluster:
		return sub.why != implied || s.types[t].wildcard
	default:
		return true
	}
}

// provided reports whether the clusters that the value names were sent, and
// their load assignments. What the proxy refused cannot be had: the value is
// of use without it.
func (s *Stream) provided(sub *subscription, v *build.Value, src Source) bool {
	clusters, endpoints := &s.types[translate.Cluster], &s.types[translate.Endpoints]
	if !clusters.wildcard {
		return true
	}
	if sub.searched == nil || sub.searched.Version != v.Version {
		return false // it was built a moment ago: Dirty comes
	}
	for _, name := range v.Clusters {
		c, ok := clusters.names[name]
		if !ok {
			continue
		}
		if c.sent == "" && c.rejected == nil {
			return false
		}
		of := src.Value(c.key(translate.Cluster))
		if of == nil || of.EDS == "" || !endpoints.seen {
			continue
		}
		if e, ok := endpoints.names[of.EDS]; ok && e.sent == "" && e.rejected == nil {
			return false
		}
	}
	return true
}

// warm reports whether the proxy can carry traffic: it took all listeners, and
// has everything that it asked for because of them. Envoy asks before it
// acknowledges the listeners, so at that time all is known.
func (s *Stream) warm() bool {
	if s.live {
		return true
	}
	for _, name := range s.binding.Listeners {
		if sub, ok := s.types[translate.Listener].names[name]; ok && name != s.binding.Ready && sub.acked == "" {
			return false
		}
	}
	for _, t := range s.binding.Needs {
		if !s.types[t].seen {
			return false
		}
	}
	for t := range s.types {
		for name, sub := range s.types[t].names {
			if translate.Type(t) == translate.Listener && name == s.binding.Ready {
				continue
			}
			unasked := translate.Type(t) == translate.Endpoints && sub.why == implied
			if sub.acked == "" && sub.rejected == nil && !unasked {
				return false
			}
		}
	}
	scopes := &s.types[translate.Scope]
	if scopes.wildcard && !s.scopes.settled(scopes) {
		return false
	}
	s.live = true
	return true
}

// waits reports whether there may be something to fill a response of the type with.
func (s *Stream) waits(t translate.Type) bool {
	if t == translate.Scope {
		return s.scopes.waits()
	}
	return len(s.types[t].queue)+len(s.types[t].suspects) > 0
}

// Waits reports whether there may be something to send. Where it says no there is
// nothing until the next call of Request, Dirty, Rebind or Remind, or until the set of
// all scopes is another.
func (s *Stream) Waits() bool {
	for t := range s.types {
		if s.waits(translate.Type(t)) || len(s.types[t].gone) > 0 {
			return true
		}
	}
	return len(s.scopes.gone) > 0
}

// fill makes a response out of what is queued for the type.
func (s *Stream) fill(t translate.Type, src Source) *Push {
	subs := &s.types[t]
	if !s.waits(t) || len(subs.unacked) >= s.limits.Unacknowledged {
		return nil
	}
	p := &pushing{t: t}
	if t == translate.Scope {
		s.scopes.fill(p, s.limits.Bytes)
		return s.sent(p)
	}
	subs.suspects = s.draw(p, subs.suspects, 1, src)
	if len(p.parts) == 0 {
		subs.queue = s.draw(p, subs.queue, len(subs.queue), src)
	}
	if len(p.parts) == 0 { // some may have come under suspicion only now
		subs.suspects = s.draw(p, subs.suspects, 1, src)
	}
	return s.sent(p)
}

// draw puts up to count of the queued into the response and returns the rest.
func (s *Stream) draw(p *pushing, queue []*subscription, count int, src Source) []*subscription {
	rest := queue[:0]
	for i, sub := range queue {
		if len(p.parts) == count || p.bytes >= s.limits.Bytes {
			rest = append(rest, queue[i:]...)
			break
		}
		if sub.suspect && count > 1 {
			// It was in the queue already when it came under suspicion.
			s.types[p.t].suspects = append(s.types[p.t].suspects, sub)
			continue
		}
		of := s.cluster(p.t, sub)
		v, what := s.judge(p.t, sub, of, src)
		if what == send && len(p.parts) > 0 && p.bytes+size(sub.name, sub.sent, v) > s.limits.Bytes {
			rest = append(rest, queue[i:]...)
			break
		}
		switch what {
		case wait:
			rest = append(rest, sub)
		case idle:
			sub.queued, sub.suspect, sub.searched = false, false, nil
		case send:
			sub.queued, sub.suspect, sub.searched, sub.force = false, false, nil, false
			version := v.Version
			if of != "" {
				version += ofCluster + of
			}
			if sub.nonce != 0 && !sub.moved && own(version) != own(sub.sent) {
				p.tells(v)
			}
			sub.moved = false
			sub.sent, sub.sentAt = version, v.At
			if len(p.parts) == 0 {
				p.grow(min(count, len(queue)-i, fewResources))
			}
			p.add(part{sub: sub, version: version, at: v.At}, v, sub.name)
			if p.t == translate.Cluster && v.EDS != "" {
				s.endow(v.EDS)
			}
		}
	}
	clear(queue[len(rest):])
	if len(rest) == 0 {
		return nil
	}
	return rest
}

// endow has the load assignment of a cluster that is being sent follow it. The
// one that the cluster had before may have another name: Envoy lets go of that when
// it has replaced the cluster.
func (s *Stream) endow(assignment string) {
	if sub := s.hold(translate.Endpoints, assignment, implied); sub != nil {
		sub.force = true
		s.types[translate.Endpoints].enqueue(sub)
	}
}

// Remind is for when the proxy has not answered for a while what it was sent of
// clusters: it sends all load assignments again. Envoy withholds its answer
// while a cluster warms, and there are ways to lose what it warms for that it
// does not tell of: a response that it refused, of which it used a part all the
// same, before a stream that broke.
func (s *Stream) Remind() {
	if len(s.types[translate.Cluster].unacked) == 0 {
		return
	}
	subs := &s.types[translate.Endpoints]
	for _, name := range slices.Sorted(maps.Keys(subs.names)) {
		sub := subs.names[name]
		sub.force = true
		subs.enqueue(sub)
	}
}

// Unanswered is the number of responses of the type that wait for an answer.
func (s *Stream) Unanswered(t translate.Type) int { return len(s.types[t].unacked) }

// remove makes a response out of the names to be taken from the proxy.
func (s *Stream) remove(t translate.Type) *Push {
	subs := &s.types[t]
	if len(subs.unacked) >= s.limits.Unacknowledged {
		return nil
	}
	gone := &subs.gone
	if t == translate.Scope {
		gone = &s.scopes.gone
	}
	if len(*gone) == 0 {
		return nil
	}
	*gone = distinct(*gone)
	p := &pushing{t: t}
	for len(*gone) > 0 && p.bytes < s.limits.Bytes {
		name := (*gone)[0]
		*gone = (*gone)[1:]
		if _, ok := subs.names[name]; ok || t == translate.Scope && s.scopes.last.Get(name) != nil {
			continue // it is back
		}
		p.removed = append(p.removed, name)
		p.bytes += len(name) + 4
	}
	if len(*gone) == 0 {
		*gone = nil
	}
	return s.sent(p)
}

// pushing is a response in the making.
type pushing struct {
	t         translate.Type
	resources []Resource
	removed   []string
	parts     []part // what the resources are of
	bytes     int
	since     time.Time
	empty     bool // it is sent though there is nothing in it
}

func size(name, version string, v *build.Value) int {
	const framing = 32 // of the resource and of its Any
	return len(name) + len(version) + len(v.Body.GetTypeUrl()) + len(v.Body.GetValue()) + framing
}

// tells notes that the value replaces one that was sent on this stream.
func (p *pushing) tells(v *build.Value) {
	if !v.Since.IsZero() && (p.since.IsZero() || v.Since.Before(p.since)) {
		p.since = v.Since
	}
}

// fewResources are about as many as a response has room for.
const fewResources = 1024

// grow makes room for resources that may come.
func (p *pushing) grow(n int) {
	p.parts, p.resources = slices.Grow(p.parts, n), slices.Grow(p.resources, n)
}

func (p *pushing) add(what part, v *build.Value, name string) {
	p.parts = append(p.parts, what)
	p.bytes += size(name, what.version, v)
	p.resources = append(p.resources, Resource{Name: name, Version: what.version, Body: v.Body})
}

// sent enters the response among those that wait for an answer; nil when it is
// empty.
func (s *Stream) sent(p *pushing) *Push {
	if len(p.parts) == 0 && len(p.removed) == 0 && !p.empty {
		return nil
	}
	s.nonce++
	subs := &s.types[p.t]
	if cap(p.parts) > 2*len(p.parts) { // they are kept until the proxy answers
		p.parts = slices.Clone(p.parts)
	}
	subs.unacked = append(subs.unacked, response{nonce: s.nonce, parts: p.parts, since: p.since})
	for _, what := range p.parts {
		if what.sub != nil {
			what.sub.nonce = s.nonce
		}
	}
	return &Push{
		Type: p.t, Nonce: strconv.FormatUint(s.nonce, 10), Resources: p.resources, Removed: p.removed, Bytes: p.bytes, Since: p.since,
	}
}
