// Package build is the incremental builder: it keeps a value for every target
// that somebody subscribes to, and makes anew only those that read something
// that changed.
//
// In: [mesh.Change] values through [Builder.Apply], and subscriptions. Out:
// immutable [Value]s, a call to each [Subscriber] whose targets changed, and one to each
// [Follower] of a fact that is another.
// Next: xds/delta sends them, xds/server owns the streams; controllers/status
// subscribes to findings.
//
// One goroutine, [Builder.Run], owns everything: it takes what has come in
// since it last looked, as one batch, so that a first change goes at once and a
// burst coalesces while the one before is being built. No time is waited for.
// Dependencies are not declared: they are the facts that the last build of a
// target read. The oracle of the package's tests is [Scratch].
package build
