package delta

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/tulle-mesh/tulle/xds/translate"
)

// Request takes in what the proxy says: an answer to a response, a change of
// what it subscribes to, or both.
// See https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol.
func (s *Stream) Request(req *discovery.DeltaDiscoveryRequest) Effects {
	t, ok := translate.TypeOf(req.GetTypeUrl())
	if !ok || int(t) >= Types {
		s.ignore(req.GetTypeUrl(), "", UnknownType)
		return s.take()
	}
	if req.GetResponseNonce() != "" {
		s.answered(t, req)
	}
	subs := &s.types[t]
	first := !subs.seen
	subs.seen = true
	var held map[string]string
	if first {
		held = req.GetInitialResourceVersions()
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		s.unsubscribed(t, name)
	}
	s.expect(t, len(req.GetResourceNamesSubscribe()))
	all := first && wild(t) && len(req.GetResourceNamesSubscribe()) == 0
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == Wildcard && wild(t) {
			all = true
		} else {
			s.subscribed(t, name, held)
		}
	}
	if all && !subs.wildcard {
		subs.wildcard = true
		s.subscribedAll(t, held)
	}
	return s.take()
}

// expect makes room for names that are new, as most of many are.
func (s *Stream) expect(t translate.Type, names int) {
	names = min(names, s.limits.Names)
	if names == 0 || t == translate.Scope {
		return
	}
	subs := &s.types[t]
	if len(subs.names) == 0 {
		subs.names = make(map[string]*subscription, names)
	}
	subs.queue = slices.Grow(subs.queue, names)
	s.effects.Subscribe = slices.Grow(s.effects.Subscribe, names)
}

func (s *Stream) ignore(url, name string, r Reason) {
	for i := range s.effects.Ignored { // one for each reason at most
		if same := &s.effects.Ignored[i]; same.URL == url && same.Reason == r {
			same.Count++
			return
		}
	}
	s.effects.Ignored = append(s.effects.Ignored, Ignored{URL: url, Name: name, Reason: r, Count: 1})
}

// subscribed answers a name that the proxy gave. It is answered even when it
// was sent before, unless the proxy said that it holds it.
func (s *Stream) subscribed(t translate.Type, name string, held map[string]string) {
	subs := &s.types[t]
	switch sub, ok := subs.names[name]; {
	case len(name) > MaxName:
		s.ignore(t.URL(), name[:MaxName], LongName)
		return
	case t == translate.Scope || name == "" || name == Wildcard:
		s.ignore(t.URL(), name, NotPermitted)
		return
	case subs.explicit >= s.limits.Names && (!ok || sub.why&explicit == 0),
		// Of what it drops it is to be told, which waits for as long as it takes nothing.
		len(subs.gone) >= 2*s.limits.Names && !ok:
		s.ignore(t.URL(), name, TooMany)
		return
	}
	sub := s.hold(t, name, explicit)
	if sub == nil {
		s.ignore(t.URL(), name, NotPermitted)
		return
	}
	s.learn(t, sub)
	version := held[name]
	switch {
	case version == "":
		sub.force = true
	case sub.sent == "":
		sub.sent, sub.acked = version, version
		s.liveWith(t, name)
	}
	subs.enqueue(sub)
}

// learn notes what the proxy wants that it was not given ahead.
func (s *Stream) learn(t translate.Type, sub *subscription) {
	known := s.ahead
	switch t {
	case translate.Cluster:
	case translate.Route:
		known = s.eager
	default:
		return
	}
	if _, ok := known[sub.name]; !ok && sub.why&chosen == 0 {
		s.effects.Asked = append(s.effects.Asked, sub.key(t))
	}
}

