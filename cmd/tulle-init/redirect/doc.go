// Package redirect sends a pod's TCP traffic through its sidecar, by an
// nftables table of its own in the network namespace that it runs in.
//
// In: [Config], from the arguments of cmd/tulle-init.
// Out: the table inet "tulle" in the kernel, replaced in one transaction.
// Next: nobody; the kernel does the rest for as long as the pod lives.
//
// # What goes where
//
//	from the application   to the cluster's ranges         -> 15001
//	                       to anywhere else                -> 15002
//	                       to the pod itself, loopback     -> as it is
//	                       to the pod's resolvers, port 53 -> as it is
//	from the proxy         anywhere                        -> as it is
//	                       marked, to the pod itself       -> 15006
//	from outside           to the pod                      -> 15006
//	                       to 15020, 15021, 15090          -> as it is
//
// UDP and everything else that is not TCP is left alone. Ports and ranges can
// be excluded, and users and groups of the application.
//
// # DNS over TCP
//
// A resolver asks again over TCP when an answer did not fit into UDP. UDP goes
// straight to the resolver, so TCP does too: else a name would resolve or not
// depending on the length of its answer and on whether the control plane can
// be reached. Only the resolvers of the pod's resolv.conf are excepted, and
// only on port 53, so nothing else leaves unseen.
//
// # A pod that calls itself
//
// A service may choose the caller's own pod as the endpoint. What the proxy
// sends then arrives over loopback, where nothing is redirected, and the
// application would be given mesh mTLS. So a proxy marks the connections that
// it opens on behalf of its application with the socket priority [Hairpin],
// which needs no privilege, and a marked one to the pod's own address is led
// into the inbound listener. Without the mark nothing is, so what the inbound
// listener sends to the application can never loop.
//
// # Connections straight to the sidecar's own listeners
//
// Nobody has a reason to connect to 15001, 15002 or 15006: such a connection
// has no original destination but the listener itself, which Envoy would
// connect to again, and again. They are dropped, from inside and from outside.
// From outside the admin port is dropped as well, though it listens on
// loopback alone.
package redirect
