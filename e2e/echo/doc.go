// Command tulle-echo is the workload and the client of the demo and of the
// end-to-end tests: one static program, so that one small image serves for
// every pod.
//
// What comes in: traffic of every kind that the mesh carries (serve), or a
// description of the traffic to make (call, load, job). What goes out: replies
// that say which pod and which version answered and what it saw of its caller,
// and reports as one JSON object on standard output, which the tests read
// through "kubectl exec".
//
// The subcommands:
//
//	serve    answers HTTP/1, h2c, WebSocket, gRPC, client-first TCP,
//	         server-first TCP and its own TLS, and counts as a server of Envoy's
//	         rate limit protocol
//	call     makes one call and reports its time and how it ended
//	load     makes calls at a steady rate and reports counts and latencies
//	job      makes one call and exits, as a batch Job does
//	capture  counts what strings pass the node's links in the clear
//	gone     waits until a page does not have a text, and reports when that was
//
// Nothing here knows of the mesh; that is the point of it.
package main
