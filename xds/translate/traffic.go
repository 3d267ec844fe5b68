package translate

import (
	"slices"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// traffic is how clients of a namespace call a service's port.
type traffic struct {
	timeout     time.Duration  // 0: none
	idle        *time.Duration // nil: no policy says; 0: none
	retries     mesh.Retries
	connections mesh.Connections
	breaker     mesh.CircuitBreaker
	outliers    *mesh.OutlierDetection // nil: see outlierDetection
	balancer    mesh.LoadBalancer
	fault       *mesh.Fault // nil: none
	locality    mesh.LocalityPreference
}

// connectFailure is Envoy's retry condition of a connection that failed. Ours
// includes the one from the server's sidecar to its application.
const connectFailure = "connect-failure"

// defaultRetries tries again what no server has begun to work on: another host
// for a connection that failed, and a stream that was refused. That costs a server
// nothing, so that its budget is no bound but for very many at once.
var defaultRetries = mesh.Retries{
	Attempts: 2, On: []string{connectFailure, "refused-stream", "reset-before-request"},
	Budget: &mesh.RetryBudget{Percent: 100, MinConcurrent: 100},
}

// chosenBudget is of retries whose conditions a policy chose: when all of a service
// fails, its clients do not multiply what they send.
var chosenBudget = mesh.RetryBudget{Percent: 25, MinConcurrent: 20}

const (
	defaultBackOff = 25 * time.Millisecond
	// backOffGrowth is the longest wait in terms of the first, as is Envoy's default.
	backOffGrowth = 10
	// defaultPending is Envoy's own bound.
	defaultPending = 1024
	// maxBackOff is longer than anybody waits.
	maxBackOff = time.Hour
	// maglevTable is the size of the table by which Maglev looks up pods: a prime, and
	// a hundred times the pods of all but the largest services. Envoy's default, 65537,
	// costs each sidecar half a megabyte for each service.
	maglevTable = 16381
)

// trafficFor merges the traffic sections, field by field: the mesh's, the
// service's namespace's, the service's own, and last what the client's own
// namespace says about the service. Where none says which endpoints are preferred,
// the Service itself may.
func trafficFor(client string, service mesh.Name, port uint16, v *mesh.View) traffic {
	out := traffic{retries: defaultRetries, locality: mesh.LocalityPreference{Overprovisioning: mesh.DefaultOverprovisioning}}
	if s, ok := v.Service(service); ok {
		out.locality.Prefer = s.Distribution
	}
	out.merge(trafficPolicies(client, service, port, v))
	return out
}

// merge takes over what policies say, in the order in which they override one another.
func (t *traffic) merge(ps []*mesh.Policy) {
	for _, p := range ps {
		t.take(p.Traffic)
	}
}

// take takes over what a section says.
func (t *traffic) take(from *mesh.Traffic) {
	set(&t.timeout, from.Timeout)
	if from.IdleTimeout != nil {
		t.idle = from.IdleTimeout
	}
	set(&t.connections, from.Connections)
	set(&t.breaker, from.CircuitBreaker)
	set(&t.balancer, from.LoadBalancer)
	set(&t.locality, from.Locality)
	if from.OutlierDetection != nil {
		t.outliers = from.OutlierDetection
	}
	if from.Fault != nil {
		t.fault = from.Fault
	}
	if r := from.Retries; r != nil {
		t.retries = *r
		budget := &chosenBudget
		if len(r.On) == 0 {
			t.retries.On, budget = defaultRetries.On, defaultRetries.Budget
		}
		if r.Budget == nil {
			t.retries.Budget = budget
		}
	}
}

// idleBound is how long nothing may be sent on a request. None at all is said, too: it
// lifts the bound on the wait for the route.
func (t *traffic) idleBound() *durationpb.Duration {
	if t.idle == nil {
		return durationpb.New(0)
	}
	return durationpb.New(*t.idle)
}

// set takes over what is said.
func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// trafficPolicies are those that hold for calls to a service, in the order in which they
// override one another.
func trafficPolicies(client string, service mesh.Name, port uint16, v *mesh.View) []*mesh.Policy {
	root := v.Config().RootNamespace
	broad := func(p *mesh.Policy) bool { return len(p.Targets) == 0 }
	out := overriding(root, v, broad)
	if service.Namespace != root {
		out = append(out, overriding(service.Namespace, v, broad)...)
	}
	return append(out, targeting(client, mesh.Target{Kind: mesh.KindService, Name: service, Port: port}, v)...)
}

// targeting are the policies that name the target, its port or not, in the order in which
// they override one another.
func targeting(client string, target mesh.Target, v *mesh.View) []*mesh.Policy {
	narrow := func(port uint16) func(*mesh.Policy) bool {
		return func(p *mesh.Policy) bool {
			return slices.Contains(p.Targets, mesh.Target{Kind: target.Kind, Name: target.Name, Port: port})
		}
	}
	out := slices.Concat(overriding(target.Namespace, v, narrow(0)), overriding(target.Namespace, v, narrow(target.Port)))
	if client != target.Namespace {
		out = slices.Concat(out, overriding(client, v, narrow(0)), overriding(client, v, narrow(target.Port)))
	}
	return out
}

// overriding are a namespace's policies that fit, the oldest last: it wins.
func overriding(ns string, v *mesh.View, fits func(*mesh.Policy) bool) []*mesh.Policy {
	ps := v.Policies(ns, mesh.SectionTraffic, func(p *mesh.Policy) bool { return p.Invalid == "" && fits(p) })
	slices.Reverse(ps)
	return ps
}

// routeTraffic are the traffic sections about a route, in the order in which they
// override one another. They go before those about the Service that is called, and
// behind what the route's own rules say.
func routeTraffic(r *mesh.Route, v *mesh.View) []*mesh.Traffic {
	var out []*mesh.Traffic
	about := mesh.Target{Kind: r.Of, Name: r.Meta.Name}
	for _, p := range v.Policies(r.Meta.Namespace, mesh.SectionTraffic, func(p *mesh.Policy) bool {
		return p.Invalid == "" && slices.Contains(p.Targets, about)
	}) {
		out = append(out, p.Traffic)
	}
	slices.Reverse(out) // the oldest last: it wins
	return out
}

// shape makes a cluster as the policies say that it is called, by requests of HTTP or by
// connections.
func (t *traffic) shape(c *cluster.Cluster, http bool) {
	if d := t.connections.ConnectTimeout; d > 0 {
		c.ConnectTimeout = durationpb.New(d)
	}
	if k := t.connections.Keepalive; k != nil {
		c.UpstreamConnectionOptions = &cluster.UpstreamConnectionOptions{TcpKeepalive: keepalive(k)}
	}
	c.CircuitBreakers = t.breakers()
	t.balance(c)
	c.OutlierDetection = outlierDetection(t.outliers, http)
	// Envoy's workers hear of an endpoint that is left out as much as a second later by
	// default, when another was left out or let in within that second, as pods are that fail
	// together; and what they send meanwhile fails.
	c.CommonLbConfig = &cluster.Cluster_CommonLbConfig{UpdateMergeWindow: seconds(0)}
}

func keepalive(k *mesh.Keepalive) *core.TcpKeepalive {
	out := &core.TcpKeepalive{}
	for _, f := range []struct {
		to **wrapperspb.UInt32Value
		n  uint32
	}{
		{&out.KeepaliveTime, uint32(k.Time / time.Second)},
		{&out.KeepaliveInterval, uint32(k.Interval / time.Second)},
		{&out.KeepaliveProbes, k.Probes},
	} {
		if f.n > 0 {
			*f.to = wrapperspb.UInt32(f.n)
		}
	}
	return out
}

// breakers are Envoy's thresholds. Its own of 1,024 are lifted, which a busy service
// meets by itself.
func (t *traffic) breakers() *cluster.CircuitBreakers {
	const most = 1<<32 - 1
	bound := func(n *uint32) *wrapperspb.UInt32Value {
		if n == nil {
			return wrapperspb.UInt32(most)
		}
		return wrapperspb.UInt32(*n)
	}
	th := &cluster.CircuitBreakers_Thresholds{
		MaxConnections:     bound(t.breaker.MaxConnections),
		MaxPendingRequests: bound(t.pending()),
		MaxRequests:        bound(t.breaker.MaxRequests),
		MaxRetries:         wrapperspb.UInt32(most),
	}
	if b := t.retries.Budget; b != nil {
		th.MaxRetries = nil
		th.RetryBudget = &cluster.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent: &typev3.Percent{Value: float64(b.Percent)}, MinRetryConcurrency: wrapperspb.UInt32(b.MinConcurrent),
		}
	}
	out := &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{th}}
	if n := t.breaker.MaxConnectionsPerPod; n != nil {
		out.PerHostThresholds = []*cluster.CircuitBreakers_Thresholds{{MaxConnections: wrapperspb.UInt32(*n)}}
	}
	return out
}

