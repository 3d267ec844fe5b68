// Package conformance runs the Gateway API's conformance suite, as it is, on a
// cluster with Tulle: "make conformance". What Tulle claims of the API is what
// this says of it.
//
// What comes in: the cluster that KUBECONFIG names, and a file of options in
// the suite's own format (mesh.yaml for routes on Services, gateway.yaml for
// gateways), which names the profiles and the features that are claimed. What
// goes out: a verdict for each test, and docs/reference/conformance-*.yaml, a
// report in the format that the Gateway API collects.
//
// The tests, the objects they apply and their time-outs come from the modules
// sigs.k8s.io/gateway-api and sigs.k8s.io/gateway-api/conformance of the version
// in go.mod, the definitions of the API's kinds (standard channel) too. No test
// is left out but those of features that the options do not name.
//
// What is stood for: the embedded cluster cannot pull images, and is given three
// under the names that the suite's manifests have (e2e/images/build.sh reads
// them there). coredns is the cluster's own, compiled from CoreDNS' source. echo-basic is compiled from the suite's own source. echo-advanced,
// which pods of the mesh tests run as server and as client, is a program of
// this repository with the same command line and output: e2e/images/echo-advanced.
// On any other cluster nothing is stood for.
//
// All flags of the suite may be given, as in
//
//	make conformance CONFORMANCE_FLAGS='-run-test=MeshPorts -cleanup-base-resources=false'
//
// The suite is content with three right replies in a row within half a minute,
// which a test that tells two pods apart also gets from a mesh that routes to
// either at random. More in a row leave nothing to luck:
//
//	make conformance CONFORMANCE_FLAGS=-timeout-config-overrides=RequiredConsecutiveSuccesses:20
//
// What Tulle does of the experimental channel besides (retry in HTTPRoutes) is tried with that
// channel's definitions, in a cluster that never had the standard ones; there is no report then:
//
//	make conformance CONFORMANCE=gateway CONFORMANCE_FLAGS='-experimental -run-test=HTTPRouteRetry'
//
// A run of one test writes no report. On the embedded cluster the suite runs in
// the node's network, where the addresses of gateways are reached.
package conformance
