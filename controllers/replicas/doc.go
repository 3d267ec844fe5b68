// Package replicas brings to the leader what the proxies of every replica of the
// control plane have acknowledged, and to whoever asks what objects would change
// at them ([Preview]).
//
// In: the reports of xds/server, this replica's directly and the others' over
// HTTPS ([Handler] answers, [Gatherer] asks). Out: one verdict for each object
// of the API, and a call when some have changed. Next: controllers/status writes
// them.
//
// A poll waits at the other side until there is something new, so that news
// travels at once and silence costs one request in two seconds, which is also
// how the leader knows that a replica is there. Who asks shows the control
// plane's own service account token; who answers, the control plane's serving
// certificate.
package replicas
