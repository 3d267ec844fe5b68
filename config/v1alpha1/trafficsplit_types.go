package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// TrafficSplit shares the calls to one Service out among the endpoints of
// several, by weight and, for HTTP, by what a request looks like.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=tsplit,categories=mesh
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.service`
// +kubebuilder:printcolumn:name="Backends",type=string,JSONPath=`.spec.backends`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Refs",type=string,JSONPath=`.status.conditions[?(@.type=="ResolvedRefs")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Proxies",type=integer,JSONPath=`.status.proxies.concerned`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Accepted")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type TrafficSplit struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is how calls are shared out.
	// +required
	Spec TrafficSplitSpec `json:"spec"`

	// status is what the control plane found.
	// +optional
	Status TrafficSplitStatus `json:"status,omitzero"`
}

// TrafficSplitSpec is how the calls to one Service are shared out.
type TrafficSplitSpec struct {
	// service is the root: the Service, in the split's namespace, that clients
	// call.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Service string `json:"service"`

	// port of the root Service; all its ports by default.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`

	// rules share out the HTTP requests that they match. The first rule that
	// matches decides.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Rules []SplitRule `json:"rules,omitempty"`

	// sessionAffinity keeps a caller with one backend, as long as the weights' sum
	// stays the same and the backend's own share does not shrink past it. It is about
	// HTTP. Where a backend's pod is chosen by a hash, it is by the same.
	// +optional
	SessionAffinity *SessionAffinity `json:"sessionAffinity,omitempty"`

	// backends share out everything that no rule matches: requests, and connections
	// to ports that are not HTTP.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.exists(b, b.weight > 0)",message="no backend has a weight above 0, so calls could go nowhere: give at least one backend a weight of 1 or more"
	Backends []SplitBackend `json:"backends"`

	// mirrors get a copy of a share of the HTTP requests that no rule matches.
	// +optional
	// +listType=map
	// +listMapKey=service
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	Mirrors []Mirror `json:"mirrors,omitempty"`
}

// Mirror is a Service that gets copies of requests, as they are. Its answers are thrown
// away, and nobody waits for them.
type Mirror struct {
	// service in the split's namespace.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Service string `json:"service"`

	// percent of the requests that are copied; 100 by default.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent *int32 `json:"percent,omitempty"`
}

// SplitRule shares out the HTTP requests that one of its matches matches.
type SplitRule struct {
	// matches are the requests that the rule is about. Any one is enough.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Matches []RequestMatch `json:"matches"`

	// backends share out what matches.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.exists(b, b.weight > 0)",message="no backend of the rule has a weight above 0, so calls could go nowhere: give at least one backend a weight of 1 or more"
	Backends []SplitBackend `json:"backends"`

	// mirrors get a copy of a share of what matches.
	// +optional
	// +listType=map
	// +listMapKey=service
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	Mirrors []Mirror `json:"mirrors,omitempty"`
}

// SessionAffinity says by what of a request a caller is known again. A request that
// lacks it is shared out by weight.
//
// +kubebuilder:validation:XValidation:rule="[has(self.header), has(self.cookie), has(self.sourceIP)].filter(x, x).size() == 1",message="write one of header, cookie and sourceIP"
type SessionAffinity struct {
	// header of the request.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_|~-]+$"
	Header string `json:"header,omitempty"`

	// cookie of the request, which the application sets.
	// +optional
	Cookie *AffinityCookie `json:"cookie,omitempty"`

	// sourceIP is the client's address: in a mesh the calling pod's.
	// +optional
	// +kubebuilder:validation:Enum=true
	SourceIP bool `json:"sourceIP,omitempty"`
}

// AffinityCookie is a cookie by which a caller is known again.
type AffinityCookie struct {
	// name of the cookie.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_|~-]+$"
	Name string `json:"name"`
}

// SplitBackend is a Service, or the pods of one that have some labels, whose endpoints
// take a share of the calls. What other splits say about that Service does not count
// here; the root may be its own backend.
//
// +kubebuilder:validation:XValidation:rule="has(self.service) || has(self.matchLabels)",message="the backend says nothing: write service, or matchLabels for some of the root's own pods"
// +kubebuilder:validation:XValidation:rule="!has(self.__namespace__) || has(self.service)",message="a namespace is of a Service: write service, too"
type SplitBackend struct {
	// service is the Service; the root itself by default.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Service string `json:"service,omitempty"`

	// namespace of the Service; the split's by default. Another one has to have a
	// ReferenceGrant of the Gateway API, from TrafficSplits of the split's namespace
	// to the Service.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`

	// matchLabels are labels of the pods that are meant, such as version: v2; all of
	// the Service's by default.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=8
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 317)",message="a label's name has at most 63 characters, after a prefix of at most 253 and a slash"
	MatchLabels map[string]LabelValue `json:"matchLabels,omitempty"`

	// weight is the backend's share, relative to the sum of all weights in the
	// list. 0 sends it nothing.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Weight *int32 `json:"weight,omitempty"`
}

