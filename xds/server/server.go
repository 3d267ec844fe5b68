package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Builder is what a server needs of [build.Builder].
type Builder interface {
	Subscribe(s build.Subscriber, keys ...build.Key)
	Unsubscribe(s build.Subscriber, keys ...build.Key)
	Follow(who build.Follower, f mesh.Fact)
	Unfollow(who build.Follower, f mesh.Fact)
	Value(k build.Key) *build.Value
	Scopes() *build.Collection
	Snapshot() *mesh.Snapshot
	Built() *mesh.Snapshot
	Uses() uint64
	Stakes() uint64
	Suppose(ctx context.Context, changes ...mesh.Change) (*build.Supposition, error)
}

// Verifier tells whose a token is. Its errors are [*AuthError].
type Verifier interface {
	Verify(ctx context.Context, token string) (Peer, error)
}

// Options are what a Server needs.
type Options struct {
	Builder Builder
	Tokens  Verifier
	// TLS is the server's side; nil serves in the clear, for tests.
	TLS *tls.Config
	// Replica is this control plane's own name, for whoever asks where a proxy
	// is connected.
	Replica string
	// Limits bound each stream.
	Limits delta.Limits
	// StreamsPerPod is how many streams one pod may have; default 4. A further
	// one closes the oldest: a proxy that lost its connection must not be kept
	// out by what is left of it.
	StreamsPerPod int
	// PodWait is how long an authentic peer waits for its pod to be known here;
	// default 10 s.
	PodWait time.Duration
	// Opened is called whenever a stream has been opened, by several goroutines at once,
	// and must not wait; may be nil.
	Opened func()
	// MaxStreamAge is about how long a stream lasts; 0: without limit.
	MaxStreamAge time.Duration
	// Replicas is how many replicas serve proxies, this one included; nil: how
	// streams are spread is no concern.
	Replicas func() int
	Log      logr.Logger
	Metrics  prometheus.Registerer // may be nil
	// Now is the wall clock, of what other replicas are told; nil: time.Now.
	Now func() time.Time
}

// Limits of one connection. A request of Envoy's names each resource that it
// holds with its version, some 100 bytes each.
const (
	maxReceive        = 4 << 20
	receiveWindow     = 64 << 10
	streamsPerConn    = 16
	handshakeTimeout  = 10 * time.Second
	keepaliveInterval = 30 * time.Second
	keepaliveTimeout  = 20 * time.Second
	clientPings       = 10 * time.Second // a client may not ping more often
	idleConnection    = time.Minute      // without a stream; anybody can open one
	stopTimeout       = 5 * time.Second
)

// Server serves proxies.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	options  Options
	metrics  *metrics
	siblings *siblings

	lock    sync.Mutex
	streams map[*stream]struct{}
	byPod   map[string][]*stream // those that serve, by UID, the oldest first
	absent  map[string]*absent   // by UID
	stopped bool
	writers sync.WaitGroup
	acks    reporter

	previews chan struct{} // has the one that is being made
}

// New makes a server.
func New(o Options) (*Server, error) {
	if o.Builder == nil || o.Tokens == nil {
		return nil, errors.New("making the xDS server: a builder and a verifier of tokens are needed")
	}
	if o.StreamsPerPod == 0 {
		o.StreamsPerPod = 4
	}
	if o.PodWait == 0 {
		o.PodWait = 10 * time.Second
	}
	if o.Opened == nil {
		o.Opened = func() {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of the xDS server: %w", err)
	}
	return &Server{
		options: o, metrics: m, siblings: newSiblings(),
		streams: map[*stream]struct{}{}, byPod: map[string][]*stream{}, absent: map[string]*absent{},
		acks: newReporter(), previews: make(chan struct{}, 1),
	}, nil
}

// ListenAndServe serves on the address until the context ends.
func (s *Server) ListenAndServe(ctx context.Context, address string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listening for proxies: %w", err)
	}
	return s.Serve(ctx, l)
}

