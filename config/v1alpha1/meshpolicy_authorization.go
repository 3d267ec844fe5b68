package v1alpha1

// AuthorizationAction says what becomes of a request that a rule matches.
//
// +kubebuilder:validation:Enum=Allow;Deny;Audit;Custom
type AuthorizationAction string

const (
	// AuthorizationAllow lets a request in.
	AuthorizationAllow AuthorizationAction = "Allow"
	// AuthorizationDeny refuses a request: 403 for HTTP, a closed connection for
	// anything else.
	AuthorizationDeny AuthorizationAction = "Deny"
	// AuthorizationAudit logs and counts a request, and decides nothing.
	AuthorizationAudit AuthorizationAction = "Audit"
	// AuthorizationCustom asks an external authorizer, before Deny and Allow.
	AuthorizationCustom AuthorizationAction = "Custom"
)

// AuthorizationDefault says what becomes of a request that no rule matches.
//
// +kubebuilder:validation:Enum=Allow;Deny
type AuthorizationDefault string

const (
	// DefaultAllow lets it in, unless there is an Allow rule that it could have matched.
	DefaultAllow AuthorizationDefault = "Allow"
	// DefaultDeny refuses it.
	DefaultDeny AuthorizationDefault = "Deny"
)

// RuleMode says whether a rule decides.
//
// +kubebuilder:validation:Enum=Enforce;DryRun
type RuleMode string

const (
	// RuleEnforce has the rule decide.
	RuleEnforce RuleMode = "Enforce"
	// RuleDryRun has the rule looked at and counted, and decide nothing.
	RuleDryRun RuleMode = "DryRun"
)

// Authorization says who may call the selected workloads, and what. Policies
// add up: a request that a Custom rule matches is refused unless the authorizer
// lets it pass; one that any Deny rule matches is refused; otherwise it is let
// in if no policy for the workload has an Allow rule or denies by default, or
// if one of the Allow rules matches.
//
// What cannot be known of a request counts against it: a rule of Allow that asks
// for it never matches, a rule of any other action matches whatever the rest of
// it matches. So it is with HTTP attributes on a connection that is not HTTP.
//
// At a Gateway those policies add up that name it, or the listener, in targetRefs,
// and no others: its callers are outside of the mesh and have no identity in it, so
// that a rule of the whole mesh that lets namespaces in would close every way into
// the mesh. There, ports are the listener's, and a rule with identities, namespaces or
// serviceAccounts never matches.
//
// +kubebuilder:validation:XValidation:rule="has(self.rules) || self.default == 'Deny'",message="authorization says nothing: write rules, or default: Deny to refuse all that no rule of another policy allows"
type Authorization struct {
	// default is what becomes of a request that no rule matches. Deny refuses
	// it even where no policy has an Allow rule.
	// +optional
	// +kubebuilder:default=Allow
	Default AuthorizationDefault `json:"default,omitempty"`

	// rules are looked at all together; their order means nothing.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Rules []AuthorizationRule `json:"rules,omitempty"`
}

// AuthorizationRule matches a request that one of from and one of to match, and
// all of when; what is left out matches every request.
//
// +kubebuilder:validation:XValidation:rule="(self.action == 'Custom') == has(self.provider)",message="provider names whom a Custom rule asks: write it with action: Custom, and with no other action"
// +kubebuilder:validation:XValidation:rule="self.action != 'Audit' || !has(self.mode)",message="an Audit rule decides nothing as it is: leave mode out"
type AuthorizationRule struct {
	// name of the rule, for access logs, metrics and people.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name,omitempty"`

	// action says what becomes of a request that matches. Allow lets it in, Deny
	// refuses it, Audit logs and counts it, Custom has provider decide.
	// +optional
	// +kubebuilder:default=Allow
	Action AuthorizationAction `json:"action,omitempty"`

	// mode: Enforce, the default, has the rule decide. DryRun has it looked at, counted and
	// logged, and decide nothing; a DryRun rule of Custom asks nobody.
	// +optional
	Mode RuleMode `json:"mode,omitempty"`

	// provider is the name of one of the MeshConfig's externalAuthorizers, which a
	// Custom rule asks. Where there is none of the name, what the rule matches is
	// refused.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Provider string `json:"provider,omitempty"`

	// from says who calls. Any one of the entries is enough.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	From []Source `json:"from,omitempty"`

	// to says what is called. Any one of the entries is enough.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	To []Operation `json:"to,omitempty"`

	// when says what else must hold, all of it.
	// +optional
	When *Condition `json:"when,omitempty"`
}

