// Command tulled is Tulle's control plane. It is the one place that wires the
// parts together: the cluster's objects (controllers/observe) into the builder
// (xds/build), its values into the proxies' streams (xds/server), certificates
// (ca) into both, what was found back onto the objects (controllers/status), and
// the webhooks beside them.
//
// Every replica serves proxies and admission; the leader alone writes to the
// cluster.
package main
