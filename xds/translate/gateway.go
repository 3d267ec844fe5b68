package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// gatewayOf returns the gateway with the name, if its class is ours.
func gatewayOf(n mesh.Name, v *mesh.View) (*mesh.Gateway, bool) {
	g, ok := v.Gateway(n)
	return g, ok && v.Class(g.Class)
}

// gatewayIdle is where a gateway without a port listens: nobody can connect.
const gatewayIdle = 15003

const (
	// gatewayIdleTimeout ends a request on which nothing moves, as Envoy's own does;
	// policies may say otherwise.
	gatewayIdleTimeout = 5 * time.Minute
	// gatewayHeadersTimeout is how long a client may take to say what it wants.
	gatewayHeadersTimeout = 10 * time.Second
)

// gatewayListener is one listener on all ports of a gateway. For HTTP and TCP there is a
// chain for each port, for HTTPS one for each of the Gateway's listeners, and for TLS one
// for each of their routes, chosen by the name that the client asks for.
func gatewayListener(name string, v *mesh.View) Result {
	c := v.Config()
	l := baseListener(ListenerGateway, gatewayIdle, c)
	n, _ := objectName(name)
	g, ok := gatewayOf(n, v)
	if !ok {
		return Result{Message: idle(l)}
	}
	o := outbound{client: g.Meta.Namespace, account: g.Proxies(), gateway: g, view: v}
	var ports, clear []uint16
	encrypted := false
	held, served := holdingListeners(g, v)
	for i, at := range held {
		first := !slices.Contains(ports, at.Port)
		if first {
			ports = append(ports, at.Port)
		}
		switch {
		case at.Protocol == mesh.ListenerHTTPS:
			encrypted = true
			l.FilterChains = append(l.FilterChains, httpsChain(g, at, served[i], c))
		case at.Protocol == mesh.ListenerTLS:
			encrypted = true
			l.FilterChains = append(l.FilterChains, o.tlsChains(g, at, served[i], held)...)
		case at.Protocol == mesh.ListenerEgress:
			encrypted = true
			l.FilterChains = append(l.FilterChains, o.outChains(g, at)...)
		case at.Protocol == mesh.ListenerTCP:
			clear = append(clear, at.Port)
			l.FilterChains = append(l.FilterChains, o.tcpChain(g, at))
		case first:
			clear = append(clear, at.Port)
			l.FilterChains = append(l.FilterChains, httpChain(at, c))
		}
	}
	if len(ports) == 0 {
		return Result{Message: idle(l)}
	}
	if encrypted {
		// A client hello may come late, over bad lines.
		l.ListenerFilters = []*listener.ListenerFilter{notOn(tlsInspector(), clear)}
		l.ListenerFiltersTimeout = seconds(gatewayHeadersTimeout)
	}
	// What matches no chain is closed.
	addresses := make([]*core.Address, 0, 2*len(ports))
	for _, p := range ports {
		addresses = append(addresses, socketAddress("0.0.0.0", uint32(p)))
		if hasIPv6(c) {
			addresses = append(addresses, socketAddress("::", uint32(p)))
		}
	}
	l.Address, l.AdditionalAddresses = addresses[0], nil
	for _, a := range addresses[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listener.AdditionalAddress{Address: a})
	}
	slices.Sort(o.clusters)
	return Result{Message: l, Clusters: slices.Compact(o.clusters)}
}

func idle(l *listener.Listener) *listener.Listener {
	l.Address, l.AdditionalAddresses = socketAddress("127.0.0.1", gatewayIdle), nil
	l.FilterChains = []*listener.FilterChain{checkingChain(ListenerGateway, nil)}
	return l
}

func httpChain(at mesh.Listener, c *mesh.Config) *listener.FilterChain {
	return &listener.FilterChain{
		Name:             fmt.Sprint(at.Port),
		FilterChainMatch: &listener.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(at.Port))},
		Filters:          []*listener.Filter{networkFilter(hcmName, gatewayManager(gatewayRouteName(at), c))},
	}
}

// httpsChain closes connections to a listener that lacks its certificate, or those by which
// to know its clients: its host is nobody else's.
func httpsChain(g *mesh.Gateway, at mesh.Listener, served bool, c *mesh.Config) *listener.FilterChain {
	if !served {
		return closing(at, c)
	}
	out := encryptedChain(at, at.Hostname)
	m := gatewayManager(gatewayRouteName(at), c)
	tell(m, at)
	out.Filters = []*listener.Filter{networkFilter(hcmName, m)}
	out.TransportSocket = certified(g, at, "h2", "http/1.1")
	return out
}

// closing closes the connections to a listener of TLS that nothing else is for.
func closing(at mesh.Listener, c *mesh.Config) *listener.FilterChain {
	out := encryptedChain(at, at.Hostname)
	out.Filters = []*listener.Filter{tcpProxy("gateway", ClusterBlackhole, c, gatewayLog)}
	return out
}

