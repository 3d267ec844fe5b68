// Package check proves, without any privilege, that a pod's traffic is
// redirected to its sidecar.
//
// In: the [redirect.Config] that should be in place, in the network namespace
// that it runs in, before the sidecar listens there.
// Out: nil, or what was not redirected. Next: cmd/tulle-init, as the init
// container of pods that a CNI plugin redirects.
//
// Nobody but root of the node may read a pod's rules, so they are tried. In
// place of the sidecar it listens on the ports that connections are led to, and
// connects to an address of each of the cluster's ranges and to one elsewhere,
// in each address family in which the pod has a way there. A connection that
// was redirected arrives here, with the destination that was meant kept by the
// kernel. One that was not would be an attempt to reach port 9 (discard) of that
// address, which nobody answers.
//
// What comes in from outside cannot be tried from inside. The rules of both
// directions are one table that is replaced in one transaction of the kernel
// ([redirect.Apply]), so that there are all of them or none.
package check
