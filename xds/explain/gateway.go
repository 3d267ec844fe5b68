package explain

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Entrance is what a Gateway does with a request before its routes do.
type Entrance struct {
	Gateway  string `json:"gateway"`            // namespace/name
	Listener string `json:"listener,omitempty"` // empty: no listener is for the host
	// Answer is what the gateway answers without asking any rule.
	Answer string `json:"answer,omitempty"`
	// Clients says whose certificates are let in, by TLS; empty: none is asked for.
	Clients string `json:"clients,omitempty"`
	Decision
}

// clientsOf says whom a listener lets in by their certificates.
func clientsOf(c *mesh.ClientValidation) string {
	if c == nil {
		return ""
	}
	if c.Insecure {
		return "with any certificate or none, of which nobody is told"
	}
	var by []string
	for _, a := range c.Authorities {
		by = append(by, a.Kind+" "+a.Name.String())
	}
	return "with a certificate that is verified by " + strings.Join(by, ", ")
}

// arrived is what a gateway lets in: as what, and by which rules it is routed.
type arrived struct {
	Entrance
	http  *HTTP
	rules []translate.Rule
}

// arrive is what becomes at a gateway of a request from the peer.
func arrive(v *mesh.View, g *mesh.Gateway, port uint16, secure bool, peer netip.Addr, r *HTTP) (arrived, error) {
	host := hostOf(r.Host)
	r = copied(r)
	r.Host = withoutDot(r.Host)
	entry, problem := translate.EntryOf(g, port, host, secure, v)
	if problem != "" {
		return arrived{}, errors.New(problem)
	}
	if entry.Clients == nil || entry.Clients.Insecure { // else what is said there is taken for what the gateway writes
		r.Headers = slices.DeleteFunc(r.Headers, func(h mesh.Header) bool { return strings.EqualFold(h.Name, "x-forwarded-client-cert") })
	}
	c := v.Config()
	k := facts{
		peer: peer, port: port, http: copied(r), domains: c.TrustDomains(), place: "the listener",
		remote: c.TrustedHops > 0, hops: max(c.TrustedHops, 1) - 1, noName: !secure,
	}
	if secure {
		k.sni = host
	}
	out := arrived{Entrance: Entrance{Gateway: g.Meta.Name.String(), Listener: entry.Listener, Clients: clientsOf(entry.Clients)}, rules: entry.Rules}
	out.Verdict = Denied
	if out.Answer = k.edgeAnswer(); out.Answer != "" {
		out.Reason = "the gateway answers " + out.Answer
		return out, nil
	}
	switch entry.Answer {
	case 404:
		out.Answer = "404: no listener and no route is for the host"
	case 421:
		out.Answer = "421: the host is another listener's, or nobody's, and a client is to connect anew for it"
	}
	if out.Answer != "" {
		out.Reason = "the gateway answers " + out.Answer
		return out, nil
	}
	if entry.OneHost && !oneHost.MatchString(k.http.Host) {
		out.Reason = fmt.Sprintf("listeners have policies of their own, and %q could be read as the host of another", k.http.Host)
		return out, nil
	}
	if no := k.learn(entry.Policies, entry.Tokens, true); no.why != "" {
		out.Reason, out.Status = no.why, no.status
		return out, nil
	}
	out.Decision = k.decide(out.Decision, entry.Policies, v)
	out.http = k.http
	if strips(entry.Tokens, k.claims) {
		out.http.Claims = nil
	}
	return out, nil
}

// oneHost is a host without its last dot, and its port, if there are any.
var oneHost = regexp.MustCompile(`^([A-Za-z0-9_~*-]+(\.[A-Za-z0-9_~*-]+)*|\[[0-9A-Fa-f:.]*\])?(:[0-9]*)?$`)