// Source matches a caller for whom every field that is written has a value that
// matches, and no field that begins with "not" has one. Identities, trust domains,
// namespaces and service accounts are taken from the caller's certificate, so they
// never match a caller without mutual TLS. The not-forms of these match such a caller
// in a Deny rule, which refuses it, and not in an Allow rule, which lets in nobody
// who does not say who he is.
//
// +kubebuilder:validation:XValidation:rule="has(self.identities) || has(self.notIdentities) || has(self.trustDomains) || has(self.namespaces) || has(self.notNamespaces) || has(self.serviceAccounts) || has(self.notServiceAccounts) || has(self.ipBlocks) || has(self.notIpBlocks) || has(self.remoteIpBlocks) || has(self.notRemoteIpBlocks) || has(self.requestPrincipals) || has(self.notRequestPrincipals)",message="an entry of from says nothing: write identities, trustDomains, namespaces, serviceAccounts, requestPrincipals, ipBlocks, remoteIpBlocks or a not-form of one, or leave from out to match every caller"
type Source struct {
	// identities are SPIFFE IDs, such as spiffe://cluster.local/ns/shop/sa/web.
	// A trailing '*' makes one a prefix.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.all(i, i.startsWith('spiffe://'))",message="an identity is a SPIFFE ID: write spiffe://<trust domain>/ns/<namespace>/sa/<service account>; a trailing '*' makes it a prefix"
	// +kubebuilder:validation:XValidation:rule="self.all(i, !i.contains('*') || i.indexOf('*') == size(i) - 1)",message="'*' stands only at the end of an identity: write spiffe://<trust domain>/ns/<namespace>/* for all of a namespace"
	Identities []string `json:"identities,omitempty"`

	// notIdentities are SPIFFE IDs that the caller has none of, written as identities.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	NotIdentities []string `json:"notIdentities,omitempty"`

	// trustDomains of callers, such as cluster.local; the mesh's own has its aliases.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9._-]+$`
	TrustDomains []string `json:"trustDomains,omitempty"`

	// namespaces of callers.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`

	// notNamespaces are namespaces that the caller is in none of.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	NotNamespaces []string `json:"notNamespaces,omitempty"`

	// serviceAccounts of callers: "name" in the policy's namespace, or
	// "namespace/name".
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`

	// notServiceAccounts are those that the caller has none of, written as
	// serviceAccounts.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`
	NotServiceAccounts []string `json:"notServiceAccounts,omitempty"`

	// ipBlocks are addresses of callers as CIDRs, such as 10.0.0.0/8 or
	// 192.0.2.7/32: the peer address of the connection.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="self.all(b, isCIDR(b))",message="an ipBlock is a CIDR: write 10.0.0.0/8, or 192.0.2.7/32 for one address"
	IPBlocks []string `json:"ipBlocks,omitempty"`

	// notIpBlocks are CIDRs that the peer address of the connection is in none of.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=49
	NotIPBlocks []string `json:"notIpBlocks,omitempty"`

	// remoteIpBlocks are CIDRs of the client that the request comes from in the end,
	// before gateways and load balancers: what X-Forwarded-For says of it, where the
	// MeshConfig's forwardedFor says how far that is believed. Where it says nothing, or
	// has fewer entries than trusted proxies, the client is not known: Allow never
	// matches, and Deny does. Whoever calls a sidecar without a gateway has no such
	// header, or one that he wrote: name the gateway's service account in the same
	// entry.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=49
	RemoteIPBlocks []string `json:"remoteIpBlocks,omitempty"`

	// notRemoteIpBlocks are CIDRs that this client is in none of.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=49
	NotRemoteIPBlocks []string `json:"notRemoteIpBlocks,omitempty"`

	// requestPrincipals are of the request's valid token, as <issuer>/<subject>:
	// https://accounts.example/alice. A trailing '*' makes the subject a prefix,
	// https://accounts.example/* is any token of the issuer, and * any valid token. A
	// subject with a '/' is written in when, as the claim sub. Where no jwt section
	// holds, no token is known to be valid.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	RequestPrincipals []string `json:"requestPrincipals,omitempty"`

	// notRequestPrincipals are those that the token has none of. They match a request
	// without a valid token in a Deny rule, and not in an Allow rule.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	NotRequestPrincipals []string `json:"notRequestPrincipals,omitempty"`
}

