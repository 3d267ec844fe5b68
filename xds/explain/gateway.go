package explain

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
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
	Decision
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
	c := v.Config()
	k := facts{
		peer: peer, port: port, http: copied(r), domains: c.TrustDomains(), place: "the listener",
		remote: c.TrustedHops > 0, hops: max(c.TrustedHops, 1) - 1, noName: !secure,
	}
	if secure {
		k.sni = host
	}
	out := arrived{Entrance: Entrance{Gateway: g.Meta.Name.String(), Listener: entry.Listener}, rules: entry.Rules}
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
	request, err := httpOf(q, nil, mesh.ServicePort{})
	if err != nil {
		return nil, err
	}
	at, err := arrive(v, g, q.Port, q.Scheme == "https", peer, request)
	if err != nil {
		return nil, err
	}
	a := &Answer{Caller: caller, Port: q.Port, Entrance: &at.Entrance, Backends: []Backend{}, Verdict: at.Verdict}
	if at.http == nil || at.Verdict == Denied {
		return a, nil
	}
	route, shares, asked := taken(chosen(at.rules, at.http), at.http)
	a.Route = route
	self, _, from, err := callerOf(v, Question{Pod: q.Pod})
	if err != nil {
		return nil, err
	}
	for i, s := range shares {
		if s.Weight > 0 {
			a.Backends = append(a.Backends, backend(v, s, Request{Peer: from, Identity: self.Identity, HTTP: forwarded(asked(i), peer)}, at.http))
		}
	}
	if a.Verdict = verdict(a.Backends); a.Verdict == Allowed {
		a.Verdict = at.Verdict
	}
	return a, nil
}
