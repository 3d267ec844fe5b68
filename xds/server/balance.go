package server

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Streams last for days, and replicas come and go: without more, a replica that
// is new would serve only pods that are new. So a stream ends at a certain age,
// and a replica that has more than its share gives some away. A proxy whose
// stream ends connects anew, over a new connection and so to any replica; it is
// sent nothing that it has.

const (
	// ageJitter is how far a stream's age limit may be from the middle.
	ageJitter = 0.2
	// agePatience is how long a stream that has reached its age waits for a
	// moment at which its proxy has acknowledged everything.
	agePatience = time.Minute
	// balanceEvery is how often a replica looks whether it has too much, and
	// shedPart is how much of that it gives away then: it may come back.
	balanceEvery = 2 * time.Second
	shedPart     = 5
	// tolerance is the part of its share by which a replica may exceed it, so
	// that chance does not keep proxies moving.
	tolerance = 0.2
)

var (
	errAged = status.Error(codes.Unavailable, "this stream has reached its age: connect again")
	errShed = status.Error(codes.Unavailable, "this replica has more than its share of proxies: connect to another")
)

// The reasons for which a stream is ended here, as the metric says.
const (
	endedAge     = "age"
	endedBalance = "balance"
)

// lifetime is how long one stream may last.
func lifetime(middle time.Duration) time.Duration {
	return time.Duration(float64(middle) * (1 - ageJitter + 2*ageJitter*rand.Float64()))
}

// age ends the stream when it has reached its age, at a moment at which nothing
// is under way, if there is one. A timer, for a goroutine would be there for hours.
func (st *stream) age(ctx context.Context) {
	st.ageAfter(ctx, lifetime(st.server.options.MaxStreamAge), time.Time{})
}

func (st *stream) ageAfter(ctx context.Context, wait time.Duration, deadline time.Time) {
	t := time.AfterFunc(wait, func() {
		if deadline.IsZero() {
			deadline = time.Now().Add(agePatience)
		}
		switch {
		case ctx.Err() != nil:
		case st.settled() || time.Now().After(deadline):
			st.end(errAged, endedAge)
		default:
			st.ageAfter(ctx, time.Second, deadline)
		}
	})
	context.AfterFunc(ctx, func() { t.Stop() })
}

func (st *stream) end(why error, reason string) {
	st.server.metrics.ended.WithLabelValues(reason).Inc()
	st.close(why)
}

// settled reports whether the proxy has acknowledged everything.
func (st *stream) settled() bool {
	st.lock.Lock()
	defer st.lock.Unlock()
	st.in.Lock()
	defer st.in.Unlock()
	return len(st.dirty)+len(st.taking) == 0 && st.state.Quiet()
}

// Balance sheds streams while this replica has more than its share, until the
// context ends. The share is the cost of all proxies by the number of replicas;
// what the proxies of others cost is taken to be like what those here do.
func (s *Server) Balance(ctx context.Context) error {
	if s.options.Replicas == nil {
		return nil
	}
	tick := time.NewTicker(balanceEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.shed(s.options.Replicas())
		}
	}
}

// shed gives away a part of what this replica has too much, one of so many.
func (s *Server) shed(replicas int) {
	if replicas < 2 {
		return
	}
	proxies := 0
	for w := range s.options.Builder.Built().Workloads() {
		if w.Started && !w.Terminal {
			proxies++
		}
	}
	streams := s.all()
	costs, total := make([]int, len(streams)), 0
	for i, st := range streams {
		costs[i] = st.cost()
		total += costs[i]
	}
	excess := excessCost(total, len(streams), proxies, replicas)
	if excess == 0 {
		return
	}
	excess = (excess + shedPart - 1) / shedPart
	for _, i := range rand.Perm(len(streams)) {
		if excess <= 0 {
			return
		}
		if streams[i].settled() {
			streams[i].end(errShed, endedBalance)
			excess -= costs[i]
		}
	}
}

// excessCost is what the replica's streams cost beyond its share; 0 while that
// is within the tolerance, or less than one stream.
func excessCost(total, streams, proxies, replicas int) int {
	if streams == 0 {
		return 0
	}
	mean := float64(total) / float64(streams)
	share := mean * float64(max(proxies, streams)) / float64(replicas)
	if excess := float64(total) - share; excess > tolerance*share && excess >= mean {
		return int(excess)
	}
	return 0
}

// cost is what a stream costs, in names that the proxy holds: each is looked at
// when it changes, and sent again when it does.
func (st *stream) cost() int {
	st.lock.Lock()
	defer st.lock.Unlock()
	return 1 + st.state.Names()
}