// Operation matches a request for which every field that is written has a value
// that matches, and no field that begins with "not" has one. Methods, paths, hosts
// and gRPC methods are known only of HTTP: on any other connection an Allow rule that
// has them never matches, and a Deny rule denies.
//
// +kubebuilder:validation:XValidation:rule="has(self.ports) || has(self.notPorts) || has(self.methods) || has(self.notMethods) || has(self.paths) || has(self.notPaths) || has(self.hosts) || has(self.notHosts) || has(self.grpc)",message="an entry of to says nothing: write ports, methods, paths, hosts, grpc or a not-form of one, or leave to out to match every request"
type Operation struct {
	// ports are container ports, not the Service's.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`

	// notPorts are container ports that are not meant.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	NotPorts []int32 `json:"notPorts,omitempty"`

	// methods of HTTP, such as GET, in capitals. For gRPC it is always POST.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.all(m, m.matches('^[A-Z][A-Z_-]*$'))",message="an HTTP method is written in capitals: GET, POST, PUT"
	Methods []string `json:"methods,omitempty"`

	// notMethods are methods that are not meant.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=32
	NotMethods []string `json:"notMethods,omitempty"`

	// paths of requests, without the query: "/cart" is that path, "/cart/*" a
	// prefix, "*.png" a suffix, "*" any. With "{" or "**" it is a template:
	// "/users/{id}/orders" has any one segment in the middle, "/files/{name=**}" and
	// "/files/**" have any number of them at the end.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.all(p, p.startsWith('/') || p.startsWith('*'))",message="a path begins with '/', or with '*' for a suffix: write /cart, /cart/* or *.png"
	// +kubebuilder:validation:XValidation:rule="self.all(p, p == '*' || p.contains('{') || p.contains('**') || p.split('*').size() <= 2 && (!p.contains('*') || p.startsWith('*') || p.endsWith('*')))",message="one '*' at most, at the beginning or the end of a path: write /cart/* or *.png, or a template such as /users/{id}/orders"
	// +kubebuilder:validation:XValidation:rule="self.all(p, !p.contains('?') && !p.contains('#'))",message="a path has no query and no fragment: leave out '?' or '#' and what follows"
	Paths []string `json:"paths,omitempty"`

	// notPaths are paths that are not meant, written as paths.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	NotPaths []string `json:"notPaths,omitempty"`

	// hosts of requests (Host or :authority), without the port: "shop.example"
	// is that host, "*.example" a suffix, "shop.*" a prefix, "*" any.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.all(h, h == '*' || h.split('*').size() <= 2 && (!h.contains('*') || h.startsWith('*') || h.endsWith('*')))",message="one '*' at most, at the beginning or the end of a host: write *.example or shop.*"
	// +kubebuilder:validation:XValidation:rule="self.all(h, !h.contains('/') && !h.contains(':'))",message="a host has no scheme, port or path: write shop.example, and the port in ports"
	Hosts []string `json:"hosts,omitempty"`

	// notHosts are hosts that are not meant, written as hosts.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	NotHosts []string `json:"notHosts,omitempty"`

	// grpc are services and methods of gRPC.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	GRPC []GRPCMethod `json:"grpc,omitempty"`
}

// GRPCMethod is a method of gRPC: a request to the path /service/method, whatever its
// content type.
//
// +kubebuilder:validation:XValidation:rule="has(self.service) || has(self.method)",message="an entry of grpc says nothing: write service, method or both"
type GRPCMethod struct {
	// service with its package, such as shop.v1.Cart; any by default.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*$`
	Service string `json:"service,omitempty"`

	// method of the service, such as AddItem; any by default.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z_0-9]*$`
	Method string `json:"method,omitempty"`
}

// Condition is what else must hold for a rule to match, all of it.
//
// +kubebuilder:validation:XValidation:rule="has(self.headers) || has(self.claims) || has(self.sni)",message="when says nothing: write headers, claims or sni, or leave when out"
type Condition struct {
	// headers of the request, all of which must match. They are what a caller
	// chooses to send: they say nothing about who he is.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Headers []HeaderCondition `json:"headers,omitempty"`

	// claims of the request's valid token, all of which must match. Where no jwt
	// section holds, no token is known to be valid.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Claims []ClaimCondition `json:"claims,omitempty"`

	// sni is the name of the server that the client asked for in TLS that the mesh
	// did not make: at a gateway, or of an application's own TLS. Inside of mesh mTLS
	// nobody sees it.
	// +optional
	SNI *SNICondition `json:"sni,omitempty"`
}

// HeaderCondition matches a request by one of its headers. A header that is sent more
// than once, or has commas, has several values, and nobody can say which the
// application takes. In an Allow rule values matches a header with one value alone; in
// any other rule one of them is enough, and notValues spares a header with one value
// alone.
//
// +kubebuilder:validation:XValidation:rule="has(self.values) || has(self.notValues)",message="a header says nothing without a value: write values, with '*' for any, or notValues"
type HeaderCondition struct {
	// name of the header, in any case. A request that has the header under a name with
	// '_' for a '-' is refused, since many applications take the two for one.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]+(-[A-Za-z0-9]+){0,5}$`
	Name string `json:"name"`

	// values, of which one must match: "a" is that value, "a*" a prefix, "*a" a
	// suffix, "*" any that is not empty. Case counts.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	Values []string `json:"values,omitempty"`

	// notValues, of which none may match. A request without the header has none.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	NotValues []string `json:"notValues,omitempty"`
}

// SNICondition matches a connection by the name of the server that the client asked
// for.
//
// +kubebuilder:validation:XValidation:rule="has(self.values) || has(self.notValues)",message="sni says nothing without a name: write values or notValues"
type SNICondition struct {
	// values, of which one must match: "shop.example" is that name, "*.example" a
	// suffix, "shop.*" a prefix, "*" any.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	Values []string `json:"values,omitempty"`

	// notValues, of which none may match. An Allow rule with them never matches
	// where the client asked for no name.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	NotValues []string `json:"notValues,omitempty"`
}
