// Package kube is what the demo and the tests do to a cluster: install Tulle,
// apply objects, wait for conditions, run tulle-echo in a pod and read its
// report, read logs, and ask a pod's Envoy.
//
// What comes in: the cluster that KUBECONFIG names. Nothing but that is
// needed: no kubectl, no access to the node. Every wait has an end, and says
// what it waited for when it does not come.
package kube