// hostOf is the host as routes compare it: without its port, and without the dot of a fully
// qualified name.
func hostOf(host string) string {
	host = strings.ToLower(withoutDot(host))
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

// withoutDot is the host, and its port if there is one, without that dot.
func withoutDot(host string) string {
	name, port, has := strings.Cut(host, ".:")
	if has {
		return name + ":" + port
	}
	return strings.TrimSuffix(host, ".")
}

// edgeAnswer is what the gateway answers to a path that could be read two ways.
func (k *facts) edgeAnswer() string {
	path, _, _ := strings.Cut(k.http.Path, "?")
	switch {
	case strings.Contains(k.http.Path, "#"):
		return "400: a path with a fragment (#) is refused"
	case strings.Contains(path, "%00"):
		return "400: %00 in a path could be read as the end of it"
	}
	for escape, what := range escapes {
		if strings.Contains(strings.ToLower(path), escape) {
			return fmt.Sprintf("307: %s in a path could be read as %s, and the client is to say what it means", escape, what)
		}
	}
	return ""
}

// strips reports whether the token with the claims is taken off.
func strips(t translate.Tokens, claims map[string]any) bool {
	for _, i := range t.Issuers() {
		if claims["iss"] == i.Issuer {
			return i.Strip
		}
	}
	return false
}

// forwarded adds to X-Forwarded-For whom the gateway heard from.
func forwarded(r *HTTP, peer netip.Addr) *HTTP {
	if r == nil || !peer.IsValid() {
		return r
	}
	out := copied(r)
	const name = "x-forwarded-for"
	before := strings.Join(out.values(name), ",")
	if before != "" {
		before += ","
	}
	change(out, &mesh.HeaderChanges{Set: []mesh.Header{{Name: name, Value: before + peer.String()}}})
	return out
}

// explainEntry answers a question about what a client asks a Gateway for.
func explainEntry(v *mesh.View, q Question) (*Answer, error) {
	w, ok := v.Workload(nameOf(q.Pod))
	if !ok || w.Gateway == "" {
		return nil, fmt.Errorf("the pod %s is no Gateway's: name a gateway/NAME", q.Pod)
	}
	g, ok := translate.GatewayOf(mesh.Name{Namespace: w.Namespace, Name: w.Gateway}, v)
	if !ok {
		return nil, fmt.Errorf("there is no Gateway %s/%s of Tulle's class", w.Namespace, w.Gateway)
	}
	caller, _, peer, err := callerOf(v, Question{Address: q.Address})
	if err != nil {
		return nil, err
	}
	var request *HTTP
	if q.Scheme == schemeHTTP || q.Scheme == schemeHTTPS {
		if request, err = httpOf(q, nil, mesh.ServicePort{}); err != nil {
			return nil, err
		}
	}
	secure := q.Scheme == schemeHTTPS || q.Scheme == schemeTLS
	a := &Answer{Caller: caller, Port: q.Port, Backends: []Backend{}}
	self, _, from, err := callerOf(v, Question{Pod: q.Pod})
	if err != nil {
		return nil, err
	}
	send := func(shares []translate.Share, as translate.Sent, what func(i int) Request, sent *HTTP) {
		for i, s := range shares {
			if s.Weight == 0 {
				continue
			}
			r := what(i)
			r.Peer, r.Identity = from, self.Identity
			if s.External {
				a.Backends = append(a.Backends, outwards(v, s, g, r))
			} else {
				a.Backends = append(a.Backends, backend(v, s, as, r, sent))
			}
		}
		if said := verdict(a.Backends); said != Allowed {
			a.Verdict = said
		}
	}
	name := ""
	if secure {
		name = hostOf(q.Host)
	}
	if p, passes := translate.PassageOf(g, q.Port, secure, name, v); passes {
		a.Entrance = passed(v, g, p, Request{Peer: peer, Port: q.Port, SNI: name})
		a.Verdict = a.Entrance.Verdict
		if a.Verdict == Denied {
			return a, nil
		}
		var shares []translate.Share
		a.Route, shares = connected(p.Route)
		as, r := translate.SentBytes, Request{SNI: name, HTTP: request}
		if p.Decoded {
			as, r.SNI = translate.SentDecoded, ""
		}
		send(shares, as, func(int) Request { return r }, request)
		return a, nil
	}
	if request == nil {
		return nil, noPassage(v, g, q, name, secure)
	}
	at, err := arrive(v, g, q.Port, secure, peer, request)
	if err != nil {
		return nil, err
	}
	a.Entrance, a.Verdict = &at.Entrance, at.Verdict
	if at.http == nil || at.Verdict == Denied {
		return a, nil
	}
	route, shares, asked := taken(chosen(at.rules, at.http), at.http)
	a.Route = route
	send(shares, translate.SentHTTP, func(i int) Request { return Request{HTTP: forwarded(asked(i), peer)} }, at.http)
	return a, nil
}

// The schemes of questions.
const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
	schemeTLS   = "tls"
	schemeTCP   = "tcp"
)

// passed is what the gateway does with a connection before it passes it on.
func passed(v *mesh.View, g *mesh.Gateway, p translate.Passage, r Request) *Entrance {
	out := &Entrance{Gateway: g.Meta.Name.String(), Listener: p.Listener}
	if p.Closed != "" {
		out.Decision = Decision{Verdict: Denied, Reason: "the gateway closes the connection: " + p.Closed}
		return out
	}
	k := facts{peer: r.Peer, port: r.Port, domains: v.Config().TrustDomains(), place: "the listener"}
	if p.Named {
		k.sni, k.noName = r.SNI, r.SNI == ""
	}
	out.Decision = k.decide(Decision{}, p.Policies, v)
	return out
}

// connected is where a route of connections has them go.
func connected(rule translate.Rule) (*Route, []translate.Share) {
	out := &Route{Kind: kindName(rule.Of.Kind), Name: rule.Of.Name.String()}
	if !slices.ContainsFunc(rule.Backends, func(s translate.Share) bool { return s.Weight > 0 && s.Service != (mesh.Name{}) }) {
		out.Answer = "nothing and closes the connection: the rule has no backend that exists and has a weight"
		return out, nil
	}
	return out, rule.Backends
}

// noPassage is why the gateway takes no such connection.
func noPassage(v *mesh.View, g *mesh.Gateway, q Question, name string, secure bool) error {
	if e, problem := translate.EntryOf(g, q.Port, name, secure, v); problem == "" {
		scheme := schemeHTTP
		if secure {
			scheme = schemeHTTPS
		}
		return fmt.Errorf("listener %s of Gateway %s takes requests of HTTP: ask for %s://HOST:%d/PATH", e.Listener, g.Meta.Name, scheme, q.Port)
	}
	return errors.New(translate.NoEntry(g, q.Port, name, q.Scheme, v))
}