// pending bounds the requests that wait for a connection, where they may have to.
func (t *traffic) pending() *uint32 {
	b := t.breaker
	if b.MaxPendingRequests != nil || b.MaxConnections == nil && b.MaxConnectionsPerPod == nil {
		return b.MaxPendingRequests
	}
	most := uint32(defaultPending)
	return &most
}

func (t *traffic) balance(c *cluster.Cluster) {
	var slow *cluster.Cluster_SlowStartConfig
	if d := t.balancer.SlowStart; d > 0 {
		slow = &cluster.Cluster_SlowStartConfig{SlowStartWindow: durationpb.New(d)}
	}
	switch t.balancer.Type {
	case mesh.RoundRobin:
		c.LbPolicy = cluster.Cluster_ROUND_ROBIN
		if slow != nil {
			c.LbConfig = &cluster.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &cluster.Cluster_RoundRobinLbConfig{SlowStartConfig: slow}}
		}
	case mesh.Random:
		c.LbPolicy = cluster.Cluster_RANDOM
	case mesh.Maglev:
		c.LbPolicy = cluster.Cluster_MAGLEV
		c.LbConfig = &cluster.Cluster_MaglevLbConfig_{MaglevLbConfig: &cluster.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(maglevTable)}}
	case mesh.RingHash:
		c.LbPolicy = cluster.Cluster_RING_HASH
	default:
		c.LbPolicy = cluster.Cluster_LEAST_REQUEST
		if slow != nil {
			c.LbConfig = &cluster.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &cluster.Cluster_LeastRequestLbConfig{SlowStartConfig: slow}}
		}
	}
}

