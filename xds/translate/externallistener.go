package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	network "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Names of the egress listener's chains beside those that pass on and refuse, which have
// the names of their clusters.
const (
	chainExternalHTTP   = "external-http"    // by the Host of requests
	chainExternalHTTPAt = "external-http-at" // by the address that was called
	chainExternalTLS    = "external-tls"     // by the server name of TLS
	chainExternalTCP    = "external-tcp"     // by the address that was called
	chainExternalWild   = "external-wild"    // TLS to any name below another, looked up
	// Begins the names of those of TLS to any name below another, by a gateway:
	// "external-out|*.example.org:443".
	chainExternalOut = "external-out|"
)

// statePort is the port that dynamic forward proxies connect to, whatever a Host says.
const statePort = "envoy.upstream.dynamic_port"

// requestedName is the server name that the client's TLS asks for, in lower case.
const requestedName = "%REQUESTED_SERVER_NAME%"

const originalPort = "%DOWNSTREAM_LOCAL_PORT%"

// egressListener takes what leaves the cluster: passed on as it is, or refused. Nothing is
// inspected, so a server that speaks first is heard at once, and no destination is ever
// asked of the control plane. External services are exceptions to that at the ports that
// they name: their names and addresses are in the matcher, all else about them comes when
// they are first called, so that five hundred of them are some 16 kB.
func egressListener(for_ string, v *mesh.View) *listener.Listener {
	c := v.Config()
	otherwise := ClusterPassthrough
	if c.Egress == mesh.RegistryOnly {
		otherwise = ClusterBlackhole
	}
	account := egressFor(for_)
	l := baseListener(ListenerEgress, PortEgress, c)
	l.ListenerFilters = []*listener.ListenerFilter{originalDst()}
	l.FilterChains = []*listener.FilterChain{{Name: otherwise, Filters: []*listener.Filter{tcpProxy("egress", otherwise, c, outboundLog)}}}
	es := externals(account.Namespace, v, every)
	if len(es) == 0 {
		return l
	}
	x := &egress{view: v, account: account, otherwise: otherwise, ports: map[uint16]*egressPort{}, chains: map[string]bool{}}
	x.add(es)
	l.FilterChainMatcher = x.matcher()
	if ports := x.inspected(); len(ports) > 0 {
		l.ListenerFilters = append(l.ListenerFilters, onlyOn(tlsInspector(), ports), onlyOn(httpInspector(), ports))
	}
	for _, name := range []string{
		ClusterPassthrough, ClusterBlackhole, chainExternalHTTP, chainExternalHTTPAt, chainExternalTLS, chainExternalTCP, chainExternalWild,
	} {
		if x.chains[name] && name != otherwise {
			l.FilterChains = append(l.FilterChains, &listener.FilterChain{Name: name, Filters: egressChain(name, c)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(x.chains)) {
		if called, ok := strings.CutPrefix(name, chainExternalOut); ok {
			l.FilterChains = append(l.FilterChains, &listener.FilterChain{Name: name, Filters: toGatewayByName(called, c)})
		}
	}
	return l
}

// egress is what external services make of the listener.
type egress struct {
	view      *mesh.View
	account   mesh.Name
	otherwise string // the chain of what no external service names
	ports     map[uint16]*egressPort
	chains    map[string]bool // that are used
}

// egressPort is what is decided at a port.
type egressPort struct {
	known     map[netip.Prefix]bool
	at        map[string][]netip.Prefix // by chain
	names     map[string][]string       // hosts of TLS by chain
	http      bool                      // some are known by the Host of requests
	inspected bool
}

func (x *egress) port(n uint16) *egressPort {
	if x.ports[n] == nil {
		x.ports[n] = &egressPort{known: map[netip.Prefix]bool{}, at: map[string][]netip.Prefix{}, names: map[string][]string{}}
	}
	return x.ports[n]
}

func (x *egress) add(es []*mesh.External) {
	for _, e := range es {
		for _, p := range e.Ports {
			at, to := x.port(p.Number), external{e, p, ""}
			for _, a := range e.At(p) {
				if !at.known[a] {
					at.known[a] = true
					name := x.byAddress(to)
					at.at[name] = append(at.at[name], a)
					at.inspected = at.inspected || name == chainExternalHTTPAt
				}
			}
		}
	}
	tls := named(es, isTLS)
	for _, n := range tls.sortedPorts() {
		at := x.port(n)
		at.inspected = true
		for _, h := range tls.sortedHosts() {
			if to, ok := tls[n][h]; ok {
				name := x.byName(to)
				at.names[name] = append(at.names[name], h)
			}
		}
	}
	for n := range named(es, mesh.Protocol.IsHTTP) {
		at := x.port(n)
		at.http, at.inspected = true, true
	}
}

// byAddress is the chain of what was called by its address.
func (x *egress) byAddress(to external) string {
	status, _ := to.refusal(x.account, x.view)
	switch {
	case to.Resolution != mesh.ResolveNone && to.port.Protocol.IsHTTP():
		return chainExternalHTTPAt // whose routes refuse, too
	case status != 0:
		return ClusterBlackhole
	case to.Resolution == mesh.ResolveNone:
		return ClusterPassthrough
	default:
		return chainExternalTCP
	}
}

// byName is the chain of what was called by its server name.
func (x *egress) byName(to external) string {
	status, _ := to.refusal(x.account, x.view)
	switch {
	case status != 0:
		return ClusterBlackhole
	case !wildHost(to.host):
		return chainExternalTLS
	case to.Gateway != nil:
		return chainExternalOut + fmt.Sprintf("%s:%d", to.host, to.port.Number)
	case x.otherwise == ClusterPassthrough:
		return ClusterPassthrough // where the application sends it
	default:
		return chainExternalWild // where the name leads
	}
}

func (x *egress) chain(name string) *xdsmatcher.Matcher_OnMatch {
	x.chains[name] = true
	return chain(name)
}

func (x *egress) matcher() *xdsmatcher.Matcher {
	otherwise := x.chain(x.otherwise)
	ports := map[string]*xdsmatcher.Matcher_OnMatch{}
	for n, p := range x.ports {
		rest := otherwise
		if p.http {
			rest = further(ifHTTP(x.chain(chainExternalHTTP), otherwise))
		}
		if len(p.names) > 0 {
			rest = further(byTLS(further(x.bySNI(p.names, otherwise)), rest))
		}
		var ds []destinations
		for _, name := range slices.Sorted(maps.Keys(p.at)) {
			to := x.chain(name)
			if name == chainExternalHTTPAt {
				// What is not HTTP is not what was named.
				to = further(ifHTTP(to, x.chain(ClusterBlackhole)))
			}
			ds = append(ds, destinations{p.at[name], to})
		}
		ports[strconv.Itoa(int(n))] = further(byDestination(ds, rest))
	}
	return byPort(ports, otherwise)
}

// bySNI decides on the server name: the most specific of those that match.
func (x *egress) bySNI(names map[string][]string, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	m := &xdsmatcher.ServerNameMatcher{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		m.DomainMatchers = append(m.DomainMatchers, &xdsmatcher.ServerNameMatcher_DomainMatcher{Domains: names[name], OnMatch: x.chain(name)})
	}
	return &xdsmatcher.Matcher{
		MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
			Input:    extension("input", &network.ServerNameInput{}),
			TreeType: &xdsmatcher.Matcher_MatcherTree_CustomMatch{CustomMatch: extension("names", m)},
		}},
		OnNoMatch: otherwise,
	}
}

// inspected are the ports at which first bytes decide, sorted.
func (x *egress) inspected() []uint16 {
	var out []uint16
	for n, p := range x.ports {
		if p.inspected {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// onlyOn has a listener filter run at the ports alone.
func onlyOn(f *listener.ListenerFilter, ports []uint16) *listener.ListenerFilter {
	f = notOn(f, ports)
	f.FilterDisabled = &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: f.FilterDisabled}}
	return f
}

// egressChain are the filters of a chain.
func egressChain(name string, c *mesh.Config) []*listener.Filter {
	switch name {
	case chainExternalHTTP:
		return []*listener.Filter{
			connectionState(statePort, originalPort),
			networkFilter(hcmName, externalManager(RouteEgress, originalPort, c)),
		}
	case chainExternalHTTPAt:
		return []*listener.Filter{networkFilter(hcmName, externalManager(RouteEgressAt, original, c))}
	case chainExternalTLS:
		return onDemandTCP("external", prefixExternal+requestedName+":"+originalPort, c, outboundLog)
	case chainExternalTCP:
		return onDemandTCP("external", prefixExternal+original, c, outboundLog)
	case chainExternalWild:
		proxy := onDemandProxy("external", ClusterExternalNames, c, outboundLog)
		return []*listener.Filter{
			connectionState(statePort, originalPort),
			forwardTLS(false),
			networkFilter(tcpProxyName, proxy),
		}
	default:
		return []*listener.Filter{tcpProxy("egress", name, c, outboundLog)}
	}
}

// externalManager routes requests to external services. The header that routes look at has
// the format's value.
func externalManager(routes, format string, c *mesh.Config) *hcm.HttpConnectionManager {
	m := connectionManager("external", 0)
	keyed(m, format)
	m.AccessLog = accessLog(c, outboundLog)
	m.HttpFilters = httpFilters(filterOnDemand, filterFault, filterForward)
	m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: routes}}
	return m
}
