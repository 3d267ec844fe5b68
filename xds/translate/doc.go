// Package translate turns the mesh into Envoy resources: pure functions from a
// [Key] and a view of the mesh to one resource, one file per feature.
//
// In: a Key and a [mesh.View], through which alone a translator reads. Out: a
// protobuf message, the clusters it refers to, and findings for the owners of
// the objects it read. Next: xds/build hashes, stores and serves the result.
//
// A translator always answers: what does not exist becomes something empty
// (a cluster without endpoints, routes that answer 404), since Envoy never asks
// again for what it was told is missing, and a later push makes it real.
package translate
