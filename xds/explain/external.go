package explain

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Outside is what becomes of a call that leaves the cluster.
type Outside struct {
	// Called is the host or the address that is called, with the port.
	Called string `json:"called"`
	// Decision is that of the caller's sidecar, or of the gateway whose route it is.
	Decision
	Exit *Exit `json:"gateway,omitempty"` // nil: it leaves from where it is made
	// Servers are where it goes, each an address or a name with a port. None: Leads says where.
	Servers []string `json:"servers,omitempty"`
	Leads   string   `json:"leads,omitempty"`
	TLS     *TLS     `json:"tls,omitempty"` // that the mesh speaks to the servers; nil: none
}

// Exit is the egress gateway by which a call leaves.
type Exit struct {
	Gateway   string `json:"gateway"` // namespace/name
	Listener  string `json:"listener"`
	Endpoints int    `json:"endpoints"` // that are ready
	// Decision is the gateway's, by the caller's certificate.
	Decision
}

// TLS is what the sidecar or the gateway speaks to servers outside.
type TLS struct {
	ServerName string   `json:"serverName"`
	Names      []string `json:"names"` // of which their certificate has one
}

// verdict is what all say that are asked; empty: no proxy of the gateway is there.
func (o *Outside) verdict() Verdict {
	switch {
	case o.Verdict == Denied || o.Exit == nil:
		return o.Verdict
	case o.Exit.Endpoints == 0:
		return ""
	}
	return o.Exit.Verdict
}

// leaving is a call that leaves the cluster, as a sidecar sees it.
type leaving struct {
	at   netip.Addr // not valid: one that no ExternalService names
	port uint16
	http *HTTP  // in the clear
	sni  string // of TLS; empty: there is none
}

// meaning is what is meant by a call that leaves: problem is why it is not let out, and status
// that of the answer to HTTP, where it is answered.
func (c leaving) meaning(l translate.Leaving, account mesh.Name, v *mesh.View) (o translate.Outer, found bool, status uint32, problem string) {
	answers := c.http != nil && l.Looks(c.port)
	if c.at.IsValid() {
		if o, found = l.At(netip.AddrPortFrom(c.at, c.port)); found {
			requests := o.Port().Protocol.IsHTTP() && o.Object().Resolution != mesh.ResolveNone
			answers = requests && c.http != nil
			if status, problem = o.Refusal(account, v); problem == "" && requests && c.http == nil {
				problem = fmt.Sprintf("ExternalService %s names the address for HTTP, and this is not HTTP", o.Object().Meta.Name)
			}
		}
	}
	switch {
	case found:
	case c.sni != "":
		if o, found = l.Named(c.port, strings.ToLower(c.sni), func(p mesh.Protocol) bool { return p == mesh.TLS }); found {
			status, problem = o.Refusal(account, v)
		}
	case c.http != nil:
		if o, found = l.Named(c.port, nameIn(c.http.Host), mesh.Protocol.IsHTTP); found && o.Wild() && !portIs(c.http.Host, c.port) {
			found = false // the port in Host would be the one that is called
		}
		if found {
			status, problem = o.Refusal(account, v)
		}
	}
	if !found && v.Config().Egress == mesh.RegistryOnly {
		status, problem = http.StatusBadGateway, "no ExternalService names it for the caller, and what none names is not let out (MeshConfig, egress.mode: RegistryOnly)"
	}
	if !answers {
		status = 0
	}
	return o, found, status, problem
}

// nameIn is the name in a Host, as sidecars compare it: in lower case and without the port.
func nameIn(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(host)
}

// portIs reports whether a Host has no other port than this one.
func portIs(host string, port uint16) bool {
	_, number, has := strings.Cut(host, ":")
	return !has || number == strconv.Itoa(int(port))
}

