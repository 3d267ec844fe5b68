// Package status writes what was found about the objects of the API, and what
// proxies have acknowledged of them, into their status: the conditions Accepted,
// ResolvedRefs and Programmed, the numbers of proxies, and events when something
// turns False or is programmed.
//
// In: findings of targets of type translate.Findings, which the builder makes
// and this package subscribes to, one for each MeshPolicy and TrafficSplit that
// exists; and the verdicts of controllers/replicas. Out: status subresources by server-side apply, and events. Next are
// people, and `kubectl wait`.
//
// Only the leader runs it, and so only the leader subscribes. A condition names
// the generation that was evaluated, and is not written before the findings are
// about the generation that the object has now. What has not changed is not
// written.
package status
