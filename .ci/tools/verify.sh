#!/usr/bin/env bash
# Fails when a generated file is not what its sources say: generates everything
# anew in a temporary folder and compares. Changes nothing in the repository.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

"$root/.ci/tools/generate.sh" "$fresh"

status=0
# What is there and would not be generated is as stale as what differs.
while IFS= read -r file; do
	if ! diff -u --label "$file (in the repository)" --label "$file (generated)" \
		"$root/$file" "$fresh/$file" 2>&1; then
		status=1
	fi
done < <({
	cd "$fresh" && find . -type f
	cd "$root" && find . \( -path './deploy/crds/mesh.tulle.dev_*.yaml' -o -path './config/*/zz_generated*' \) -type f
} | sed 's|^\./||' | sort -u)

if [ "$status" -ne 0 ]; then
	echo >&2
	echo "Generated files are stale: run 'make generate' and commit what it changes." >&2
	exit 1
fi
echo "Generated files are current."
