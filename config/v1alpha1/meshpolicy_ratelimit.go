package v1alpha1

// RateLimit bounds how many HTTP requests each selected pod takes. Each pod counts
// for itself, so that with three pods behind a Service its callers get three times as
// many; rules with global are counted for all pods together by the mesh's rate limit
// service. What is over a limit is answered with 429, for gRPC with RESOURCE_EXHAUSTED,
// and with retry-after and the x-ratelimit headers. Connections that are not HTTP are
// not counted.
//
// Of policies that select a workload, those that are most specific hold: the ones with
// a selector, else the namespace's, else the mesh's. Equally specific ones add up. At a
// Gateway those hold that name the listener in targetRefs, else those that name the
// Gateway, and no others. Each of its pods counts for itself, and in it each port, or of
// HTTPS each listener.
type RateLimit struct {
	// rules are looked at all together: a request needs what every rule that it
	// matches has left. Their order means nothing.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Rules []RateLimitRule `json:"rules"`
}

// RateLimitRule bounds the requests that one of from and one of to match; a list that
// is left out matches every request.
//
// +kubebuilder:validation:XValidation:rule="has(self.limit) != has(self.global)",message="a rule has a limit, which each pod counts for itself, or global, which the mesh's rate limit service counts: write one of the two"
// +kubebuilder:validation:XValidation:rule="!has(self.global) || has(self.name)",message="the rate limit service knows a rule by its name: write name"
// +kubebuilder:validation:XValidation:rule="!has(self.global) || !has(self.perCaller) || !self.perCaller",message="perCaller is of a limit that each pod counts: write a descriptor with attribute: Caller"
// +kubebuilder:validation:XValidation:rule="!has(self.from) || self.from.all(s, !has(s.notIdentities) && !has(s.trustDomains) && !has(s.notNamespaces) && !has(s.notServiceAccounts) && !has(s.ipBlocks) && !has(s.notIpBlocks) && !has(s.remoteIpBlocks) && !has(s.notRemoteIpBlocks) && !has(s.requestPrincipals) && !has(s.notRequestPrincipals))",message="a rate limit tells callers apart by their certificates: write identities, namespaces or serviceAccounts"
type RateLimitRule struct {
	// name of the rule, for people.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name,omitempty"`

	// limit is how many of the requests that match a pod takes.
	// +optional
	Limit *RateLimitValue `json:"limit,omitempty"`

	// global has the rate limit service of the MeshConfig decide about the requests
	// that match, which so are counted for all pods together.
	// +optional
	Global *GlobalRateLimit `json:"global,omitempty"`

	// perCaller gives each caller the limit for itself, by the identity in its
	// certificate. Callers without mutual TLS share one. At a Gateway, whose callers
	// have no such certificate, a caller is a peer's address (IPv6: its /64). A pod
	// tells 1,000 callers apart; of more, the one that has not called for longest
	// begins anew.
	// +optional
	PerCaller bool `json:"perCaller,omitempty"`

	// from says who calls. Any one of the entries is enough.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	From []Source `json:"from,omitempty"`

	// to says what is called. Any one of the entries is enough.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	To []RateLimitOperation `json:"to,omitempty"`
}

// GlobalRateLimit is what the rate limit service is told of a request: a descriptor
// whose first entry is {rule: <namespace>/<policy>/<name of the rule>}. How many
// requests a descriptor stands for is in the service's own configuration.
type GlobalRateLimit struct {
	// descriptors are the further entries of the descriptor, in their order.
	// +optional
	// +listType=map
	// +listMapKey=key
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Descriptors []RateLimitDescriptor `json:"descriptors,omitempty"`
}

// RateLimitAttribute is what is known of a request.
//
// +kubebuilder:validation:Enum=Caller;Method;Path
type RateLimitAttribute string

// The attributes.
const (
	RateLimitCaller RateLimitAttribute = "Caller"
	RateLimitMethod RateLimitAttribute = "Method"
	RateLimitPath   RateLimitAttribute = "Path"
)

