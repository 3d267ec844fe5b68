package explain

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// facts are what a sidecar knows of a request.
type facts struct {
	peer     netip.Addr // not valid: it is not known
	identity string     // empty: none was proved
	port     uint16
	http     *HTTP // nil: what is sent is not known
	// sni is the name that the client's own TLS asks for; noName says that there is
	// none. Where neither is so it is not known.
	sni     string
	noName  bool
	domains []string // names of the mesh's trust domain
	// remote says that the client before the gateways is known, and vouched that callers
	// without an identity are not believed about it: hops before the end of
	// X-Forwarded-For, or the peer itself for 0.
	remote, vouched bool
	hops            uint32
	place           string         // what decides: the workload, or the listener
	tokens          bool           // tokens are looked at
	claims          map[string]any // of the valid token; nil: there is none
}

// matches reports whether the rule of a policy of the namespace matches.
func (k *facts) matches(r mesh.Rule, namespace string) bool {
	return k.matched(matcher{facts: k, strict: r.Action == mesh.Allow, namespace: namespace}, r)
}

func (k *facts) matched(m matcher, r mesh.Rule) bool {
	return (len(r.From) == 0 || slices.ContainsFunc(r.From, m.source)) &&
		(len(r.To) == 0 || slices.ContainsFunc(r.To, m.operation)) && m.condition(r.When)
}

// lacksToken reports whether the rule refuses the request since it has no token: a Deny
// rule that is about those without one, or an Allow rule that would match if it had one.
func (k *facts) lacksToken(r mesh.Rule, namespace string) bool {
	absent := slices.ContainsFunc(r.When.Claims, func(c mesh.ClaimCondition) bool { return len(c.NotValues) > 0 })
	switch {
	case r.DryRun:
		return false
	case r.Action == mesh.Allow:
		asks := len(r.When.Claims) > 0 || slices.ContainsFunc(r.From, func(s mesh.Source) bool { return s.HasToken() })
		return asks && k.matched(matcher{facts: k, strict: true, namespace: namespace, anyToken: true}, r)
	case r.Action == mesh.Deny && !absent:
		r.From = slices.DeleteFunc(slices.Clone(r.From), func(s mesh.Source) bool { return len(s.NotRequestPrincipals) == 0 })
		return len(r.From) > 0 && k.matches(r, namespace)
	}
	return r.Action == mesh.Deny && k.matches(r, namespace)
}

// matcher compares with what one rule asks for. What is not known never matches if the
// rule is strict, and otherwise is as though it were not asked for.
type matcher struct {
	*facts
	strict    bool
	namespace string
	anyToken  bool // whatever is asked of a token holds
}

// either reports whether one of the values holds, or there is none, and none of not.
func either[T any](values, not []T, holds func(T) bool) bool {
	return (len(values) == 0 || slices.ContainsFunc(values, holds)) && !slices.ContainsFunc(not, holds)
}

func (m matcher) source(s mesh.Source) bool {
	if m.strict && m.identity == "" && s.ExceptsIdentity() {
		return false
	}
	inDomain := func(d string) bool { return m.is("spiffe://" + d + "/*") }
	in := func(namespace string) bool { return m.is("spiffe://" + m.domains[0] + "/ns/" + namespace + "/*") }
	account := func(n mesh.Name) bool {
		return m.is("spiffe://" + m.domains[0] + "/ns/" + cmp.Or(n.Namespace, m.namespace) + "/sa/" + n.Name)
	}
	return either(s.Identities, s.NotIdentities, m.is) && either(s.TrustDomains, nil, inDomain) &&
		either(s.Namespaces, s.NotNamespaces, in) && either(s.ServiceAccounts, s.NotServiceAccounts, account) &&
		m.known(s.IPBlocks, s.NotIPBlocks, m.peer) && m.remoteClient(s) && m.requestPrincipal(s)
}

