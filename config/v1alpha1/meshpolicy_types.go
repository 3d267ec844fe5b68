package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// MeshPolicy is what a platform or a team lays down about workloads. A policy
// speaks for one side: mtls, tls, jwt, authorization and rateLimit are enforced where the
// selected workloads run (all but mtls and tls also at a Gateway), traffic describes how clients
// call a Service.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=mpol,categories=mesh
// +kubebuilder:printcolumn:name="mTLS",type=string,JSONPath=`.spec.mtls.mode`
// +kubebuilder:printcolumn:name="Default",type=string,JSONPath=`.spec.authorization.default`
// +kubebuilder:printcolumn:name="Timeout",type=string,JSONPath=`.spec.traffic.timeout`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Proxies",type=integer,JSONPath=`.status.proxies.concerned`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Accepted")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type MeshPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what the policy lays down.
	// +required
	Spec MeshPolicySpec `json:"spec"`

	// status is what the control plane found.
	// +optional
	Status MeshPolicyStatus `json:"status,omitzero"`
}

// MeshPolicySpec is what a MeshPolicy lays down, in optional sections.
//
// +kubebuilder:validation:XValidation:rule="has(self.mtls) || has(self.jwt) || has(self.authorization) || has(self.rateLimit) || has(self.tls) || has(self.traffic)",message="a policy needs at least one section: write mtls, tls, jwt, authorization, rateLimit or traffic"
// +kubebuilder:validation:XValidation:rule="!(has(self.traffic) && (has(self.mtls) || has(self.tls) || has(self.jwt) || has(self.authorization) || has(self.rateLimit)))",message="a policy speaks for one side: traffic says how clients call a Service, mtls, tls, jwt, authorization and rateLimit what workloads accept; put traffic in a MeshPolicy of its own"
// +kubebuilder:validation:XValidation:rule="!(has(self.traffic) && has(self.selector))",message="traffic is about calls to Services, not about the workloads that selector picks: name the Services in targetRefs, or leave both out for all Services"
// +kubebuilder:validation:XValidation:rule="!(has(self.targetRefs) && has(self.selector))",message="selector picks workloads, targetRefs names Gateways: write one of the two, and a MeshPolicy for each"
// +kubebuilder:validation:XValidation:rule="!(has(self.targetRefs) && has(self.mtls))",message="mtls is about workloads, whom selector picks, and not about a Gateway's clients, who are outside of the mesh: put mtls in a MeshPolicy without targetRefs"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || has(self.selector)",message="tls is about ports of the workloads that selector picks: write selector with their labels; at a Gateway, TLS ends by tls of its listener"
// +kubebuilder:validation:XValidation:rule="!has(self.targetRefs) || has(self.traffic) || self.targetRefs.all(t, t.kind == 'Gateway')",message="jwt, authorization and rateLimit attach to a Gateway: write group: gateway.networking.k8s.io and kind: Gateway in targetRefs, or use selector to pick the workloads that they are about"
// +kubebuilder:validation:XValidation:rule="!has(self.targetRefs) || !has(self.traffic) || self.targetRefs.all(t, t.kind != 'Gateway')",message="traffic is about calls to a Service, or about the requests of an HTTPRoute or GRPCRoute: name one of these in targetRefs; for what a Gateway sends, the Service or route that it sends it by"
// +kubebuilder:validation:XValidation:rule="!has(self.targetRefs) || !has(self.traffic) || self.targetRefs.all(t, t.kind == 'Service') || !(has(self.traffic.connections) || has(self.traffic.circuitBreaker) || has(self.traffic.outlierDetection) || has(self.traffic.loadBalancer) || has(self.traffic.retries) && has(self.traffic.retries.budget))",message="connections, circuitBreaker, outlierDetection, loadBalancer and the budget of retries are about connections to a Service: name the Service in targetRefs; of a route write timeout, idleTimeout, retries or fault"
type MeshPolicySpec struct {
	// selector picks the workloads that mtls, jwt, authorization and rateLimit are
	// about, in the policy's namespace. Without it they are about all workloads of the
	// namespace. In Tulle's own namespace a policy is about the whole mesh, and
	// a selector picks in every namespace.
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`

	// targetRefs names what traffic is about: Services, or HTTPRoutes and GRPCRoutes,
	// for the requests of these. Without it, traffic is about calls to every Service
	// of the policy's namespace, whoever calls, and in Tulle's own namespace about calls
	// to every Service of the mesh. Of
	// authorization and rateLimit it names Gateways of the class tulle, at which they
	// are then enforced instead of at workloads. Policies without it do not hold at
	// Gateways: whoever comes from outside of the mesh has no identity in it.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	TargetRefs []TargetRef `json:"targetRefs,omitempty"`

	// mtls says whether the selected workloads accept connections that are not
	// mutual TLS of the mesh.
	// +optional
	MTLS *MTLS `json:"mtls,omitempty"`

	// tls says on which ports the sidecars of the selected workloads end the TLS of
	// clients from outside of the mesh. It needs selector, in the workloads' own namespace.
	// +optional
	TLS *TLS `json:"tls,omitempty"`

	// jwt says whose tokens the selected workloads, or the Gateways of targetRefs,
	// believe.
	// +optional
	JWT *JWT `json:"jwt,omitempty"`

	// authorization says who may call the selected workloads or come in by the
	// Gateways of targetRefs, and what. At a Gateway nothing holds but what names it.
	// +optional
	Authorization *Authorization `json:"authorization,omitempty"`

	// rateLimit says how many requests the selected workloads take, or the Gateways
	// of targetRefs.
	// +optional
	RateLimit *RateLimit `json:"rateLimit,omitempty"`

	// traffic says how clients call the targets.
	// +optional
	Traffic *Traffic `json:"traffic,omitempty"`
}

// WorkloadSelector picks workloads by their pods' labels.
type WorkloadSelector struct {
	// matchLabels are the labels that a pod must have, all of them.
	// +required
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=16
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 317)",message="a label's name has at most 63 characters, after a prefix of at most 253 and a slash"
	// +kubebuilder:validation:XValidation:rule="!('pod-template-hash' in self) && !('controller-revision-hash' in self)",message="pod-template-hash and controller-revision-hash differ from one rollout to the next: name a label of the workload, such as app"
	MatchLabels map[string]LabelValue `json:"matchLabels"`
}

// LabelValue is the value of a label, as Kubernetes allows it: empty, or up to
// 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends.
//
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:Pattern=`^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`
type LabelValue string

// Labels returns the labels that the selector asks for as Kubernetes' own label
// sets are typed, nil for a nil selector.
func (s *WorkloadSelector) Labels() map[string]string {
	if s == nil {
		return nil
	}
	labels := make(map[string]string, len(s.MatchLabels))
	for name, value := range s.MatchLabels {
		labels[name] = string(value)
	}
	return labels
}

// GatewayGroup is the API group of Gateways and their routes.
const GatewayGroup = "gateway.networking.k8s.io"

// TargetRef names what a policy is about.
//
// +kubebuilder:validation:XValidation:rule="self.kind == 'Service' ? size(self.group) == 0 : self.kind == 'ExternalService' ? self.group == 'mesh.tulle.dev' : self.kind in ['Gateway', 'HTTPRoute', 'GRPCRoute'] && self.group == 'gateway.networking.k8s.io'",message="a target is a Service (leave group out, or write \"\"), an ExternalService of the group mesh.tulle.dev, or of the group gateway.networking.k8s.io a Gateway, HTTPRoute or GRPCRoute: write group and kind so"
// +kubebuilder:validation:XValidation:rule="self.kind in ['Service', 'ExternalService'] || !has(self.__namespace__)",message="a policy stands in the namespace of the Gateway or route that it is about: leave namespace out"
// +kubebuilder:validation:XValidation:rule="self.kind in ['Service', 'ExternalService'] || !has(self.port)",message="port is of a Service or an ExternalService: leave it out, and name a listener of a Gateway by sectionName"
// +kubebuilder:validation:XValidation:rule="self.kind == 'Gateway' || !has(self.sectionName)",message="sectionName names a listener of a Gateway: leave it out"
type TargetRef struct {
	// group of the target: "" (Kubernetes' core group) of a Service, mesh.tulle.dev of
	// an ExternalService, gateway.networking.k8s.io of all others.
	// +optional
	// +kubebuilder:default=""
	// +kubebuilder:validation:MaxLength=253
	Group string `json:"group"`

	// kind of the target: Service, ExternalService, Gateway, HTTPRoute or GRPCRoute.
	// +optional
	// +kubebuilder:default=Service
	// +kubebuilder:validation:MaxLength=63
	Kind string `json:"kind,omitempty"`

	// name of the target.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// sectionName is the listener of a Gateway that the policy is about; all by
	// default.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	SectionName string `json:"sectionName,omitempty"`

	// namespace of a Service; the policy's own by default, and always that of
	// other targets. In the target's namespace a policy binds all its clients,
	// elsewhere only the clients in the policy's namespace, for whom it wins.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`

	// port of the target, that clients call; all ports by default.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
}

