// Package node puts the CNI plugin into a node and takes it out again.
//
// In: the node's folders of network configurations and of plugins.
// Out: the program tulle-cni in the one, and an entry at the end of the first
// list in the other, which is the one that container runtimes use.
// Next: the container runtime, which runs the plugin for each pod.
//
// The entry is put into the text of the list and taken out of it again, so that
// the rest stays as its author wrote it, to the byte, and there is nothing to
// remember meanwhile. A file appears whole or not at all. The program is there
// before an entry names it, and after: a list that names a program which is
// missing would keep every pod of the node from starting.
package node
