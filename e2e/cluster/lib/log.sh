# shellcheck shell=bash
# Telling what goes on, and waiting for it. Sourced, never run. All of it goes to stderr:
# stdout is for what a script answers.

# No script ends without a word.
set -o errtrace
trap 'say "failed: ${BASH_SOURCE[0]##*/} line $LINENO: $BASH_COMMAND"' ERR

_started=${EPOCHREALTIME/[.,]/}

# say TEXT... prints a line with the seconds since the script began.
say() {
  local us=$((${EPOCHREALTIME/[.,]/} - _started))
  printf '%5d.%d s  %s\n' $((us / 1000000)) $((us / 100000 % 10)) "$*" >&2
}

die() {
  say "error: $*"
  exit 1
}

# quietly LOG WHAT CMD... runs CMD with its output in LOG, says every 15 seconds that it is
# still at it, and shows the end of LOG if it fails.
quietly() {
  local log=$1 what=$2 begun=$SECONDS
  shift 2
  "$@" > "$log" 2>&1 < /dev/null &
  local pid=$!
  while kill -0 "$pid" 2> /dev/null; do
    # Ends when the command does, or after 15 seconds.
    timeout 15 tail --pid="$pid" -s 0.1 -f /dev/null ||
      say "  still at it: $what, $((SECONDS - begun)) s, $(wc -l < "$log") lines of log"
  done
  if ! wait "$pid"; then
    tail -n 40 "$log" >&2
    die "$what failed; its whole output is in $log"
  fi
}

# wait_until SECONDS WHAT LOG CMD... tries CMD ten times a second until it succeeds; if it never
# does, shows the end of LOG.
wait_until() {
  local limit=$((SECONDS + $1)) what=$2 log=$3
  shift 3
  until "$@" > /dev/null 2>&1; do
    if ((SECONDS >= limit)); then
      tail -n 20 "$log" | cut -c 1-300 >&2
      die "$what: not there in time; see $log"
    fi
    sleep 0.1
  done
}
