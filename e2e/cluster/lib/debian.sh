# shellcheck shell=bash
# Debian packages. Sourced, never run.

# need_packages PROBE=PACKAGE... installs the packages whose PROBE is missing: a command, or a
# file if it begins with a slash. Says so before it does.
need_packages() {
  local pair probe missing=()
  for pair in "$@"; do
    probe=${pair%%=*}
    if [[ $probe == /* ]]; then
      [ -e "$probe" ] && continue
    else
      # Debian keeps some of these where only root's PATH looks.
      PATH=$PATH:/usr/sbin:/sbin command -v "$probe" > /dev/null && continue
    fi
    missing+=("${pair#*=}")
  done
  [ ${#missing[@]} = 0 ] && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    die "missing here: ${missing[*]} (Debian's names); install them and run this again"
  fi
  say "installing Debian packages: ${missing[*]}"
  mkdir -p "$CACHE_DIR/log"
  quietly "$CACHE_DIR/log/apt-update.log" "apt-get update" apt-get update
  quietly "$CACHE_DIR/log/apt-install.log" "apt-get install" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}
