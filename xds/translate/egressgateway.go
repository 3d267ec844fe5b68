package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Calls to an external service that names a gateway go there in mesh mTLS. What they are for
// is said in the handshake: by a server name that stands for the object, its port and the
// host (outID), and where the host is a wildcard's, so that the server name is the one that
// the application asked for, by the ALPN. Neither says who calls, which the certificate does.

// reasonGatewayNotFound is the reason of ResolvedRefs=False where there is no way out.
const reasonGatewayNotFound = "GatewayNotFound"

// wayOut is the Service and its port by which calls leave, as the object says. The fault is
// why they cannot.
func wayOut(e *mesh.External, v *mesh.View) (endpointsOf, *fault) {
	none := func(reason, format string, args ...any) (endpointsOf, *fault) {
		return endpointsOf{}, &fault{conditionResolvedRefs, reason, fmt.Sprintf(format, args...)}
	}
	n := *e.Gateway
	if !mayLeave(e, v) {
		return none(reasonRefNotPermitted, "no ReferenceGrant in namespace %s lets an ExternalService of namespace %s refer to Gateway %s; ask for one there", n.Namespace, e.Meta.Namespace, n)
	}
	g, ok := v.Gateway(n)
	switch {
	case !ok:
		return none(reasonGatewayNotFound, "there is no Gateway %s; create it, or correct spec.gateway", n)
	case !v.Class(g.Class):
		return none(reasonGatewayNotFound, "Gateway %s is of class %s, which is not Tulle's; name another in spec.gateway", n, g.Class)
	}
	held, _ := holdingListeners(g, v)
	i := slices.IndexFunc(held, func(l mesh.Listener) bool { return l.Protocol == mesh.ListenerEgress })
	if i < 0 {
		return none(reasonGatewayNotFound, "Gateway %s has no listener of the protocol %s that holds; add one, or correct spec.gateway", n, mesh.ListenerEgress)
	}
	return endpointsOf{service: g.Proxies(), port: held[i].Port}, nil
}

// mayLeave reports whether the object may name its gateway, which then goes wherever the
// object says.
func mayLeave(e *mesh.External, v *mesh.View) bool {
	return e.Gateway.Namespace == e.Meta.Namespace || v.Granted(
		mesh.GrantFrom{Group: meshGroup, Kind: KindExternal, Namespace: e.Meta.Namespace},
		mesh.GrantTo{Group: gatewayGroup, Kind: KindGateway, Name: e.Gateway.Name}, e.Gateway.Namespace,
	)
}

// outID stands for what was called. A name is at most 255 bytes long, which those of the
// object and the host together may not fit into.
func outID(e external) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%d|%s", e.Meta.Name, e.port.Number, e.host))
	return hex.EncodeToString(sum[:16])
}

// alpnOf is the ALPN of connections below a wildcard.
func alpnOf(e external) string { return ALPNTCP + "/" + outID(e) }

// looked reports whether the server name of a connection is what is looked up.
func (e external) looked() bool { return wildHost(e.host) && isTLS(e.port.Protocol) }

// toGateway is a client's cluster for what leaves by a gateway.
func (e external) toGateway(k Key, client string, v *mesh.View) Result {
	to, f := wayOut(e.External, v)
	if f != nil {
		return Result{Message: emptyCluster(k.Name)}
	}
	assignment := to.name(prefixBytes)
	t := externalTraffic(client, e, v)
	t.outliers = nil // answers are those of servers behind the gateway, which looks after them
	c := &cluster.Cluster{
		Name:                 k.Name,
		AltStatName:          e.statName(),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: assignment},
		ConnectTimeout:       seconds(connectTimeout),
		UpstreamBindConfig:   bind(e.port.Protocol.IsHTTP()),
	}
	t.shape(c, e.port.Protocol.IsHTTP())
	config := v.Config()
	ids := spellings(Identity(config.TrustDomain, to.service.Namespace, to.service.Name), config.TrustDomains())
	check := validation(SecretRoots, sans(ids)...)
	if e.looked() { // the server name comes with each connection
		c.TransportSocket = clientTLS(alpnOf(e), check)
	} else {
		c.TransportSocket = namingTLS(outID(e), alpn(e.port.Protocol.IsHTTP()), check)
	}
	if e.port.Protocol.IsHTTP() {
		c.TypedExtensionProtocolOptions = protocolOptions(t.protocols(connectionAge(v)))
	}
	return Result{Message: c, EDS: assignment}
}

// toGatewayByName are the filters of a sidecar's chain for TLS below a wildcard.
func toGatewayByName(called string, c *mesh.Config) []*listener.Filter {
	proxy := onDemandProxy("external", prefixExternal+called, c, outboundLog)
	connectAgain(proxy)
	return []*listener.Filter{upstreamState("envoy.network.upstream_server_name", requestedName), networkFilter(tcpProxyName, proxy)}
}

