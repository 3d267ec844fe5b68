# shellcheck shell=bash
# The node as a set of namespaces: whether it is there, and how to run something in it.
# Sourced, never run. Needs env.sh and cgroup.sh.

# node_pid prints the process that holds the node's namespaces, or fails if there is none. A
# process number may be used again, so the number of the pid namespace has to match too.
node_pid() {
  local pid namespace
  read -r pid namespace 2> /dev/null < "$STATE_DIR/node" || return 1
  [ "$(stat -Lc %i "/proc/$pid/ns/pid" 2> /dev/null)" = "$namespace" ] && echo "$pid"
}

# node_exec CMD... replaces this shell by CMD in the node.
node_exec() {
  local pid
  pid=$(node_pid) || die "the cluster $CLUSTER is not up; start it with: make cluster"
  cgroup_join $BASHPID system
  exec nsenter --target "$pid" --mount --net --pid --ipc --uts --cgroup -- "$@"
}

# in_node CMD... runs CMD in the node.
in_node() { (node_exec "$@"); }

# ctr ARG... is containerd's client in the node, in the namespace of Kubernetes.
ctr() {
  # The warnings are about cgroup v1, which is what the machine has.
  CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 \
    in_node "$(< "$STATE_DIR/node-bin")/ctr" --address $CONTAINERD_SOCKET --namespace k8s.io "$@"
}
