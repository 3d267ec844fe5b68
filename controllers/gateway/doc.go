// Package gateway gives every Gateway of the Gateway API that is of one of Tulle's
// classes a Deployment of stock Envoy and a Service, and writes the status of both
// kinds.
//
// In: Gateways and GatewayClasses; the findings about Gateways, which the builder
// makes and this package subscribes to (see [mesh.Finding]); and the settings that
// injection has too. Out: for a Gateway, by server-side apply, a ServiceAccount, a
// Deployment, a Service and a PodDisruptionBudget, all named "<gateway>-<class>"
// (GEP-1762) and owned by the Gateway, so that they go with it; and the status of
// Gateways and GatewayClasses. Next are kubelets, whose Envoys ask the control
// plane for what the Gateway's listeners are to do, and people.
//
// What is applied follows from the Gateway and the settings alone ([Objects]), and
// not from findings: a Gateway that is spoilt goes on running as it did.
//
// Only the leader runs it.
//
// [mesh.Finding]: https://pkg.go.dev/github.com/tulle-mesh/tulle/xds/mesh#Finding
package gateway