// Serve serves on the listener until the context ends; then it tells all
// proxies to connect elsewhere. It is called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxConcurrentStreams(streamsPerConn),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ForceServerCodecV2(newCodec()),
		// Windows of a fixed size: what proxies send is small, and to find a better
		// size costs a ping and its answer for each acknowledgement.
		grpc.StaticStreamWindowSize(receiveWindow),
		grpc.StaticConnWindowSize(receiveWindow),
		grpc.ReadBufferSize(0), // TLS has its own, which holds a whole record
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleConnection, Time: keepaliveInterval, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: clientPings, PermitWithoutStream: true}),
	}
	if s.options.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(s.options.TLS)))
	}
	g := grpc.NewServer(options...)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
	stop := context.AfterFunc(ctx, func() { s.stop(g) })
	err := g.Serve(l)
	if !stop() { // stopped: wait until that is done
		g.Stop()
		s.writers.Wait()
		s.lock.Lock()
		defer s.lock.Unlock()
		for uid := range s.absent {
			s.forget(uid)
		}
		return nil
	}
	return fmt.Errorf("serving proxies: %w", err)
}

func (s *Server) stop(g *grpc.Server) {
	force := time.AfterFunc(stopTimeout, g.Stop)
	defer force.Stop()
	s.lock.Lock()
	s.stopped = true
	for st := range s.streams {
		st.close(errStopping)
	}
	s.lock.Unlock()
	g.GracefulStop()
}

var (
	errStopping = status.Error(codes.Unavailable, "this control plane is stopping: connect to another")
	errNewer    = status.Error(codes.ResourceExhausted, "the pod has opened too many streams: this, the oldest, is closed")
	errDone     = errors.New("the proxy has no more to say")
	errPodGone  = status.Error(codes.Unauthenticated, "the pod that this stream belongs to is gone")
)

// StreamAggregatedResources refuses the state-of-the-world protocol.
func (s *Server) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "only incremental xDS is served: set api_type: DELTA_GRPC in the proxy's ads_config")
}

// DeltaAggregatedResources serves one proxy.
func (s *Server) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	peer, workload, err := s.authenticate(rpc.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(rpc.Context())
	defer cancel(nil)
	st, err := s.open(rpc, peer, workload, cancel)
	if err != nil {
		return err
	}
	defer s.closed(st)
	s.options.Opened()
	go st.read()
	s.writers.Go(func() { st.write(ctx) })
	if s.options.MaxStreamAge > 0 {
		st.age(ctx)
	}
	<-ctx.Done()
	cause := context.Cause(ctx)
	if rpc.Context().Err() != nil || errors.Is(cause, errDone) {
		return nil // the peer went away
	}
	return cause
}

// open enters a new stream.
func (s *Server) open(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, p Peer, w *mesh.Workload, cancel context.CancelCauseFunc) (*stream, error) {
	config := s.options.Builder.Snapshot().Config()
	id, err := p.identity(config.TrustDomain)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	st := newStream(s, rpc, p, w, id, cancel)
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.stopped {
		return nil, errStopping
	}
	s.streams[st] = struct{}{}
	mine := append(s.byPod[p.UID], st)
	if len(mine) > s.options.StreamsPerPod {
		mine[0].close(errNewer)
		mine = mine[1:]
	}
	s.byPod[p.UID] = mine
	s.metrics.streams.Inc()
	return st, nil
}

func (s *Server) closed(st *stream) {
	s.lock.Lock()
	defer s.lock.Unlock()
	delete(s.streams, st)
	s.metrics.streams.Dec()
}

// all are the streams that are open now.
func (s *Server) all() []*stream {
	s.lock.Lock()
	defer s.lock.Unlock()
	out := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		out = append(out, st)
	}
	return out
}

// PodsOf names some of the pods that are connected as the identity, sorted.
func (s *Server) PodsOf(identity string) []string {
	const most = 8
	var out []string
	s.lock.Lock()
	for st := range s.streams {
		if st.identity == identity {
			out = append(out, st.peer.Pod.String())
		}
	}
	s.lock.Unlock()
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), most)]
}
