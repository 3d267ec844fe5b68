package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// verdicts are what Envoy's RBAC filters do, and whom they ask; nil does nothing.
type verdicts struct {
	deny, allow       *rbacconfig.RBAC
	dryDeny, dryAllow *rbacconfig.RBAC             // what rules of DryRun would add, and leave of what comes in
	audit             *rbacconfig.RBAC             // what is noted
	questions         []question                   // at most one for each authorizer
	challenge         []*core.TypedExtensionConfig // who is told to come with a token
}

// question is what an external authorizer decides.
type question struct {
	authorizer mesh.Authorizer
	about      *rbacconfig.RBAC
}

// known is what is known of the requests, or connections, that rules decide on.
type known struct {
	domains []string // names of the mesh's trust domain
	http    bool
	// hops is [mesh.Config.TrustedHops], by which the client before the gateways is
	// known; 0: it is not. vouched says that callers without an identity are not
	// believed about it.
	hops    uint32
	vouched bool
	// sni says that the name that the client asked for is known, but on the ports
	// of blind; nameless that there is none. What TLS of the mesh asks for is the
	// caller's to choose, and no such name.
	sni      bool
	blind    []uint16
	nameless bool
	// strangers says that callers are outside of the mesh, and no identity is theirs: their
	// certificates, if they have any, are of other authorities, which may say anything.
	strangers bool
	// tokens is whose tokens are believed, of requests.
	tokens believed
}

// sidecar is what is known of requests at a workload's sidecar, and of connections but
// for what they say about SNI.
func sidecar(c *mesh.Config, http bool) known {
	k := known{domains: c.TrustDomains(), http: http, vouched: true, nameless: http}
	if http {
		k.hops = c.TrustedHops
	}
	return k
}

// authorization adds up the rules of all policies that hold for a workload, for its
// sidecar.
func authorization(policies []*mesh.Policy, v *mesh.View, http bool) verdicts {
	return sidecar(v.Config(), http).authorization(policies, v)
}

// authorization adds up the rules of all policies. Any Deny rule that matches
// denies; otherwise everything is allowed where no Allow rule and no default of Deny
// exists, and else only what a rule allows.
//
// What is not known counts against a request: an Allow rule that asks for
// it never matches, and any other rule matches whatever the rest of it matches.
func (k known) authorization(policies []*mesh.Policy, v *mesh.View) verdicts {
	var deny, allow, dryDeny, dryAllow, audit ruleSet
	asked := map[string]*ruleSet{} // by authorizer
	for _, p := range policies {
		if p.Invalid != "" {
			deny.put(p.Meta.Name.String()+"#invalid", &rbacconfig.Policy{Permissions: anyPermission(), Principals: anyPrincipal()})
			continue
		}
		allow.exists = allow.exists || p.Authorization.DefaultDeny
		for i, r := range p.Authorization.Rules {
			policy := k.policy(r, p.Meta.Namespace)
			switch action := k.action(r, v); {
			case action == mesh.Allow && r.DryRun:
				dryAllow.add(p, i, policy)
			case action == mesh.Allow:
				allow.add(p, i, policy)
			case action == mesh.Deny && r.DryRun:
				dryDeny.add(p, i, policy)
			case action == mesh.Deny:
				deny.add(p, i, policy)
			case action == mesh.Custom && !r.DryRun:
				if asked[r.Authorizer] == nil {
					asked[r.Authorizer] = &ruleSet{}
				}
				asked[r.Authorizer].add(p, i, policy)
			default:
				audit.add(p, i, policy)
			}
		}
	}
	if k.http {
		refuseAmbiguous(&deny, policies)
		k.tokens.refuse(&deny)
	}
	if dryAllow.exists {
		for id, policy := range allow.policies {
			if _, taken := dryAllow.policies[id]; taken { // rules of DryRun may have the name of one that is enforced
				id += ".enforced"
			}
			dryAllow.put(id, policy)
		}
	}
	out := verdicts{
		deny: deny.rules(rbacconfig.RBAC_DENY), allow: allow.rules(rbacconfig.RBAC_ALLOW),
		dryDeny: dryDeny.rules(rbacconfig.RBAC_DENY), dryAllow: dryAllow.rules(rbacconfig.RBAC_ALLOW),
		audit: audit.rules(rbacconfig.RBAC_LOG),
	}
	if rules := k.challenges(policies, &allow); rules != nil {
		out.challenge = k.tokens.challenge(rules)
	}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		a, _ := v.Config().Authorizer(name)
		out.questions = append(out.questions, question{a, asked[name].rules(rbacconfig.RBAC_DENY)})
	}
	return out
}

