package mesh

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// Gateway is a Gateway of the Gateway API, of any class.
type Gateway struct {
	Meta
	Class     string
	Listeners []Listener
	// Certificate is a Secret with what the gateway shows to backends whose TLS it begins.
	// Kind is "Secret", or what else is named; nil: nothing.
	Certificate *Backend
}

// ClientValidation is what a listener whose TLS ends there asks of its clients.
type ClientValidation struct {
	// Authorities are objects with the certificates of those who sign clients'. Kind is
	// "ConfigMap", or what else is named.
	Authorities []Backend
	// Insecure lets in those without a certificate, and with any.
	Insecure bool
}

// maxProxies is the length of a DNS label, which a Service's name is (RFC 1035).
const maxProxies = 63

// Proxies is the name of what a gateway is given: its Service, Deployment and
// ServiceAccount. It is "<gateway>-<class>" (GEP-1762), with a hash at its end where that is
// longer than a Service's name may be.
func (g *Gateway) Proxies() Name {
	return Name{Namespace: g.Meta.Namespace, Name: ProxiesOf(g.Meta.Name.Name, g.Class)}
}

// ProxiesOf is [Gateway.Proxies] of a gateway and its class.
func ProxiesOf(gateway, class string) string {
	name := gateway + "-" + class
	if len(name) <= maxProxies {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	end := "-" + hex.EncodeToString(sum[:4])
	return strings.TrimRight(name[:maxProxies-len(end)], "-.") + end
}

// Encrypted reports whether clients speak TLS, so that several listeners may share a port.
func (l Listener) Encrypted() bool { return l.Protocol == ListenerHTTPS || l.Protocol == ListenerTLS }

// Terminates reports whether TLS ends at the listener.
func (l Listener) Terminates() bool { return l.Encrypted() && !l.Passthrough }

// ListenerProtocol is what a listener of a gateway speaks.
type ListenerProtocol string

// The protocols, in the API's words.
const (
	ListenerHTTP  ListenerProtocol = "HTTP"
	ListenerHTTPS ListenerProtocol = "HTTPS"
	ListenerTLS   ListenerProtocol = "TLS"
	ListenerTCP   ListenerProtocol = "TCP"
	// ListenerEgress is one of ours: the mesh's own workloads come in, on their way out to
	// the external services that name the gateway.
	ListenerEgress ListenerProtocol = "mesh.tulle.dev/Egress"
)

// Listener is where a gateway listens.
type Listener struct {
	Name     string
	Port     uint16
	Protocol ListenerProtocol
	// Hostname is which requests it takes, or of TLS which connections, by the name that
	// the client asks for: a name, one that begins with "*.", or empty for all.
	Hostname string
	// Passthrough leaves TLS to the backend.
	Passthrough bool
	// Certificates are Secrets with the certificates of HTTPS, and of TLS that ends here. Kind is "Secret", or
	// what else is named.
	Certificates []Backend
	// Clients says what certificates clients have to show; nil: none are asked for.
	Clients *ClientValidation
	// Namespaces says whose routes may attach.
	Namespaces RouteNamespaces
	// Kinds are the kinds of routes that may attach, and 0 for what is no kind of route;
	// nil: all that the protocol can.
	Kinds []Kind
	// Unsupported is set when the listener asks for what Tulle does not do.
	Unsupported string
}

// RouteNamespaces says from which namespaces routes may attach to a listener: all, none,
// those whose labels meet all requirements, or where nothing is said the gateway's own.
type RouteNamespaces struct {
	All, None    bool
	Requirements []Requirement
}

// Requirement is one of a label selector's: that a label is in a set of values, or not
// in it, exists, or does not.
type Requirement struct {
	Key      string
	Operator string // In, NotIn, Exists or DoesNotExist
	Values   []string
}

// Matches reports whether labels meet the requirement.
func (r Requirement) Matches(labels map[string]string) bool {
	value, has := labels[r.Key]
	switch r.Operator {
	case "In":
		return has && slices.Contains(r.Values, value)
	case "NotIn":
		return !has || !slices.Contains(r.Values, value)
	case "Exists":
		return has
	case "DoesNotExist":
		return !has
	}
	return false
}

// Class is a GatewayClass that is Tulle's to implement. Its Name has no namespace.
type Class struct{ Name string }

// Namespace is a namespace, for its labels.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Certificate is a Secret of the type kubernetes.io/tls, in PEM.
type Certificate struct {
	Name
	Chain, Key []byte
	// Invalid says why it is of no use.
	Invalid string
}
