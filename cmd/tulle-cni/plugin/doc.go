// Package plugin is the CNI plugin: it has a meshed pod's traffic redirected
// before any container of the pod runs.
//
// In: what a container runtime gives plugins (CNI specification 1.1.0): the
// pod's network namespace, the result of the plugins before, and, as
// capabilities that the entry in the list asks for, the pod's annotations and
// resolvers. containerd and CRI-O know both.
// Out: the rules of cmd/tulle-init/redirect in that namespace, if the
// annotation mesh.tulle.dev/redirect asks for them, and the result as it came.
// Next: the pod's init container, which makes sure ("tulle-init check").
//
// It asks nobody: neither the node agent nor the API server need be there, so it
// works while a node starts, and a pod that is not meshed is never held up. A
// runtime that does not show annotations leaves all to the agent, which finds
// the pods that wait in their init container.
package plugin