// RequestMatch matches an HTTP request when all that is written matches.
//
// +kubebuilder:validation:XValidation:rule="has(self.path) || has(self.headers) || has(self.method) || has(self.queryParams)",message="a match says nothing: write path, headers, method or queryParams, or put the backends in spec.backends, which take whatever no rule matches"
type RequestMatch struct {
	// path of the request, without the query.
	// +optional
	Path *PathMatch `json:"path,omitempty"`

	// headers that the request must have, all of them.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Headers []HeaderMatch `json:"headers,omitempty"`

	// method of the request, such as GET.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[A-Z]+$`
	Method string `json:"method,omitempty"`

	// queryParams that the request must have, all of them.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	QueryParams []QueryParamMatch `json:"queryParams,omitempty"`
}

// QueryParamMatch compares one parameter of a request's query. Of several of one name
// the first counts.
type QueryParamMatch struct {
	// type says how value is compared. RegularExpression is RE2 over the whole
	// value.
	// +optional
	// +kubebuilder:default=Exact
	Type HeaderMatchType `json:"type,omitempty"`

	// name of the parameter.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`

	// value to compare with, as it is in the query.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Value string `json:"value"`
}

// PathMatchType says how a path is compared.
//
// +kubebuilder:validation:Enum=Exact;PathPrefix;RegularExpression
type PathMatchType string

const (
	// PathMatchExact compares the whole path.
	PathMatchExact PathMatchType = "Exact"
	// PathMatchPrefix compares path elements: "/a" matches "/a" and "/a/b", and
	// not "/ab".
	PathMatchPrefix PathMatchType = "PathPrefix"
	// PathMatchRegularExpression is RE2, over the whole path.
	PathMatchRegularExpression PathMatchType = "RegularExpression"
)

// PathMatch compares a request's path.
//
// +kubebuilder:validation:XValidation:rule="self.type == 'RegularExpression' || self.value.startsWith('/')",message="a path begins with '/': write /cart, or type: RegularExpression for a pattern"
// +kubebuilder:validation:XValidation:rule="self.type == 'RegularExpression' || !(self.value.contains('?') || self.value.contains('#') || self.value.contains('*'))",message="a path has no query, no fragment and no '*': write type: PathPrefix for a prefix, or type: RegularExpression for a pattern"
type PathMatch struct {
	// type says how value is compared. PathPrefix goes by path elements: "/a"
	// matches "/a" and "/a/b", and not "/ab". RegularExpression is RE2 over the
	// whole path.
	// +optional
	// +kubebuilder:default=PathPrefix
	Type PathMatchType `json:"type,omitempty"`

	// value to compare with.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Value string `json:"value"`
}

// HeaderMatchType says how a header is compared.
//
// +kubebuilder:validation:Enum=Exact;RegularExpression
type HeaderMatchType string

const (
	// HeaderMatchExact compares the whole value.
	HeaderMatchExact HeaderMatchType = "Exact"
	// HeaderMatchRegularExpression is RE2, over the whole value.
	HeaderMatchRegularExpression HeaderMatchType = "RegularExpression"
)

// HeaderMatch compares one header of a request.
type HeaderMatch struct {
	// type says how value is compared. RegularExpression is RE2 over the whole
	// value.
	// +optional
	// +kubebuilder:default=Exact
	Type HeaderMatchType `json:"type,omitempty"`

	// name of the header, in any case.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9!#$%&'*+\-.^_|~]+$`
	Name string `json:"name"`

	// value to compare with.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	Value string `json:"value"`
}

// TrafficSplitStatus is what the control plane found about a TrafficSplit.
type TrafficSplitStatus struct {
	// conditions are Accepted, Programmed and ResolvedRefs.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// proxies says how many running proxies the object concerns, and how many of
	// those run its present generation.
	// +optional
	Proxies *ProxyCounts `json:"proxies,omitempty"`
}

// TrafficSplitList is a list of TrafficSplits.
//
// +kubebuilder:object:root=true
type TrafficSplitList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []TrafficSplit `json:"items"`
}