// action is what the rule comes to. A Custom rule denies where nobody can be asked:
// outside of HTTP, and where there is no such authorizer.
func (k known) action(r mesh.Rule, v *mesh.View) mesh.Action {
	if r.Action != mesh.Custom {
		return r.Action
	}
	if !k.http || authorizerFault(r.Authorizer, v) != nil {
		return mesh.Deny
	}
	return mesh.Custom
}

// ruleSet gathers rules. It exists once there is a rule for it, which may be one that
// never matches.
type ruleSet struct {
	policies map[string]*rbacconfig.Policy
	exists   bool
}

func (s *ruleSet) put(id string, policy *rbacconfig.Policy) {
	if s.policies == nil {
		s.policies = map[string]*rbacconfig.Policy{}
	}
	s.policies[id] = policy
	s.exists = true
}

// add takes the policy's rule; nil is one that never matches.
func (s *ruleSet) add(p *mesh.Policy, i int, policy *rbacconfig.Policy) {
	s.exists = true
	if policy != nil {
		s.put(ruleID(s.policies, "", p, i), policy)
	}
}

func (s *ruleSet) rules(action rbacconfig.RBAC_Action) *rbacconfig.RBAC {
	if !s.exists {
		return nil
	}
	return &rbacconfig.RBAC{Action: action, Policies: s.policies}
}

// decides reports whether what the rule asks for must not be told two ways.
func decides(r mesh.Rule) bool { return r.Action != mesh.Audit && !r.DryRun }

// refuseAmbiguous refuses what could be told one way to the rules, and another to the
// application.
func refuseAmbiguous(deny *ruleSet, policies []*mesh.Policy) {
	if matchesPaths(policies) {
		deny.put("ambiguous path", &rbacconfig.Policy{Permissions: []*rbacconfig.Permission{urlPath(regex(ambiguousPath))}, Principals: anyPrincipal()})
	}
	if matchesHosts(policies) {
		deny.put("ambiguous host", &rbacconfig.Policy{Permissions: []*rbacconfig.Permission{not(headerPermission(":authority", regex(plainHost)))}, Principals: anyPrincipal()})
	}
	var others []*rbacconfig.Permission
	for _, name := range headersNamed(policies) {
		for _, other := range otherSpellings(name) {
			others = append(others, headerPresent(other))
		}
	}
	if len(others) > 0 {
		deny.put("ambiguous header", &rbacconfig.Policy{Principals: anyPrincipal(), Permissions: others})
	}
}

// ambiguousPath is what normalisation would change or refuse: dots as segments, with
// parameters after a ';' too (to servlets /a/..;/b is /b), slashes in a row, backslashes, and characters escaped that need not be (RFC
// 3986, sections 2.3 and 6.2.2) or that separate segments. A connection that is
// older than the first rule about paths is read by a listener that does not
// normalise, and the new rules come to it at once; this refuses there what they
// could be passed by with. On newer connections little is left to refuse: slashes
// alone, and /%2e%2e;/, of which Envoy makes /..;/ and leaves it.
const ambiguousPath = `(?s).*(//|\\|%(2[D-Fd-f]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaCcFf]|6[1-9A-Fa-f]|7[0-9AaEe])).*|.*/\.\.?([/;].*)?`

// plainHost is a host and its port, if there are any. Envoy takes more: two lines of Host
// it joins with a comma, and a user, escapes and what is no port it passes on, of which
// applications make the host that they like.
const plainHost = `([A-Za-z0-9._~*-]*|\[[0-9A-Fa-f:.]*\])(:[0-9]*)?`

// matchesPaths reports whether any rule that decides asks for a path.
func matchesPaths(policies []*mesh.Policy) bool {
	return asksFor(policies, (*mesh.Operation).HasPaths)
}

