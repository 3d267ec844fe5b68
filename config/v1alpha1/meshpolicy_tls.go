package v1alpha1

// TLS says on which ports sidecars end the TLS of clients from outside of the mesh, as
// one that a Gateway passes through (a TLSRoute). What such a client asks for is then
// treated as any request of HTTP without an identity in the mesh: jwt, authorization
// and rateLimit hold for it, and the application has it in the clear.
type TLS struct {
	// ports are the ports at which TLS ends. A port is HTTP by being named here,
	// whatever Services declare, and takes TLS alone: of clients, or mutual TLS of the
	// mesh. Of several policies that name a port the most specific holds, and of those
	// the oldest.
	// +required
	// +listType=map
	// +listMapKey=port
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Ports []PortTLS `json:"ports"`
}

// PortTLS is a port at which the sidecar ends TLS, also where mtls says Strict.
type PortTLS struct {
	// port is the container port that clients call, not the Service's.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// targetPort is the port at which the application takes the requests in the clear,
	// those of callers in mutual TLS of the mesh, too; by default port itself. It gets
	// HTTP/2 where a Service declares HTTP/2 or gRPC for either port, else HTTP/1.1,
	// whatever clients speak; of callers of the mesh, what they speak.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	TargetPort int32 `json:"targetPort,omitempty"`

	// certificateRef names the Secret of the type kubernetes.io/tls with the
	// certificate and its key. While it cannot be used, TLS of clients is refused at
	// the port. Tulle may read it where deploy/gateways is applied.
	// +required
	CertificateRef CertificateRef `json:"certificateRef"`
}

// CertificateRef names a Secret of the policy's namespace.
type CertificateRef struct {
	// name of the Secret.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Name string `json:"name"`
}
