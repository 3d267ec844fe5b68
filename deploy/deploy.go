// Package deploy is how Tulle is installed, as kustomize reads it: CRDs, what there
// is once, control planes, the CNI plugin, and overlays that put them together. It is
// embedded into the command tulle, so that what that installs is what
// `kubectl apply -k` does.
package deploy

import "embed"

// Files are the kustomizations.
//
//go:embed base cni control-plane crds overlays
var Files embed.FS