// explainOutside answers a question about a call that leaves the cluster.
func explainOutside(v *mesh.View, q Question) (*Answer, error) {
	caller, namespace, peer, err := callerOf(v, q)
	if err != nil {
		return nil, err
	}
	account := nameOf(q.ServiceAccount)
	if w, ok := v.Workload(nameOf(q.Pod)); ok {
		if w.Gateway != "" {
			return nil, fmt.Errorf("the pod %s is a Gateway's, which calls what its routes name: ask for what a client asks it for", q.Pod)
		}
		account = mesh.Name{Namespace: namespace, Name: w.ServiceAccount}
	}
	l := translate.LeavingOf(account, v)
	c, err := leavingOf(v, l, &q)
	if err != nil {
		return nil, err
	}
	a := &Answer{Caller: caller, Port: q.Port, Verdict: Allowed}
	b := Backend{Outside: &Outside{Leads: asSent}}
	if caller.Meshed {
		b = c.backend(v, l, account, Request{Peer: peer, Identity: caller.Identity, HTTP: c.http, SNI: c.sni})
	} else {
		b.Outside.Decision = Decision{Verdict: Allowed, Reason: "the caller has no sidecar: nothing of the mesh stands before it"}
	}
	b.Port, b.Weight, b.Outside.Called = q.Port, 1, net.JoinHostPort(q.Outside, strconv.Itoa(int(q.Port)))
	if b.Service != "" && c.at.IsValid() && c.at.String() != q.Outside {
		b.Outside.Reason += fmt.Sprintf("; it is known by its addresses, here %s", c.at)
	}
	a.Backends = []Backend{b}
	a.Verdict = verdict(a.Backends)
	return a, nil
}

// backend is what becomes of a call that leaves by a sidecar.
func (c leaving) backend(v *mesh.View, l translate.Leaving, account mesh.Name, r Request) (b Backend) {
	out := &Outside{}
	b.Outside = out
	o, found, status, problem := c.meaning(l, account, v)
	if found {
		b.Service = o.Object().Meta.Name.String()
	}
	switch {
	case problem != "":
		out.Decision = Decision{Verdict: Denied, Reason: problem, Status: int(status)}
	case !found:
		out.Leads = asSent
		out.Decision = Decision{Verdict: Allowed, Reason: "no ExternalService names it for the caller, and what none names is passed on as it is (MeshConfig, egress.mode: AllowAny)"}
	default:
		out.Decision = Decision{Verdict: Allowed, Reason: admission(o, account)}
		out.onwards(v, o, r, true)
	}
	return b
}

// asSent is where what goes that nobody leads elsewhere.
const asSent = "where the application sends it"

func admission(o translate.Outer, account mesh.Name) string {
	n := o.Object().Meta.Name
	if len(o.Object().Callers) == 0 {
		return fmt.Sprintf("ExternalService %s names it, and admits everybody for whom it holds", n)
	}
	return fmt.Sprintf("ExternalService %s names it, and admits the service account %s", n, account)
}

