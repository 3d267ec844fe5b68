package server

import (
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
	out := make([]build.Key, len(a.held))
	for i := range a.held {
		out[i] = a.held[i].Key
	}
	return out
}

// remember keeps what the stream's proxy holds, unless the pod is gone or has
// another stream here. It comes before the stream's own subscriptions end.
func (s *Server) remember(st *stream) {
	defer s.acks.note()
	if _, ok := st.current(s.options.Builder.Snapshot()); !ok {
		return
	}
	st.lock.Lock()
	a := &absent{pod: st.peer.Pod, uid: st.peer.UID, left: time.Now()}
	if st.state.Known() {
		for h := range st.state.Holdings() {
			if h.Key.Type != translate.Secret { // or certificates would be issued for nobody
				a.held = append(a.held, h)
			}
		}
	}
	st.lock.Unlock()
	if len(a.held) == 0 {
		return
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.stopped {
		return
	}
	for _, other := range s.byPod[a.uid] {
		if other != st {
			return // of the two streams the newer counts
		}
	}
	s.forget(a.uid)
	s.absent[a.uid] = a
	s.options.Builder.Subscribe(a, a.keys()...)
}

// forget drops what is remembered of the pod. The caller holds the lock.
func (s *Server) forget(uid string) {
	if a := s.absent[uid]; a != nil {
		delete(s.absent, uid)
		s.options.Builder.Unsubscribe(a, a.keys()...)
	}
}

// release is told of pods that are connected to other replicas now.
func (s *Server) release(uids []string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, uid := range uids {
		s.forget(uid)
	}
}
