// Package explain says what becomes of a request, and why: whether the workload that
// it is for lets it in, which rules decide that ([Decide]), and where it would go, in the
// cluster or out of it ([Explain]).
//
// In: a view of the mesh, and a request. Out: data for people, which cmd/tulled
// answers cmd/tulle with. It knows nothing of Envoy: it says what the policies mean, as
// xds/mesh defines it, and its tests hold that against what a real Envoy does with the
// configuration that xds/translate makes of the same policies.
package explain
