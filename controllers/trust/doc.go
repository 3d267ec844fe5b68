// Package trust spreads the mesh's roots of trust to those who verify by them.
//
// In: the roots of the certificate authority, and the cluster's namespaces. Out:
//
//   - a ConfigMap in every namespace, which a pod's sidecar mounts to verify the
//     control plane before it can get anything from it;
//   - the caBundle of Tulle's webhook configurations, by which the API server
//     verifies the webhook;
//   - the trust bundle of the mesh's model, which proxies get over xDS to verify
//     each other.
//
// The first two are written by the leader alone; the last is each replica's own.
// Next: kubelets, the API server, and xds/build.
package trust
