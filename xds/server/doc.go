// Package server is where proxies connect: gRPC, TLS, who a peer is, and how
// much it may ask for.
//
// In come streams of incremental aggregated discovery (delta ADS) and, through
// [Builder], values. Out go responses. What is sent when is decided in package
// delta; package build makes what is sent.
//
// # Who a peer is
//
// A peer shows its pod's own service account token ([Tokens]). The identity
// that follows, spiffe://<trust domain>/ns/<namespace>/sa/<service account>, is
// the only one whose certificate the stream is sent. What a proxy says about
// itself, its node id included, decides nothing.
//
// A stream may outlive its token: tokens last an hour and streams for days, and
// a proxy presents a new token only when it connects. What bounds a stream is
// its pod: when that is gone or has ended, the stream is closed. (A token that
// is bound to a pod dies with it, so the pod's existence is what the API server
// itself would look at.)
//
// # One stream
//
// A goroutine reads requests. Another owns the stream's state and writes: it
// takes in requests and the keys that the builder says have changed, and sends
// until there is nothing left to send. While it sends, changes gather in one
// set, so that a slow proxy gets the newest state later and delays nobody else.
// A third waits for the stream's end, so that it ends even when its peer does
// not read.
package server
