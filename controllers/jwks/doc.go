// Package jwks fetches the public keys of issuers that MeshPolicies name by uri.
//
// In: MeshPolicies, and what the MeshConfig allows (jwks). Out: the ConfigMap tulle-jwks
// in Tulle's own namespace, with an entry for each URI, its keys and what is wrong with
// them. Next is controllers/observe, on every replica, for which the ConfigMap is part of
// the mesh: keys outlive the leader and the issuer's absence, and sidecars need no way to
// the issuer.
//
// Whoever may write a MeshPolicy has the control plane make a request to where he says.
// So that this reaches nothing that he could not reach himself, it is a GET over HTTPS
// to a public address, which is looked at when the connection is made, after the name was
// resolved, and again at each redirect; what comes back goes nowhere but through a parser
// of keys.
//
// Only the leader runs it.
package jwks
