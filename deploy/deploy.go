// Package deploy is how Tulle is installed, as kustomize reads it: CRDs, the
// control plane, the CNI plugin, and overlays that put them together. It is
// embedded into the command tulle, so that what that installs is what
// `kubectl apply -k` does.
package deploy

import "embed"

// Files are the kustomizations.
//
//go:embed base cni crds overlays
var Files embed.FS
