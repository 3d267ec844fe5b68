package delta

import (
	"slices"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/build"
)

// scopes is what a stream knows about the collection of scopes. Every proxy
// holds all of them, so it is not a map of names, but the set that was sent
// last, which streams share, and what of it is still to be sent.
type scopes struct {
	// last is the set of which everything was sent or is in todo or gone.
	last     Collection
	todo     []string // sorted; to be sent as last has them
	suspects []string // the same, each alone
	gone     []string
	// held is what the proxy said it has, until it is compared with a set.
	held map[string]string
	// eager are the scopes that this proxy has in their eager form.
	eager    map[string]struct{}
	rejected map[string]*Rejection
	// nothing says that the proxy is still to be told that there is nothing: it
	// does not start before it has an answer.
	nothing bool
}

// eagerMark ends the version of a scope in its eager form, so that a proxy that
// reconnects says which form it has.
const eagerMark = "~"

// sync finds what is to be sent to get from the last set to this one. ahead
// are the scopes whose routes the proxy is made to ask for at once.
func (s *scopes) sync(now Collection, ahead map[string]struct{}) {
	switch {
	case now == nil:
	case s.last == nil:
		s.begin(now, ahead)
	case s.last.At() != now.At():
		names, ok := now.Since(s.last.At())
		if !ok {
			names = difference(s.last, now)
		}
		s.follow(names, now)
	}
}

// begin compares the first set with what the proxy says it holds.
func (s *scopes) begin(now Collection, ahead map[string]struct{}) {
	s.last = now
	s.eager = map[string]struct{}{}
	for name, v := range now.All() {
		held := s.held[name]
		version, eager := strings.CutSuffix(held, eagerMark)
		if _, ok := ahead[name]; eager || ok && held == "" {
			s.eager[name] = struct{}{}
		}
		if held == "" || version != v.Version {
			s.todo = append(s.todo, name)
		}
	}
	for name := range s.held {
		if now.Get(name) == nil {
			s.gone = append(s.gone, name)
		}
	}
	slices.Sort(s.gone)
	s.nothing = now.Len() == 0 && len(s.held) == 0
	s.held = nil
}

func (s *scopes) follow(names []string, now Collection) {
	last := s.last
	s.last = now
	for _, name := range names {
		v, old := now.Get(name), last.Get(name)
		switch {
		case v == nil && old == nil:
		case v == nil:
			s.gone = append(s.gone, name)
			delete(s.rejected, name)
		case old == nil || old.Version != v.Version:
			s.todo = append(s.todo, name)
		}
	}
	s.todo = distinct(s.todo)
}

// distinct sorts names and leaves out repetitions: Envoy refuses a response
// that names something twice.
func distinct(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// difference is the names that are not the same in two sets.
func difference(a, b Collection) []string {
	var out []string
	for name, v := range b.All() {
		if old := a.Get(name); old == nil || old.Version != v.Version {
			out = append(out, name)
		}
	}
	for name := range a.All() {
		if b.Get(name) == nil {
			out = append(out, name)
		}
	}
	return out
}

// waits reports whether there is something to fill a response with.
func (s *scopes) waits() bool { return s.nothing || len(s.todo)+len(s.suspects) > 0 }

func (s *scopes) fill(p *pushing, limit int) {
	for len(s.suspects) > 0 && len(p.parts) == 0 {
		s.add(p, s.suspects[0])
		s.suspects = s.suspects[1:]
	}
	if len(p.parts) > 0 {
		return
	}
	for len(s.todo) > 0 && p.bytes < limit {
		s.add(p, s.todo[0])
		s.todo = s.todo[1:]
	}
	if len(s.todo) == 0 {
		s.todo = nil
	}
	p.empty, s.nothing = s.nothing && len(p.parts) == 0, false
}

func (s *scopes) add(p *pushing, name string) {
	v := s.last.Get(name)
	if v == nil || v.Body == nil {
		return
	}
	if _, ok := s.eager[name]; ok {
		v = eager(v)
	}
	p.add(part{name: name, version: v.Version}, v, name)
}

// eager is the form of a scope whose routes the proxy asks for at once. What
// does not read as a scope stays as it is.
func eager(v *build.Value) *build.Value {
	var scope route.ScopedRouteConfiguration
	if proto.Unmarshal(v.Body.GetValue(), &scope) != nil {
		return v
	}
	scope.OnDemand = false
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&scope)
	if err != nil {
		return v
	}
	return &build.Value{
		Version: v.Version + eagerMark,
		Body:    &anypb.Any{TypeUrl: v.Body.GetTypeUrl(), Value: b},
		At:      v.At,
	}
}

// settled reports whether the proxy took all of a set, but for what it refused.
func (s *scopes) settled(subs *subscriptions) bool {
	return s.last != nil && !s.waits() && len(s.gone)+len(subs.unacked) == 0
}

func (s *scopes) acked(r response) {
	for _, p := range r.parts {
		delete(s.rejected, p.name)
	}
}

func (s *scopes) nacked(r response, message string) {
	for _, p := range r.parts {
		if s.last == nil {
			return
		}
		v := s.last.Get(p.name)
		if v == nil || v.Version != strings.TrimSuffix(p.version, eagerMark) {
			continue // it is gone, or another version is on its way
		}
		if len(r.parts) > 1 {
			s.suspects = append(s.suspects, p.name)
			continue
		}
		if s.rejected == nil {
			s.rejected = map[string]*Rejection{}
		}
		s.rejected[p.name] = &Rejection{Version: p.version, Message: message}
	}
}
