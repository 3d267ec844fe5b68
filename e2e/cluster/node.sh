#!/bin/bash
# node.sh CMD... runs CMD in the node: in its network, mount, process and other namespaces.
# There ClusterIPs and pod addresses work, and every pod's link is to be seen. Paths are those of
# the machine; the working directory is /. TULLE_CLUSTER picks another cluster than `dev`.
set -euo pipefail
cd "$(dirname "$0")"
. lib/env.sh
. lib/log.sh
. lib/cgroup.sh
. lib/node.sh

[ $# -gt 0 ] || { sed -n '2,4s/^# //p' "$0"; exit 2; }
PATH=$PATH:/usr/sbin:/sbin:$(< "$STATE_DIR/kubernetes-bin"):$(< "$STATE_DIR/node-bin")
node_exec "$@"
