// Package e2e holds the tests of Tulle on a real cluster: real pods, real
// Envoys, traffic and faults. There is one test for each promise, named for
// what a user may rely on.
//
// What comes in: the cluster that KUBECONFIG names, with the images that
// deploy/ and the tests name at hand on its nodes; without KUBECONFIG every
// test is skipped. TestMain installs Tulle once (TULLE_E2E_INSTALLED=1 says
// that it is installed). Every test has namespaces of its own and deletes them
// (TULLE_E2E_KEEP=1 keeps them). What goes out: verdicts, and figures in the
// tests' log, each on a line that begins with "figure:".
//
// Longer forms: TULLE_E2E_ROTATION=5m for the certificate rotation.
//
// The pieces: kube/ is what is done to a cluster, echo/ the program that every
// pod of a test runs, demo/ and shop/ what "make demo" shows, conformance/ the
// Gateway API's own tests.
package e2e
