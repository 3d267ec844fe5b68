package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// MeshPolicy is what a platform or a team lays down about workloads. A policy
// speaks for one side: mtls, jwt, authorization and rateLimit are enforced where
// the selected workloads run, traffic describes how clients call a Service.
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
// +kubebuilder:validation:XValidation:rule="has(self.mtls) || has(self.jwt) || has(self.authorization) || has(self.rateLimit) || has(self.traffic)",message="a policy needs at least one section: write mtls, jwt, authorization, rateLimit or traffic"
// +kubebuilder:validation:XValidation:rule="!(has(self.traffic) && (has(self.mtls) || has(self.jwt) || has(self.authorization) || has(self.rateLimit)))",message="a policy speaks for one side: traffic says how clients call a Service, mtls, jwt, authorization and rateLimit what workloads accept; put traffic in a MeshPolicy of its own"
// +kubebuilder:validation:XValidation:rule="!(has(self.traffic) && has(self.selector))",message="traffic is about calls to Services, not about the workloads that selector picks: name the Services in targetRefs, or leave both out for all Services"
// +kubebuilder:validation:XValidation:rule="!has(self.targetRefs) || has(self.traffic)",message="targetRefs names what a traffic section is about: use selector to pick the workloads for mtls, jwt, authorization and rateLimit"
type MeshPolicySpec struct {
	// selector picks the workloads that mtls, jwt, authorization and rateLimit are
	// about, in the policy's namespace. Without it they are about all workloads of the
	// namespace. In Tulle's own namespace a policy is about the whole mesh, and
	// a selector picks in every namespace.
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`

	// targetRefs names what traffic is about. Without it, traffic is about
	// calls to every Service of the policy's namespace, and about calls by that
	// namespace's workloads.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	TargetRefs []TargetRef `json:"targetRefs,omitempty"`

	// mtls says whether the selected workloads accept connections that are not
	// mutual TLS of the mesh.
	// +optional
	MTLS *MTLS `json:"mtls,omitempty"`

	// jwt says whose tokens the selected workloads believe.
	// +optional
	JWT *JWT `json:"jwt,omitempty"`

	// authorization says who may call the selected workloads, and what.
	// +optional
	Authorization *Authorization `json:"authorization,omitempty"`

	// rateLimit says how many requests the selected workloads take.
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

// TargetRef names what clients call.
type TargetRef struct {
	// group of the target; "" is Kubernetes' core group.
	// +optional
	// +kubebuilder:default=""
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == ''",message="the target of traffic is a Service: leave group out, or write \"\""
	Group string `json:"group"`

	// kind of the target: Service.
	// +optional
	// +kubebuilder:default=Service
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == 'Service'",message="the target of traffic is a Service: write kind: Service"
	Kind string `json:"kind,omitempty"`

	// name of the target.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// namespace of the target; the policy's own by default. In the target's
	// namespace a policy binds all its clients, elsewhere only the clients in
	// the policy's namespace, for whom it wins.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`

	// port of the Service; all ports by default.
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
	// conditions are Accepted, Programmed and, where targetRefs is written,
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
