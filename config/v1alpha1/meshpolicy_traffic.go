package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Traffic says how clients call the targets. What a policy does not set, a less
// specific one may; each of its fields that has fields of its own is taken as a
// whole.
//
// +kubebuilder:validation:XValidation:rule="has(self.timeout) || has(self.idleTimeout) || has(self.retries) || has(self.connections) || has(self.circuitBreaker) || has(self.outlierDetection) || has(self.loadBalancer) || has(self.fault)",message="traffic says nothing: write timeout, idleTimeout, retries, connections, circuitBreaker, outlierDetection, loadBalancer or fault"
type Traffic struct {
	// timeout of a whole request with all its retries, such as 2s or 500ms; 0s
	// is none, as by default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	Timeout *metav1.Duration `json:"timeout,omitempty"`

	// idleTimeout of a request or stream on which nothing is sent in either
	// direction; 0s is none, as by default. It is about HTTP.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	IdleTimeout *metav1.Duration `json:"idleTimeout,omitempty"`

	// retries says when and how often a request that failed is tried again.
	// +optional
	Retries *Retries `json:"retries,omitempty"`

	// connections says how clients' proxies connect to the target's pods.
	// +optional
	Connections *Connections `json:"connections,omitempty"`

	// circuitBreaker bounds what each client's proxy has under way to the target;
	// what exceeds a bound of requests fails at once, with 503 and the flag UO.
	// Without it there is no bound.
	// +optional
	CircuitBreaker *CircuitBreaker `json:"circuitBreaker,omitempty"`

	// outlierDetection has each client's proxy leave out a pod for a while that
	// fails again and again. Without it one is left out for seconds when three
	// requests in a row got no connection or no answer, or, where the protocol is
	// not HTTP, when one connection did not come about.
	// +optional
	OutlierDetection *OutlierDetection `json:"outlierDetection,omitempty"`

	// loadBalancer says which of the target's pods a request goes to.
	// +optional
	LoadBalancer *LoadBalancer `json:"loadBalancer,omitempty"`

	// fault has clients' proxies delay or abort requests to the target, to see how
	// callers take it.
	// +optional
	Fault *Fault `json:"fault,omitempty"`
}

// RetryCondition is a condition of Envoy under which a request is tried again.
//
// +kubebuilder:validation:Enum=connect-failure;refused-stream;reset;reset-before-request;5xx;gateway-error;retriable-4xx;unavailable;cancelled;deadline-exceeded;resource-exhausted;internal
type RetryCondition string

// Retries says when and how often a request that failed is tried again.
//
// +kubebuilder:validation:XValidation:rule="self.attempts > 0 || !(has(self.retryOn) || has(self.perTryTimeout) || has(self.backOff) || has(self.budget))",message="attempts: 0 turns retries off, so what else is written about them means nothing: leave it out, or write attempts: 1 or more"
type Retries struct {
	// attempts after the first; 0 turns retries off.
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10
	Attempts int32 `json:"attempts"`

	// perTryTimeout of each attempt, the first included, such as 250ms.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="perTryTimeout is above zero: leave it out for none"
	PerTryTimeout *metav1.Duration `json:"perTryTimeout,omitempty"`

	// retryOn is the conditions of Envoy under which a request is tried again; by
	// default those after which the server cannot have seen the request.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=12
	RetryOn []RetryCondition `json:"retryOn,omitempty"`

	// backOff is the wait before an attempt: a random part of base times two to the
	// power of the attempts before, and at most max.
	// +optional
	BackOff *BackOff `json:"backOff,omitempty"`

	// budget bounds the retries that a client's proxy has under way to the target,
	// so that they do not become a storm when all of it fails. Where retryOn is
	// written it is 25 percent and 20 by default, and else no bound to speak of.
	// +optional
	Budget *RetryBudget `json:"budget,omitempty"`
}

// BackOff is the wait before another attempt.
//
// +kubebuilder:validation:XValidation:rule="!has(self.max) || duration(self.max) >= duration(self.base)",message="max is at least base"
type BackOff struct {
	// base of the wait; 25ms by default.
	// +optional
	// +kubebuilder:default="25ms"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="base is above zero: leave it out for the default"
	Base *metav1.Duration `json:"base,omitempty"`

	// max is the longest wait; ten times base by default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="max is above zero: leave it out for the default"
	Max *metav1.Duration `json:"max,omitempty"`
}

// RetryBudget bounds retries by the requests that are under way.
type RetryBudget struct {
	// percent of the requests under way that may be retries; 20 by default.
	// +optional
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Percent int32 `json:"percent,omitempty"`

	// minConcurrent retries are allowed however few requests are under way; 3 by
	// default.
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	MinConcurrent *int32 `json:"minConcurrent,omitempty"`
}

