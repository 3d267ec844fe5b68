package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MeshConfigName is the name of the one MeshConfig of a cluster.
const MeshConfigName = "default"

// AnnotationRotate of the MeshConfig asks for a rotation of the certificate
// authority; "tulle ca rotate" writes it.
const AnnotationRotate = "mesh.tulle.dev/rotate-ca"

// MeshConfig is what holds for the whole mesh. There is one, named default;
// while there is none, its defaults hold.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=mcfg,categories=mesh
// +kubebuilder:printcolumn:name="Trust-Domain",type=string,JSONPath=`.spec.trustDomain`
// +kubebuilder:printcolumn:name="mTLS",type=string,JSONPath=`.spec.mtls.mode`
// +kubebuilder:printcolumn:name="Egress",type=string,JSONPath=`.spec.egress.mode`
// +kubebuilder:printcolumn:name="Lifetime",type=string,JSONPath=`.spec.certificates.lifetime`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Proxies",type=integer,JSONPath=`.status.proxies.concerned`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Accepted")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is one MeshConfig, named default: write metadata.name: default"
type MeshConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what holds for the whole mesh.
	// +optional
	// +kubebuilder:default={}
	Spec MeshConfigSpec `json:"spec,omitzero"`

	// status is what the control plane found.
	// +optional
	Status MeshConfigStatus `json:"status,omitzero"`
}

// MeshConfigSpec is what holds for the whole mesh.
type MeshConfigSpec struct {
	// trustDomain is the first part of every SPIFFE identity of the mesh:
	// spiffe://<trustDomain>/ns/<namespace>/sa/<service account>. It cannot be
	// changed.
	// +optional
	// +kubebuilder:default=cluster.local
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9._-]+$')",message="a trust domain has lower-case letters, digits, '.', '-' and '_', and no scheme, port or path: write cluster.local"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the trust domain is part of every identity and cannot be changed: delete the MeshConfig and create it anew, then restart every meshed workload"
	TrustDomain string `json:"trustDomain,omitempty"`

	// trustDomainAliases are other names of trustDomain, for a migration from one to
	// the other: callers with identities of these are let in as those of trustDomain,
	// and rules that name identities of one mean those of all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.all(d, d.matches('^[a-z0-9._-]+$'))",message="a trust domain has lower-case letters, digits, '.', '-' and '_', and no scheme, port or path: write cluster.local"
	TrustDomainAliases []string `json:"trustDomainAliases,omitempty"`

	// mtls is the default for workloads that no MeshPolicy speaks about.
	// +optional
	// +kubebuilder:default={}
	MTLS MeshMTLS `json:"mtls,omitzero"`

	// certificates are those of workloads.
	// +optional
	// +kubebuilder:default={}
	Certificates Certificates `json:"certificates,omitzero"`

	// ca is the authority that signs them: the mesh's own unless it says otherwise.
	// +optional
	CA CertificateAuthority `json:"ca,omitzero"`

	// egress is traffic to addresses outside of the cluster.
	// +optional
	// +kubebuilder:default={}
	Egress Egress `json:"egress,omitzero"`

	// clusterRanges are the address ranges of the cluster, where Kubernetes
	// itself does not tell them (ServiceCIDR objects, nodes' pod ranges).
	// Traffic to any other address is egress.
	// +optional
	ClusterRanges ClusterRanges `json:"clusterRanges,omitzero"`

	// proxy is the sidecar in every meshed pod. A change is seen by pods that
	// are created afterwards.
	// +optional
	Proxy ProxyConfig `json:"proxy,omitzero"`

	// accessLog is the proxies' log of requests and connections.
	// +optional
	// +kubebuilder:default={}
	AccessLog AccessLog `json:"accessLog,omitzero"`

	// rateLimitService counts the requests of rateLimit rules with global, over all
	// pods. Without it these rules do not hold. The first one, and a change of it,
	// drains the connections to all workloads.
	// +optional
	RateLimitService *RateLimitService `json:"rateLimitService,omitempty"`

	// forwardedFor says how far X-Forwarded-For is believed, which remoteIpBlocks of
	// MeshPolicies are about.
	// +optional
	ForwardedFor ForwardedFor `json:"forwardedFor,omitzero"`

	// externalAuthorizers are whom Custom rules of MeshPolicies ask.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	ExternalAuthorizers []ExternalAuthorizer `json:"externalAuthorizers,omitempty"`

	// jwks says how the control plane fetches public keys of issuers, which jwt
	// sections of MeshPolicies name by uri.
	// +optional
	JWKS JWKSFetching `json:"jwks,omitzero"`
}

