// Command cert-manager is cert-manager's controllers for issuers of the types CA and
// SelfSigned, their approver and cert-manager's webhook, out of its Go module:
//
//	cert-manager controller
//	cert-manager webhook
//
// cert-manager's own commands are modules with a replace directive, which cannot be
// built from a module proxy. What they run is in the main module, partly in its
// internal packages, so that this module has a path below cert-manager's. Left out are
// other types of issuers, which need the Internet, leader election, which one replica
// does not need, and cainjector: who installs this puts ca.crt of the Secret
// cert-manager-webhook-ca into the webhook configurations.
//
// build.sh builds it, manifests.yaml runs it.
package main