// Connections says how clients' proxies connect to the target's pods.
//
// +kubebuilder:validation:MinProperties=1
type Connections struct {
	// connectTimeout is how long a connection may take to come about; 2s by
	// default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="connectTimeout is above zero: leave it out for the default"
	ConnectTimeout *metav1.Duration `json:"connectTimeout,omitempty"`

	// idleTimeout is how long a connection is kept that nothing uses; 1h by
	// default. It is about HTTP.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="idleTimeout is above zero: leave it out for the default"
	IdleTimeout *metav1.Duration `json:"idleTimeout,omitempty"`

	// maxDuration is how long a connection is used for new requests. Longer than a
	// quarter of a certificate's life, and than an hour, it cannot be. It is about
	// HTTP.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="maxDuration is above zero: leave it out for the default"
	MaxDuration *metav1.Duration `json:"maxDuration,omitempty"`

	// maxRequests is how many requests a connection is used for. It is about HTTP.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	MaxRequests *int32 `json:"maxRequests,omitempty"`

	// keepalive has the kernel probe connections on which nothing is sent, so that
	// a peer that is gone without a word is noticed.
	// +optional
	Keepalive *Keepalive `json:"keepalive,omitempty"`
}

// Keepalive is TCP's.
type Keepalive struct {
	// time of silence before the first probe; the kernel's, often 2h, by default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('9h')",message="TCP counts in seconds, and in few enough: write 1s to 9h"
	Time *metav1.Duration `json:"time,omitempty"`

	// interval between probes; the kernel's, often 75s, by default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('9h')",message="TCP counts in seconds, and in few enough: write 1s to 9h"
	Interval *metav1.Duration `json:"interval,omitempty"`

	// probes without an answer after which the connection is closed; the kernel's,
	// often 9, by default.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Probes *int32 `json:"probes,omitempty"`
}

// CircuitBreaker bounds what each client's proxy has under way to a target.
//
// +kubebuilder:validation:MinProperties=1
type CircuitBreaker struct {
	// maxConnections to all pods of the target together. A request that finds none
	// free waits for one; TCP connections beyond fail.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	MaxConnections *int32 `json:"maxConnections,omitempty"`

	// maxConnectionsPerPod is the same to each pod.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	MaxConnectionsPerPod *int32 `json:"maxConnectionsPerPod,omitempty"`

	// maxPendingRequests that wait for a connection; 1024 where connections are
	// bounded and this is not written.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	MaxPendingRequests *int32 `json:"maxPendingRequests,omitempty"`

	// maxRequests under way.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	MaxRequests *int32 `json:"maxRequests,omitempty"`
}

// OutlierDetection leaves out a pod for a while that fails again and again.
type OutlierDetection struct {
	// consecutive5xx is how many answers of 5xx in a row it takes; 5 by default, 0 turns
	// this off. Connections that do not come about are counted by themselves, with
	// time-outs and resets: three in a row are enough, whatever the protocol.
	// +optional
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Consecutive5xx *int32 `json:"consecutive5xx,omitempty"`

	// consecutiveGatewayErrors is how many answers of 502, 503 and 504 in a row it takes;
	// off by default.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	ConsecutiveGatewayErrors *int32 `json:"consecutiveGatewayErrors,omitempty"`

	// interval at which pods are let in again whose time is over; 10s by default.
	// +optional
	// +kubebuilder:default="10s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="interval is above zero: leave it out for the default"
	Interval *metav1.Duration `json:"interval,omitempty"`

	// baseEjectionTime is how long a pod is left out for the first time; each
	// further time in a row it is that much longer. 30s by default.
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="baseEjectionTime is above zero: leave it out for the default"
	BaseEjectionTime *metav1.Duration `json:"baseEjectionTime,omitempty"`

	// maxEjectionTime is the longest that a pod is left out; 5m by default.
	// +optional
	// +kubebuilder:default="5m"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="maxEjectionTime is above zero: leave it out for the default"
	MaxEjectionTime *metav1.Duration `json:"maxEjectionTime,omitempty"`

	// maxEjectionPercent of the pods are left out at most, for whatever reason; 10 by
	// default, and one at least.
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	MaxEjectionPercent *int32 `json:"maxEjectionPercent,omitempty"`
}

// LoadBalancerType is a way to choose a pod.
//
// +kubebuilder:validation:Enum=LeastRequest;RoundRobin;Random;ConsistentHash
type LoadBalancerType string

const (
	// LeastRequest takes, of two at random, the one with fewer requests under way.
	LeastRequest LoadBalancerType = "LeastRequest"
	// RoundRobin takes one after the other.
	RoundRobin LoadBalancerType = "RoundRobin"
	// Random takes any.
	Random LoadBalancerType = "Random"
	// ConsistentHash takes the same for what hashes to the same.
	ConsistentHash LoadBalancerType = "ConsistentHash"
)

