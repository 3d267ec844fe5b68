// Package mesh is the model of the mesh: immutable facts about services,
// endpoints, workloads and policies, their indexes, and the views through
// which everything else reads them.
//
// In: [Change] values, made by controllers/observe (or by a test).
// Out: a new immutable [Snapshot], and the set of [Fact] that differ from the
// one before. Next: xds/build marks dirty what read a changed fact.
//
// The package knows neither Kubernetes' API types nor Envoy's.
package mesh