// absence is when an endpoint is left out that gives no connection, or no answer in time,
// where no policy says otherwise: after so many failures in a row, for so long, and at
// last for so long. A pod that is gone, and of which the proxy was not told, costs a
// time-out each time. Envoy tells the one from the other no more than that; a stream that
// gets a connection begins the count anew. So it is for seconds, and where all are left
// out, the last resort is called, and where that fails too, all are tried (Envoy's panic
// threshold).
type absence struct {
	failures       uint32
	first, longest time.Duration
}

var (
	// Of requests the last attempt goes by the last resort whatever is left out
	// (retryPolicy), and a failure may be a slow answer.
	requestsLeave = absence{failures: 3, first: 5 * time.Second, longest: 15 * time.Second}
	// A connection is tried again at an endpoint that is any of those which are not left
	// out: an application that opens one after the other finds the way past those that are
	// gone only if they are left out sooner than they come back. With the connect timeout of
	// 2 s it gets past two of them within 6 s, and past five within 12, where a last resort
	// is behind them: else Envoy tries all when more than half are left out.
	connectionsLeave = absence{failures: 1, first: 10 * time.Second, longest: 30 * time.Second}
)

// absenceChecked is how often those that are left out are looked at.
const absenceChecked = time.Second

// outlierDetection counts failures in a row alone: what Envoy makes of success rates
// by default, nobody asked for. nil: of what cannot be reached alone.
func outlierDetection(o *mesh.OutlierDetection, http bool) *cluster.OutlierDetection {
	enforced := func(n uint32) *wrapperspb.UInt32Value {
		if n == 0 {
			return wrapperspb.UInt32(0)
		}
		return wrapperspb.UInt32(100)
	}
	a := requestsLeave
	if !http && o == nil {
		a = connectionsLeave
	}
	out := &cluster.OutlierDetection{
		Interval:                               durationpb.New(absenceChecked),
		BaseEjectionTime:                       durationpb.New(a.first),
		MaxEjectionTime:                        durationpb.New(a.longest),
		MaxEjectionPercent:                     wrapperspb.UInt32(100),
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveLocalOriginFailure:          wrapperspb.UInt32(a.failures),
		EnforcingConsecutiveLocalOriginFailure: wrapperspb.UInt32(100),
		EnforcingLocalOriginSuccessRate:        wrapperspb.UInt32(0),
		EnforcingConsecutive_5Xx:               wrapperspb.UInt32(0),
		EnforcingSuccessRate:                   wrapperspb.UInt32(0),
		EnforcingFailurePercentage:             wrapperspb.UInt32(0),
	}
	if o == nil {
		return out
	}
	out.Interval = durationpb.New(o.Interval)
	out.BaseEjectionTime = durationpb.New(o.BaseEjectionTime)
	out.MaxEjectionTime = durationpb.New(max(o.MaxEjectionTime, o.BaseEjectionTime))
	out.MaxEjectionPercent = wrapperspb.UInt32(o.MaxEjectionPercent)
	out.AlwaysEjectOneHost = wrapperspb.Bool(o.MaxEjectionPercent > 0)
	out.EnforcingConsecutive_5Xx = enforced(o.Consecutive5xx)
	out.EnforcingConsecutiveGatewayFailure = enforced(o.ConsecutiveGatewayErrors)
	if o.Consecutive5xx > 0 {
		out.Consecutive_5Xx = wrapperspb.UInt32(o.Consecutive5xx)
	}
	if o.ConsecutiveGatewayErrors > 0 {
		out.ConsecutiveGatewayFailure = wrapperspb.UInt32(o.ConsecutiveGatewayErrors)
	}
	return out
}

