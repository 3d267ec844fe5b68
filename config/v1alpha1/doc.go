// Package v1alpha1 is Tulle's API: the kinds MeshPolicy, TrafficSplit and
// MeshConfig of group mesh.tulle.dev.
//
// In come the objects that users apply; what the API server can refuse or fill
// in by itself (bounds, CEL rules, defaults) is said here as markers, from
// which the CRDs in deploy/crds, the deepcopy functions and
// docs/reference/api.md are generated. Out go typed objects. Next is
// controllers/observe, which turns them into entities of xds/mesh, and
// controllers/status, which writes their conditions.
//
// The package imports Kubernetes' own API types and nothing else.
//
// Every list and string has a bound: the cost budget of CEL rules is shared by
// a whole CRD, and the API server estimates it from the bounds.
//
// +kubebuilder:object:generate=true
// +groupName=mesh.tulle.dev
package v1alpha1