// known compares an address, which may not be known: nobody said where the call is from.
func (m matcher) known(blocks, not []netip.Prefix, address netip.Addr) bool {
	if len(blocks)+len(not) > 0 && !address.IsValid() {
		return !m.strict
	}
	return either(blocks, not, func(b netip.Prefix) bool { return b.Contains(address) })
}

// is reports whether the caller proved an identity like this one: under any of the
// names of the mesh's trust domain, each of which is as good as another.
func (k *facts) is(pattern string) bool {
	if k.identity == "" {
		return false
	}
	for _, id := range k.names() {
		if p, ok := strings.CutSuffix(pattern, "*"); ok && strings.HasPrefix(id, p) || id == pattern {
			return true
		}
	}
	return false
}

// names are all those of the caller's identity.
func (k *facts) names() []string {
	for _, d := range k.domains {
		if path, ok := strings.CutPrefix(k.identity, "spiffe://"+d+"/"); ok {
			var out []string
			for _, other := range k.domains {
				out = append(out, "spiffe://"+other+"/"+path)
			}
			return out
		}
	}
	return []string{k.identity}
}

// remoteClient compares the client before the gateways.
func (m matcher) remoteClient(s mesh.Source) bool {
	if !s.HasRemote() {
		return true
	}
	if m.http == nil || !m.remote {
		return !m.strict
	}
	if m.strict && m.vouched && m.identity == "" {
		return false
	}
	client, told := m.client()
	if !told {
		return !m.strict
	}
	return either(s.RemoteIPBlocks, s.NotRemoteIPBlocks, func(b netip.Prefix) bool {
		return b.Contains(client) || b.Addr().Is4() && b.Contains(client.Unmap()) // written as IPv6
	})
}

// client is whom X-Forwarded-For says that the first trusted proxy heard from; false
// where it says nothing of the kind.
func (k *facts) client() (netip.Addr, bool) {
	lines := slices.DeleteFunc(k.http.values("x-forwarded-for"), func(line string) bool { return line == "" })
	hops := strings.Split(strings.Join(lines, ","), ",")
	if k.hops == 0 {
		return k.peer, true
	}
	if len(hops) < int(k.hops) {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(strings.TrimSpace(hops[len(hops)-int(k.hops)]))
	return a, err == nil && a.Zone() == ""
}

func (m matcher) operation(o mesh.Operation) bool {
	if !either(o.Ports, o.NotPorts, func(p uint16) bool { return p == m.port }) {
		return false
	}
	if m.http == nil {
		return !m.strict || !o.HasHTTP()
	}
	path, _, _ := strings.Cut(m.http.Path, "?")
	return either(o.Methods, o.NotMethods, func(s string) bool { return s == m.http.Method }) &&
		either(o.Paths, o.NotPaths, func(p string) bool { return pathMatches(p, path) }) &&
		either(o.Hosts, o.NotHosts, func(h string) bool { return hostMatches(h, m.http.Host) }) &&
		either(o.GRPC, nil, func(g mesh.GRPCMethod) bool { return grpcMatches(g, path) })
}

// matchesOpen compares with a value that may have a "*" at its start or end. Alone it is
// for the caller to say what it stands for.
func matchesOpen(pattern, text string) bool {
	if p, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(text, p)
	}
	if s, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(text, s)
	}
	return text == pattern
}

func pathMatches(pattern, path string) bool {
	if !mesh.IsPathTemplate(pattern) {
		return matchesOpen(pattern, path)
	}
	expression, problem := mesh.PathTemplate(pattern)
	if problem != "" {
		return false // of an invalid policy
	}
	whole, err := regexp.Compile("^(?:" + expression + ")$")
	return err == nil && whole.MatchString(path)
}

func grpcMatches(g mesh.GRPCMethod, path string) bool {
	service, method, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !ok || !strings.HasPrefix(path, "/") || service == "" {
		return false
	}
	return (g.Service == "" || g.Service == service) && (g.Method == "" || g.Method == method)
}

