package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Names of listeners, of the clusters that every proxy has, and of secrets.
const (
	ListenerOutbound = "outbound"
	ListenerEgress   = "egress"
	ListenerInbound  = "inbound"
	ListenerProbes   = "probes"
	ListenerStats    = "stats"
	ListenerReady    = "ready"
	ListenerGateway  = "gateway" // of a gateway's proxy, which has no other for traffic

	ClusterInbound     = "inbound"
	ClusterPassthrough = "passthrough"
	ClusterBlackhole   = "blackhole"
	ClusterProbes      = "probes"
	ClusterProbesTLS   = "probes-tls"
	ClusterAdmin       = "admin"
	// Fetched when they are first used: requests to where the application sends them, and to
	// where names lead.
	ClusterPassthroughHTTP = "passthrough-http"
	ClusterExternalNames   = "external-names"

	RouteInbound  = "inbound"
	RouteEgress   = "egress"    // by the Host of requests that leave the cluster
	RouteEgressAt = "egress-at" // by the address that they were sent to

	SecretWorkload = "workload"
	SecretRoots    = "roots"
)

// Ports that a sidecar listens on, and the names of the mesh's own protocols
// in ALPN, by which a server tells mesh mTLS from an application's own TLS.
const (
	PortOutbound = 15001
	PortEgress   = 15002
	PortInbound  = 15006
	PortAdmin    = 15000
	PortProbes   = 15020
	PortReady    = 15021
	PortStats    = 15090

	ALPNHTTP = "tulle-http"
	ALPNTCP  = "tulle-tcp"
)

// dstHeader carries the original destination from the first moment of a
// request to the choice of its route. Clients cannot set it, servers never see
// it.
const dstHeader = "x-tulle-dst"

// unreachedHeader is on the answer that a server's sidecar gives when it could
// not connect to its application, which so has seen nothing of the request: the
// client's sidecar may try another host. Neither application ever sees it.
const unreachedHeader = "x-tulle-unreached"

// prefixes of on-demand clusters' names.
const (
	prefixService  = "svc|"  // svc|namespace/name|port: a service, for HTTP; |a=b,c=d: some of its pods
	prefixEdge     = "h1|"   // as svc|, for a gateway, in HTTP/1.1 whatever its clients speak
	prefixEdgeH2   = "h2|"   // and in HTTP/2, also for what a proxy itself calls
	prefixBytes    = "raw|"  // as svc|, for a gateway's connections, whatever is in them
	prefixDecoded  = "dec|"  // and for those whose TLS ended at the gateway
	prefixTCP      = "tcp|"  // tcp|address:port: an original destination, for TCP
	prefixHTTP     = "http|" // http|address:port: a pod's address, for HTTP
	prefixExternal = "ext|"  // ext|host:port, ext|address:port: an external service
)

// PrefixSAN begins the names of validation contexts, "san|namespace/name|port":
// who may answer for a service. They hold no secret.
const PrefixSAN = "san|"

// PrefixGateway begins the names of a gateway's routes: gateway|port, or for HTTPS
// gateway|port|listener.
const PrefixGateway = "gateway|"

// PrefixCertificate begins the names of a gateway's certificates: tls|namespace/name of
// a Secret. They have keys: a proxy is given those of its own Gateway alone.
const PrefixCertificate = "tls|"

// PrefixEnded begins the names of certificates with which sidecars end TLS of clients:
// ends|namespace/name of a Secret. A proxy is given those of policies that select it alone.
const PrefixEnded = "ends|"

// PrefixOut begins the names of the clusters by which an egress gateway leaves the cluster:
// out|namespace/name|port|id, an ExternalService's port, and which of its hosts (outID).
const PrefixOut = "out|"

// PrefixProbe begins the names of the clusters by which an Envoy checks its own
// application: probe|path. They are a pod's own: their keys are for the pod.
const PrefixProbe = "probe|"

// ClusterName is the name of the cluster for HTTP to a service's port.
func ClusterName(service mesh.Name, port uint16) string {
	return endpointsOf{service: service, port: port}.name(prefixService)
}

// OfService reports whether a cluster's name may be that of a service's cluster,
// which differs between namespaces of clients.
func OfService(name string) bool {
	return slices.ContainsFunc(servicePrefixes(), func(p string) bool { return strings.HasPrefix(name, p) }) ||
		strings.HasPrefix(name, prefixTCP) || strings.HasPrefix(name, prefixHTTP) || strings.HasPrefix(name, prefixExternal)
}

// servicePrefixes are those of clusters that are named by a service.
func servicePrefixes() []string {
	return []string{prefixService, prefixEdge, prefixEdgeH2, prefixBytes, prefixDecoded}
}

// name is that of the cluster to the endpoints.
func (e endpointsOf) name(prefix string) string {
	name := fmt.Sprintf("%s%s|%d", prefix, e.service, e.port)
	if e.labels != "" {
		name += "|" + e.labels
	}
	return name
}

// labelsText is a set of labels as part of a name; neither has "|", "," or "=" in it.
func labelsText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for k, v := range labels {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

func labelsFrom(text string) map[string]string {
	out := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		k, v, _ := strings.Cut(pair, "=")
		out[k] = v
	}
	return out
}

func sanName(service mesh.Name, port uint16) string {
	return fmt.Sprintf("%s%s|%d", PrefixSAN, service, port)
}

// servicePort reads "namespace/name|port".
func servicePort(s string) (mesh.Name, uint16, bool) {
	name, number, ok := strings.Cut(s, "|")
	if !ok {
		return mesh.Name{}, 0, false
	}
	n, ok := objectName(name)
	port, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil {
		return mesh.Name{}, 0, false
	}
	return n, uint16(port), true
}

// objectName reads "namespace/name".
func objectName(s string) (mesh.Name, bool) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return mesh.Name{}, false
	}
	return mesh.Name{Namespace: ns, Name: name}, true
}

// destination is what an on-demand cluster's name stands for.
type destination struct {
	service *mesh.Service // nil: a bare address
	port    mesh.ServicePort
	address netip.AddrPort
	http    bool
	prefix  string            // of a cluster that is named by a service
	labels  map[string]string // of the service's pods that are meant; nil: all
	gateway string            // whose own cluster it is, of the clients' namespace; empty: nobody's
}

// resolve reads the name of an on-demand cluster. Where there is no such
// service it returns false; an address that is no service's is returned as it
// is.
func resolve(name string, v *mesh.View) (destination, bool) {
	for _, prefix := range servicePrefixes() {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		rest, gateway, _ := strings.Cut(rest, byGateway)
		var labels map[string]string
		if parts := strings.SplitN(rest, "|", 3); len(parts) == 3 {
			rest, labels = parts[0]+"|"+parts[1], labelsFrom(parts[2])
		}
		n, number, ok := servicePort(rest)
		if !ok {
			return destination{}, false
		}
		svc, ok := v.Service(n)
		if !ok {
			return destination{}, false
		}
		p, ok := svc.Port(number)
		http := prefix != prefixBytes && prefix != prefixDecoded
		return destination{service: svc, port: p, http: http, prefix: prefix, labels: labels, gateway: gateway}, ok
	}
	rest, http := strings.CutPrefix(name, prefixHTTP)
	if !http {
		var ok bool
		if rest, ok = strings.CutPrefix(name, prefixTCP); !ok {
			return destination{}, false
		}
	}
	at, err := netip.ParseAddrPort(rest)
	if err != nil || at.String() != rest {
		return destination{}, false
	}
	if svc, p, ok := v.ServiceAt(at); ok {
		return destination{service: svc, port: p, http: http}, true
	}
	return destination{address: at, http: http}, true
}
