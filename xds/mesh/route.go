package mesh

import "time"

// Route is a route of the Gateway API: an HTTPRoute or a GRPCRoute, the one and the other
// as what they are about, requests; or a TLSRoute or a TCPRoute, which are about
// connections, and whose one rule has nothing but backends.
type Route struct {
	Meta
	Of Kind // KindHTTPRoute, KindGRPCRoute, KindTLSRoute or KindTCPRoute
	// Parents are those of the object's parentRefs that are Services or Gateways.
	Parents []Parent
	// Hostnames are those of requests that the route is about, at gateways, or the names
	// that a TLSRoute's clients ask for; none: all.
	Hostnames []string
	// Rules hold for the requests that match, the most specific match first,
	// whatever their order.
	Rules []RouteRule
	// Invalid is set when the object cannot be understood, and says why: it is as
	// though absent.
	Invalid string
}

// OfRequests reports whether the route is about requests.
func (r *Route) OfRequests() bool { return r.Of == KindHTTPRoute || r.Of == KindGRPCRoute }

// Ref names the route's object.
func (r *Route) Ref() Ref { return Ref{r.Of, r.Meta.Name} }

// Parent is a Service whose callers' requests a route is about, or a Gateway whose
// requests.
type Parent struct {
	Index int  // in the object's parentRefs
	Kind  Kind // KindService or KindGateway
	Name
	Port    uint16 // 0: all ports
	Section string // the name of a Gateway's listener, or of a Service's port; empty: all
}

// key is under what routes are found.
func (p Parent) key() string { return parentKey(p.Kind, p.Name) }

func parentKey(k Kind, n Name) string {
	if k == KindGateway {
		return "gateway|" + n.String()
	}
	return n.String()
}

// RouteRule says what becomes of requests that match.
type RouteRule struct {
	Name     string // may be empty
	Matches  []RequestMatch
	Filters  RouteFilters
	Backends []RouteBackend
	// Timeout is of the whole request, TryTimeout of each attempt. nil: what
	// policies say; 0: none.
	Timeout, TryTimeout *time.Duration
	Retries             *Retries // nil: what policies say
	// Unsupported is set when the rule asks for what Tulle does not do, and says
	// what: its requests are answered with 500, since what they would have passed may
	// have been there to refuse some.
	Unsupported string
}

// RouteFilters change requests and responses on their way.
type RouteFilters struct {
	Request, Response *HeaderChanges
	Redirect          *Redirect // answers, instead of backends
	Rewrite           *Rewrite
	Mirrors           []RouteMirror
	CORS              *CORS
}

// CORS says what pages of other origins may do (https://fetch.spec.whatwg.org/#http-cors-protocol).
// "*" stands for all origins, methods and headers.
type CORS struct {
	// Origins are scheme://host or scheme://host:port. The host may have a "*" in it.
	Origins                  []string
	Methods, Headers, Expose []string
	Credentials              bool
	MaxAge                   uint32 // in seconds, of the answer to a preflight
}

// HeaderChanges set, add and remove headers. Names are in lower case.
type HeaderChanges struct {
	Set, Add []Header
	Remove   []string
}

// Header is a header's name and its value.
type Header struct{ Name, Value string }

// Redirect sends the client elsewhere. What is empty stays as the request has it.
type Redirect struct {
	Scheme, Host string
	Port         uint16
	Path         *PathChange
	Status       uint32 // 301, 302, 303, 307 or 308
}

// Rewrite changes what backends see. What is empty stays as it was.
type Rewrite struct {
	Host string
	Path *PathChange
}

// PathChange replaces a path, or the prefix of it that matched.
type PathChange struct {
	Prefix bool
	Value  string
}

// RouteBackend takes a share of the requests.
type RouteBackend struct {
	Backend
	Weight            uint32
	Request, Response *HeaderChanges
}

// RouteMirror gets copies of a part of the requests: Numerator of Denominator.
type RouteMirror struct {
	Backend
	Numerator, Denominator uint32
}

// Backend is what a route sends requests to.
type Backend struct {
	Kind string // "Service", or what else it says, as group/kind
	Name
	Port uint16
}

// BackendService is the Kind of a Backend that Tulle can send requests to.
const BackendService = "Service"

// BackendExternal is the Kind of one to which routes at Gateways can.
const BackendExternal = "mesh.tulle.dev/ExternalService"

// Grant is a ReferenceGrant: objects of other namespaces may refer to objects of
// its own.
type Grant struct {
	Name
	From []GrantFrom
	To   []GrantTo
}

// GrantFrom is who may refer.
type GrantFrom struct{ Group, Kind, Namespace string }

// GrantTo is to what; an empty Name is to any of the kind.
type GrantTo struct{ Group, Kind, Name string }