// JWKSFetching says how the control plane fetches public keys of issuers. Whoever may
// write a MeshPolicy names where to; so that he reaches nothing by it that he should not,
// it is public addresses over HTTPS but for what is allowed here.
type JWKSFetching struct {
	// refreshInterval is how often keys are fetched again, 10m by default, 1m to 24h.
	// The max-age of an answer may make it up to six times as long, and not shorter
	// than 1m.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('24h')",message="refreshInterval is 1m to 24h: write 10m"
	RefreshInterval *metav1.Duration `json:"refreshInterval,omitempty"`

	// allowedRanges are CIDRs of addresses that are not public and may be asked all the
	// same, such as the cluster's own where an issuer runs in it.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=49
	AllowedRanges []string `json:"allowedRanges,omitempty"`

	// allowHTTP lets keys be fetched without TLS: whoever is on the way can put in keys
	// of his own.
	// +optional
	AllowHTTP bool `json:"allowHTTP,omitempty"`
}

// ForwardedFor says how far X-Forwarded-For is believed.
type ForwardedFor struct {
	// trustedHops is how many proxies on the way write into the header whom they
	// heard from: 1 where clients connect to the mesh's gateways, 2 where a load
	// balancer that writes it is before them. 0 believes nothing.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16
	TrustedHops int32 `json:"trustedHops,omitempty"`
}

// AuthorizerProtocol is how an external authorizer is asked.
//
// +kubebuilder:validation:Enum=GRPC;HTTP
type AuthorizerProtocol string

const (
	// AuthorizerGRPC is Envoy's envoy.service.auth.v3.Authorization.
	AuthorizerGRPC AuthorizerProtocol = "GRPC"
	// AuthorizerHTTP is a request that is answered with 200 where it may pass.
	AuthorizerHTTP AuthorizerProtocol = "HTTP"
)

// FailureMode says what becomes of a request when a service that was to decide about
// it does not answer.
//
// +kubebuilder:validation:Enum=Closed;Open
type FailureMode string

const (
	// FailureClosed refuses the request.
	FailureClosed FailureMode = "Closed"
	// FailureOpen lets it pass, to what else decides about it.
	FailureOpen FailureMode = "Open"
)

// ExternalAuthorizer is a Service that decides on requests (Envoy's ext_authz).
//
// +kubebuilder:validation:XValidation:rule="self.protocol == 'HTTP' || !has(self.pathPrefix) && !has(self.requestHeaders) && !has(self.upstreamHeaders)",message="pathPrefix, requestHeaders and upstreamHeaders are of protocol: HTTP; over gRPC the authorizer is told all headers, and answers with those that it changes"
type ExternalAuthorizer struct {
	// name by which rules refer to it.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`

	// service that is asked. Where its pods are meshed, it is asked over mesh mTLS.
	// +required
	Service AuthorizerService `json:"service"`

	// protocol: GRPC is envoy.service.auth.v3.Authorization. HTTP is a request of
	// the same method and path without body, where 200 lets pass, and any other
	// answer is the client's.
	// +optional
	// +kubebuilder:default=GRPC
	Protocol AuthorizerProtocol `json:"protocol,omitempty"`

	// timeout of a question, from 1ms to 1m.
	// +optional
	// +kubebuilder:default="1s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1ms') && duration(self) <= duration('1m')",message="requests wait for the authorizer: write a timeout from 1ms to 1m, such as 500ms"
	Timeout *metav1.Duration `json:"timeout,omitempty"`

	// failureMode: Closed refuses a request when the authorizer cannot be reached,
	// fails or takes too long, Open lets it pass to the rules of Deny and Allow.
	// +optional
	// +kubebuilder:default=Closed
	FailureMode FailureMode `json:"failureMode,omitempty"`

	// pathPrefix is put before the path, of HTTP.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^/[A-Za-z0-9._~/-]*$`
	PathPrefix string `json:"pathPrefix,omitempty"`

	// requestHeaders are those of the request that the authorizer is told, besides
	// host and authorization, of HTTP.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9!#$%&'*+\-.^_|~]+$`
	RequestHeaders []string `json:"requestHeaders,omitempty"`

	// upstreamHeaders are those of the authorizer's answer that the application is
	// told, of HTTP. They replace the client's of that name: have the authorizer answer
	// with each of them, so that no client can write one.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9!#$%&'*+\-.^_|~]+$`
	UpstreamHeaders []string `json:"upstreamHeaders,omitempty"`
}

// AuthorizerService names a Service and one of its ports.
type AuthorizerService struct {
	// namespace of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// name of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// port of the Service.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
}

