package translate

import (
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// Type is a type of target. Their order is the order in which a proxy must be
// given what it needs: secrets and clusters, then endpoints, then listeners
// and routes.
type Type uint8

// The types of targets. Findings is not sent to proxies: it is what the status
// of an object says.
const (
	Secret Type = iota
	Cluster
	Endpoints
	Listener
	Scope
	Route
	Findings
	Types int = iota
)

var urls = [...]string{
	Secret: resource.SecretType, Cluster: resource.ClusterType, Endpoints: resource.EndpointType,
	Listener: resource.ListenerType, Scope: resource.ScopedRouteType, Route: resource.RouteType,
	Findings: "",
}

// URL is the type URL of the xDS resource.
func (t Type) URL() string { return urls[t] }

var typeNames = [...]string{
	Secret: "Secret", Cluster: "Cluster", Endpoints: "Endpoints",
	Listener: "Listener", Scope: "Scope", Route: "Route", Findings: "Findings",
}

// String is the type's name in metrics and messages.
func (t Type) String() string { return typeNames[t] }

// TypeOf is the Type with the URL.
func TypeOf(url string) (Type, bool) {
	for t, u := range urls {
		if u == url && u != "" {
			return Type(t), true
		}
	}
	return 0, false
}

// Key names a target: what is built, and for which class of proxies.
type Key struct {
	Type Type
	// Name is the resource's name on the wire.
	Name string
	// For is what makes the target differ between proxies that use the same
	// Name: a namespace, a workload's profile, an identity, a pod; or nothing.
	// Proxies with equal keys share the same bytes.
	For string
}

// endingMark is at the end of For where proxies of a profile are to drain.
const endingMark = "|ending"

// ForInbound is the For of the inbound listener of a profile's proxies: of
// those that carry on, or of those whose pods are ending.
func ForInbound(profile string, ending bool) string {
	if ending {
		return profile + endingMark
	}
	return profile
}

func inboundFor(f string) (profile string, ending bool) { return strings.CutSuffix(f, endingMark) }
