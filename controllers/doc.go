// Package controllers groups what stands between Kubernetes and the mesh:
//
//   - observe turns informer events into changes of the mesh;
//   - status turns findings and acknowledgements into conditions;
//   - gateway gives Gateways their Deployments and Services, and writes their status;
//   - trust spreads the roots of trust through the cluster.
//
// Nothing imports them but cmd/tulled.
package controllers
