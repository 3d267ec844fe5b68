package translate

import (
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
			return e, fmt.Sprintf("listener %s of Gateway %s is of TLS, not HTTPS: it passes connections on, and no requests are looked at", here[n].Name, g.Meta.Name)
		case !served[slices.IndexFunc(held, func(l mesh.Listener) bool { return l.Name == here[n].Name })]:
			return e, fmt.Sprintf("listener %s of Gateway %s lacks its certificate: connections are closed", here[n].Name, g.Meta.Name)
		default:
			ls, rivals = here[n:n+1:n+1], slices.Delete(slices.Clone(here), n, n+1)
		}
	}
	if len(ls) == 0 {
		return e, fmt.Sprintf("Gateway %s has no listener that takes requests for %s at port %d by %s; %s", g.Meta.Name, host, port, schemeOf(secure), listenersOf(held))
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
	e.Listener = at.Name
	e.Policies = slices.Concat(attached(g, at.Name, mesh.SectionAuthorization, v)...)
	e.Tokens = Tokens{tokensAt(attached(g, at.Name, mesh.SectionJWT, v), v)}
	e.OneHost = toldApart(g, at.Listener, v)
	e.Rules = each(hostRules(at, domain, v), shownRule)
	return e, ""
}

// GatewayOf is the Gateway that is of a class of Tulle's.
func GatewayOf(n mesh.Name, v *mesh.View) (*mesh.Gateway, bool) { return gatewayOf(n, v) }

func schemeOf(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

// listenersOf says where requests may come in.
func listenersOf(ls []mesh.Listener) string {
	var out []string
	for _, l := range ls {
		if l.Protocol == mesh.ListenerHTTP || l.Protocol == mesh.ListenerHTTPS {
			host := "HOST"
			if l.Hostname != "" {
				host = l.Hostname
			}
			out = append(out, fmt.Sprintf("%s://%s:%d (%s)", strings.ToLower(string(l.Protocol)), host, l.Port, l.Name))
		}
	}
	if len(out) == 0 {
		return "it has none of HTTP or HTTPS"
	}
	return "it has " + strings.Join(out, ", ")
}