// matchesHosts reports whether any rule that decides asks for a host.
func matchesHosts(policies []*mesh.Policy) bool {
	return asksFor(policies, (*mesh.Operation).HasHosts)
}

func asksFor(policies []*mesh.Policy, asks func(*mesh.Operation) bool) bool {
	for _, p := range policies {
		for _, r := range p.Authorization.Rules {
			if decides(r) && slices.ContainsFunc(r.To, func(op mesh.Operation) bool { return asks(&op) }) {
				return true
			}
		}
	}
	return false
}

// headersNamed are the names of headers that rules which decide ask for, sorted.
func headersNamed(policies []*mesh.Policy) []string {
	var out []string
	for _, p := range policies {
		if p.Invalid != "" {
			continue
		}
		for _, r := range p.Authorization.Rules {
			for _, h := range r.When.Headers {
				if decides(r) {
					out = append(out, h.Name)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// otherSpellings are the names with '_' for one '-' or more. What turns names of
// headers into names of variables takes them for one (RFC 3875, section 4.1.18).
func otherSpellings(name string) []string {
	out := []string{""}
	for i, part := range strings.Split(name, "-") {
		var longer []string
		for _, s := range out {
			if i == 0 {
				longer = append(longer, part)
				continue
			}
			longer = append(longer, s+"-"+part, s+"_"+part)
		}
		out = longer
	}
	return out[1:] // the first has none
}

// ruleID names a rule in logs: "namespace/policy#rule", where the rule is its
// name, or its place in the list where it has none. Names need not differ: to
// one that is taken, with what goes before it, the place is added, so that no rule
// replaces another.
func ruleID(taken map[string]*rbacconfig.Policy, before string, p *mesh.Policy, i int) string {
	id := fmt.Sprintf("%s%s#%s", before, p.Meta.Name, cmp.Or(p.Authorization.Rules[i].Name, strconv.Itoa(i)))
	for taken[id] != nil {
		id = fmt.Sprintf("%s.%d", id, i)
	}
	return id
}

// policy is nil for a rule that can never match.
func (k known) policy(r mesh.Rule, namespace string) *rbacconfig.Policy {
	strict := r.Action == mesh.Allow
	permissions := anyPermission()
	if len(r.To) > 0 {
		permissions = nil
		for _, op := range r.To {
			if strict && !k.http && op.HasHTTP() {
				continue
			}
			permissions = append(permissions, k.permission(op))
		}
	}
	when, expression, ok := k.condition(r.When, strict)
	if !ok || len(permissions) == 0 {
		return nil
	}
	if len(when) > 0 {
		if len(r.To) > 0 {
			when = append(when, anyOfPermissions(permissions))
		}
		permissions = []*rbacconfig.Permission{allPermissions(when)}
	}
	principals := anyPrincipal()
	if len(r.From) > 0 {
		principals = nil
		for _, s := range r.From {
			if strict && (k.hops == 0 && s.HasRemote() || !k.tokens.held() && s.HasToken()) {
				continue
			}
			principals = append(principals, k.principal(s, namespace, strict))
		}
		if len(principals) == 0 {
			return nil
		}
	}
	out := &rbacconfig.Policy{Permissions: permissions, Principals: principals}
	if expression != "" {
		out.Condition = parsed(expression)
	}
	return out
}

func anyPermission() []*rbacconfig.Permission {
	return []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_Any{Any: true}}}
}

func anyPrincipal() []*rbacconfig.Principal {
	return []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}}
}

func anyOfPermissions(one []*rbacconfig.Permission) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_OrRules{OrRules: &rbacconfig.Permission_Set{Rules: one}}}
}

// allPermissions is anything where nothing is asked.
func allPermissions(all []*rbacconfig.Permission) *rbacconfig.Permission {
	if len(all) == 0 {
		return anyPermission()[0]
	}
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_AndRules{AndRules: &rbacconfig.Permission_Set{Rules: all}}}
}

func not(p *rbacconfig.Permission) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_NotRule{NotRule: p}}
}

