package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ExternalService names something outside of the cluster that workloads call. It holds
// for the workloads of its namespace, and in Tulle's own namespace for those of the whole
// mesh; a namespace's own wins. Where MeshConfig says RegistryOnly, nothing but what an
// ExternalService names is let out.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=extsvc,categories=mesh
// +kubebuilder:printcolumn:name="Hosts",type=string,JSONPath=`.spec.hosts`
// +kubebuilder:printcolumn:name="Ports",type=string,JSONPath=`.spec.ports[*].number`
// +kubebuilder:printcolumn:name="Resolution",type=string,JSONPath=`.spec.resolution`
// +kubebuilder:printcolumn:name="TLS",type=string,JSONPath=`.spec.tls.mode`
// +kubebuilder:printcolumn:name="Gateway",type=string,priority=1,JSONPath=`.spec.gateway.name`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Proxies",type=integer,JSONPath=`.status.proxies.concerned`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Accepted")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ExternalService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what is called, how it is reached, and who may.
	// +required
	Spec ExternalServiceSpec `json:"spec"`

	// status is what the control plane found.
	// +optional
	Status ExternalServiceStatus `json:"status,omitzero"`
}

// ExternalServiceSpec is what is called, how it is reached, and who may.
//
// +kubebuilder:validation:XValidation:rule="self.resolution == 'None' || !self.hosts.exists(h, h.startsWith('*'))",message="a wildcard stands for many servers, of which one set of endpoints cannot be said: write resolution: None, or name each host"
// +kubebuilder:validation:XValidation:rule="self.resolution != 'Static' || has(self.endpoints)",message="resolution Static needs to know the servers' addresses: write endpoints"
// +kubebuilder:validation:XValidation:rule="self.resolution != 'None' || !has(self.endpoints)",message="with resolution None connections go where the application sends them: leave endpoints out, or write resolution: Static"
// +kubebuilder:validation:XValidation:rule="self.resolution != 'Static' || !has(self.endpoints) || self.endpoints.all(e, isIP(e.address))",message="with resolution Static the addresses of endpoints are IP addresses: write 192.0.2.7, or resolution: DNS for names"
// +kubebuilder:validation:XValidation:rule="self.resolution == 'None' || !has(self.addresses) || self.addresses.all(a, !a.contains('/'))",message="a range of addresses can only be passed through: write resolution: None, or single addresses"
// +kubebuilder:validation:XValidation:rule="self.resolution != 'DNS' || has(self.endpoints) || !has(self.addresses) || self.hosts.size() == 1",message="what is sent to an address goes to the host's servers, so that there must be one host: write one, or endpoints"
// +kubebuilder:validation:XValidation:rule="has(self.addresses) || self.resolution == 'Static' || !self.ports.exists(p, p.protocol == 'TCP')",message="a TCP connection says no name, so it is known by its address alone: write addresses, or protocol TLS where clients speak TLS"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || self.resolution != 'None'",message="tls is for servers that the sidecar connects to itself: write resolution: DNS or Static"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || !self.ports.exists(p, p.protocol in ['HTTPS', 'TLS'])",message="on ports with the protocol HTTPS or TLS the application speaks TLS itself: leave tls out, or write HTTP, GRPC or TCP for what the application speaks"
// +kubebuilder:validation:XValidation:rule="!has(self.gateway) || self.resolution != 'None' || !has(self.addresses)",message="a gateway is told what was called, and looks hosts up; it has no way on to an address: write resolution: DNS or Static, or leave addresses out"
// +kubebuilder:validation:XValidation:rule="!has(self.gateway) || self.ports.all(p, (has(p.targetPort) ? p.targetPort : p.number) < 15000 || (has(p.targetPort) ? p.targetPort : p.number) > 15021)",message="ports 15000 to 15021 are those of the gateway's own proxy, to which a name might lead: write another targetPort, or leave gateway out"
type ExternalServiceSpec struct {
	// hosts are the names by which clients call it: the Host of HTTP, the server name (SNI)
	// of TLS. "*.example.org" is any name below example.org. With addresses, these alone
	// decide, and a client's own words do not.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.all(h, h.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'))",message="a host is a DNS name in lower case, without scheme, port, path and last dot; a wildcard is '*.' before one: write api.example.org or *.example.org"
	Hosts []string `json:"hosts"`

	// ports that clients call.
	// +required
	// +listType=map
	// +listMapKey=number
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Ports []ExternalPort `json:"ports"`

	// addresses that clients call, outside of the cluster's own ranges: IP addresses, and
	// with resolution None also ranges (CIDR).
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="self.all(a, isIP(a) || isCIDR(a))",message="an address is an IP address or a range: write 192.0.2.7 or 192.0.2.0/24"
	Addresses []string `json:"addresses,omitempty"`

	// resolution says where calls go. None: where the application sends them. Static: to
	// endpoints. DNS: the sidecar looks the host up, or the endpoints' names.
	// +optional
	// +kubebuilder:default=None
	Resolution ExternalResolution `json:"resolution,omitempty"`

	// endpoints are the servers.
	// +optional
	// +listType=map
	// +listMapKey=address
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Endpoints []ExternalEndpoint `json:"endpoints,omitempty"`

	// tls has the sidecar speak TLS to the servers, where the application speaks in the
	// clear.
	// +optional
	TLS *ExternalTLS `json:"tls,omitempty"`

	// gateway is an egress gateway, by which all calls leave the cluster. They are closed
	// while there is none.
	// +optional
	Gateway *ExternalGateway `json:"gateway,omitempty"`

	// from says who may call it, one entry at least of which must match; everybody for whom
	// it holds by default. The caller's own sidecar refuses all others; and the gateway does,
	// where there is one, by the certificate of whoever calls.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	From []ExternalCaller `json:"from,omitempty"`
}

