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
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Ports at which a sidecar ends the TLS of clients. Such a port takes TLS alone, the
// mesh's or a client's, and has HTTP in it, whatever is declared.

// statEnded is the prefix of the metrics of HTTP whose TLS ended at the sidecar.
const statEnded = "inbound-tls"

// prefixInbound begins the names of what is for one such port: its chain, its routes
// (inbound|8443) and its cluster (inbound|8080|http1, by the application's port).
const prefixInbound = ClusterInbound + "|"

const (
	ofHTTP1 = "|http1"
	ofHTTP2 = "|http2"
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
				had, taken := here[at.Port]
				if !taken {
					had = ended{PortTLS: at}
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

// applicationCluster is the application on a port of its own, in HTTP/1.1 or HTTP/2, at
// the address that the caller meant; nil where the name is of no such cluster.
func applicationCluster(name string) *cluster.Cluster {
	rest, ok := strings.CutPrefix(name, prefixInbound)
	number, version, _ := strings.Cut(rest, "|")
	port, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || port == 0 || "|"+version != ofHTTP1 && "|"+version != ofHTTP2 {
		return nil
	}
	c := originalDestination(name)
	c.LbConfig = &cluster.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &cluster.Cluster_OriginalDstLbConfig{
		UpstreamPortOverride: wrapperspb.UInt32(uint32(port)),
	}}
	c.TypedExtensionProtocolOptions = explicitProtocol(&core.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(maxHeaders)}, "|"+version == ofHTTP2)
	return c
}

// endedMatcher chooses the chain on such a port: what is not TLS is closed.
func (in inbound) endedMatcher(port uint16, used map[string]bool) *xdsmatcher.Matcher {
	to := func(name string) *xdsmatcher.Matcher_OnMatch {
		used[name] = true
		return chain(name)
	}
	client := chainClosed
	if e := in.ended[port]; in.served[port] {
		client = e.name()
	}
	tls := to(client)
	if in.modes.at(port) != mesh.MTLSDisabled {
		tls = further(byProtocol(map[string]*xdsmatcher.Matcher_OnMatch{ALPNHTTP: to(chainMeshHTTP), ALPNTCP: to(chainMeshHTTP)}, tls))
	}
	return byTLS(tls, to(chainClosed))
}

// endedChains are those of clients whose TLS ends, sorted by port. No certificate is
// asked of a client, so that none has an identity.
func (in inbound) endedChains() []*listener.FilterChain {
	var out []*listener.FilterChain
	for _, port := range slices.Sorted(maps.Keys(in.ended)) {
		if !in.served[port] {
			continue
		}
		e := in.ended[port]
		m := in.manager(false)
		m.StatPrefix = statEnded
		m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: e.name()}}
		out = append(out, &listener.FilterChain{
			Name: e.name(), TransportSocketConnectTimeout: seconds(handshakeTimeout),
			TransportSocket: terminated([]string{PrefixEnded + e.Certificate.String()}, "h2", "http/1.1"),
			Filters:         []*listener.Filter{networkFilter(hcmName, m)},
		})
	}
	return out
}

// terminated is TLS of clients that ends here, with the certificates of the secrets.
func terminated(secrets []string, alpn ...string) *core.TransportSocket {
	context := &tls.CommonTlsContext{
		TlsParams:     &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2},
		AlpnProtocols: alpn,
	}
	for _, name := range secrets {
		context.TlsCertificateSdsSecretConfigs = append(context.TlsCertificateSdsSecretConfigs, sds(name))
	}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{
		TypedConfig: typed(&tls.DownstreamTlsContext{CommonTlsContext: context}),
	}}
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
