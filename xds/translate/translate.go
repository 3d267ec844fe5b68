package translate

import (
	"google.golang.org/protobuf/proto"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Result is what a translator made of a key.
type Result struct {
	// Message is the resource; nil for findings.
	Message proto.Message
	// Clusters are the names of the clusters that the resource refers to.
	Clusters []string
	// EDS is the name of the load assignment that holds the endpoints of a cluster,
	// a resource of its own; empty where the message is none, or has them in it.
	EDS      string
	Findings []mesh.Finding
}

// Build makes the resource for the key. It reads nothing but the view, so
// equal reads give equal results. The workload's own certificate
// (Secret "workload") is not for it: see [WorkloadSecret].
func Build(k Key, v *mesh.View) Result {
	switch k.Type {
	case Secret:
		return secret(k, v)
	case Cluster:
		return clusterFor(k, v)
	case Endpoints:
		return Result{Message: endpoints(k, v)}
	case Listener:
		if k.Name == ListenerProbes {
			return probesListener(k.For, v)
		}
		if k.Name == ListenerGateway {
			return gatewayListener(k.For, v)
		}
		return Result{Message: listenerFor(k, v)}
	case Scope:
		return Result{Message: scope(k)}
	case Route:
		return routeFor(k, v)
	case Findings:
		return Result{Findings: findings(k, v)}
	}
	return Result{}
}
