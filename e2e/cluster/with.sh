#!/bin/bash
# with.sh CMD... runs CMD with a cluster that has the images: the one that KUBECONFIG names, or
# else the embedded one, which it starts if need be and leaves running. CMD gets
#   KUBECONFIG  the cluster
#   PATH        with a kubectl, if the machine has none
#   TULLE_NODE  node.sh, which runs a command in the node; empty if the cluster is not the embedded one
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib/env.sh"

KUBECONFIG=$("$here/kubeconfig.sh" --up)
TULLE_NODE=
if [ "$KUBECONFIG" = "$CLUSTER_KUBECONFIG" ]; then
  TULLE_NODE=$here/node.sh
  PATH=$PATH:$(< "$STATE_DIR/kubernetes-bin")
fi
export KUBECONFIG TULLE_NODE PATH
"$here/../images/build.sh"
exec "$@"