// encryptedChain is for clients of a listener who ask for one of the hosts; "" and "*"
// are all.
func encryptedChain(at mesh.Listener, hosts ...string) *listener.FilterChain {
	match := &listener.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(at.Port)), TransportProtocol: "tls"}
	if !slices.Contains(hosts, "") && !slices.Contains(hosts, "*") {
		match.ServerNames = hosts
	}
	return &listener.FilterChain{Name: fmt.Sprintf("%d|%s", at.Port, at.Name), FilterChainMatch: match}
}

// gatewayRouteName is the name of a listener's routes: one for all HTTP listeners of a
// port, which are told apart by host.
func gatewayRouteName(l mesh.Listener) string {
	if l.Protocol == mesh.ListenerHTTPS || l.Protocol == mesh.ListenerEgress {
		return fmt.Sprintf("%s%d|%s", PrefixGateway, l.Port, l.Name)
	}
	return fmt.Sprintf("%s%d", PrefixGateway, l.Port)
}

// gatewayManager is at the mesh's edge: clients are whoever connects, and what only the
// mesh may say they cannot.
func gatewayManager(routes string, c *mesh.Config) *hcm.HttpConnectionManager {
	m := connectionManager("gateway", gatewayIdleTimeout)
	m.AccessLog = accessLog(c, gatewayLog)
	m.HttpFilters = askingService(httpFilters(filterCORS, filterJWT, filterAudit, filterCustom, filterDeny, filterAllow, filterRateLimit, filterFault), c)
	m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: routes}}
	m.UseRemoteAddress = wrapperspb.Bool(true)
	m.XffNumTrustedHops = hopsBefore(c)
	m.SkipXffAppend = false
	m.PreserveExternalRequestId = false
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE
	// Routes match what applications will see, or else the client is told to say it so.
	m.NormalizePath = wrapperspb.Bool(true)
	m.MergeSlashes = true
	m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_UNESCAPE_AND_REDIRECT
	m.StripTrailingHostDot = true
	m.RequestHeadersTimeout = seconds(gatewayHeadersTimeout)
	return m
}

// gatewayRoutes are the virtual hosts of a gateway's port, or of one HTTPS listener.
func gatewayRoutes(name, gateway string, v *mesh.View) Result {
	n, _ := objectName(gateway)
	g, ok := gatewayOf(n, v)
	if !ok {
		return Result{Message: routesOf(name)}
	}
	var ls, rivals []mesh.Listener
	held, served := holdingListeners(g, v)
	for i, l := range held {
		if gatewayRouteName(l) == name && served[i] {
			ls = append(ls, l)
		}
	}
	c := &route.RouteConfiguration{Name: name, IgnorePortInHostMatching: true}
	if len(ls) == 0 {
		return Result{Message: c}
	}
	if ls[0].Protocol == mesh.ListenerEgress {
		return outRoutes(g, ls[0], v)
	}
	o := outbound{client: g.Meta.Namespace, account: g.Proxies(), gateway: g, view: v, scheme: "http", port: ls[0].Port}
	if ls[0].Protocol == mesh.ListenerHTTPS {
		o.scheme = "https"
		rivals = slices.DeleteFunc(held, func(l mesh.Listener) bool { return l.Port != ls[0].Port || l.Name == ls[0].Name })
	}
	sites := make([]site, 0, len(ls))
	for _, l := range ls {
		sites = append(sites, site{l, attachedRoutes(g, l, v)})
	}
	guards := guardsOf(g, ls, v)
	o.clusters = append(o.clusters, guards.clusters...)
	c.TypedPerFilterConfig = guards.limits
	for _, domain := range domains(sites, rivals) {
		host := &route.VirtualHost{
			Name: domain, Domains: []string{domain},
			RequestHeadersToRemove: slices.Concat([]string{dstHeader}, otherSpellings(certHeader), otherSpellings("x-forwarded-for")), ResponseHeadersToRemove: []string{unreachedHeader},
		}
		if misdirected(ls, rivals, domain) {
			host.Routes = []*route.Route{{Match: prefixMatch("/"), Action: answer(421)}}
		} else {
			o.routes = nil
			at := ownerOf(sites, domain)
			for _, r := range hostRules(at, domain, v) {
				o.add(r)
			}
			host.Routes = o.routes
			guards.guard(host, at.Name)
		}
		c.VirtualHosts = append(c.VirtualHosts, host)
	}
	slices.Sort(o.clusters)
	return Result{Message: c, Clusters: slices.Compact(o.clusters)}
}

// site is a listener with the routes that are attached to it.
type site struct {
	mesh.Listener
	routes []*mesh.Route
}

