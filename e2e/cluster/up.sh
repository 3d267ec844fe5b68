#!/bin/bash
# Starts the cluster, waits until its node and its DNS are ready, and prints the path of its
# kubeconfig. A cluster that is up stays as it is; one that is broken is replaced.
set -euo pipefail
cd "$(dirname "$0")"
. lib/env.sh
. lib/log.sh
. lib/debian.sh
. lib/cgroup.sh
. lib/node.sh
. lib/components.sh

healthy() { kubectl get --raw /readyz > /dev/null 2>&1 && [ -e "$CLUSTER_KUBECONFIG" ]; }
kubectl() {
  "$KUBERNETES_BIN/kubectl" --kubeconfig="$STATE_DIR/admin.conf" --cache-dir="$STATE_DIR/kubectl" --request-timeout=10s "$@"
}

create_node() {
  local parent pid
  cgroup_create
  # The cgroup namespace shows the group that its first process is in as the root.
  (
    cgroup_join $BASHPID
    exec setsid unshare --mount --net --pid --ipc --uts --cgroup --fork --propagation private "$PWD/node-init.sh"
  ) > "$STATE_DIR/log/node.log" 2>&1 < /dev/null 9>&- &
  parent=$!
  disown
  # Recorded first of all: down.sh can then end whatever comes of it.
  wait_until 10 "the node's first process" "$STATE_DIR/log/node.log" grep -q . "/proc/$parent/task/$parent/children"
  pid=$(cut -d' ' -f1 "/proc/$parent/task/$parent/children")
  echo "$pid $(stat -Lc %i "/proc/$pid/ns/pid")" > "$STATE_DIR/node"
  wait_until 10 "the node's mounts" "$STATE_DIR/log/node.log" test -e "$STATE_DIR/node-ready"
  cgroup_join "$parent" system
  cgroup_join "$pid" system
  cgroup_delegate

  ip link add "$NODE_TAG" type veth peer name eth0 netns "$pid"
  ip addr add "$HOST_IP/30" dev "$NODE_TAG"
  ip link set "$NODE_TAG" up
  in_node ip addr add "$NODE_IP/30" dev eth0
  in_node ip link set eth0 up
  # Without a default route the node's own connections to a ClusterIP have none to be rewritten on.
  in_node ip route add default via "$HOST_IP"
  in_node sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
  [ "$CLUSTER_FAMILY" = ipv4 ] && return
  ip addr add "$HOST_IP6/126" dev "$NODE_TAG" nodad
  in_node ip addr add "$NODE_IP6/126" dev eth0 nodad
  in_node ip route add default via "$HOST_IP6"
  in_node sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
  # Nobody else gives out addresses on the pods' links: they can be used at once.
  in_node sh -c 'echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad'
}

# import_images brings in the images of the cluster itself; both are a program and little else.
import_images() {
  local mkimage=$STATE_DIR/mkimage
  GOFLAGS=-buildvcs=false CGO_ENABLED=0 go build -C .. -trimpath -o "$mkimage" ./images/mkimage
  "$mkimage" -o "$STATE_DIR/pause.tar" -name localhost/pause:cluster -entrypoint /pause "$NODE_BIN/pause=/pause"
  "$mkimage" -o "$STATE_DIR/coredns.tar" -name localhost/coredns:cluster -entrypoint /coredns "$NODE_BIN/coredns=/coredns"
  ctr images import --local "$STATE_DIR/pause.tar"
  ctr images import --local "$STATE_DIR/coredns.tar"
}

[ "$(id -u)" = 0 ] || die "a node needs root; run: sudo -E make cluster"
need_packages nft=nftables ip=iproute2 openssl=openssl nsenter=util-linux flock=util-linux mount=mount
PATH=$PATH:/usr/sbin:/sbin
KUBERNETES_BIN=$(./build.sh kubernetes)
NODE_BIN=$(./build.sh node)

mkdir -p "$CACHE_DIR/cluster"
exec 9> "$CACHE_DIR/cluster/$CLUSTER.lock"
flock 9
if node_pid > /dev/null && healthy; then
  say "the cluster $CLUSTER is up already"
  [ "$(< "$STATE_DIR/kubernetes-bin") $(< "$STATE_DIR/node-bin")" = "$KUBERNETES_BIN $NODE_BIN" ] ||
    say "it runs programs built from other sources than these; make cluster-down cluster replaces it"
  echo "$CLUSTER_KUBECONFIG"
  exit
fi
if [ -e "$STATE_DIR" ]; then
  say "removing what is left of an earlier cluster $CLUSTER"
  TULLE_CLUSTER_LOCKED=yes ./down.sh
fi

say "starting the cluster $CLUSTER: Kubernetes $KUBERNETES_VERSION, one node at $NODE_IP, addresses: $CLUSTER_FAMILY"
mkdir -p "$STATE_DIR/log"
echo "$KUBERNETES_BIN" > "$STATE_DIR/kubernetes-bin"
echo "$NODE_BIN" > "$STATE_DIR/node-bin"
./pki.sh
create_node
say "the node's namespaces are there"

start_etcd
start_containerd
start_apiserver
wait_until 30 "containerd" "$STATE_DIR/log/containerd.log" in_node test -S $CONTAINERD_SOCKET
quietly "$STATE_DIR/log/images.log" "importing the cluster's images" import_images
wait_until 60 "the API server" "$STATE_DIR/log/kube-apiserver.log" kubectl get --raw /readyz
say "the API server is ready"
# The controller manager gives up for a while if it comes before the API server.
start_controller_manager
start_scheduler
start_kubelet
start_kube_proxy
sed "s/DNS_IP/$DNS_IP/" manifests/coredns.yaml | kubectl apply -f - > "$STATE_DIR/log/coredns.log"
wait_until 60 "the node" "$STATE_DIR/log/kubelet.log" kubectl wait --for=condition=Ready --timeout=1s node/$NODE_NAME
say "the node is ready"
wait_until 60 "CoreDNS" "$STATE_DIR/log/kubelet.log" kubectl -n kube-system rollout status deployment/coredns --timeout=1s

# The kubeconfig's presence says that the cluster is ready.
cp -p "$STATE_DIR/admin.conf" "$CLUSTER_KUBECONFIG"
say "the cluster is ready; its logs are in $STATE_DIR/log"
echo "$CLUSTER_KUBECONFIG"
