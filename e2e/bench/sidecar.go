package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	prefix       = "type.googleapis.com/envoy."
	urlCluster   = prefix + "config.cluster.v3.Cluster"
	urlEndpoints = prefix + "config.endpoint.v3.ClusterLoadAssignment"
	urlListener  = prefix + "config.listener.v3.Listener"
	urlRoute     = prefix + "config.route.v3.RouteConfiguration"
	urlScope     = prefix + "config.route.v3.ScopedRouteConfiguration"
	urlSecret    = prefix + "extensions.transport_sockets.tls.v3.Secret"
)

// receiveWindow is of a fixed size, as Envoy's is: finding a better one would cost the
// control plane an answer to a ping for each response.
const receiveWindow = 1 << 20

// types are the short names by which bytes are counted.
var types = map[string]string{
	urlCluster: "CDS", urlEndpoints: "EDS", urlListener: "LDS", urlRoute: "RDS", urlScope: "SRDS", urlSecret: "SDS",
}

// traffic counts what sidecars are sent.
type traffic struct{ messages, resources, bytes atomic.Int64 }

// TagRPC, HandleRPC, TagConn and HandleConn make traffic a stats.Handler.
func (t *traffic) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC counts a response as it came over the wire.
func (t *traffic) HandleRPC(_ context.Context, s stats.RPCStats) {
	in, ok := s.(*stats.InPayload)
	if !ok {
		return
	}
	t.bytes.Add(int64(in.WireLength))
	if r, ok := in.Payload.(*discovery.DeltaDiscoveryResponse); ok {
		t.messages.Add(1)
		t.resources.Add(int64(len(r.GetResources()) + len(r.GetRemovedResources())))
	}
}

// TagConn changes nothing.
func (t *traffic) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn counts nothing.
func (t *traffic) HandleConn(context.Context, stats.ConnStats) {}

// sidecar is one simulated proxy. Its fields belong to the goroutine that runs it,
// but for those that say otherwise.
type sidecar struct {
	index int
	plane plane
	board *board
	calls []int // services

	versions   map[string]map[string]string // by type: what it holds
	subscribed map[string]map[string]bool   // by type: what it asked for by name
	asked      map[string]bool              // types of which the stream has asked
	isComplete bool

	send func(*discovery.DeltaDiscoveryRequest) error
	node *core.Node

	lock      sync.Mutex
	stuck     bool // never reads
	gone      bool // does not connect again
	connected bool // since the stream was cut last
	cut       context.CancelFunc
	began     time.Time
	complete  chan struct{} // closed when it has everything for the first time
	took      time.Duration // until then
	failures  atomic.Int64
	lastError atomic.Value
}

func newSidecar(index int, p plane, b *board, calls []int) *sidecar {
	return &sidecar{
		index: index, plane: p, board: b, calls: calls, complete: make(chan struct{}),
		versions: map[string]map[string]string{}, subscribed: map[string]map[string]bool{}, asked: map[string]bool{},
	}
}

// run keeps a stream up until the context ends.
func (s *sidecar) run(ctx context.Context) {
	for ctx.Err() == nil {
		stream, cut := context.WithCancel(ctx)
		s.lock.Lock()
		s.cut, s.began = cut, time.Now()
		gone := s.gone
		s.lock.Unlock()
		if gone {
			cut()
			return
		}
		err := s.stream(stream)
		wanted := stream.Err() != nil
		cut()
		if err == nil || wanted {
			continue
		}
		s.failures.Add(1)
		s.lastError.Store(err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond): // as Envoy's back-off begins
		}
	}
}

// reconnect cuts the stream and has the sidecar come back, knowing what it holds,
// after a change of what it is like (nil for none).
func (s *sidecar) reconnect(change func()) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if change != nil {
		change()
	}
	s.connected = false
	s.cut()
}

// isBack reports whether the sidecar has connected since its stream was cut.
func (s *sidecar) isBack() bool {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.connected
}

// whole is closed when the sidecar has everything that it asked for.
func (s *sidecar) whole() chan struct{} { return s.complete }

