// Package observe turns the cluster's objects into changes of the mesh.
//
// In: informer events of Services, EndpointSlices, Pods, Nodes, ServiceCIDRs,
// MeshPolicies, TrafficSplits, ExternalServices and the MeshConfig, from the cache of a
// controller-runtime manager that was made with [CacheOptions]. Out:
// [mesh.Change] values, given to a [mesh.Applier] in the order in which they
// happened to each object. Next: the builder, which applies them to the mesh.
//
// The package decides nothing about policy. It fills in the API's defaults
// again (objects may come from a file), and marks a policy or split that cannot
// be understood as invalid with a sentence that says why, rather than dropping
// it: what an invalid policy means is for xds/translate, which fails closed.
//
// What the initial lists hold is applied as one batch, once every kind is
// complete; [Observer.Synced] is closed after that. Nothing may be served
// before: a mesh without its policies would let in what they refuse.
//
// # Protocols of Service ports
//
// What is spoken on a port is, in this order: its appProtocol, the part of its
// name before the first '-', or else not known, so that proxies look at the
// first bytes of a connection. Port numbers are not looked at: a server that
// speaks first (MySQL, SMTP) and declares nothing would keep a proxy waiting,
// so declare those.
package observe
