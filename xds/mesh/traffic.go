package mesh

import "time"

// Traffic is a policy's traffic section: how clients call the target. What is nil
// is not said.
type Traffic struct {
	Timeout          *time.Duration // of a whole request; 0: none
	IdleTimeout      *time.Duration // of a request; 0: none
	Retries          *Retries
	Connections      *Connections
	CircuitBreaker   *CircuitBreaker
	OutlierDetection *OutlierDetection
	LoadBalancer     *LoadBalancer
	Locality         *LocalityPreference
	Fault            *Fault
}

// Fault is what a client's proxy does to requests that have all of Headers.
type Fault struct {
	Delay        time.Duration // 0: none
	DelayPercent uint32
	// HTTPStatus and GRPCStatus are of an answer that the proxy itself gives; both 0:
	// none.
	HTTPStatus, GRPCStatus uint32
	AbortPercent           uint32
	Headers                []HeaderMatch
}

// Retries says when and how often a failed request is tried again.
type Retries struct {
	Attempts      uint32 // at most so many retries; 0: none
	PerTryTimeout time.Duration
	On            []string // Envoy's retry conditions
	Codes         []uint32 // statuses of responses, besides
	// Base and Max are the back-off; 0: the default.
	Base, Max time.Duration
	Budget    *RetryBudget // nil: none
}

// RetryBudget bounds retries by the requests that are under way.
type RetryBudget struct {
	Percent       uint32
	MinConcurrent uint32
}

// Connections says how clients connect. What is 0 is the default.
type Connections struct {
	ConnectTimeout, IdleTimeout, MaxDuration time.Duration
	MaxRequests                              uint32
	Keepalive                                *Keepalive // nil: none
}

// Keepalive is TCP's. What is 0 is the kernel's.
type Keepalive struct {
	Time, Interval time.Duration
	Probes         uint32
}

// CircuitBreaker bounds what a client has under way; what is nil is not bounded.
type CircuitBreaker struct {
	MaxConnections, MaxConnectionsPerPod, MaxPendingRequests, MaxRequests *uint32
}

// OutlierDetection leaves out a pod that fails. A number of failures that is 0 is
// never reached.
type OutlierDetection struct {
	Consecutive5xx, ConsecutiveGatewayErrors    uint32
	Interval, BaseEjectionTime, MaxEjectionTime time.Duration
	MaxEjectionPercent                          uint32
}

// LoadBalancerType is a way to choose a pod.
type LoadBalancerType uint8

// The ways.
const (
	LeastRequest LoadBalancerType = iota
	RoundRobin
	Random
	Maglev
	RingHash
)

// LoadBalancer says which pod a request goes to.
type LoadBalancer struct {
	Type LoadBalancerType
	// Hash is by what Maglev and RingHash choose.
	Hash Hash
	// SlowStart is for how long a new pod gets less than its share; 0: not at all.
	SlowStart time.Duration
}

// Hash is one of a header, a cookie and the source's address.
type Hash struct {
	Header   string
	Cookie   string
	TTL      *time.Duration // of a cookie that is made; nil: none is
	Path     string         // of that cookie
	SourceIP bool
}
