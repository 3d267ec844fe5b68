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
// acknowledged last, which it goes on doing. It keeps subscribing to what the
// proxy holds, so that it can be told what the proxy would hold now.
type absent struct {
	pod  mesh.Name
	uid  string
	left time.Time
	held []delta.Holding
}

var _ build.Subscriber = (*absent)(nil)

// Changed does nothing: nobody is there to be sent anything.
func (*absent) Changed([]build.Key) {}

func (a *absent) keys() []build.Key {
	out := make([]build.Key, 0, len(a.held))
	for i := range a.held {
		if k := a.held[i].Key; !ownCertificate(k) { // or it would be issued for nobody
			out = append(out, k)
		}
	}
	return out
}

// remember takes the stream from those that count, and keeps what its proxy holds,
// unless the pod is gone or has another stream here. Both are done in one moment: a
// count between them would take the pod for connected, and forget what is kept, or for
// one of which nothing is known. It comes before the stream's own subscriptions end.
func (s *Server) remember(st *stream) {
	defer s.acks.note()
	a := st.remains()
	s.lock.Lock()
	defer s.lock.Unlock()
	uid := st.peer.UID
	rest := slices.DeleteFunc(slices.Clone(s.byPod[uid]), func(other *stream) bool { return other == st })
	if len(rest) > 0 {
		s.byPod[uid] = rest
		return // of the two streams the newer counts
	}
	delete(s.byPod, uid)
	if a == nil || s.stopped {
		return
	}
	s.forget(uid)
	s.absent[uid] = a
	s.options.Builder.Subscribe(a, a.keys()...)
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
	a := &absent{pod: st.peer.Pod, uid: st.peer.UID, left: st.server.options.Now()}
	for h := range st.state.Holdings() {
		if h.Key.Type != translate.Secret || !operators(h.Key.Name) {
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
		s.options.Builder.Unsubscribe(a, a.keys()...)
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

// operators reports whether a secret's name is of a certificate of an operator's, with its
// key.
func operators(secret string) bool {
	return strings.HasPrefix(secret, translate.PrefixCertificate) || strings.HasPrefix(secret, translate.PrefixEnded)
}
