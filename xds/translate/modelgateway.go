package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Entry is what a gateway does with requests for a host that come in at one of its ports,
// for those who explain it.
type Entry struct {
	// Listener is the one whose requests they are; empty: nobody's.
	Listener string
	// Answer is the status that all of them are answered with; 0: rules decide.
	Answer int
	// Policies are those whose rules of authorization hold there, the least specific first.
	Policies []*mesh.Policy
	Tokens   Tokens
	// Clients is what certificates they have to show; nil: none.
	Clients *mesh.ClientValidation
	// OneHost says that a request is refused whose Host could be read as another one: it
	// decides which listener's policies hold.
	OneHost bool
	Rules   []Rule // in the order in which they are tried
}

// EntryOf is where requests come in for a host, in lower case and without a port, that
// a client connects to the port for, by TLS or not. Of TLS the client asks for the host's
// name. Problem says why no request comes in there.
func EntryOf(g *mesh.Gateway, port uint16, host string, secure bool, v *mesh.View) (e Entry, problem string) {
	held, served := holdingListeners(g, v)
	var here, ls, rivals []mesh.Listener
	for i, l := range held {
		switch {
		case l.Port != port:
		case secure && l.Encrypted():
			here = append(here, l)
		case !secure && l.Protocol == mesh.ListenerHTTP && served[i]:
			ls = append(ls, l)
		}
	}
	if secure { // the name that TLS asks for says which
		n := -1
		for i, l := range here {
			if covers(l.Hostname, host) && (n < 0 || specificity(l.Hostname) > specificity(here[n].Hostname)) {
				n = i
			}
		}
		switch {
		case n < 0:
		case here[n].Protocol != mesh.ListenerHTTPS:
			return e, fmt.Sprintf("listener %s of Gateway %s is of TLS, not HTTPS: no requests are looked at", here[n].Name, g.Meta.Name)
		case !served[slices.IndexFunc(held, func(l mesh.Listener) bool { return l.Name == here[n].Name })]:
			return e, fmt.Sprintf("listener %s of Gateway %s lacks its certificate, or that of an authority by which to verify its clients': connections are closed", here[n].Name, g.Meta.Name)
		default:
			ls, rivals = here[n:n+1:n+1], slices.Delete(slices.Clone(here), n, n+1)
		}
	}
	if len(ls) == 0 {
		return e, NoEntry(g, port, host, schemeOf(secure), v)
	}
	var sites []site
	for _, l := range ls {
		sites = append(sites, site{l, attachedRoutes(g, l, v)})
	}
	domain := ""
	for _, d := range domains(sites, rivals) {
		if covers(d, host) && (domain == "" || specificity(d) > specificity(domain)) {
			domain = d
		}
	}
	switch {
	case domain == "":
		e.Answer = 404
		return e, ""
	case misdirected(ls, rivals, domain):
		e.Answer = 421
		return e, ""
	}
	at := ownerOf(sites, domain)
	e.Listener, e.Clients = at.Name, at.Clients
	e.Policies = slices.Concat(attached(g, at.Name, mesh.SectionAuthorization, v)...)
	e.Tokens = Tokens{tokensAt(attached(g, at.Name, mesh.SectionJWT, v), v)}
	e.OneHost = toldApart(g, at.Listener, v)
	e.Rules = shownRules(hostRules(at, domain, v), v)
	return e, ""
}

// Passage is what a gateway does with connections that it passes on without looking for
// requests in them, for those who explain it.
type Passage struct {
	Listener string
	// Closed is why connections are; empty: rules decide.
	Closed string
	// Named says that the client's TLS is looked at for its server name, and Decoded that it
	// ends here.
	Named, Decoded bool
	// Policies are those whose rules of authorization hold there, the least specific first.
	Policies []*mesh.Policy
	Route    Rule // by which they are shared out
}

// PassageOf is what becomes of connections to the port that are of TLS for the server name,
// in lower case and empty for none, or are not of TLS. Passes is false where it is no port
// of TLS or TCP for them.
func PassageOf(g *mesh.Gateway, port uint16, secure bool, name string, v *mesh.View) (p Passage, passes bool) {
	held, served := holdingListeners(g, v)
	best := -1
	for i, l := range held {
		takes := l.Protocol == mesh.ListenerTCP || secure && l.Encrypted() && covers(l.Hostname, name)
		if l.Port == port && takes && (best < 0 || specificity(l.Hostname) > specificity(held[best].Hostname)) {
			best = i
		}
	}
	if best < 0 || held[best].Protocol != mesh.ListenerTLS && held[best].Protocol != mesh.ListenerTCP {
		return p, false
	}
	at := held[best]
	p = Passage{Listener: at.Name, Named: at.Encrypted(), Decoded: at.Terminates(), Policies: slices.Concat(attached(g, at.Name, mesh.SectionAuthorization, v)...)}
	if !served[best] {
		p.Closed = fmt.Sprintf("listener %s lacks its certificate", at.Name)
		return p, true
	}
	var of *mesh.Route
	host := -1
	for _, r := range attachedRoutes(g, at, v) { // the oldest first
		for _, h := range hostsOf(at, r) {
			if (!p.Named || covers(h, name)) && specificity(h) > host {
				of, host = r, specificity(h)
			}
		}
		if !p.Named && of != nil {
			break
		}
	}
	if of == nil {
		p.Closed = fmt.Sprintf("no route is for it at listener %s", at.Name)
		return p, true
	}
	p.Route = Rule{Of: of.Ref(), Name: of.Meta.Name.String(), Backends: each(of.Rules[0].Backends, func(b mesh.RouteBackend) Share {
		to, _ := backendOf(mesh.Name{}, of, b.Backend, v)
		return shownShare(to, b.Weight, v)
	})}
	return p, true
}

// GatewayOf is the Gateway that is of a class of Tulle's.
func GatewayOf(n mesh.Name, v *mesh.View) (*mesh.Gateway, bool) { return gatewayOf(n, v) }

// NoEntry says that the gateway has no listener for what a client asks for, and which it has.
func NoEntry(g *mesh.Gateway, port uint16, host, scheme string, v *mesh.View) string {
	held, _ := holdingListeners(g, v)
	return fmt.Sprintf("Gateway %s has no listener that takes what is for %s at port %d by %s; %s", g.Meta.Name, cmp.Or(host, "no name"), port, scheme, listenersOf(held))
}

func schemeOf(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

// listenersOf says where clients may come in.
func listenersOf(ls []mesh.Listener) string {
	var out []string
	for _, l := range ls {
		if l.Protocol != mesh.ListenerEgress {
			out = append(out, fmt.Sprintf("%s://%s:%d (%s)", strings.ToLower(string(l.Protocol)), cmp.Or(l.Hostname, "HOST"), l.Port, l.Name))
		}
	}
	if len(out) == 0 {
		return "it has none for clients from outside"
	}
	return "it has " + strings.Join(out, ", ")
}