// leavingOf is the call that the question is about. It fills in the port.
func leavingOf(v *mesh.View, l translate.Leaving, q *Question) (leaving, error) {
	var c leaving
	host := strings.ToLower(q.Outside)
	if at, err := netip.ParseAddr(host); err == nil {
		c.at = at.Unmap()
		config := v.Config()
		if slices.ContainsFunc(slices.Concat(config.ServiceRanges, config.PodRanges), func(p netip.Prefix) bool { return p.Contains(c.at) }) {
			return c, fmt.Errorf("the address %s is in the cluster's own ranges: name the Service that is called", c.at)
		}
	}
	var ports []uint16 // at which some object names it
	for _, e := range l.Objects() {
		for _, p := range e.Ports {
			at := e.At(p)
			byAddress := c.at.IsValid() && slices.ContainsFunc(at, func(r netip.Prefix) bool { return r.Contains(c.at) })
			byHost := slices.ContainsFunc(e.Hosts, func(h string) bool { return h == host || below(host, h) })
			if !byAddress && !byHost || q.Port != 0 && q.Port != p.Number {
				continue
			}
			if !slices.Contains(ports, p.Number) {
				ports = append(ports, p.Number)
			}
		}
	}
	if q.Port == 0 {
		if len(ports) > 1 {
			return c, fmt.Errorf("ExternalServices name several ports of %s: name one, as in %s:%d", q.Outside, q.Outside, ports[0])
		}
		q.Port = map[string]uint16{schemeHTTP: 80, schemeHTTPS: 443, schemeTLS: 443}[q.Scheme]
		if len(ports) == 1 {
			q.Port = ports[0]
		}
		if q.Port == 0 {
			return c, fmt.Errorf("no ExternalService names %s for the caller: name a port, as in %s:443", q.Outside, q.Outside)
		}
	}
	c.port = q.Port
	if namespace, ok := inCluster(v, host); ok {
		return c, fmt.Errorf("%s is a Service's name in the cluster: ask for %s", q.Outside, namespace)
	}
	if !c.at.IsValid() {
		c.at = addressOf(l, host, c.port)
	}
	scheme := q.Scheme
	switch {
	case q.TCP:
		scheme = schemeTCP
	case q.SNI != "":
		scheme = schemeTLS
	case scheme == "":
		scheme = c.spoken(l, host)
	}
	switch scheme {
	case schemeHTTPS, schemeTLS:
		c.sni = cmp.Or(q.SNI, host)
	case schemeTCP:
	default:
		asked := *q
		if asked.Host == "" {
			asked.Host = q.Outside
			if c.port != 80 {
				asked.Host = net.JoinHostPort(q.Outside, strconv.Itoa(int(c.port)))
			}
		}
		var err error
		if c.http, err = httpOf(asked, nil, mesh.ServicePort{}); err != nil {
			return c, err
		}
	}
	return c, nil
}

// spoken is the scheme of what is spoken at the port, as far as it is known.
func (c leaving) spoken(l translate.Leaving, host string) string {
	o, known := l.Named(c.port, host, func(mesh.Protocol) bool { return true })
	if c.at.IsValid() {
		if at, ok := l.At(netip.AddrPortFrom(c.at, c.port)); ok {
			o, known = at, true
		}
	}
	switch {
	case known && o.Port().Protocol == mesh.TLS, !known && c.port == 443:
		return schemeTLS
	case known && o.Port().Protocol == mesh.TCP:
		return schemeTCP
	}
	return schemeHTTP
}

// inCluster is the Service whose name in the cluster's DNS the host is.
func inCluster(v *mesh.View, host string) (string, bool) {
	parts := strings.Split(host, ".")
	if len(parts) < 2 || len(parts) > 2 && parts[2] != "svc" {
		return "", false
	}
	n := mesh.Name{Namespace: parts[1], Name: parts[0]}
	_, ok := v.Service(n)
	return n.String(), ok
}

// addressOf is one of those by which the host is known at the port, where it is known by
// addresses alone.
func addressOf(l translate.Leaving, host string, port uint16) (out netip.Addr) {
	if _, named := l.Named(port, host, func(mesh.Protocol) bool { return true }); named {
		return out
	}
	for _, e := range l.Objects() {
		if p, ok := e.Port(port); ok && slices.ContainsFunc(e.Hosts, func(h string) bool { return h == host || below(host, h) }) {
			if at := e.At(p); len(at) > 0 {
				return at[0].Addr()
			}
		}
	}
	return out
}

// outwards is a backend of a gateway's route that is an ExternalService.
func outwards(v *mesh.View, s translate.Share, g *mesh.Gateway, r Request) Backend {
	out := &Outside{Called: net.JoinHostPort(cmp.Or(s.Host, s.Service.Name), strconv.Itoa(int(s.Port)))}
	b := Backend{Service: s.Service.String(), Port: s.Port, Weight: s.Weight, Outside: out}
	o, ok := translate.OuterOf(s, v)
	if !ok {
		return Backend{Weight: s.Weight}
	}
	account, own := g.Proxies(), o.Object().Gateway != nil && *o.Object().Gateway == g.Meta.Name
	_, problem := o.Refusal(account, v)
	if own && o.Object().Admits(account) { // it needs no listener of its own
		problem = ""
		if !o.MayLeave(v) {
			problem = fmt.Sprintf("no ReferenceGrant lets ExternalService %s refer to Gateway %s", o.Object().Meta.Name, g.Meta.Name)
		}
	}
	if problem != "" {
		out.Decision = Decision{Verdict: Denied, Reason: problem}
		if r.HTTP != nil {
			out.Status = http.StatusServiceUnavailable
		}
		return b
	}
	out.Decision = Decision{Verdict: Allowed, Reason: admission(o, account)}
	out.onwards(v, o, r, false)
	if own {
		out.Exit = nil
	}
	return b
}