// subscribedAll begins a wildcard subscription. What the proxy holds from an
// earlier stream and did not name is kept current, or removed where it means
// nothing any more.
func (s *Stream) subscribedAll(t translate.Type, held map[string]string) {
	subs := &s.types[t]
	names := s.binding.Listeners
	switch t {
	case translate.Scope:
		s.scopes.held = held
		s.effects.Subscribe = append(s.effects.Subscribe, AllScopes)
		return
	case translate.Cluster:
		s.searchAgain()
		names = s.binding.Clusters
	case translate.Listener:
		if s.binding.Ready != "" {
			s.hold(t, s.binding.Ready, chosen)
		}
	default: // is asked for by name
	}
	for _, name := range names {
		s.hold(t, name, chosen)
	}
	if t == translate.Cluster {
		for _, name := range s.binding.Ahead {
			s.hold(t, name, implied)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(held)) {
		version := held[name]
		if version == "" {
			continue
		}
		sub, ok := subs.names[name]
		if !ok && t == translate.Cluster && len(name) <= MaxName {
			if len(subs.names) >= 2*s.limits.Names {
				s.ignore(t.URL(), name, TooMany)
				continue
			}
			sub = s.hold(t, name, implied)
		}
		if sub == nil {
			subs.gone = append(subs.gone, name)
			continue
		}
		if sub.sent == "" {
			sub.sent, sub.acked = version, version
			s.liveWith(t, name)
		}
	}
}

// liveWith opens the way for the ready listener when the proxy has it already.
func (s *Stream) liveWith(t translate.Type, name string) {
	if t == translate.Listener && name == s.binding.Ready {
		s.live = true
	}
}

func (s *Stream) unsubscribed(t translate.Type, name string) {
	subs := &s.types[t]
	if name == Wildcard {
		s.unsubscribedAll(t)
		return
	}
	sub, ok := subs.names[name]
	if !ok {
		return
	}
	because := explicit
	if !wild(t) {
		because |= implied // the proxy itself says that it has no use for it
	}
	s.release(t, sub, because)
	if !subs.wildcard {
		return
	}
	// The proxy cannot tell whether the name is still part of the wildcard, and
	// is to be told.
	if sub.why == 0 {
		subs.gone = append(subs.gone, name)
	} else {
		sub.force = true
		subs.enqueue(sub)
	}
}

func (s *Stream) unsubscribedAll(t translate.Type) {
	subs := &s.types[t]
	if !subs.wildcard {
		return
	}
	subs.wildcard = false
	if t == translate.Scope {
		s.effects.Unsubscribe = append(s.effects.Unsubscribe, AllScopes)
		s.scopes = scopes{}
		return
	}
	for _, sub := range subs.names {
		s.release(t, sub, chosen|implied)
	}
}

// answered takes the proxy's answer to a response. Answers come in the order
// of the responses, so one that was passed over was dropped by the proxy.
func (s *Stream) answered(t translate.Type, req *discovery.DeltaDiscoveryRequest) {
	subs := &s.types[t]
	nonce, err := strconv.ParseUint(req.GetResponseNonce(), 10, 64)
	if err != nil {
		return // none of ours
	}
	for i, r := range subs.unacked {
		if r.nonce != nonce {
			continue
		}
		// A new list, or none: an empty part of the old one would keep all of it, and
		// what was told of it, for as long as the stream lasts.
		subs.unacked = append([]response(nil), subs.unacked[i+1:]...)
		if req.GetErrorDetail() != nil {
			s.nacked(t, r, words(req.GetErrorDetail().GetMessage()))
		} else {
			s.acked(t, r)
		}
		return
	}
}

func (s *Stream) acked(t translate.Type, r response) {
	s.effects.Acknowledged = r.since
	if t == translate.Scope {
		s.scopes.acked(r)
		return
	}
	for _, p := range r.parts {
		p.sub.acked, p.sub.ackedAt = p.version, p.at
		if p.sub.rejected != nil && p.sub.why != 0 {
			// The value may be again what was refused: that is to be seen anew.
			s.absolve(p.sub)
			s.types[t].enqueue(p.sub)
		}
	}
}

// MaxMessage is how much is kept of what a proxy says to a refusal, in bytes:
// it is kept for each resource, and a proxy may say anything.
const MaxMessage = 2048

// words is what is kept of a message, in memory of its own.
func words(message string) string {
	if len(message) <= MaxMessage {
		return message
	}
	const more = " …"
	return strings.ToValidUTF8(message[:MaxMessage-len(more)], "") + more
}

func (s *Stream) nacked(t translate.Type, r response, message string) {
	n := &Nack{Type: t, Nonce: strconv.FormatUint(r.nonce, 10), Message: message}
	for _, p := range r.parts {
		n.Names = append(n.Names, p.label())
	}
	s.effects.Refused = n
	if t == translate.Scope {
		s.scopes.nacked(r, message)
		return
	}
	subs := &s.types[t]
	for _, p := range r.parts {
		sub := p.sub
		if sub.why == 0 || sub.nonce != r.nonce {
			continue // it was sent again: the answer to that counts
		}
		if sub.acked == p.version {
			// Envoy takes a load assignment that it did not ask for yet, and
			// drops it: only the answer to its question counts.
			sub.acked, sub.ackedAt = "", 0
		}
		sub.sent, sub.sentAt = sub.acked, sub.ackedAt
		if len(r.parts) == 1 {
			if sub.rejected != nil {
				// The value may be again what was refused before, which kept it from
				// being sent. That refusal is forgotten now, so it is to be seen anew.
				subs.enqueue(sub)
			}
			s.refuse(sub, &Rejection{Version: p.version, Message: message})
			continue
		}
		sub.suspect = true
		if !sub.queued { // else it is to be sent for another reason
			subs.enqueue(sub)
		}
	}
}

func (p part) label() string {
	if p.sub != nil {
		return p.sub.name
	}
	return p.name
}
