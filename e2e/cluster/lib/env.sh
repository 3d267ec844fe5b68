# shellcheck shell=bash
# Names, versions, addresses and paths of the cluster. Sourced, never run.
#
# What may be set from outside:
#   TULLE_CLUSTER      name of the cluster (default: dev); each name is a cluster of its own
#   TULLE_CLUSTER_FAMILY  addresses of pods and Services: dual, ipv4 or ipv6 (default: dual, or ipv4
#                      where the kernel has no IPv6)
#   TULLE_CLUSTER_NET  first three bytes of the link between the machine and the node
#   XDG_CACHE_HOME     where everything is kept (default: ~/.cache), under tulle/

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REPO_DIR=$(cd "$CLUSTER_DIR/../.." && pwd)
CACHE_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/tulle

CLUSTER=${TULLE_CLUSTER:-dev}
if ! [[ $CLUSTER =~ ^[a-z0-9]{1,9}$ ]]; then
  echo "TULLE_CLUSTER=$CLUSTER: a cluster's name is 1 to 9 lower-case letters and digits" >&2
  exit 2
fi
# One name for the cgroup and for the link, which may have 15 characters.
NODE_TAG=tulle-$CLUSTER
STATE_DIR=$CACHE_DIR/cluster/$CLUSTER
# Where the embedded cluster's kubeconfig is while the cluster is up.
CLUSTER_KUBECONFIG=$STATE_DIR/kubeconfig

# module_version MODULE_DIR MODULE prints the version that the go.mod asks for, without its v.
module_version() {
  awk -v module="$2" '$1 == module || $2 == module { sub(".*" module " v", ""); print $1; exit }' "$1/go.mod"
}
KUBERNETES_VERSION=$(module_version "$CLUSTER_DIR/kubernetes" k8s.io/kubernetes)

# The machine sees one link; all other addresses exist in the node's network namespace alone,
# so that clusters differ in the link and in nothing else.
NODE_NAME=node1
LINK_NET=${TULLE_CLUSTER_NET:-10.213.$(($(cksum <<< "$CLUSTER" | cut -d' ' -f1) % 256))}
HOST_IP=$LINK_NET.1
NODE_IP=$LINK_NET.2
HOST_IP6=fd00:${LINK_NET//./:}::1
NODE_IP6=fd00:${LINK_NET//./:}::2

# The node's own addresses, and the ranges, of the first family first; lists have commas. The API
# is reached by IPv4 from the machine in any case.
CLUSTER_FAMILY=${TULLE_CLUSTER_FAMILY:-$([ -e /proc/net/if_inet6 ] && echo dual || echo ipv4)}
case $CLUSTER_FAMILY in
  dual | ipv4)
    ADVERTISE_IP=$NODE_IP NODE_IPS=$NODE_IP DNS_IP=10.96.0.10
    POD_CIDRS=10.244.0.0/24 CLUSTER_CIDR=10.244.0.0/16 SERVICE_CIDR=10.96.0.0/16
    ;;&
  dual)
    NODE_IPS+=,$NODE_IP6 POD_CIDRS+=,fd00:10:244::/64 CLUSTER_CIDR+=,fd00:10:244::/56 SERVICE_CIDR+=,fd00:10:96::/112
    ;;
  ipv6)
    ADVERTISE_IP=$NODE_IP6 NODE_IPS=$NODE_IP6 DNS_IP=fd00:10:96::a
    POD_CIDRS=fd00:10:244::/64 CLUSTER_CIDR=fd00:10:244::/56 SERVICE_CIDR=fd00:10:96::/112
    ;;
  ipv4) ;;
  *)
    echo "TULLE_CLUSTER_FAMILY=$CLUSTER_FAMILY: write dual, ipv4 or ipv6" >&2
    exit 2
    ;;
esac
CLUSTER_DOMAIN=cluster.local
API_URL=https://$NODE_IP:6443

CONTAINERD_SOCKET=/run/containerd/containerd.sock
