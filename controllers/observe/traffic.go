package observe

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// The defaults are the CRD's; an object may have been stored under an older one.
const (
	defaultRetryPercent       = 20
	defaultMinRetries         = 3
	defaultConsecutive5xx     = 5
	defaultMaxEjectionPercent = 10
	defaultOutlierInterval    = 10 * time.Second
	defaultEjectionTime       = 30 * time.Second
	defaultMaxEjectionTime    = 5 * time.Minute
)

// longestKeepalive is what Linux takes (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL): with
// more there would be no connection at all.
const longestKeepalive = 32767 * time.Second

func traffic(t *v1alpha1.Traffic, bad *problems) *mesh.Traffic {
	if t == nil {
		return nil
	}
	const field = "spec.traffic"
	out := &mesh.Traffic{
		Timeout:          bad.duration(field+".timeout", t.Timeout),
		IdleTimeout:      bad.duration(field+".idleTimeout", t.IdleTimeout),
		Retries:          retries(field+".retries", t.Retries, bad),
		Connections:      connections(field+".connections", t.Connections, bad),
		CircuitBreaker:   circuitBreaker(field+".circuitBreaker", t.CircuitBreaker, bad),
		OutlierDetection: outlierDetection(field+".outlierDetection", t.OutlierDetection, bad),
		Fault:            fault(field+".fault", t.Fault, bad),
	}
	if l := t.LoadBalancer; l != nil {
		out.Locality = locality(field+".loadBalancer.locality", l.Locality, bad)
		if l.Locality == nil || l.Type != "" || l.Hash != nil || l.SlowStart != nil {
			out.LoadBalancer = loadBalancer(field+".loadBalancer", l, bad)
		}
	}
	return out
}

func retries(field string, r *v1alpha1.Retries, bad *problems) *mesh.Retries {
	if r == nil {
		return nil
	}
	out := &mesh.Retries{
		Attempts:      bad.count(field+".attempts", &r.Attempts, 0),
		PerTryTimeout: bad.time(field+".perTryTimeout", r.PerTryTimeout, 0),
	}
	for _, c := range r.RetryOn {
		out.On = append(out.On, string(c))
	}
	if b := r.BackOff; b != nil {
		out.Base = bad.time(field+".backOff.base", b.Base, 0)
		out.Max = bad.time(field+".backOff.max", b.Max, 0)
	}
	if b := r.Budget; b != nil {
		percent := b.Percent
		if percent == 0 {
			percent = defaultRetryPercent
		}
		out.Budget = &mesh.RetryBudget{
			Percent:       bad.percent(field+".budget.percent", &percent, 0),
			MinConcurrent: bad.count(field+".budget.minConcurrent", b.MinConcurrent, defaultMinRetries),
		}
	}
	return out
}

func connections(field string, c *v1alpha1.Connections, bad *problems) *mesh.Connections {
	if c == nil {
		return nil
	}
	out := &mesh.Connections{
		ConnectTimeout: bad.time(field+".connectTimeout", c.ConnectTimeout, 0),
		IdleTimeout:    bad.time(field+".idleTimeout", c.IdleTimeout, 0),
		MaxDuration:    bad.time(field+".maxDuration", c.MaxDuration, 0),
		MaxRequests:    bad.count(field+".maxRequests", c.MaxRequests, 0),
	}
	if k := c.Keepalive; k != nil {
		out.Keepalive = &mesh.Keepalive{
			Time:     min(bad.time(field+".keepalive.time", k.Time, 0), longestKeepalive),
			Interval: min(bad.time(field+".keepalive.interval", k.Interval, 0), longestKeepalive),
			Probes:   bad.count(field+".keepalive.probes", k.Probes, 0),
		}
	}
	return out
}

func circuitBreaker(field string, c *v1alpha1.CircuitBreaker, bad *problems) *mesh.CircuitBreaker {
	if c == nil {
		return nil
	}
	bound := func(name string, n *int32) *uint32 {
		if n == nil {
			return nil
		}
		most := bad.count(field+"."+name, n, 0)
		return &most
	}
	return &mesh.CircuitBreaker{
		MaxConnections:       bound("maxConnections", c.MaxConnections),
		MaxConnectionsPerPod: bound("maxConnectionsPerPod", c.MaxConnectionsPerPod),
		MaxPendingRequests:   bound("maxPendingRequests", c.MaxPendingRequests),
		MaxRequests:          bound("maxRequests", c.MaxRequests),
	}
}