// permission leaves out what is asked of HTTP where there is none.
func (k known) permission(op mesh.Operation) *rbacconfig.Permission {
	var all []*rbacconfig.Permission
	either := func(one, none []*rbacconfig.Permission) {
		if len(one) > 0 {
			all = append(all, anyOfPermissions(one))
		}
		if len(none) > 0 {
			all = append(all, not(anyOfPermissions(none)))
		}
	}
	either(each(op.Ports, portPermission), each(op.NotPorts, portPermission))
	if k.http {
		either(each(op.Methods, methodPermission), each(op.NotMethods, methodPermission))
		either(each(op.Paths, pathPermission), each(op.NotPaths, pathPermission))
		either(each(op.Hosts, hostPermission), each(op.NotHosts, hostPermission))
		either(each(op.GRPC, grpcPermission), nil)
	}
	return allPermissions(all)
}

func each[T, P any](values []T, make func(T) P) []P {
	var out []P
	for _, v := range values {
		out = append(out, make(v))
	}
	return out
}

func portPermission(p uint16) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_DestinationPort{DestinationPort: uint32(p)}}
}

func methodPermission(m string) *rbacconfig.Permission { return headerPermission(":method", exact(m)) }

func hostPermission(h string) *rbacconfig.Permission {
	return headerPermission(":authority", regex(hostPattern(h)))
}

func pathPermission(p string) *rbacconfig.Permission {
	if !mesh.IsPathTemplate(p) {
		return urlPath(pattern(p))
	}
	expression, _ := mesh.PathTemplate(p) // of an invalid policy there is no rule
	return urlPath(regex(expression))
}

func grpcPermission(g mesh.GRPCMethod) *rbacconfig.Permission {
	switch {
	case g.Method == "":
		return urlPath(prefix("/" + g.Service + "/"))
	case g.Service == "":
		return urlPath(regex("/[^/]+/" + g.Method))
	}
	return urlPath(exact("/" + g.Service + "/" + g.Method))
}

// urlPath matches the path without its query.
func urlPath(m *matcher.StringMatcher) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_UrlPath{UrlPath: &matcher.PathMatcher{Rule: &matcher.PathMatcher_Path{Path: m}}}}
}

func headerPermission(name string, m *matcher.StringMatcher) *rbacconfig.Permission {
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_Header{Header: &route.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: m},
	}}}
}

// pattern reads a value with a "*" at its start or end.
func pattern(s string) *matcher.StringMatcher {
	switch {
	case s == "*":
		return prefix("/")
	case strings.HasSuffix(s, "*"):
		return prefix(strings.TrimSuffix(s, "*"))
	case strings.HasPrefix(s, "*"):
		return suffix(strings.TrimPrefix(s, "*"))
	}
	return exact(s)
}

// hostPattern is a regular expression for a host, in any case, with any port, which
// may be empty (RFC 9110, section 4.2.3; RFC 3986, section 3.2.3), and with the dot of a
// fully qualified name or without.
func hostPattern(h string) string {
	var inner, before, after string
	switch {
	case h == "*":
		return "(?s).+"
	case strings.HasSuffix(h, "*"):
		inner, after = strings.TrimSuffix(h, "*"), ".*"
	case strings.HasPrefix(h, "*"):
		inner, before = strings.TrimSuffix(strings.TrimPrefix(h, "*"), "."), ".+"
	default:
		inner = strings.TrimSuffix(h, ".")
	}
	return "(?is)" + before + regexp.QuoteMeta(inner) + after + `\.?(:[0-9]*)?`
}