// LoadBalancer says which of the target's pods a request goes to.
//
// +kubebuilder:validation:XValidation:rule="(has(self.type) && self.type == 'ConsistentHash') == has(self.hash)",message="hash says by what type: ConsistentHash chooses, and belongs to it alone"
// +kubebuilder:validation:XValidation:rule="!has(self.slowStart) || !has(self.type) || self.type in ['LeastRequest', 'RoundRobin']",message="slowStart is for the types LeastRequest and RoundRobin"
type LoadBalancer struct {
	// type: LeastRequest (the default), RoundRobin, Random, ConsistentHash.
	// +optional
	Type LoadBalancerType `json:"type,omitempty"`

	// hash says by what the type ConsistentHash chooses.
	// +optional
	Hash *Hash `json:"hash,omitempty"`

	// slowStart is for how long a pod that is new gets less than its share, more
	// and more of it, so that it can warm up.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="slowStart is above zero: leave it out for the default"
	SlowStart *metav1.Duration `json:"slowStart,omitempty"`

	// locality says whether pods near the client are called first. It is taken by
	// itself from the most specific policy that has it, and the other fields from
	// the most specific that has one of them. Without it spec.trafficDistribution of
	// the Service holds, and where that says nothing, either, all pods are alike.
	// +optional
	Locality *Locality `json:"locality,omitempty"`
}

// LocalityPreference is how near to the client pods are called first.
//
// +kubebuilder:validation:Enum=None;SameRegion;SameZone;SameNode
type LocalityPreference string

const (
	// PreferNone takes all pods alike, whatever the Service says.
	PreferNone LocalityPreference = "None"
	// PreferSameRegion takes pods of the client's region, else others.
	PreferSameRegion LocalityPreference = "SameRegion"
	// PreferSameZone takes pods of the client's zone, else of its region, else others.
	PreferSameZone LocalityPreference = "SameZone"
	// PreferSameNode takes pods on the client's node, else as SameZone does.
	PreferSameNode LocalityPreference = "SameNode"
)

// Locality says whether pods near the client are called first. Regions and zones are
// the labels topology.kubernetes.io/region and topology.kubernetes.io/zone of nodes,
// and the zones of endpoints. To a client on a node without them all pods are alike,
// but for those on the same node.
//
// +kubebuilder:validation:XValidation:rule="self.prefer != 'None' || !(has(self.failover) || has(self.overprovisioningFactor))",message="prefer: None has all pods alike, so what else is written about locality means nothing: leave it out, or write prefer: SameZone"
type Locality struct {
	// prefer: SameZone (as trafficDistribution: PreferSameZone of a Service), SameNode,
	// SameRegion, None.
	// +required
	Prefer LocalityPreference `json:"prefer"`

	// failover is where clients of a region turn when their own has too few pods that
	// can be called: those of the region "to", in the order of this list, then all
	// others.
	// +optional
	// +listType=map
	// +listMapKey=from
	// +listMapKey=to
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Failover []RegionFailover `json:"failover,omitempty"`

	// overprovisioningFactor is how much of its traffic a set of pods can carry when
	// all of them can be called, in percent; 140 by default. With 140 what is
	// farther gets a share as soon as fewer than five in seven of what is nearer can
	// be called; with 100, as soon as one of them cannot.
	// +optional
	// +kubebuilder:validation:Minimum=100
	// +kubebuilder:validation:Maximum=10000
	OverprovisioningFactor *int32 `json:"overprovisioningFactor,omitempty"`
}

// RegionFailover is where clients of a region turn next.
//
// +kubebuilder:validation:XValidation:rule="self.from != self.to",message="a region's own pods come first anyway: write another region in to"
type RegionFailover struct {
	// from is the client's region.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`
	From string `json:"from"`

	// to is the region of the pods.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`
	To string `json:"to"`
}

// Hash says by what of a request its pod is chosen. Where the request lacks it, any
// pod is taken.
//
// +kubebuilder:validation:XValidation:rule="[has(self.header), has(self.cookie), has(self.sourceIP)].filter(x, x).size() == 1",message="write one of header, cookie and sourceIP"
type Hash struct {
	// header of the request.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_|~-]+$"
	Header string `json:"header,omitempty"`

	// cookie of the request.
	// +optional
	Cookie *HashCookie `json:"cookie,omitempty"`

	// sourceIP is the client's address. In a mesh that is the calling pod's. As all of
	// these it is about HTTP.
	// +optional
	// +kubebuilder:validation:Enum=true
	SourceIP bool `json:"sourceIP,omitempty"`

	// algorithm: Maglev (the default), which is faster to look up, or RingHash,
	// where a pod that comes or goes changes fewer of the choices.
	// +optional
	// +kubebuilder:default=Maglev
	// +kubebuilder:validation:Enum=Maglev;RingHash
	Algorithm string `json:"algorithm,omitempty"`
}

// HashCookie is a cookie by which a pod is chosen.
type HashCookie struct {
	// name of the cookie.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_|~-]+$"
	Name string `json:"name"`

	// ttl of a cookie that the client's proxy makes where the request has none, so
	// that the caller stays with its pod; 0s is until the end of the session.
	// Without it none is made.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	TTL *metav1.Duration `json:"ttl,omitempty"`

	// path of a cookie that is made.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^/"
	Path string `json:"path,omitempty"`
}
