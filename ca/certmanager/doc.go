// Package certmanager has issuers of cert-manager sign for the mesh: its
// intermediate, or each leaf.
//
// In: orders of package ca, and a client that asks the API server. Out: what
// issuers answered to CertificateRequests in the control plane's own namespace, a
// [ca.Remote]. Next: ca checks each answer before anybody uses it.
//
// Nothing is watched but requests that are waited for, and nothing is asked while
// no issuer is named, so that the control plane starts where cert-manager is not
// installed. An issuer sees no key, with one exception that its kind demands: the key
// of a root that signs itself is in a Secret while that request lasts.
package certmanager