// RateLimitDescriptor is an entry of a descriptor.
//
// +kubebuilder:validation:XValidation:rule="(has(self.value) ? 1 : 0) + (has(self.header) ? 1 : 0) + (has(self.attribute) ? 1 : 0) == 1",message="an entry has one source: write value, header or attribute"
type RateLimitDescriptor struct {
	// key by which the service knows the entry.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="self != 'rule'",message="the entry rule is there already: write another key"
	Key string `json:"key"`

	// value that is always the same.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Value string `json:"value,omitempty"`

	// header whose value it is. A request without it is not asked about: callers
	// choose what they send.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9!#$%&'*+\-.^_|~]+$`
	Header string `json:"header,omitempty"`

	// attribute of the request. Caller: the identity in the caller's certificate, or
	// '-' without mutual TLS; at a Gateway, where callers have none, the entry is
	// {remote_address: <the peer's address>} instead. Path: without the query.
	// +optional
	Attribute RateLimitAttribute `json:"attribute,omitempty"`
}

// RateLimitUnit is a span of time.
//
// +kubebuilder:validation:Enum=Second;Minute;Hour
type RateLimitUnit string

// The units.
const (
	RateLimitSecond RateLimitUnit = "Second"
	RateLimitMinute RateLimitUnit = "Minute"
	RateLimitHour   RateLimitUnit = "Hour"
)

// RateLimitValue is a number of requests in a span of time. They come back evenly:
// with 60 a minute, one each second.
type RateLimitValue struct {
	// requests per unit.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	Requests int32 `json:"requests"`

	// unit: Second, Minute or Hour.
	// +required
	Unit RateLimitUnit `json:"unit"`

	// burst is how many requests may come at once after a time without any; as many
	// as requests by default.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	Burst *int32 `json:"burst,omitempty"`
}

// RateLimitOperation matches a request for which every field that is written has a
// value that matches, and which has all of headers.
//
// +kubebuilder:validation:XValidation:rule="has(self.ports) || has(self.methods) || has(self.paths) || has(self.headers)",message="an entry of to says nothing: write ports, methods, paths or headers, or leave to out to match every request"
type RateLimitOperation struct {
	// ports are container ports, not the Service's; of a Gateway those of its listeners.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`

	// methods of HTTP, such as GET, in capitals. For gRPC it is always POST.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.all(m, m.matches('^[A-Z][A-Z_-]*$'))",message="an HTTP method is written in capitals: GET, POST, PUT"
	Methods []string `json:"methods,omitempty"`

	// paths of requests, without the query: "/cart" is that path, "/cart/*" a
	// prefix, "*.png" a suffix, "*" any. For gRPC, "/package.Service/Method".
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.all(p, p.startsWith('/') || p.startsWith('*'))",message="a path begins with '/', or with '*' for a suffix: write /cart, /cart/* or *.png"
	// +kubebuilder:validation:XValidation:rule="self.all(p, p == '*' || p.split('*').size() <= 2 && (!p.contains('*') || p.startsWith('*') || p.endsWith('*')))",message="one '*' at most, at the beginning or the end of a path: write /cart/* or *.png"
	// +kubebuilder:validation:XValidation:rule="self.all(p, !p.contains('?') && !p.contains('#'))",message="a path has no query and no fragment: leave out '?' or '#' and what follows"
	Paths []string `json:"paths,omitempty"`

	// headers that the request must have, all of them. Callers choose what they
	// send: one that leaves a header out is not under a limit that asks for it.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Headers []RateLimitHeader `json:"headers,omitempty"`
}

// TextBytes is the length of all that the rule compares requests with.
func (r *RateLimitRule) TextBytes() int {
	n := 0
	add := func(lists ...[]string) {
		for _, l := range lists {
			for _, s := range l {
				n += len(s)
			}
		}
	}
	for _, s := range r.From {
		add(s.Identities, s.Namespaces, s.ServiceAccounts)
	}
	for _, o := range r.To {
		add(o.Methods, o.Paths)
		for _, h := range o.Headers {
			add([]string{h.Name, h.Value})
		}
	}
	return n
}

// RateLimitHeader is a header that a request has.
type RateLimitHeader struct {
	// name of the header, in any case.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9!#$%&'*+\-.^_|~]+$`
	Name string `json:"name"`

	// value that it has, the whole of it; any by default.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Value string `json:"value,omitempty"`
}
