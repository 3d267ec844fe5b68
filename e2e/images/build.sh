#!/bin/bash
# build.sh [IMAGE...] builds images without docker, the product's and the tests' or the named ones
# (only so: fortio, the load tool of a benchmark; cert-manager, for its test; echo-basic, echo-advanced
# and coredns, the cluster's own, which the Gateway API's conformance suite runs), and brings those that
# changed into the embedded cluster if it is up.
# The archives stay in bin/images/ and are what any other cluster can load, too.
# `Dockerfile` describes the same images for docker.
set -euo pipefail
cd "$(dirname "$0")"
. ../cluster/lib/env.sh
. ../cluster/lib/log.sh
. ../cluster/lib/debian.sh
. ../cluster/lib/cgroup.sh
. ../cluster/lib/node.sh

BIN_DIR=$REPO_DIR/bin
ARCHIVE_DIR=$BIN_DIR/images
VERSION=${VERSION:-dev}
export GOFLAGS="-buildvcs=false -tags=grpcnotrace" CGO_ENABLED=0

# program MODULE PACKAGE NAME compiles a static program into bin/.
program() {
  say "compiling $3"
  go build -C "$1" -trimpath -ldflags="-s -w -X main.version=$VERSION" -o "$BIN_DIR/$3" "$2"
}

# archive REFERENCE ENTRYPOINT USER FILE... writes an image, and notes its digest beside it.
archive() {
  local reference=$1 entrypoint=$2 user=$3 name=${1##*/}
  local out=$ARCHIVE_DIR/${name%:*}.tar
  shift 3
  "$BIN_DIR/mkimage" -o "$out" -name "$reference" -entrypoint "$entrypoint" -user "$user" "$@" > "$out.digest"
  say "built $reference $(du -h "$out" | cut -f1)"
  import "$reference" "$out"
}

# import REFERENCE ARCHIVE brings the image into the cluster, unless it is there already.
import() {
  [ "$import" = yes ] || return 0
  ctr images ls "name==$1" | grep -q "$(< "$2.digest")" && return
  ctr images import --local "$2" > /dev/null
  say "brought $1 into the cluster $CLUSTER"
}

# as_the_suite NAME [IMAGE] gives an image in the cluster, which can pull none, the names that the
# manifests of the Gateway API's conformance suite have for it. They are read there.
as_the_suite() {
  [ "$import" = yes ] || return 0
  local module=sigs.k8s.io/gateway-api/conformance manifests reference
  go -C .. mod download "$module"
  manifests=$(go -C .. list -m -f '{{.Dir}}' "$module")
  for reference in $(grep -rhoE "image: *[^ ]+/$1:[^ ]+" "$manifests"/{base,mesh,tests} | sed 's/image: *//' | sort -u); do
    ctr images tag --force "${2:-localhost/$1:dev}" "$reference" > /dev/null
    say "${2:-localhost/$1:dev} stands for ${reference##*/} in the cluster $CLUSTER"
  done
}

# ours NAME MODULE PACKAGE builds the image of one of our programs.
ours() {
  program "$2" "$3" "$1"
  archive "localhost/$1:dev" "/$1" 65532:65532 "$BIN_DIR/$1=/$1"
}

echo_advanced() {
  program .. ./images/echo-advanced echo-advanced
  # One program, and its name says what it is.
  archive localhost/echo-advanced:dev /usr/local/bin/server 65532:65532 \
    "$BIN_DIR/echo-advanced=/usr/local/bin/server" "$BIN_DIR/echo-advanced=/usr/local/bin/client"
  as_the_suite echo-advanced
}

cert_manager() {
  local program
  program=$(../certmanager/build.sh)
  archive localhost/cert-manager:dev /cert-manager 65532:65532 "$program=/cert-manager"
}

envoy() {
  local envoy libraries
  envoy=$(./envoy.sh)
  # The program and the few libraries it is linked to; Envoy brings all others along.
  libraries=$(ldd "$envoy" | awk '$2 == "=>" { print $3 "=" $3 } $1 ~ /^\// { print $1 "=" $1 }')
  # shellcheck disable=SC2086
  archive localhost/envoy:1.40.0 /usr/local/bin/envoy 1337:1337 "$envoy=/usr/local/bin/envoy" $libraries
}

[ $# -gt 0 ] || set -- tulled tulle-init tulle-cni tulle-echo envoy
mkdir -p "$ARCHIVE_DIR"
exec 9> "$ARCHIVE_DIR/.lock"
flock 9

import=no
if [ "${KUBECONFIG:-$CLUSTER_KUBECONFIG}" != "$CLUSTER_KUBECONFIG" ]; then
  say "KUBECONFIG names a cluster that is not this one's: load the images of $ARCHIVE_DIR there yourself"
elif node_pid > /dev/null; then
  import=yes
else
  say "the cluster $CLUSTER is not up: the images stay in $ARCHIVE_DIR"
fi

program .. ./images/mkimage mkimage
for image; do
  case $image in
    tulled | tulle-init | tulle-cni) ours "$image" "$REPO_DIR" "./cmd/$image" ;;
    tulle-echo) ours tulle-echo .. ./echo ;;
    fortio) ours fortio fortio fortio.org/fortio ;;
    echo-basic)
      ours echo-basic .. sigs.k8s.io/gateway-api/conformance/echo-basic
      as_the_suite echo-basic
      ;;
    echo-advanced) echo_advanced ;;
    coredns) as_the_suite coredns localhost/coredns:cluster ;;
    cert-manager) cert_manager ;;
    envoy) envoy ;;
    *) die "no image $image; there are tulled, tulle-init, tulle-cni, tulle-echo, envoy, fortio, echo-basic, echo-advanced, coredns, cert-manager" ;;
  esac
done
