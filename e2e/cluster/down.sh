#!/bin/bash
# Stops the cluster and removes what it left. It kills one process, the node's first; the kernel
# then ends all that run in the node, and drops its mounts and its network.
set -euo pipefail
cd "$(dirname "$0")"
. lib/env.sh
. lib/log.sh
. lib/cgroup.sh
. lib/node.sh

if ! [ -e "$STATE_DIR" ]; then
  say "the cluster $CLUSTER is not up"
  exit
fi
if ! [ "${TULLE_CLUSTER_LOCKED:-}" ]; then
  exec 9> "$CACHE_DIR/cluster/$CLUSTER.lock"
  flock 9
fi

if pid=$(node_pid); then
  kill -KILL "$pid"
  wait_until 30 "the end of the node's processes" /dev/null eval '! node_pid'
fi
PATH=$PATH:/usr/sbin:/sbin
# The link may have gone with the node's network namespace.
ip link del "$NODE_TAG" 2> /dev/null || true
cgroup_remove
rm -rf "$STATE_DIR"
say "the cluster $CLUSTER is gone"