// RateLimitService is a Service whose pods speak Envoy's rate limit protocol
// (envoy.service.ratelimit.v3, gRPC). It is called as any Service is: by mutual TLS of
// the mesh where its pods are in the mesh, by the identity of the workload that asks.
type RateLimitService struct {
	// namespace of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// name of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// port of the Service; 8081 by default.
	// +optional
	// +kubebuilder:default=8081
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`

	// domain under which the service looks up its limits.
	// +optional
	// +kubebuilder:default=tulle
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Domain string `json:"domain,omitempty"`

	// timeout of a question to the service, such as 20ms; 100ms by default.
	// +optional
	// +kubebuilder:default="100ms"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('10s')",message="every request waits for the service: write a timeout above zero and up to 10s, such as 100ms"
	Timeout *metav1.Duration `json:"timeout,omitempty"`

	// failureMode is what becomes of a request about which the service does not
	// answer in time: Open lets it in, Closed answers it with 503.
	// +optional
	// +kubebuilder:default=Open
	FailureMode FailureMode `json:"failureMode,omitempty"`
}

// MeshMTLS is the mesh-wide default of mutual TLS.
type MeshMTLS struct {
	// mode of workloads that no MeshPolicy speaks about.
	// +optional
	// +kubebuilder:default=Permissive
	Mode MTLSMode `json:"mode,omitempty"`
}

// EgressMode says what becomes of traffic to addresses outside of the cluster.
//
// +kubebuilder:validation:Enum=AllowAny;RegistryOnly
type EgressMode string

const (
	// EgressAllowAny passes it on as it is.
	EgressAllowAny EgressMode = "AllowAny"
	// EgressRegistryOnly refuses what no ExternalService names.
	EgressRegistryOnly EgressMode = "RegistryOnly"
)

// Egress is traffic to addresses outside of the cluster.
type Egress struct {
	// mode says what becomes of it: AllowAny passes it on as it is,
	// RegistryOnly refuses what no ExternalService names.
	// +optional
	// +kubebuilder:default=AllowAny
	Mode EgressMode `json:"mode,omitempty"`
}

// ClusterRanges are address ranges of the cluster, as CIDRs.
type ClusterRanges struct {
	// services are the ranges of Services' addresses, in addition to those of
	// ServiceCIDR objects.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="self.all(b, isCIDR(b))",message="a range is a CIDR: write 10.96.0.0/12"
	Services []string `json:"services,omitempty"`

	// pods are the ranges of pods' addresses, in addition to those of Node
	// objects.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="self.all(b, isCIDR(b))",message="a range is a CIDR: write 10.244.0.0/16"
	Pods []string `json:"pods,omitempty"`
}

// ProxyLogLevel is a log level of Envoy.
//
// +kubebuilder:validation:Enum=trace;debug;info;warning;error;critical;"off"
type ProxyLogLevel string

// ProxyConfig is the sidecar in every meshed pod. Annotations of a pod override
// it for that pod.
type ProxyConfig struct {
	// image of Envoy; the one that this version of Tulle is tested with by
	// default.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image,omitempty"`

	// resources that the sidecar requests and is limited to.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.claims)",message="a proxy has no resource claims: write requests and limits"
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`

	// logLevel of Envoy's own log; warning by default.
	// +optional
	LogLevel ProxyLogLevel `json:"logLevel,omitempty"`

	// concurrency is the number of Envoy's worker threads. By default one for
	// each CPU of the sidecar's limit, and 2 where it has none.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	Concurrency *int32 `json:"concurrency,omitempty"`
}

// AccessLogMode says whether proxies log requests and connections.
//
// +kubebuilder:validation:Enum=JSON;Disabled
type AccessLogMode string

const (
	// AccessLogJSON writes one JSON object a line to the proxy's stdout.
	AccessLogJSON AccessLogMode = "JSON"
	// AccessLogDisabled writes nothing.
	AccessLogDisabled AccessLogMode = "Disabled"
)

// AccessLog is the proxies' log of requests and connections.
//
// +kubebuilder:validation:XValidation:rule="!has(self.fields) || self.mode == 'JSON'",message="fields are those of the JSON log: leave them out, or write mode: JSON"
type AccessLog struct {
	// mode: JSON writes one JSON object a line to the proxy's stdout, Disabled
	// nothing.
	// +optional
	// +kubebuilder:default=JSON
	Mode AccessLogMode `json:"mode,omitempty"`

	// fields replace the default ones: from a key of the JSON object to a
	// format of Envoy's command operators, such as
	// "%REQ(x-request-id)%".
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	Fields map[string]LogFormat `json:"fields,omitempty"`
}

// LogFormat is text with Envoy's command operators.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
type LogFormat string

// Formats returns the fields as plain strings, nil where the default ones hold.
func (l AccessLog) Formats() map[string]string {
	if l.Fields == nil {
		return nil
	}
	formats := make(map[string]string, len(l.Fields))
	for key, format := range l.Fields {
		formats[key] = string(format)
	}
	return formats
}

// MeshConfigStatus is what the control plane found about the MeshConfig.
type MeshConfigStatus struct {
	// conditions are Accepted, Programmed and AuthorityCurrent.
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

// MeshConfigList is a list of MeshConfigs.
//
// +kubebuilder:object:root=true
type MeshConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshConfig `json:"items"`
}
