package mesh

import (
	"net/netip"
	"time"
)

// Name is the name of a namespaced object.
type Name struct {
	Namespace string
	Name      string
}

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Protocol is what is spoken on a port, as far as the cluster's objects say.
type Protocol uint8

const (
	// Detect means that nothing was declared: proxies look at the first bytes.
	Detect Protocol = iota
	// HTTP is HTTP/1.x.
	HTTP
	// HTTP2 is HTTP/2, in the clear with prior knowledge where there is no TLS.
	HTTP2
	// GRPC is gRPC over HTTP/2.
	GRPC
	// TCP is any byte stream, one where the server may speak first included.
	TCP
	// TLS is TLS by the application itself; proxies pass it through.
	TLS
	// UDP is not carried by the mesh.
	UDP
)

// IsHTTP reports whether the protocol is a declared form of HTTP.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC }

// Opaque reports whether the port is declared and is not HTTP, so that no
// proxy may wait for first bytes from the client.
func (p Protocol) Opaque() bool { return p == TCP || p == TLS }

// Config is what holds for the whole mesh: MeshConfig with its defaults
// filled in, and what Kubernetes itself tells about the cluster.
type Config struct {
	// Generation is the MeshConfig's; 0 where there is none.
	Generation  int64
	TrustDomain string
	// Aliases are other names of TrustDomain: an identity of one is the identity of
	// all. See [Config.TrustDomains].
	Aliases       []string
	RootNamespace string // where mesh-wide policies live: Tulle's own namespace
	MTLS          MTLSMode
	Egress        EgressMode
	// CertificateLifetime bounds how long a connection between proxies may
	// live, since Envoy checks a certificate only when one opens. 0: unknown.
	CertificateLifetime time.Duration
	// ServiceRanges and PodRanges are the cluster's address ranges, sorted and
	// without duplicates. Traffic to any other address is external.
	ServiceRanges []netip.Prefix
	PodRanges     []netip.Prefix
	// TrustedHops is how many proxies before a workload write into X-Forwarded-For
	// whom they heard from, the mesh's gateway being one; 0: it is not believed.
	TrustedHops uint32
	// Authorizers are the external ones that rules may name, sorted by name.
	Authorizers []Authorizer
	// AccessLog is the JSON access log's form: key to Envoy format operator.
	// nil is the default form, empty turns the log off.
	AccessLog map[string]string
	// RateLimitService counts requests of global rate limits; nil: there is none.
	RateLimitService *RateLimitService
}

// EgressMode says what happens to traffic that leaves the cluster.
type EgressMode uint8

const (
	// AllowAny passes it on as it is.
	AllowAny EgressMode = iota
	// RegistryOnly refuses what no external service names.
	RegistryOnly
)

// MTLSMode says what a workload accepts. Unset means: look one level up.
type MTLSMode uint8

// The modes, from the least strict to the strictest, which is the order that
// decides between two policies that are equally specific.
const (
	MTLSUnset MTLSMode = iota
	MTLSDisabled
	MTLSPermissive
	MTLSStrict
)

// TrustBundle is what proxies trust, and whose certificates they are to have.
// Like an object of the API it stands in the mesh, and is acknowledged: the roots
// as KindTrust, the issuer as KindIssuer.
type TrustBundle struct {
	PEM []byte // root certificates
	// Issuer is that of the certificates that workloads are to present; the
	// versions of its certificates tell.
	Issuer string
	// Generation is another whenever anything else may be.
	Generation int64
}

// Service is a Kubernetes Service.
type Service struct {
	Name
	// Addresses are its cluster IPs; none for a headless service.
	Addresses []netip.Addr
	Ports     []ServicePort
	// Selector picks its pods; nil for a service whose endpoints somebody else
	// manages.
	Selector map[string]string
	// Distribution is what the Service itself says about which endpoints are
	// preferred (spec.trafficDistribution).
	Distribution Near
}

// Headless reports whether the service has no address of its own, so that
// clients call its pods' addresses.
func (s *Service) Headless() bool { return len(s.Addresses) == 0 }

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Port     uint16
	Protocol Protocol
	// Target is the container port: a number, or the name of one.
	Target     uint16
	TargetName string
}

// Port returns the port with the given number.
func (s *Service) Port(number uint16) (ServicePort, bool) {
	for _, p := range s.Ports {
		if p.Port == number {
			return p, true
		}
	}
	return ServicePort{}, false
}

// Slice is one EndpointSlice: a part of a service's endpoints.
type Slice struct {
	Name
	Service   string // in the slice's namespace
	Ports     []SlicePort
	Endpoints []Endpoint
}

// SlicePort maps a service port's name to the port that endpoints listen on.
type SlicePort struct {
	Name string
	Port uint16
}

// Endpoint is one address behind a service.
type Endpoint struct {
	Address netip.Addr
	// Workload is the name of the pod behind it, in the slice's namespace;
	// empty where there is none.
	Workload string
	// Ready is what the slice says; an endpoint whose workload is terminating
	// is not used whatever it says.
	Ready bool
	Zone  string
	Node  string
}

// Workload is a pod. A pod that has ended, or has no address yet, is known all
// the same (its stream is authenticated by UID); Terminal and Addresses tell.
type Workload struct {
	Name
	UID            string
	ServiceAccount string
	Labels         map[string]string
	Addresses      []netip.Addr
	Node           string // where it runs; empty until that is known
	Meshed         bool   // it runs our sidecar
	Started        bool   // that sidecar is up: traffic goes through it
	Gateway        string // of what Gateway of its namespace it is the proxy; empty: none
	Terminating    bool   // it has a deletion timestamp
	// Grace is how long a workload that is Terminating has from then on.
	Grace    time.Duration
	Terminal bool // its phase is Succeeded or Failed
	Ports    []ContainerPort
	Probes   []Probe
	Direct   []uint16 // ports that callers reach without its sidecar, sorted
}

