package trust

// ConfigMapName is the name of the ConfigMap in every namespace.
const ConfigMapName = "tulle-trust"

// The keys of the ConfigMap, which are the names of the files in a sidecar.
const (
	// RootsPEM holds the root certificates.
	RootsPEM = "ca.crt"
	// RootsSDS and TokenSDS are the files that Envoy's bootstrap names as
	// sources of secrets.
	RootsSDS = "roots.yaml"
	TokenSDS = "token.yaml"
)

// The folders where a sidecar has the ConfigMap and its service account's token.
const (
	TrustPath = "/var/run/tulle/trust"
	TokenPath = "/var/run/tulle/token"
)

// Envoy reads roots and token again when a file is moved into the watched
// folder, as the kubelet does when it updates a volume; but only if they are
// secrets of a file source, not if the bootstrap names them itself. Where the
// watched folder is written differs between the two kinds of secrets.
const (
	rootsSDS = `resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: roots
  validation_context:
    trusted_ca:
      filename: ` + TrustPath + `/` + RootsPEM + `
    watched_directory:
      path: ` + TrustPath + `
`
	tokenSDS = `resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: token
  generic_secret:
    secret:
      filename: ` + TokenPath + `/token
      watched_directory:
        path: ` + TokenPath + `
`
)

// Data is the content of the ConfigMap for the given roots, in PEM.
func Data(roots []byte) map[string]string {
	return map[string]string{RootsPEM: string(roots), RootsSDS: rootsSDS, TokenSDS: tokenSDS}
}
