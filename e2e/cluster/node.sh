#!/bin/bash
# node.sh CMD... runs CMD in the node: in its network, mount, process and other namespaces.
# There ClusterIPs and pod addresses work, and every pod's link is to be seen. Paths are those of
# the machine; the working directory is /. TULLE_CLUSTER picks another cluster than `dev`.
# node.sh --net CMD... runs it in the network namespace alone, in the same working directory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib/env.sh"
. "$here/lib/log.sh"
. "$here/lib/cgroup.sh"
. "$here/lib/node.sh"

[ $# -gt 0 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
if [ "$1" = --net ]; then
  pid=$(node_pid) || die "the cluster $CLUSTER is not up; start it with: make cluster"
  exec nsenter --target "$pid" --net -- "${@:2}"
fi
PATH=$PATH:/usr/sbin:/sbin:$(< "$STATE_DIR/kubernetes-bin"):$(< "$STATE_DIR/node-bin")
node_exec "$@"
