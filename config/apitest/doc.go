// Package apitest starts a real Kubernetes API server for tests, with Tulle's
// CRDs installed: what CEL rules, defaults, server-side apply and RBAC really
// do is seen in no fake client.
//
// In comes the folder of kube-apiserver and etcd, from the environment variable
// TULLE_KUBE_BIN, and deploy/crds of this repository; out goes a client
// configuration. Only tests import it.
package apitest