// protocols are the HTTP options of a cluster whose connections are used for new
// requests for at most so long.
func (t *traffic) protocols(age time.Duration) *core.HttpProtocolOptions {
	if d := t.connections.MaxDuration; d > 0 {
		age = min(age, d)
	}
	out := &core.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(maxHeaders), MaxConnectionDuration: seconds(age)}
	if d := t.connections.IdleTimeout; d > 0 {
		out.IdleTimeout = durationpb.New(d)
	}
	if n := t.connections.MaxRequests; n > 0 {
		out.MaxRequestsPerConnection = wrapperspb.UInt32(n)
	}
	return out
}

// hash is by what of a request its pod is chosen.
func (t *traffic) hash() []*route.RouteAction_HashPolicy {
	if t.balancer.Type != mesh.Maglev && t.balancer.Type != mesh.RingHash {
		return nil
	}
	return []*route.RouteAction_HashPolicy{hashPolicy(t.balancer.Hash)}
}

func hashPolicy(h mesh.Hash) *route.RouteAction_HashPolicy {
	p := &route.RouteAction_HashPolicy{}
	switch {
	case h.Header != "":
		p.PolicySpecifier = &route.RouteAction_HashPolicy_Header_{Header: &route.RouteAction_HashPolicy_Header{HeaderName: h.Header}}
	case h.Cookie != "":
		c := &route.RouteAction_HashPolicy_Cookie{Name: h.Cookie, Path: h.Path}
		if h.TTL != nil {
			c.Ttl = durationpb.New(*h.TTL)
		}
		p.PolicySpecifier = &route.RouteAction_HashPolicy_Cookie_{Cookie: c}
	default:
		p.PolicySpecifier = &route.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &route.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
	}
	return p
}
