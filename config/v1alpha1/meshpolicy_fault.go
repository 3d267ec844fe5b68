package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Fault has the client's proxy delay requests to the target, or answer them itself, to
// see how callers take it. It is about HTTP. A request that is delayed and aborted
// waits first. What is injected is not tried again by the proxy and is no failure of a
// pod, and a delay comes before traffic.timeout begins. The first request of a proxy to
// a Service that it was not told of ahead goes by.
//
// +kubebuilder:validation:XValidation:rule="has(self.delay) || has(self.abort)",message="fault says nothing: write delay, abort or both"
type Fault struct {
	// delay has requests wait.
	// +optional
	Delay *FaultDelay `json:"delay,omitempty"`

	// abort has requests answered with an error, which no pod sees.
	// +optional
	Abort *FaultAbort `json:"abort,omitempty"`

	// headers that a request must have, all of them, for the fault to be about it;
	// it is about every request by default.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Headers []HeaderMatch `json:"headers,omitempty"`
}

// FaultDelay has requests wait.
type FaultDelay struct {
	// fixedDelay is for how long, such as 2s or 500ms.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('1h')",message="a delay is above zero and an hour at most: write 500ms or 2s"
	FixedDelay metav1.Duration `json:"fixedDelay"`

	// percent of the requests that wait; 100 by default.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent *int32 `json:"percent,omitempty"`
}

// FaultAbort has requests answered with an error.
//
// +kubebuilder:validation:XValidation:rule="has(self.httpStatus) != has(self.grpcStatus)",message="write one of httpStatus and grpcStatus: httpStatus is for gRPC as well, as the code that it maps to"
type FaultAbort struct {
	// httpStatus of the answer, such as 503. A gRPC call ends with the code that it
	// maps to.
	// +optional
	// +kubebuilder:validation:Minimum=200
	// +kubebuilder:validation:Maximum=599
	HTTPStatus *int32 `json:"httpStatus,omitempty"`

	// grpcStatus of the answer, by number, such as 14 for UNAVAILABLE. The fault, its
	// delay too, is then about gRPC calls alone.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	GRPCStatus *int32 `json:"grpcStatus,omitempty"`

	// percent of the requests that are answered so; 100 by default.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent *int32 `json:"percent,omitempty"`
}
