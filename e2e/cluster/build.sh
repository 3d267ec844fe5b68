#!/bin/bash
# build.sh kubernetes|node: makes sure that the programs are built, and prints the folder they
# are in. What is built is kept under a key of everything it is made from, so that nothing
# current is built twice.
#   kubernetes  kube-apiserver, etcd, kubectl and the others, as links to one binary (kubernetes/)
#   node        containerd, its shim and client, runc, CoreDNS, pause, CNI plugins in cni/ (node/)
set -euo pipefail
cd "$(dirname "$0")"
. lib/env.sh
. lib/log.sh
. lib/debian.sh

# The folder is no checkout of the module alone; a version stamp would defeat the key.
export GOFLAGS=-buildvcs=false
BUILD_LOG_DIR=$CACHE_DIR/log

# go_build MODULE OUTPUT FLAG... PACKAGE... compiles with a low priority: it takes minutes, on all cores.
go_build() {
  local module=$1 output=$2
  shift 2
  nice -n 10 go build -C "$module" -v -trimpath -o "$output" "$@"
}

build_kubernetes() {
  local out=$1 version=k8s.io/component-base/version minor=${KUBERNETES_VERSION#*.} program
  need_packages gcc=gcc /usr/include/stdlib.h=libc6-dev
  say "building Kubernetes $KUBERNETES_VERSION: 12 minutes on 2 cores with an empty Go cache, half a minute with a full one"
  CGO_ENABLED=1 quietly "$BUILD_LOG_DIR/kubernetes.log" "building Kubernetes" go_build kubernetes "$out/kube" \
    -ldflags="-s -w -X $version.gitVersion=v$KUBERNETES_VERSION -X $version.gitMajor=1 -X $version.gitMinor=${minor%.*}" .
  for program in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    ln -s kube "$out/$program"
  done
}

build_node() {
  local out=$1
  local containerd=github.com/containerd/containerd/v2 plugins=github.com/containernetworking/plugins/plugins
  local no_snapshotters=no_btrfs,no_devmapper,no_zfs,no_aufs containerd_flags
  containerd_flags="-s -w -X $containerd/version.Version=v$(module_version node $containerd)"
  # runc's first step is C, and seccomp comes from Debian's library.
  need_packages gcc=gcc /usr/include/stdlib.h=libc6-dev /usr/include/seccomp.h=libseccomp-dev pkg-config=pkg-config
  say "building containerd, runc, the CNI plugins and CoreDNS: 4 minutes on 2 cores with an empty Go cache"
  for program in containerd containerd-shim-runc-v2 ctr; do
    CGO_ENABLED=0 quietly "$BUILD_LOG_DIR/$program.log" "building $program" go_build node "$out/$program" \
      -tags $no_snapshotters -ldflags="$containerd_flags" $containerd/cmd/$program
  done
  mkdir "$out/cni"
  CGO_ENABLED=0 quietly "$BUILD_LOG_DIR/cni.log" "building the CNI plugins" go_build node "$out/cni/" \
    -ldflags="-s -w" $plugins/main/ptp $plugins/main/loopback $plugins/ipam/host-local $plugins/meta/portmap
  CGO_ENABLED=1 quietly "$BUILD_LOG_DIR/runc.log" "building runc" go_build node "$out/runc" \
    -tags seccomp -ldflags="-s -w" github.com/opencontainers/runc
  CGO_ENABLED=0 quietly "$BUILD_LOG_DIR/coredns.log" "building CoreDNS" go_build node "$out/coredns" -ldflags="-s -w" ./coredns
  gcc -Os -static -s -o "$out/pause" node/pause/pause.c
}

part=${1:-}
case $part in kubernetes | node) ;; *) sed -n '2,6s/^# //p' "$0"; exit 2 ;; esac
command -v go > /dev/null || die "go is not on the PATH; this needs Go 1.26 or newer"

# The key: the module, and this file, which holds the flags.
key=$({ go env GOOS GOARCH; find "$part" -type f -print0 | sort -z | xargs -0 cat; cat build.sh; } | sha256sum | cut -c1-16)
dir=$CACHE_DIR/bin/$part-$key
if ! [ -d "$dir" ]; then
  mkdir -p "$CACHE_DIR/bin" "$BUILD_LOG_DIR"
  exec 9> "$CACHE_DIR/bin/$part.lock"
  flock --nonblock 9 || { say "another build of $part is under way; waiting for it"; flock 9; }
  if ! [ -d "$dir" ]; then
    # The folder gets its name when all is in it: a build that was stopped leaves nothing that
    # looks finished. What the Go cache holds of it is not lost.
    rm -rf "$CACHE_DIR/bin/$part.new"
    mkdir "$CACHE_DIR/bin/$part.new"
    "build_$part" "$CACHE_DIR/bin/$part.new"
    mv "$CACHE_DIR/bin/$part.new" "$dir"
    say "built: $dir"
  fi
fi
echo "$dir"
