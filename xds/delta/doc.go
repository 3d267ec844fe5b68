// Package delta is the state machine of one incremental xDS stream: what a
// proxy asked for, what it was sent, what it acknowledged and what it refused.
//
// In come the proxy's requests ([Stream.Request]) and the keys of targets that
// have a new value ([Stream.Dirty]). Out go the keys that the stream wants
// built ([Effects]), and one response at a time ([Stream.Next]). There is no
// network, no goroutine and no clock here: package server owns the stream's
// connection and calls in from one goroutine, and package build makes the
// values.
//
// # Order
//
// Next goes through the types in the order of [translate.Type], which makes
// before it breaks: what a resource needs is sent before it. A listener or
// route waits until each cluster that it names was sent. Removals come when
// nothing else is left to send, in the reverse order. A response is bounded in
// bytes, and the responses of one type that are not acknowledged are bounded in
// number: a proxy that is slow gets the newest values later, not every value
// in turn.
//
// # What is sent unasked
//
// To a proxy that subscribed to all clusters: those that every proxy has, those
// that its listeners and routes name, and those that proxies of its kind are
// known to use. After each cluster that gets its endpoints by EDS, its load
// assignment: Envoy waits for it when it replaces a cluster, and does not ask.
//
// # Refusals
//
// A refusal (NACK) does not say reliably which resource it is about (see
// envoyproxy/envoy#5739). The resources of a refused response are sent again
// one by one; one that is refused alone is remembered with the proxy's words,
// and is not sent again until it changes. What the proxy had before stays.
//
// # Reconnecting
//
// A proxy's first request of each type says which versions it holds
// (initial_resource_versions); nothing that it holds is sent again. Clusters
// that it holds without having asked for them are kept current as though this
// stream had sent them.
package delta
