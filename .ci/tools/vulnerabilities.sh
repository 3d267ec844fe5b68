#!/usr/bin/env bash
# Fails when code that the programs call, of ours, of a dependency or of Go itself, is known
# to be vulnerable. Who knows is the Go vulnerability database, which not every network
# reaches: where it cannot be had nothing is checked, which is said, and is no failure.
# VULNDB names another one, which must be there: the URL of a mirror, or file:// and a folder.
set -euo pipefail
cd "$(dirname "$0")/../.."

said=$(mktemp)
trap 'rm -f "$said"' EXIT

# The exit code is 0 where nothing is found, 3 where something is, and another where it could
# not tell (https://pkg.go.dev/golang.org/x/vuln/cmd/govulncheck).
code=0
go tool -modfile=.ci/tools/go.mod govulncheck ${VULNDB:+-db "$VULNDB"} "${@:-./...}" >"$said" 2>&1 || code=$?
if [ "$code" -eq 1 ] && grep -q '^govulncheck: fetching vulnerabilities: ' "$said"; then
	echo 'NOT CHECKED for known vulnerabilities, since their database cannot be had:' >&2
	grep '^govulncheck: fetching vulnerabilities: ' "$said" >&2
	exit 0
fi
if [ "$code" -ne 0 ]; then
	cat "$said" >&2
fi
exit "$code"