// outs are what leaves by a gateway: each host of each port, or none where addresses are
// called.
func outs(g *mesh.Gateway, v *mesh.View) []external {
	var out []external
	for _, e := range v.ExternalsThrough(g.Meta.Name, func(e *mesh.External) bool { return e.Invalid == "" && mayLeave(e, v) }) {
		for _, p := range e.Ports {
			out = append(out, waysTo(e, p)...)
		}
	}
	return out
}

func waysTo(e *mesh.External, p mesh.ExternalPort) []external {
	if len(e.At(p)) > 0 {
		return []external{{e, p, ""}}
	}
	return each(e.Hosts, func(h string) external { return external{e, p, h} })
}

// outCluster is one of a gateway's: "namespace/name|port|id". k.For is the gateway: the one
// that the object names, or one whose routes lead to it, which is a caller like any other.
func outCluster(k Key, of string, v *mesh.View) Result {
	empty := Result{Message: emptyCluster(k.Name)}
	object, id, _ := cutLast(of, "|")
	n, port, ok := servicePort(object)
	gateway, known := objectName(k.For)
	if !ok || !known {
		return empty
	}
	e, ok := v.External(n)
	if !ok || e.Invalid != "" || e.Nearby() != "" {
		return empty
	}
	p, _ := e.Port(port)
	ways := waysTo(e, p)
	i := slices.IndexFunc(ways, func(w external) bool { return outID(w) == id && !wildHost(w.host) })
	if i < 0 {
		return empty
	}
	secrets, had := shown(gateway, v)
	had = had || e.TLS == nil
	if e.Gateway != nil && *e.Gateway == gateway {
		if !had || !mayLeave(e, v) {
			return empty
		}
		return Result{Message: ways[i].leaving(k, gateway.Namespace, secrets, v)}
	}
	// Routes have asked whether the object admits it (clusterOut), but a proxy asks for any name.
	g, ok := gatewayOf(gateway, v)
	if !ok || !e.Admits(g.Proxies()) {
		return empty
	}
	out := empty
	switch {
	case e.Gateway != nil:
		out = ways[i].toGateway(k, gateway.Namespace, v)
	case had:
		out = Result{Message: ways[i].leaving(k, gateway.Namespace, secrets, v)}
	}
	c, isCluster := out.Message.(*cluster.Cluster)
	if isCluster && len(c.TypedExtensionProtocolOptions) > 0 {
		// The gateway's clients know nothing of the server.
		t := externalTraffic(gateway.Namespace, ways[i], v)
		c.TypedExtensionProtocolOptions = explicitProtocol(t.protocols(connectionAge(v)), p.Protocol != mesh.HTTP)
	}
	return out
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// outName begins the names of a port's clusters at the gateway.
func (e external) outName() string {
	return fmt.Sprintf("%s%s|%d|", PrefixOut, e.Meta.Name, e.port.Number)
}

// outChains are those of an egress listener. Requests have one chain, and their routes say
// what is for whom; but below a wildcard the port is the connection's. Connections have one
// for each port of an object, that a change of one cuts no other's, and whom an object does
// not admit completes no handshake: servers may speak first.
func (o *outbound) outChains(g *mesh.Gateway, at mesh.Listener) []*listener.FilterChain {
	c := o.view.Config()
	admit := o.outAdmission(g, at)
	requests := networkFilter(hcmName, outManager(g, at, o.view))
	base := func(name string, socket []*tls.SubjectAltNameMatcher, alpn string, names []string, filters ...*listener.Filter) *listener.FilterChain {
		match := &listener.FilterChainMatch{
			DestinationPort: wrapperspb.UInt32(uint32(at.Port)), TransportProtocol: "tls",
			ApplicationProtocols: []string{alpn}, ServerNames: names,
		}
		return &listener.FilterChain{
			Name: fmt.Sprintf("%d|%s|%s", at.Port, at.Name, name), FilterChainMatch: match, Filters: filters,
			TransportSocket: serverOnlyFor(socket), TransportSocketConnectTimeout: seconds(handshakeTimeout),
		}
	}
	everybody := callers(&mesh.External{}, "", c.TrustDomains())
	out := []*listener.FilterChain{base("http", everybody, ALPNHTTP, nil, requests)}
	var last *listener.FilterChain // which is of the port before
	var of string
	for _, e := range outs(g, o.view) {
		peers := callers(e.External, c.RootNamespace, c.TrustDomains())
		port := connectionState(statePort, strconv.Itoa(int(e.port.Number)))
		switch {
		case e.port.Protocol.IsHTTP() && wildHost(e.host):
			out = append(out, base(e.called(), everybody, ALPNHTTP, []string{outID(e)}, port, requests))
		case e.port.Protocol.IsHTTP():
		case wildHost(e.host):
			out = append(out, base(e.called(), peers, alpnOf(e), nil, slices.Concat(admit, e.lookUp(port, o.view))...))
		case of == e.outName():
			last.FilterChainMatch.ServerNames = append(last.FilterChainMatch.ServerNames, outID(e))
		default:
			of = e.outName()
			last = base(e.statName(), peers, ALPNTCP, []string{outID(e)}, slices.Concat(admit, outConnections(of, c))...)
			out = append(out, last)
		}
	}
	return out
}

// called names an object's port and host to those who read configuration.
func (e external) called() string { return e.statName() + "|" + e.host }

// outConnections goes on to the server once the client has shown who it is.
func outConnections(name string, c *mesh.Config) []*listener.Filter {
	proxy := onDemandProxy("egress", ClusterBlackhole, c, egressTCPLog)
	connectAgain(proxy)
	proxy.UpstreamConnectMode = tcpproxy.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	proxy.MaxEarlyDataBytes = wrapperspb.UInt32(earlyData)
	return []*listener.Filter{connectionState("envoy.tcp_proxy.cluster", name+requestedName), networkFilter(tcpProxyName, proxy)}
}

// earlyData is how much of a connection may wait for its server, in bytes.
const earlyData = 1 << 16

// lookUp goes on to where the server name leads, if that is below the wildcard, and outside.
func (e external) lookUp(port *listener.Filter, v *mesh.View) []*listener.Filter {
	proxy := onDemandProxy("egress", ClusterExternalNames, v.Config(), egressTCPLog)
	// After all filters have seen the first bytes.
	proxy.UpstreamConnectMode = tcpproxy.UpstreamConnectMode_ON_DOWNSTREAM_DATA
	proxy.MaxEarlyDataBytes = wrapperspb.UInt32(earlyData)
	below := &rbacconfig.Permission{Rule: &rbacconfig.Permission_RequestedServerName{RequestedServerName: regex(belowWildcard(e.host))}}
	rules := verdicts{allow: &rbacconfig.RBAC{Action: rbacconfig.RBAC_ALLOW, Policies: map[string]*rbacconfig.Policy{
		e.Meta.Name.String() + "#hosts": {Permissions: []*rbacconfig.Permission{below}, Principals: anyPrincipal()},
	}}}
	return slices.Concat(rules.network("egress"), []*listener.Filter{port, forwardTLS(true)},
		verdicts{allow: outside(v.Config())}.network("egress"), []*listener.Filter{networkFilter(tcpProxyName, proxy)})
}

// belowWildcard is a regular expression for the names below "*.x".
func belowWildcard(host string) string {
	return `(?i)([a-z0-9_]([-a-z0-9_]*[a-z0-9_])?\.)+` + regexp.QuoteMeta(strings.TrimPrefix(host, "*."))
}

// outAdmission is what policies that name the Gateway or the listener ask of connections.
func (o *outbound) outAdmission(g *mesh.Gateway, at mesh.Listener) []*listener.Filter {
	policies := slices.Concat(attached(g, at.Name, mesh.SectionAuthorization, o.view)...)
	return sidecar(o.view.Config(), false).authorization(policies, o.view).network("egress")
}

// callers are the certificates of those whom the object admits, and for whom it holds.
func callers(e *mesh.External, root string, domains []string) []*tls.SubjectAltNameMatcher {
	var out []*tls.SubjectAltNameMatcher
	for _, id := range admitted(e, root, domains) {
		out = append(out, &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: identityPattern(id)})
	}
	if len(out) == 0 {
		return sans(nil)
	}
	return out
}

// admitted are the SPIFFE IDs of those whom the object admits, and for whom it holds, under
// each of the trust domain's names. What ends with "*" is a prefix.
func admitted(e *mesh.External, root string, domains []string) []string {
	mine := func(namespace string) bool { return e.Meta.Namespace == root || e.Meta.Namespace == namespace }
	var out []string
	add := func(path string) {
		for _, d := range domains {
			out = append(out, "spiffe://"+d+"/"+path)
		}
	}
	whole := func(namespace string) { add("ns/" + namespace + "/*") }
	if len(e.Callers) == 0 {
		if e.Meta.Namespace == root {
			add("*")
		} else {
			whole(e.Meta.Namespace)
		}
	}
	for _, from := range e.Callers {
		if len(from.ServiceAccounts) == 0 {
			for _, ns := range from.Namespaces {
				if mine(ns) {
					whole(ns)
				}
			}
		}
		for _, sa := range from.ServiceAccounts {
			if mine(sa.Namespace) && (len(from.Namespaces) == 0 || slices.Contains(from.Namespaces, sa.Namespace)) {
				add("ns/" + sa.Namespace + "/sa/" + sa.Name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
