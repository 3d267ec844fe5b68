package server

import (
	"slices"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// absent is what is left of a stream whose pod is still there: what its proxy
// acknowledged last, which it goes on doing. The stream's subscriber goes on subscribing to
// what the proxy holds, so that it can be told what the proxy would hold now.
type absent struct {
	pod        mesh.Name
	uid        string
	left       time.Time
	held       []delta.Holding
	subscriber *subscriber
}

// keys are what is still subscribed to.
func (a *absent) keys() []build.Key {
	out := make([]build.Key, 0, len(a.held))
	for i := range a.held {
		if k := a.held[i].Key; lasts(k) {
			out = append(out, k)
		}
	}
	return out
}

// lasts reports whether a subscription outlasts its stream. That to the proxy's own
// certificate does not, or it would be issued for nobody, nor those to certificates of
// operators, with their keys, and to all scopes. Of these only the first is among what is held.
func lasts(k build.Key) bool {
	return !ownCertificate(k) && !operators(k) && k != build.AllScopes
}

// remember takes the stream from those that count, and keeps what its proxy holds,
// unless the pod is gone or has another stream here: false then. Both are done in one
// moment: a count between them would take the pod for connected, and forget what is kept, or
// for one of which nothing is known.
func (s *Server) remember(st *stream) bool {
	defer s.acks.note()
	a := st.remains()
	s.lock.Lock()
	defer s.lock.Unlock()
	uid := st.peer.UID
	rest := slices.DeleteFunc(slices.Clone(s.byPod[uid]), func(other *stream) bool { return other == st })
	if len(rest) > 0 {
		s.byPod[uid] = rest
		return false // the other counts
	}
	delete(s.byPod, uid)
	if a == nil || s.stopped {
		return false
	}
	s.forget(uid)
	s.absent[uid] = a
	return true
}

// remains are what its proxy holds as the stream ends; nil if there is nothing, or the
// pod is gone.
func (st *stream) remains() *absent {
	if _, ok := st.current(st.server.options.Builder.Snapshot()); !ok {
		return nil
	}
	st.lock.Lock()
	defer st.lock.Unlock()
	if !st.state.Known() {
		return nil
	}
	a := &absent{pod: st.peer.Pod, uid: st.peer.UID, left: st.server.options.Now(), subscriber: st.subscriber}
	for h := range st.state.Holdings() {
		if lasts(h.Key) || ownCertificate(h.Key) {
			a.held = append(a.held, h)
		}
	}
	if len(a.held) == 0 {
		return nil
	}
	return a
}

// forget drops what is remembered of the pod. The caller holds the lock.
func (s *Server) forget(uid string) {
	if a := s.absent[uid]; a != nil {
		delete(s.absent, uid)
		s.options.Builder.Unsubscribe(a.subscriber, a.keys()...)
	}
}

// release is told of pods that are connected to other replicas now. What is
// forgotten counts no longer, of which nothing else tells.
func (s *Server) release(uids []string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, uid := range uids {
		if s.absent[uid] != nil {
			s.forget(uid)
			s.acks.note()
		}
	}
}

// operators reports whether the key is of a certificate of an operator's, with its key.
func operators(k build.Key) bool {
	return k.Type == translate.Secret && (strings.HasPrefix(k.Name, translate.PrefixCertificate) || strings.HasPrefix(k.Name, translate.PrefixEnded))
}