// ExternalGateway is a Gateway of Tulle's with a listener of the protocol
// mesh.tulle.dev/Egress. It looks names up, and speaks TLS to servers, in the sidecar's place.
type ExternalGateway struct {
	// name of the Gateway.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`

	// namespace of the Gateway; the object's own by default. In another one a ReferenceGrant
	// has to let ExternalServices of this namespace refer to the Gateway.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespace string `json:"namespace,omitempty"`
}

// ExternalProtocol is what the application speaks.
//
// +kubebuilder:validation:Enum=HTTP;GRPC;HTTPS;TLS;TCP
type ExternalProtocol string

const (
	// ExternalHTTP is HTTP/1.1 or HTTP/2 in the clear.
	ExternalHTTP ExternalProtocol = "HTTP"
	// ExternalGRPC is gRPC in the clear.
	ExternalGRPC ExternalProtocol = "GRPC"
	// ExternalHTTPS is TLS with HTTP in it, which sidecars do not look into.
	ExternalHTTPS ExternalProtocol = "HTTPS"
	// ExternalTLSProtocol is TLS with anything in it.
	ExternalTLSProtocol ExternalProtocol = "TLS"
	// ExternalTCP is any byte stream; the server may speak first.
	ExternalTCP ExternalProtocol = "TCP"
)

// ExternalPort is a port that clients call.
type ExternalPort struct {
	// number that clients call.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Number int32 `json:"number"`

	// name of the port, by which endpoints may have another number for it.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name,omitempty"`

	// protocol that the application speaks.
	// +required
	Protocol ExternalProtocol `json:"protocol"`

	// targetPort of the servers; number by default.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	TargetPort int32 `json:"targetPort,omitempty"`
}

// ExternalResolution says where calls go.
//
// +kubebuilder:validation:Enum=None;Static;DNS
type ExternalResolution string

const (
	// ExternalNone is where the application sends them.
	ExternalNone ExternalResolution = "None"
	// ExternalStatic is to endpoints.
	ExternalStatic ExternalResolution = "Static"
	// ExternalDNS is where names lead, which the sidecar looks up.
	ExternalDNS ExternalResolution = "DNS"
)

// ExternalEndpoint is a server.
type ExternalEndpoint struct {
	// address of the server: an IP address, or with resolution DNS a name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="isIP(self) || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="the address of an endpoint is an IP address or a DNS name in lower case: write 192.0.2.7 or api.example.org"
	Address string `json:"address"`

	// ports of the server, where they differ from those of the ExternalService.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Ports []EndpointPort `json:"ports,omitempty"`
}

// EndpointPort is a port of a server.
type EndpointPort struct {
	// name of the port of the ExternalService that it is for.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// number of the server's port.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Number int32 `json:"number"`
}

// ExternalTLSMode says which TLS the sidecar speaks.
//
// +kubebuilder:validation:Enum=Simple
type ExternalTLSMode string

// ExternalTLSSimple verifies the server and shows no certificate of its own.
const ExternalTLSSimple ExternalTLSMode = "Simple"

// ExternalTLS is the TLS that the sidecar speaks to the servers, which must show a
// certificate for their name, by an authority that is trusted.
type ExternalTLS struct {
	// mode: Simple verifies the server.
	// +optional
	// +kubebuilder:default=Simple
	Mode ExternalTLSMode `json:"mode,omitempty"`

	// sni is the name that servers are asked for; the host that was called by default.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="sni is a DNS name in lower case: write api.example.org"
	SNI string `json:"sni,omitempty"`

	// subjectAltNames are the DNS names, one of which the server's certificate must have;
	// sni by default.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	SubjectAltNames []string `json:"subjectAltNames,omitempty"`

	// caBundle are the authorities that are trusted, in PEM; those that the proxy's image
	// trusts by default.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	CABundle string `json:"caBundle,omitempty"`
}

// ExternalCaller matches a workload for which every field that is written has a value that
// matches.
//
// +kubebuilder:validation:XValidation:rule="has(self.namespaces) || has(self.serviceAccounts)",message="an entry of from says nothing: write namespaces or serviceAccounts, or leave from out to let everybody call"
type ExternalCaller struct {
	// namespaces of workloads.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`

	// serviceAccounts of workloads: "name" in the object's own namespace, or
	// "namespace/name".
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
}

// ExternalServiceStatus is what the control plane found about an ExternalService.
type ExternalServiceStatus struct {
	// conditions are Accepted and Programmed, and where it names a gateway ResolvedRefs.
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

// ExternalServiceList is a list of ExternalServices.
//
// +kubebuilder:object:root=true
type ExternalServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ExternalService `json:"items"`
}
