// Package agent keeps the CNI plugin on a node, and redirects pods that began
// without it.
//
// In: the node's folders, and the pods of the node. Out: the plugin in its
// place (package node), and rules in the network namespaces of pods that wait
// for them (package redirect). Next: "tulle-init check" in those pods, which
// finds them redirected and ends.
//
// A pod waits for rules if its first init container runs and the annotation
// mesh.tulle.dev/redirect says what they are: it began before the plugin was
// there, or while something else had taken it away. Its network namespace is
// found in what the container runtime wrote down about the plugins that it ran
// (libcni's results), by the pod's UID.
//
// When the agent is told to stop, it looks why. Is its DaemonSet gone, it takes
// the plugin out of the node again; is it only restarted or brought up to date,
// the plugin stays, so that no pod begins without it meanwhile.
package agent