// MTLSMode says which connections a workload accepts.
//
// +kubebuilder:validation:Enum=Strict;Permissive;Disabled
type MTLSMode string

const (
	// MTLSStrict accepts mutual TLS of the mesh and nothing else.
	MTLSStrict MTLSMode = "Strict"
	// MTLSPermissive accepts mutual TLS of the mesh, and anything else as it is.
	MTLSPermissive MTLSMode = "Permissive"
	// MTLSDisabled accepts connections as they are, and clients of the mesh do
	// not use mutual TLS.
	MTLSDisabled MTLSMode = "Disabled"
)

// MTLS says which connections the selected workloads accept.
//
// +kubebuilder:validation:XValidation:rule="has(self.mode) || has(self.ports)",message="mtls says nothing: write mode, or ports with a mode for each"
type MTLS struct {
	// mode for every port that ports does not name. Strict: only mutual TLS of
	// the mesh. Permissive: plain connections too. Disabled: no mutual TLS.
	// Without it, the next wider policy decides: the namespace's, then the
	// mesh's, then MeshConfig.
	// +optional
	Mode MTLSMode `json:"mode,omitempty"`

	// ports are exceptions for single container ports.
	// +optional
	// +listType=map
	// +listMapKey=port
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Ports []PortMTLS `json:"ports,omitempty"`
}

// PortMTLS says which connections one container port accepts.
type PortMTLS struct {
	// port is the container port, not the Service's.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// mode of this port.
	// +required
	Mode MTLSMode `json:"mode"`
}

// MeshPolicyStatus is what the control plane found about a MeshPolicy.
type MeshPolicyStatus struct {
	// conditions are Accepted, Programmed and, where something else is named,
	// ResolvedRefs.
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

// MeshPolicyList is a list of MeshPolicies.
//
// +kubebuilder:object:root=true
type MeshPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshPolicy `json:"items"`
}