func outlierDetection(field string, o *v1alpha1.OutlierDetection, bad *problems) *mesh.OutlierDetection {
	if o == nil {
		return nil
	}
	return &mesh.OutlierDetection{
		Consecutive5xx:           bad.count(field+".consecutive5xx", o.Consecutive5xx, defaultConsecutive5xx),
		ConsecutiveGatewayErrors: bad.count(field+".consecutiveGatewayErrors", o.ConsecutiveGatewayErrors, 0),
		Interval:                 bad.time(field+".interval", o.Interval, defaultOutlierInterval),
		BaseEjectionTime:         bad.time(field+".baseEjectionTime", o.BaseEjectionTime, defaultEjectionTime),
		MaxEjectionTime:          bad.time(field+".maxEjectionTime", o.MaxEjectionTime, defaultMaxEjectionTime),
		MaxEjectionPercent:       bad.percent(field+".maxEjectionPercent", o.MaxEjectionPercent, defaultMaxEjectionPercent),
	}
}

func loadBalancer(field string, l *v1alpha1.LoadBalancer, bad *problems) *mesh.LoadBalancer {
	out := &mesh.LoadBalancer{SlowStart: bad.time(field+".slowStart", l.SlowStart, 0)}
	switch l.Type {
	case "", v1alpha1.LeastRequest:
	case v1alpha1.RoundRobin:
		out.Type = mesh.RoundRobin
	case v1alpha1.Random:
		out.Type = mesh.Random
	case v1alpha1.ConsistentHash:
		out.Type = mesh.Maglev
	default:
		bad.add("%s.type: %q is no type: write LeastRequest, RoundRobin, Random or ConsistentHash", field, l.Type)
	}
	if out.Type != mesh.Maglev {
		return out
	}
	h := l.Hash
	if h == nil {
		h = &v1alpha1.Hash{}
	}
	switch h.Algorithm {
	case "", "Maglev":
	case "RingHash":
		out.Type = mesh.RingHash
	default:
		bad.add("%s.hash.algorithm: %q is no algorithm: write Maglev or RingHash", field, h.Algorithm)
	}
	out.Hash = *bad.hash(field+".hash", h.Header, h.Cookie, h.SourceIP)
	return out
}

// hash converts by what of a request something is chosen.
func (p *problems) hash(field, header string, cookie *v1alpha1.HashCookie, sourceIP bool) *mesh.Hash {
	if header == "" && cookie == nil && !sourceIP {
		p.add("%s: it does not say by what to choose: write one of header, cookie and sourceIP", field)
	}
	out := &mesh.Hash{Header: header, SourceIP: sourceIP}
	if cookie != nil {
		out.Cookie, out.Path = cookie.Name, cookie.Path
		out.TTL = p.duration(field+".cookie.ttl", cookie.TTL)
	}
	return out
}

func locality(field string, l *v1alpha1.Locality, bad *problems) *mesh.LocalityPreference {
	if l == nil {
		return nil
	}
	out := &mesh.LocalityPreference{Overprovisioning: bad.count(field+".overprovisioningFactor", l.OverprovisioningFactor, mesh.DefaultOverprovisioning)}
	if out.Overprovisioning < 100 {
		bad.add("%s.overprovisioningFactor: with %d percent pods that can all be called would not carry their traffic: write 100 or more", field, out.Overprovisioning)
	}
	switch l.Prefer {
	case v1alpha1.PreferNone:
	case v1alpha1.PreferSameRegion:
		out.Prefer = mesh.SameRegion
	case v1alpha1.PreferSameZone:
		out.Prefer = mesh.SameZone
	case v1alpha1.PreferSameNode:
		out.Prefer = mesh.SameNode
	default:
		bad.add("%s.prefer: %q is no preference: write None, SameRegion, SameZone or SameNode", field, l.Prefer)
	}
	for i, f := range l.Failover {
		if f.From == "" || f.To == "" || f.From == f.To {
			bad.add("%s.failover[%d]: from %q to %q is no way from a region to another: name two regions", field, i, f.From, f.To)
		}
		out.Failover = append(out.Failover, mesh.RegionFailover{From: f.From, To: f.To})
	}
	return out
}

// time converts a duration that has a default.
func (p *problems) time(field string, d *metav1.Duration, otherwise time.Duration) time.Duration {
	if out := p.duration(field, d); out != nil {
		return *out
	}
	return otherwise
}

// count converts a number that has a default.
func (p *problems) count(field string, n *int32, otherwise uint32) uint32 {
	if n == nil {
		return otherwise
	}
	if *n < 0 {
		p.add("%s: %d is negative: write 0 or more", field, *n)
		return otherwise
	}
	return uint32(*n)
}

func (p *problems) percent(field string, n *int32, otherwise uint32) uint32 {
	out := p.count(field, n, otherwise)
	if out > 100 {
		p.add("%s: %d is more than 100 percent", field, out)
		return 100
	}
	return out
}
