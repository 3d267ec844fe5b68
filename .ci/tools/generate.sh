#!/usr/bin/env bash
# Writes everything that is generated, below the folder given as argument (this
# repository by default):
#
#   config/v1alpha1/zz_generated.deepcopy.go  from the types
#   deploy/crds/*.yaml                        from the types and their markers
#   deploy/base/rbac/role.yaml                from +kubebuilder:rbac markers, which
#                                             stand beside the code that needs them
#   deploy/gateways/role.yaml                 the same of what only gateways need
#   deploy/cni/role.yaml                      and of the CNI plugin's agent
#   docs/reference/api.md                     from the CRDs
#
# The tools are pinned in go.mod beside this script.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(cd "${1:-$root}" && pwd)
cd "$root"

controller_gen() { go tool -modfile="$root/.ci/tools/go.mod" controller-gen "$@"; }

mkdir -p "$out/config/v1alpha1" "$out/deploy/crds" "$out/deploy/base/rbac" "$out/deploy/cni" "$out/deploy/gateways" "$out/docs/reference"
# A kind that is no longer there must not leave its CRD behind.
rm -f "$out"/deploy/crds/mesh.tulle.dev_*.yaml

controller_gen object crd paths=./config/v1alpha1 \
	output:object:dir="$out/config/v1alpha1" output:crd:dir="$out/deploy/crds"

# controller-gen passes over RBAC markers in the comment of a type or function
# without a word, and a permission that is missing is noticed late. So it is given
# all of them, wherever they stand, in a package that has nothing else. (e2e is a
# module of its own and asks for none.)
markers=$(mktemp -d)
trap 'rm -rf "$markers"' EXIT
printf 'module markers\n\ngo 1.26\n' >"$markers/go.mod"
# role NAME FOLDER reads names of files from its input.
role() {
	{
		printf 'package markers\n\n'
		xargs grep -h '^[[:space:]]*// +kubebuilder:rbac:' | sort -u
	} >"$markers/markers.go"
	(cd "$markers" && controller_gen "rbac:roleName=$1,fileName=role.yaml" paths=. output:rbac:dir="$2")
}
find ca cmd controllers webhook xds -name '*.go' ! -name '*_test.go' ! -path 'cmd/tulle-cni/*' ! -path 'controllers/gateway/*' | role tulled "$out/deploy/base/rbac"
find controllers/gateway -name '*.go' ! -name '*_test.go' | role tulle-gateways "$out/deploy/gateways"
find cmd/tulle-cni -name '*.go' ! -name '*_test.go' | role tulle-cni "$out/deploy/cni"

go -C .ci/tools run ./apiref "$out/deploy/crds" >"$out/docs/reference/api.md"
