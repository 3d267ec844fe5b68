package translate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Ports at which a sidecar ends the TLS of clients. Such a port takes TLS alone, the
// mesh's or a client's, and has HTTP in it, whatever is declared.

// statEnded is the prefix of the metrics of HTTP whose TLS ended at the sidecar.
const statEnded = "inbound-tls"

// prefixInbound begins the names of what is for one such port: its chain, its routes
// (inbound|8443) and its cluster (inbound|8080|http1, by the application's port). What is
// for callers in mesh mTLS has names of its own (inbound|8443|mesh, inbound|8080|same),
// where the application is at another port than theirs.
const prefixInbound = ClusterInbound + "|"

const (
	ofMesh = "|mesh"

	ofHTTP1 = "|http1"
	ofHTTP2 = "|http2"
	ofSame  = "|same" // what the caller speaks
)

// ended is a port at which TLS of clients ends.
type ended struct {
	mesh.PortTLS
	closed bool // what says so cannot be understood, or is not of the workload's namespace
}

// endedPorts are those of a workload. Of several policies that name a port the most
// specific one holds, and of those the oldest, but for one that cannot be understood:
// that one closes the port.
func endedPorts(namespace string, labels map[string]string, v *mesh.View) map[uint16]ended {
	var out map[uint16]ended
	for _, level := range selected(namespace, labels, mesh.SectionTLS, v) {
		here := map[uint16]ended{}
		for _, p := range level {
			for _, at := range p.TLS.Ports {
				if wide(p, v) {
					at.Target = 0 // which is none of its business either
				}
				had := here[at.Port]
				if had.Target == 0 {
					had.PortTLS = at
				}
				had.closed = had.closed || p.Invalid != "" || wide(p, v)
				here[at.Port] = had
			}
		}
		if out == nil && len(here) > 0 {
			out = map[uint16]ended{}
		}
		maps.Copy(out, here)
	}
	return out
}

// wide reports whether the policy is about workloads of other namespaces than its own,
// whose certificates are none of its business.
func wide(p *mesh.Policy, v *mesh.View) bool { return p.Meta.Namespace == v.Config().RootNamespace }

// endsTLS reports whether TLS of clients ends at the workload's port, or is refused there.
func endsTLS(w *mesh.Workload, port uint16, v *mesh.View) bool {
	_, ok := endedPorts(w.Namespace, w.Labels, v)[port]
	return ok
}

// served reports whether clients are let in.
func (e ended) served(v *mesh.View) bool {
	if e.closed {
		return false
	}
	c, ok := v.Certificate(e.Certificate)
	return ok && c.Invalid == ""
}

func (e ended) name() string { return prefixInbound + strconv.Itoa(int(e.Port)) }

// moves reports whether the application is at another port than callers. Where what says so
// is of no use, it is not known to be.
func (e ended) moves() bool { return e.Target != e.Port && e.Target != 0 }

// meshChain is that of callers in mesh mTLS.
func (e ended) meshChain() string {
	if e.moves() {
		return e.name() + ofMesh
	}
	return chainMeshHTTP
}

// clusterIn is the cluster of the routes that the name ends: of clients, or of callers in
// mesh mTLS, who speak to the application what they speak to the sidecar.
func (e ended) clusterIn(routes string, declared map[uint16]mesh.Protocol) string {
	if routes == e.name()+ofMesh {
		return prefixInbound + strconv.Itoa(int(e.Target)) + ofSame
	}
	return e.cluster(declared)
}

// endedRoutes is the port that the name of routes is about, and whether they are of
// clients whose TLS ends there. Other routes are about none.
func endedRoutes(name string, p *mesh.Profile, v *mesh.View) (e ended, ofClients, ok bool) {
	number, named := strings.CutPrefix(name, prefixInbound)
	number, ofCallers := strings.CutSuffix(number, ofMesh)
	port, err := strconv.ParseUint(number, 10, 16)
	if !named || err != nil {
		return ended{}, false, false
	}
	e, ok = endedPorts(p.Namespace, p.Labels, v)[uint16(port)]
	return e, !ofCallers, ok && (!ofCallers || e.moves())
}

// cluster is the name of that of the application. What clients speak is between them and
// the sidecar; the application is spoken to as a Service declares.
func (e ended) cluster(declared map[uint16]mesh.Protocol) string {
	version := ofHTTP1
	for _, p := range []uint16{e.Target, e.Port} {
		if declared[p] == mesh.HTTP2 || declared[p] == mesh.GRPC {
			version = ofHTTP2
		}
		if declared[p].IsHTTP() {
			break
		}
	}
	return prefixInbound + strconv.Itoa(int(e.Target)) + version
}

// applicationCluster is the application on a port of its own, in HTTP/1.1, HTTP/2 or what
// the caller speaks, at the address that the caller meant; nil where the name is of no such cluster.
func applicationCluster(name string) *cluster.Cluster {
	rest, ok := strings.CutPrefix(name, prefixInbound)
	number, version, _ := strings.Cut(rest, "|")
	port, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || port == 0 {
		return nil
	}
	common, options := &core.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(maxHeaders)}, map[string]*anypb.Any(nil)
	switch "|" + version {
	case ofHTTP1, ofHTTP2:
		options = explicitProtocol(common, "|"+version == ofHTTP2)
	case ofSame:
		options = protocolOptions(common)
	default:
		return nil
	}
	c := originalDestination(name)
	c.LbConfig = &cluster.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &cluster.Cluster_OriginalDstLbConfig{
		UpstreamPortOverride: wrapperspb.UInt32(uint32(port)),
	}}
	c.TypedExtensionProtocolOptions = options
	return c
}