// onwards says where a call goes that is let out, by a sidecar or a gateway's route, and what
// the gateway says to it that it leaves by.
func (o *Outside) onwards(v *mesh.View, to translate.Outer, r Request, sidecar bool) {
	exit, _, through := to.Exit(v)
	o.Servers = to.Servers(sidecar && !through, v)
	switch {
	case len(o.Servers) > 0:
		o.Leads = ""
	case through || to.Wild() && v.Config().Egress == mesh.RegistryOnly:
		o.Leads = "where the name leads that is called"
	default:
		o.Leads = asSent
	}
	if sni, names := to.Originated(); sni != "" {
		o.TLS = &TLS{sni, names}
	}
	if !through {
		return
	}
	r.Port = exit.Share.Port
	o.Exit = &Exit{
		Gateway: exit.Gateway.String(), Listener: exit.Listener, Endpoints: len(translate.Ready(exit.Share, translate.SentBytes, v)),
		Decision: atExit(v, exit, to, r),
	}
}

// atExit is what an egress gateway does with a call, by the certificate of who makes it.
func atExit(v *mesh.View, exit translate.Exit, to translate.Outer, r Request) Decision {
	hops := v.Config().TrustedHops
	requests := to.Port().Protocol.IsHTTP()
	k := facts{
		peer: r.Peer, port: r.Port, identity: r.Identity, domains: v.Config().TrustDomains(),
		remote: hops > 0, vouched: true, hops: hops, place: "the gateway's listener",
	}
	refused := func(status int, format string, args ...any) Decision {
		return Decision{Verdict: Denied, Reason: fmt.Sprintf(format, args...), Status: status}
	}
	admitted := slices.ContainsFunc(exit.Admitted, k.is)
	stranger := fmt.Sprintf("ExternalService %s does not admit who has the certificate of %s", to.Object().Meta.Name, r.Identity)
	if !requests {
		switch {
		case !admitted:
			return refused(0, "%s", stranger)
		case to.Wild() && !below(r.SNI, to.Host()):
			return refused(0, "the server name %q is none below %s", r.SNI, to.Host())
		}
		return k.decide(Decision{}, exit.Policies, v)
	}
	k.http, k.noName = copied(r.HTTP), true
	if problem := k.rejected(exit.NormalizesPaths); problem != "" {
		return refused(0, "%s", problem)
	}
	if to.Wild() && !(below(nameIn(k.http.Host), to.Host()) && portIs(k.http.Host, to.Port().Number)) {
		return refused(http.StatusNotFound, "404: the host %q is none below %s", k.http.Host, to.Host())
	}
	if no := k.learn(exit.Policies, exit.Tokens, exit.NormalizesPaths); no.why != "" {
		return refused(no.status, "%s", no.why)
	}
	if !admitted {
		return refused(http.StatusForbidden, "%s", stranger)
	}
	return k.decide(Decision{}, exit.Policies, v)
}

// label is one of a name below a wildcard: it may have underscores, as servers' names do.
var label = regexp.MustCompile(`^(?i)[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?$`)

// below reports whether the host is a name below the wildcard, "*.x".
func below(host, wildcard string) bool {
	suffix, wild := strings.CutPrefix(strings.ToLower(wildcard), "*")
	name, ok := strings.CutSuffix(strings.ToLower(host), suffix)
	return wild && ok && all(strings.Split(name, "."), label.MatchString)
}