// misdirected reports whether requests for a host that come over TLS to one listener
// are another's, or nobody's: a client may send them over a connection whose certificate
// has the name, and is told to make another (RFC 9110, section 15.5.20).
func misdirected(ls, rivals []mesh.Listener, domain string) bool {
	if len(rivals) == 0 && ls[0].Hostname == "" || ls[0].Protocol != mesh.ListenerHTTPS {
		return false
	}
	own := -1
	if covers(ls[0].Hostname, domain) {
		own = specificity(ls[0].Hostname)
	}
	return own < 0 || slices.ContainsFunc(rivals, func(r mesh.Listener) bool {
		return covers(r.Hostname, domain) && specificity(r.Hostname) > own
	})
}

// domains are all hosts that routes of the listeners are about, and those that a
// listener has, which are no other's though it has no route; for HTTPS also those of
// other listeners, and all others; sorted.
func domains(sites []site, rivals []mesh.Listener) []string {
	var out []string
	if sites[0].Protocol == mesh.ListenerHTTPS {
		out = append(out, "*")
	}
	for _, l := range rivals {
		out = append(out, cmp.Or(l.Hostname, "*"))
	}
	for _, s := range sites {
		out = append(out, cmp.Or(s.Hostname, "*"))
		for _, r := range s.routes {
			out = append(out, hostsOf(s.Listener, r)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ownerOf is the listener whose host it is: the one whose hostname says most about it.
func ownerOf(sites []site, domain string) site {
	at := sites[0]
	best := -1
	for _, s := range sites {
		if covers(s.Hostname, domain) && specificity(s.Hostname) > best {
			at, best = s, specificity(s.Hostname)
		}
	}
	return at
}

// hostRules are the rules for a host: of routes that are attached to the listener whose
// it is, by how much their own hostnames say, and then by what they match.
func hostRules(at site, domain string, v *mesh.View) []rule {
	type ranked struct {
		rule
		host int
	}
	var all []ranked
	for _, r := range at.routes {
		host := -1
		for _, own := range ownHosts(r) {
			if h := hostAt(at.Listener, own); h != "" && covers(h, domain) {
				host = max(host, specificity(own))
			}
		}
		if host < 0 {
			continue
		}
		for _, one := range rulesOf(mesh.Name{}, []*mesh.Route{r}, v) {
			all = append(all, ranked{one, host})
		}
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return cmp.Or(cmp.Compare(b.host, a.host), bySpecificity(a.match, b.match)) })
	out := make([]rule, 0, len(all))
	for _, r := range all {
		out = append(out, r.rule)
	}
	return out
}

// hostsOf are the hosts of a route at a listener: where both have hostnames, what both
// mean.
func hostsOf(l mesh.Listener, r *mesh.Route) []string {
	var out []string
	for _, own := range ownHosts(r) {
		if h := hostAt(l, own); h != "" {
			out = append(out, h)
		}
	}
	return out
}

// ownHosts are a route's hostnames; "*" where it has none.
func ownHosts(r *mesh.Route) []string {
	if len(r.Hostnames) == 0 {
		return []string{"*"}
	}
	return r.Hostnames
}

// hostAt is what a hostname of a route means at a listener; empty: nothing.
func hostAt(l mesh.Listener, own string) string {
	switch {
	case covers(l.Hostname, own):
		return own
	case covers(own, l.Hostname):
		return l.Hostname
	}
	return ""
}

// covers reports whether a hostname, which may begin with "*.", or be empty or "*" for
// all, means all that another one means.
func covers(wide, narrow string) bool {
	switch {
	case wide == "" || wide == "*" || wide == narrow:
		return true
	case narrow == "" || narrow == "*":
		return false
	}
	suffix, wild := strings.CutPrefix(wide, "*")
	return wild && strings.HasSuffix(strings.TrimPrefix(narrow, "*"), suffix) && len(narrow) > len(suffix)
}

// specificity is higher the more a hostname says: a name says more than any wildcard.
func specificity(hostname string) int {
	if hostname == "" || hostname == "*" {
		return 0
	}
	if strings.HasPrefix(hostname, "*.") {
		return len(hostname)
	}
	return 1000 + len(hostname)
}

// gatewaySecret is a certificate, for the proxies of a gateway that may have it.
func gatewaySecret(k Key, v *mesh.View) proto.Message {
	n, _ := objectName(k.For)
	g, ok := gatewayOf(n, v)
	if !ok {
		return certificateSecret(k.Name, nil)
	}
	if c, _ := clientCertificate(g, v); c != nil && PrefixCertificate+c.Name.String() == k.Name {
		return certificateSecret(k.Name, c)
	}
	held, served := holdingListeners(g, v)
	for i, l := range held {
		for _, s := range l.Certificates {
			if !served[i] || PrefixCertificate+s.Name.String() != k.Name {
				continue
			}
			if c, ok := v.Certificate(s.Name); ok && c.Invalid == "" {
				return certificateSecret(k.Name, c)
			}
		}
	}
	return certificateSecret(k.Name, nil)
}