// endedMatcher chooses the chain on such a port: what is not TLS is closed.
func (in inbound) endedMatcher(port uint16, used map[string]bool) *xdsmatcher.Matcher {
	to := func(name string) *xdsmatcher.Matcher_OnMatch {
		used[name] = true
		return chain(name)
	}
	e, client := in.ended[port], chainClosed
	if in.served[port] {
		client = e.name()
	}
	tls := to(client)
	if in.modes.at(port) != mesh.MTLSDisabled {
		caller := to(e.meshChain())
		tls = further(byProtocol(map[string]*xdsmatcher.Matcher_OnMatch{ALPNHTTP: caller, ALPNTCP: caller}, tls))
	}
	return byTLS(tls, to(chainClosed))
}

// endedChains are those of such ports, sorted by port: of clients, of whom no certificate
// is asked, so that none has an identity, and of callers in mesh mTLS.
func (in inbound) endedChains(mesh *core.TransportSocket) []*listener.FilterChain {
	var out []*listener.FilterChain
	add := func(name string, m *hcm.HttpConnectionManager, socket *core.TransportSocket) {
		m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: name}}
		out = append(out, &listener.FilterChain{
			Name: name, TransportSocketConnectTimeout: seconds(handshakeTimeout), TransportSocket: socket,
			Filters: []*listener.Filter{networkFilter(hcmName, m)},
		})
	}
	for _, port := range slices.Sorted(maps.Keys(in.ended)) {
		e := in.ended[port]
		if in.served[port] {
			add(e.name(), in.edgeManager(), downstream(terminated([]string{PrefixEnded + e.Certificate.String()}, "h2", "http/1.1")))
		}
		if e.moves() {
			add(e.meshChain(), in.manager(true), mesh)
		}
	}
	return out
}

// edgeManager is that of clients: as at the mesh's edge, what only proxies may say they
// cannot, since nobody before looked into what they send.
func (in inbound) edgeManager() *hcm.HttpConnectionManager {
	m := in.manager(false)
	m.StatPrefix = statEnded
	m.UseRemoteAddress, m.XffNumTrustedHops, m.SkipXffAppend = wrapperspb.Bool(true), 0, false
	m.PreserveExternalRequestId = false
	m.RequestHeadersTimeout = seconds(gatewayHeadersTimeout)
	return m
}

// terminated is TLS of clients that ends here, with the certificates of the secrets.
func terminated(secrets []string, alpn ...string) *tls.DownstreamTlsContext {
	context := &tls.CommonTlsContext{
		TlsParams:     &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2},
		AlpnProtocols: alpn,
	}
	for _, name := range secrets {
		context.TlsCertificateSdsSecretConfigs = append(context.TlsCertificateSdsSecretConfigs, sds(name))
	}
	return &tls.DownstreamTlsContext{CommonTlsContext: context}
}

func downstream(context *tls.DownstreamTlsContext) *core.TransportSocket {
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(context)}}
}

// endedSecret is a certificate, for the proxies of a profile that end TLS with it.
func endedSecret(k Key, v *mesh.View) proto.Message {
	p, ok := v.Profile(k.For)
	if !ok {
		return certificateSecret(k.Name, nil)
	}
	for _, e := range endedPorts(p.Namespace, p.Labels, v) {
		if PrefixEnded+e.Certificate.String() == k.Name && e.served(v) {
			c, _ := v.Certificate(e.Certificate)
			return certificateSecret(k.Name, c)
		}
	}
	return certificateSecret(k.Name, nil)
}

// certificateSecret is empty without a certificate.
func certificateSecret(name string, c *mesh.Certificate) *tls.Secret {
	out := &tls.TlsCertificate{}
	if c != nil {
		out.CertificateChain, out.PrivateKey = inline(c.Chain), inline(c.Key)
	}
	return &tls.Secret{Name: name, Type: &tls.Secret_TlsCertificate{TlsCertificate: out}}
}

// endedFaults are what keeps a policy's tls section from holding.
func endedFaults(p *mesh.Policy, v *mesh.View) []*fault {
	if wide(p, v) {
		return []*fault{{conditionAccepted, reasonInvalid, fmt.Sprintf("tls is about workloads of the policy's own namespace, and here it would be about the mesh's, at whose ports TLS of clients is refused until then: write it in their namespace, with its Secret; %s is Tulle's own", p.Meta.Namespace)}}
	}
	var out []*fault
	for _, at := range p.TLS.Ports {
		bad := func(format string, args ...any) {
			out = append(out, &fault{conditionResolvedRefs, reasonInvalidCertificate, fmt.Sprintf(format, args...) + fmt.Sprintf("; until then TLS of clients is refused at port %d", at.Port)})
		}
		c, ok := v.Certificate(at.Certificate)
		switch {
		case !ok:
			bad("Tulle sees no Secret %s of the type kubernetes.io/tls: create it, or correct certificateRef; Secrets are seen where deploy/gateways is applied and the Gateway API is installed", at.Certificate)
		case c.Invalid != "":
			bad("%s", c.Invalid)
		}
	}
	for _, q := range v.Policies(p.Meta.Namespace, mesh.SectionTLS, all) {
		if q.Meta.Name == p.Meta.Name {
			break // those that follow are younger
		}
		for _, at := range p.TLS.Ports {
			if sameSelector(p.Selector, q.Selector) && slices.ContainsFunc(q.TLS.Ports, func(o mesh.PortTLS) bool { return o.Port == at.Port }) {
				out = append(out, &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("MeshPolicy %s is older, selects the same workloads and names port %d as well, and wins; take the port out of one of the two", q.Meta.Name, at.Port)})
			}
		}
	}
	return out
}