func (s *sidecar) stream(ctx context.Context) error {
	conn, err := grpc.NewClient("passthrough:///"+s.plane.address(), s.plane.dial(s.index)...)
	if err != nil {
		return err
	}
	defer conn.Close()
	if ctx, err = s.plane.credentials(ctx, s.index); err != nil {
		return err
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	s.send, s.node, s.asked = stream.Send, s.plane.node(s.index), map[string]bool{}
	if err := s.plane.begin(s); err != nil {
		return err
	}
	s.lock.Lock()
	s.connected = ctx.Err() == nil
	stuck := s.stuck
	s.lock.Unlock()
	if stuck {
		<-ctx.Done()
		return nil
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := s.take(r, time.Now()); err != nil {
			return err
		}
	}
}

// ask asks for everything of a type (no names) or for names of it. The first
// request of a type on a stream says what the sidecar holds of it.
func (s *sidecar) ask(url string, names ...string) error {
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: url, Node: s.node}
	s.node = nil
	if s.subscribed[url] == nil {
		s.subscribed[url] = map[string]bool{}
	}
	for _, n := range names {
		s.subscribed[url][n] = true
		r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, n)
	}
	if !s.asked[url] {
		s.asked[url] = true
		r.InitialResourceVersions = s.versions[url]
	}
	return s.send(r)
}

// take takes in a response, acknowledges it, and asks for what that makes necessary.
func (s *sidecar) take(r *discovery.DeltaDiscoveryResponse, now time.Time) error {
	held := s.versions[r.GetTypeUrl()]
	if held == nil {
		held = map[string]string{}
		s.versions[r.GetTypeUrl()] = held
	}
	for _, one := range r.GetResources() {
		// One text for all sidecars: what this program holds is not what is measured.
		held[unique.Make(one.GetName()).Value()] = unique.Make(one.GetVersion()).Value()
		s.board.received(s.index, r.GetTypeUrl(), one.GetName(), one.GetResource().GetValue(), now)
	}
	for _, name := range r.GetRemovedResources() {
		delete(held, name)
		delete(s.subscribed[r.GetTypeUrl()], name)
	}
	err := s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	if err == nil {
		err = s.plane.follow(s, r)
	}
	if err == nil {
		s.check()
	}
	return err
}

// follow asks for the endpoints of the clusters in a response that get them by EDS.
func (s *sidecar) follow(r *discovery.DeltaDiscoveryResponse) error {
	var names []string
	for _, one := range r.GetResources() {
		if name := endpointsOf(one.GetName(), one.GetResource().GetValue()); name != "" && !s.subscribed[urlEndpoints][name] {
			names = append(names, unique.Make(name).Value())
		}
	}
	if len(names) == 0 {
		return nil
	}
	return s.ask(urlEndpoints, names...)
}

// check looks whether the sidecar has everything.
func (s *sidecar) check() {
	if s.isComplete || s.has() != nil {
		return
	}
	s.isComplete, s.took = true, time.Since(s.began)
	close(s.complete)
}

// has is an error that says what is missing.
func (s *sidecar) has() error {
	if len(s.versions[urlListener]) == 0 || len(s.versions[urlCluster]) == 0 {
		return errors.New("listeners or clusters")
	}
	for url, names := range s.subscribed {
		for n := range names {
			if _, ok := s.versions[url][n]; !ok && n != "*" {
				return fmt.Errorf("%s %s", types[url], n)
			}
		}
	}
	return s.plane.complete(s)
}

// endpointsOf is by which name a cluster gets its endpoints by EDS; "" where it does
// not. Of envoy.config.cluster.v3.Cluster it reads type (2; EDS is 3) and
// eds_cluster_config (3), and of that service_name (2).
func endpointsOf(name string, content []byte) string {
	eds, service := false, ""
	fields(content, func(f protowire.Number, v uint64, inner []byte) {
		switch {
		case f == 2 && v == 3:
			eds = true
		case f == 3 && inner != nil:
			fields(inner, func(f protowire.Number, _ uint64, text []byte) {
				if f == 2 && text != nil {
					service = string(text)
				}
			})
		}
	})
	if !eds {
		return ""
	}
	if service != "" {
		return service
	}
	return name
}

// fields calls f with each field of a message that is a number or has a length.
func fields(b []byte, f func(field protowire.Number, v uint64, content []byte)) {
	for len(b) > 0 {
		n, kind, l := protowire.ConsumeTag(b)
		if l < 0 {
			return
		}
		b = b[l:]
		switch kind {
		case protowire.VarintType:
			v, l := protowire.ConsumeVarint(b)
			if l < 0 {
				return
			}
			f(n, v, nil)
			b = b[l:]
		case protowire.BytesType:
			v, l := protowire.ConsumeBytes(b)
			if l < 0 {
				return
			}
			f(n, 0, v)
			b = b[l:]
		default:
			l := protowire.ConsumeFieldValue(n, kind, b)
			if l < 0 {
				return
			}
			b = b[l:]
		}
	}
}
