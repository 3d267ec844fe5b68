# shellcheck shell=bash
# The node's programs: their configuration, and how each is started. Sourced, never run.
# Each logs to $STATE_DIR/log/NAME.log.

# start NAME CMD... runs CMD in the node, in the background.
start() {
  local name=$1
  shift
  # 9 is up.sh's lock, which must not live as long as the cluster.
  (node_exec setsid "$@") > "$STATE_DIR/log/$name.log" 2>&1 < /dev/null 9>&- &
  disown
}

start_etcd() {
  # The data lives as long as the cluster: no need to wait for the disk.
  start etcd "$KUBERNETES_BIN/etcd" --name=etcd --data-dir="$STATE_DIR/etcd" --unsafe-no-fsync --log-level=warn \
    --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
    --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
    --initial-cluster=etcd=http://127.0.0.1:2380
}

start_apiserver() {
  local pki=$STATE_DIR/pki
  # Webhooks, ServiceCIDR and pod security are on by default; the issuer's keys are at
  # /openid/v1/jwks.
  start kube-apiserver "$KUBERNETES_BIN/kube-apiserver" --v=1 --profiling=false --allow-privileged=true \
    --etcd-servers=http://127.0.0.1:2379 --bind-address=$([ "$CLUSTER_FAMILY" = ipv4 ] && echo 0.0.0.0 || echo ::) --secure-port=6443 --advertise-address=$ADVERTISE_IP \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
    --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
    --service-account-issuer=https://kubernetes.default.svc.$CLUSTER_DOMAIN \
    --service-account-key-file="$pki/service-accounts.pub" --service-account-signing-key-file="$pki/service-accounts.key" \
    --service-cluster-ip-range=$SERVICE_CIDR --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
}

start_controller_manager() {
  local pki=$STATE_DIR/pki config=$STATE_DIR/controller-manager.conf
  # The default rate of 20 requests a second makes a start 5 s slower.
  start kube-controller-manager "$KUBERNETES_BIN/kube-controller-manager" --v=1 --profiling=false --leader-elect=false \
    --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" --bind-address=127.0.0.1 \
    --use-service-account-credentials --service-account-private-key-file="$pki/service-accounts.key" --root-ca-file="$pki/ca.crt" \
    --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" --kube-api-qps=200 --kube-api-burst=400 \
    --flex-volume-plugin-dir="$STATE_DIR/volume-plugins" \
    --allocate-node-cidrs --cluster-cidr=$CLUSTER_CIDR --service-cluster-ip-range=$SERVICE_CIDR
}

start_scheduler() {
  local config=$STATE_DIR/scheduler.conf
  start kube-scheduler "$KUBERNETES_BIN/kube-scheduler" --profiling=false --leader-elect=false --bind-address=127.0.0.1 \
    --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config"
}

start_containerd() {
  local snapshotter=overlayfs
  # In a container the cache may be on an overlay itself, and those do not stack.
  [ "$(stat -fc %T "$STATE_DIR")" = overlayfs ] && snapshotter=native
  local pods=ptp ranges='' routes='' subnet
  for subnet in ${POD_CIDRS//,/ }; do
    ranges+="${ranges:+, }[{\"subnet\": \"$subnet\"}]"
    routes+="${routes:+, }{\"dst\": \"$([[ $subnet == *:* ]] && echo ::/0 || echo 0.0.0.0/0)\"}"
  done
  if [ "$CLUSTER_FAMILY" != ipv4 ]; then
    # Looking for another user of the address would make each pod two seconds late; see up.sh.
    pods=ptp-nodad
    cat > "$STATE_DIR/cni/bin/$pods" <<SH
#!/bin/sh
[ "\$CNI_COMMAND" != ADD ] || nsenter --net="\$CNI_NETNS" sh -c 'echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad'
exec "$NODE_BIN/cni/ptp"
SH
    chmod +x "$STATE_DIR/cni/bin/$pods"
  fi
  # Point-to-point links and routes: no bridge, and so no bridge-netfilter.
  cat > "$STATE_DIR/cni/net.d/10-pods.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "$pods", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": "$STATE_DIR/cni-data",
    "ranges": [$ranges], "routes": [$routes]}},
  {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}]}
JSON
  # restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing, no score below one's own can be set.
  cat > "$STATE_DIR/containerd.toml" <<TOML
version = 3
root = '$STATE_DIR/containerd'
state = '/run/containerd'
disabled_plugins = ['io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.devmapper', 'io.containerd.nri.v1.nri', 'io.containerd.tracing.processor.v1.otlp']
[grpc]
  address = '$CONTAINERD_SOCKET'
[plugins.'io.containerd.internal.v1.opt']
  path = '$STATE_DIR/opt'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = '$snapshotter'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'localhost/pause:cluster'
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['/opt/cni/bin']
    conf_dir = '/etc/cni/net.d'
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = '$NODE_BIN/runc'
        SystemdCgroup = false
TOML
  # containerd finds its shim on the PATH, portmap finds nft there.
  start containerd env PATH="$NODE_BIN:$PATH" "$NODE_BIN/containerd" --config "$STATE_DIR/containerd.toml"
}

start_kubelet() {
  local pki=$STATE_DIR/pki
  # No upstream DNS: a test that needs the Internet is not a test.
  echo "# none" > "$STATE_DIR/resolv.conf"
  cat > "$STATE_DIR/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
oomScoreAdj: 0 # see restrict_oom_score_adj of containerd
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet-server.crt
tlsPrivateKeyFile: $pki/kubelet-server.key
clusterDNS: ["$DNS_IP"]
clusterDomain: $CLUSTER_DOMAIN
resolvConf: $STATE_DIR/resolv.conf
podLogsDir: $STATE_DIR/pod-logs
volumePluginDir: $STATE_DIR/volume-plugins
maxPods: 200
serializeImagePulls: false
failSwapOn: false
makeIPTablesUtilChains: false
# The chaos run kills the control plane again and again, and is not about this back-off (5 minutes by default).
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
# A developer's disk may be fuller than a server's: images were put here by hand and cannot be pulled again.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 200Mi, nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
YAML
  start kubelet env PATH="$NODE_BIN:$PATH" "$KUBERNETES_BIN/kubelet" --v=2 --config="$STATE_DIR/kubelet.yaml" \
    --kubeconfig="$STATE_DIR/kubelet.conf" --root-dir="$STATE_DIR/kubelet" --hostname-override=$NODE_NAME --node-ip=$NODE_IPS
}

start_kube_proxy() {
  # The conntrack limits belong to the machine: zeros leave them alone.
  cat > "$STATE_DIR/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $NODE_NAME
oomScoreAdj: 0
clusterCIDR: "$CLUSTER_CIDR"
clientConnection: {kubeconfig: $STATE_DIR/kube-proxy.conf}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
  start kube-proxy "$KUBERNETES_BIN/kube-proxy" --v=1 --config="$STATE_DIR/kube-proxy.yaml"
}
