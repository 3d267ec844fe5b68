// Command tulle answers an operator's questions about a mesh: which proxies
// are connected and what each lacks (status), what the Envoy of one pod really
// has (proxy), and what runs (version). Under the name kubectl-tulle it is the
// plugin `kubectl tulle`.
//
// In: the cluster of the kubeconfig, the debug endpoint of each replica of the
// control plane, and the admin endpoint of a pod's Envoy; both listen on
// loopback in their pods and are reached through the API server, so whoever
// may use them is decided by RBAC on pods/portforward alone. Out: tables, JSON
// or YAML on standard output, and an exit code.
//
// It reads only: nothing in the cluster or in a proxy is changed.
package main