// plainHost is a host and its port, if there are any: a name, an IPv4 address or an IPv6
// address in brackets (RFC 9110, section 7.2).
var plainHost = regexp.MustCompile(`^([A-Za-z0-9._~*-]*|\[[0-9A-Fa-f:.]*\])(:[0-9]*)?$`)

// hostMatches compares hosts in any case, with any port or none (RFC 9110, section
// 4.2.3), and with the last dot of a fully qualified name or without.
func hostMatches(pattern, host string) bool {
	if pattern == "*" {
		return host != ""
	}
	host, pattern = strings.ToLower(host), strings.ToLower(pattern)
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.Trim(host[i+1:], "0123456789") == "" {
		name = host[:i]
	}
	if p, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, p) || strings.HasPrefix(host, p)
	}
	name, pattern = strings.TrimSuffix(name, "."), strings.TrimSuffix(pattern, ".")
	if s, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(name, s) && len(name) > len(s) // there is something before
	}
	return name == pattern
}

func (m matcher) condition(c mesh.Condition) bool {
	if len(c.Headers) > 0 && m.http == nil {
		if m.strict {
			return false
		}
	} else if !all(c.Headers, m.header) {
		return false
	}
	if !all(c.Claims, m.claim) {
		return false
	}
	switch {
	case !c.HasSNI():
		return true
	case m.noName:
		return len(c.SNI) == 0 && !m.strict
	case m.sni == "":
		return !m.strict
	}
	return either(c.SNI, c.NotSNI, func(p string) bool {
		p, name := strings.ToLower(p), strings.ToLower(m.sni)
		return matchesOpen(p, name) || matchesOpen(strings.TrimSuffix(p, "."), strings.TrimSuffix(name, "."))
	})
}

func all[T any](values []T, holds func(T) bool) bool {
	return !slices.ContainsFunc(values, func(v T) bool { return !holds(v) })
}

// header compares the header's values: what stands between commas, in all lines.
func (m matcher) header(h mesh.HeaderCondition) bool {
	lines := m.http.values(h.Name)
	var values []string
	for _, line := range lines {
		for v := range strings.SplitSeq(line, ",") {
			values = append(values, strings.Trim(v, " \t"))
		}
	}
	some := func(patterns []string) bool {
		return either(patterns, nil, func(p string) bool {
			return slices.ContainsFunc(values, func(v string) bool { return matchesOpen(p, v) })
		})
	}
	// one reports whether there is one value, which is not empty where any will do.
	one := func(patterns []string) bool {
		return len(values) == 1 && slices.ContainsFunc(patterns, func(p string) bool {
			return matchesOpen(p, values[0]) && (p != "*" || values[0] != "")
		})
	}
	if m.strict {
		return (len(h.Values) == 0 || one(h.Values)) && (len(h.NotValues) == 0 || !some(h.NotValues))
	}
	return (len(h.Values) == 0 || some(h.Values)) && (len(h.NotValues) == 0 || !one(h.NotValues))
}

// values are those of the header's lines.
func (r *HTTP) values(name string) []string {
	var out []string
	for _, h := range r.Headers {
		if strings.EqualFold(h.Name, name) {
			out = append(out, strings.Trim(h.Value, " \t"))
		}
	}
	return out
}

// ambiguousHeader finds a header that some applications take for one that a rule asks
// for: with "_" for "-" (RFC 3875, section 4.1.18).
func ambiguousHeader(headers []mesh.Header, policies []*mesh.Policy) string {
	named := map[string]bool{}
	for _, p := range policies {
		for _, r := range p.Authorization.Rules {
			for _, h := range r.When.Headers {
				if p.Invalid == "" && decides(r) {
					named[h.Name] = true
				}
			}
		}
	}
	for _, h := range headers {
		name := strings.ToLower(h.Name)
		if strings.Contains(name, "_") && named[strings.ReplaceAll(name, "_", "-")] {
			return name
		}
	}
	return ""
}