// DrainTime is how long a proxy lets connections go on under a listener that
// was replaced.
const DrainTime = 30 * time.Second

// Drains reports whether the workload's callers are to be told to go elsewhere.
// One whose grace is longer than the drain is spared: whoever asks for so much
// has long connections to finish, and the drain would end by cutting them.
func (w *Workload) Drains() bool { return w.Terminating && w.Grace <= DrainTime }

// ContainerPort is a declared TCP port of a workload's containers.
type ContainerPort struct {
	Name string
	Port uint16
}

// Probe is an application's probe that the sidecar answers on port 15020 by
// asking the application itself. It is written into pods as JSON, by every
// version that there was.
type Probe struct {
	Path   string // the path on 15020, as the kubelet asks for it
	Port   uint16 // the application's
	Target string // the path (and query) at the application, of an HTTP probe
	HTTPS  bool

	Kind    ProbeKind `json:",omitempty"`
	Service string    `json:",omitempty"` // whose health a gRPC probe asks for; empty: the server's
	Timeout int32     `json:",omitempty"` // in seconds, of a TCP or gRPC probe; 0 is the kubelet's default of 1
}

// ProbeKind says how the application is asked.
type ProbeKind string

// The kinds of probes.
const (
	ProbeHTTP ProbeKind = ""     // a GET
	ProbeTCP  ProbeKind = "TCP"  // it accepts a connection
	ProbeGRPC ProbeKind = "GRPC" // grpc.health.v1.Health/Check says SERVING
)

// Meta is what policies need of their object.
type Meta struct {
	Name
	Generation int64
	Created    time.Time
}

func (m Meta) meta() Meta { return m }

// Policy is a MeshPolicy.
type Policy struct {
	Meta
	// Selector picks workloads; nil picks all of the namespace, or in the root
	// namespace all of the mesh.
	Selector *Selector
	// Targets are what the policy is about instead: of Authorization and RateLimit
	// Gateways, of Traffic Services and routes.
	Targets       []Target
	MTLS          *MTLS
	TLS           *EndedTLS
	JWT           *JWT
	Authorization *Authorization
	RateLimit     *RateLimit
	Traffic       *Traffic
	// Invalid is set when the object cannot be understood, and says why. A
	// security section of an invalid policy denies everything it selects.
	Invalid string
}

// Selector picks workloads by label. It is a label selector's matchLabels.
type Selector struct {
	MatchLabels map[string]string
}

// Matches reports whether the labels have all that the selector asks for. A
// nil selector matches everything.
func (s *Selector) Matches(labels map[string]string) bool {
	if s == nil {
		return true
	}
	for k, v := range s.MatchLabels {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Target names what a policy is about.
type Target struct {
	Kind Kind // KindService, KindExternal, KindGateway, KindHTTPRoute or KindGRPCRoute; 0: nothing that is known
	Name
	Port    uint16 // of a Service or an external one; 0: all ports
	Section string // the name of a Gateway's listener; empty: all
}

// MTLS is a policy's mtls section. Ports are container ports.
type MTLS struct {
	Mode  MTLSMode
	Ports map[uint16]MTLSMode
}

// EndedTLS is a policy's tls section: where the sidecar ends clients' TLS. Each port is there
// once.
type EndedTLS struct{ Ports []PortTLS }

// PortTLS is a container port at which TLS ends.
type PortTLS struct {
	Port        uint16
	Target      uint16 // the application's, in the clear
	Certificate Name   // a Secret of the policy's namespace
}

// Split is a TrafficSplit.
type Split struct {
	Meta
	Service  string // root, in the split's namespace
	Port     uint16 // 0: all HTTP ports of the root
	Rules    []SplitRule
	Backends []SplitBackend
	Mirrors  []Mirror
	Affinity *Hash // nil: none
	Invalid  string
}

// Mirror is a service that gets copies of requests.
type Mirror struct {
	Service string
	Percent uint32
}

// SplitRule sends the requests that one of Matches matches to its own
// backends. The first rule that matches decides.
type SplitRule struct {
	Matches  []RequestMatch
	Backends []SplitBackend
	Mirrors  []Mirror
}

// SplitBackend is a service that takes a share of the traffic: its endpoints, not
// what its own splits say.
type SplitBackend struct {
	Service Name
	Labels  map[string]string // of the pods that are meant; none: all
	Weight  uint32
}

// RequestMatch matches a request when all that is set matches.
type RequestMatch struct {
	Path    *StringMatch
	Headers []HeaderMatch
	Method  string // any, where empty
	Query   []HeaderMatch
	// GRPC is of a GRPCRoute, whose method is in Path: what decides between two.
	GRPC *MethodMatch
}

// MethodMatch is how many characters a match of a gRPC method names.
type MethodMatch struct{ Service, Method int }

// MatchType says how a string is compared.
type MatchType uint8

const (
	// Exact compares the whole string.
	Exact MatchType = iota
	// Prefix compares path elements: "/a" matches "/a" and "/a/b", not "/ab".
	Prefix
	// Regex is RE2, over the whole string.
	Regex
)

// StringMatch compares a path.
type StringMatch struct {
	Type  MatchType
	Value string
}

// HeaderMatch compares a header.
type HeaderMatch struct {
	Name  string // lower case
	Type  MatchType
	Value string
}
