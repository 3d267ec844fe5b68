#!/bin/bash
# kubeconfig.sh [--up] prints the path of the kubeconfig to use: that of KUBECONFIG if it names a
# cluster, or else the embedded cluster's, which --up starts if need be.
set -euo pipefail
cd "$(dirname "$0")"
. lib/env.sh
. lib/log.sh

if [ "${KUBECONFIG:-$CLUSTER_KUBECONFIG}" != "$CLUSTER_KUBECONFIG" ]; then
  [ -e "${KUBECONFIG%%:*}" ] || die "KUBECONFIG=$KUBECONFIG: there is no such file"
  say "using the cluster of KUBECONFIG=$KUBECONFIG"
  echo "$KUBECONFIG"
elif [ "${1:-}" = --up ]; then
  ./up.sh
elif [ -e "$CLUSTER_KUBECONFIG" ]; then
  echo "$CLUSTER_KUBECONFIG"
else
  die "KUBECONFIG is not set and the cluster $CLUSTER is not up; start it with: make cluster"
fi
