// Package bootstrap makes the configuration that a sidecar's Envoy starts
// with: where the control plane is, how to know it, and what to show it.
// Everything else comes over the one ADS stream that the bootstrap opens.
//
// In: [Options].
// Out: the bootstrap as a proto ([New]) and as JSON for Envoy's --config-yaml
// ([JSON]). Next: webhook puts the JSON into the sidecar's arguments; tests
// start Envoy with it.
//
// The package is pure: it reads no file and knows no Kubernetes.
package bootstrap