// principal leaves out what is asked of the client before the gateways, and of tokens,
// where it is not known.
func (k known) principal(s mesh.Source, namespace string, strict bool) *rbacconfig.Principal {
	var all []*rbacconfig.Principal
	anyOf := func(one []*rbacconfig.Principal) *rbacconfig.Principal {
		return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_OrIds{OrIds: &rbacconfig.Principal_Set{Ids: one}}}
	}
	either := func(one, none []*rbacconfig.Principal) {
		if len(one) > 0 {
			all = append(all, anyOf(one))
		}
		if len(none) > 0 {
			all = append(all, noPrincipal(anyOf(none)))
		}
	}
	if strict && (s.ExceptsIdentity() || s.HasRemote() && k.vouched) {
		// Who has no identity is none of those, and is not who is meant.
		all = append(all, k.authenticated(prefix("spiffe://")))
	}
	if k.tokens.held() {
		if strict && len(s.NotRequestPrincipals) > 0 {
			all = append(all, anyToken())
		}
		either(each(s.RequestPrincipals, requestPrincipal), each(s.NotRequestPrincipals, requestPrincipal))
	}
	either(k.identities(s.Identities), k.identities(s.NotIdentities))
	either(each(s.TrustDomains, func(d string) *rbacconfig.Principal { return k.identity("spiffe://" + d + "/*") }), nil)
	either(k.namespaces(s.Namespaces), k.namespaces(s.NotNamespaces))
	either(k.accounts(s.ServiceAccounts, namespace), k.accounts(s.NotServiceAccounts, namespace))
	either(each(s.IPBlocks, peerAddress), each(s.NotIPBlocks, peerAddress))
	if k.hops > 0 && s.HasRemote() {
		all = append(all, k.client(s, strict))
	}
	if len(all) == 0 {
		return anyPrincipal()[0]
	}
	return allPrincipals(all)
}

func (k known) identities(ids []string) []*rbacconfig.Principal { return each(ids, k.identity) }

// identity matches one SPIFFE ID or a prefix, under each of the trust domain's names.
func (k known) identity(id string) *rbacconfig.Principal {
	if k.strangers {
		return k.authenticated(exact(id))
	}
	var same []*rbacconfig.Principal
	for _, spelled := range spellings(id, k.domains) {
		same = append(same, k.authenticated(identityPattern(spelled)))
	}
	return oneOf(same)
}

func (k known) namespaces(names []string) []*rbacconfig.Principal {
	return each(names, func(ns string) *rbacconfig.Principal {
		return k.identity("spiffe://" + k.domains[0] + "/ns/" + ns + "/*")
	})
}

func (k known) accounts(names []mesh.Name, namespace string) []*rbacconfig.Principal {
	return each(names, func(sa mesh.Name) *rbacconfig.Principal {
		return k.identity(Identity(k.domains[0], cmp.Or(sa.Namespace, namespace), sa.Name))
	})
}

func allPrincipals(all []*rbacconfig.Principal) *rbacconfig.Principal {
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_AndIds{AndIds: &rbacconfig.Principal_Set{Ids: all}}}
}

func noPrincipal(p *rbacconfig.Principal) *rbacconfig.Principal {
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_NotId{NotId: p}}
}

// oneOf is a principal that stands for all of them.
func oneOf(same []*rbacconfig.Principal) *rbacconfig.Principal {
	if len(same) == 1 {
		return same[0]
	}
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_OrIds{OrIds: &rbacconfig.Principal_Set{Ids: same}}}
}

// spellings are the SPIFFE ID under each of the names of its trust domain, if that is
// one of them; else the ID alone.
func spellings(id string, domains []string) []string {
	for _, d := range domains {
		if path, ok := strings.CutPrefix(id, "spiffe://"+d+"/"); ok {
			return each(domains, func(d string) string { return "spiffe://" + d + "/" + path })
		}
	}
	return []string{id}
}

func identityPattern(id string) *matcher.StringMatcher {
	if p, ok := strings.CutSuffix(id, "*"); ok {
		return prefix(p)
	}
	return exact(id)
}

// authenticated matches the identity in the mesh that the peer proved to have.
func (k known) authenticated(m *matcher.StringMatcher) *rbacconfig.Principal {
	if k.strangers {
		return noPrincipal(anyPrincipal()[0])
	}
	return authenticated(m)
}

// authenticated matches the SPIFFE ID in the certificate that the peer proved
// to have; a peer without one never matches.
func authenticated(m *matcher.StringMatcher) *rbacconfig.Principal {
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_Authenticated_{
		Authenticated: &rbacconfig.Principal_Authenticated{PrincipalName: m},
	}}
}

// peerAddress matches the address that the connection came from, which no
// header can change.
func peerAddress(b netip.Prefix) *rbacconfig.Principal {
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_DirectRemoteIp{DirectRemoteIp: cidr(b)}}
}
