package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// verdicts are what Envoy's two RBAC filters enforce; nil enforces nothing.
type verdicts struct {
	deny, allow *rbacconfig.RBAC
}

// authorization adds up the rules of all policies that hold for a workload.
// Any Deny rule that matches denies; otherwise everything is allowed where no
// Allow rule and no default of Deny exists, and else only what a rule allows.
//
// Where the connection is not HTTP (http false), an Allow rule that asks for
// HTTP attributes never matches, and a Deny rule denies whatever the rest of it
// matches.
func authorization(policies []*mesh.Policy, trustDomain string, http bool) verdicts {
	deny, allow := map[string]*rbacconfig.Policy{}, map[string]*rbacconfig.Policy{}
	closed := false
	for _, p := range policies {
		if p.Invalid != "" {
			deny[p.Meta.Name.String()+"#invalid"] = &rbacconfig.Policy{Permissions: anyPermission(), Principals: anyPrincipal()}
			continue
		}
		closed = closed || p.Authorization.DefaultDeny
		for i, r := range p.Authorization.Rules {
			closed = closed || r.Action == mesh.Allow
			policy := rbacPolicy(r, p.Meta.Namespace, trustDomain, http)
			if policy == nil {
				continue
			}
			to := allow
			if r.Action == mesh.Deny {
				to = deny
			}
			to[ruleID(to, p, i)] = policy
		}
	}
	if http && matchesPaths(policies) {
		deny["ambiguous path"] = &rbacconfig.Policy{Permissions: []*rbacconfig.Permission{urlPath(regex(ambiguousPath))}, Principals: anyPrincipal()}
	}
	var out verdicts
	if len(deny) > 0 {
		out.deny = &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: deny}
	}
	if closed {
		out.allow = &rbacconfig.RBAC{Action: rbacconfig.RBAC_ALLOW, Policies: allow}
	}
	return out
}

// ambiguousPath is what normalisation would change or refuse: dots as segments,
// slashes in a row, backslashes, and characters escaped that need not be (RFC
// 3986, sections 2.3 and 6.2.2) or that separate segments. A connection that is
// older than the first rule about paths is read by a listener that does not
// normalise, and the new rules come to it at once; this refuses there what they
// could be passed by with. On newer connections nothing is left to refuse.
const ambiguousPath = `(?s).*(//|\\|%(2[D-Fd-f]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaCcFf]|6[1-9A-Fa-f]|7[0-9AaEe])).*|.*/\.\.?(/.*)?`

// matchesPaths reports whether any rule asks for a path.
func matchesPaths(policies []*mesh.Policy) bool {
	for _, p := range policies {
		for _, r := range p.Authorization.Rules {
			for _, op := range r.To {
				if len(op.Paths) > 0 {
					return true
				}
			}
		}
	}
	return false
}

// ruleID names a rule in logs: "namespace/policy#rule", where the rule is its
// name, or its place in the list where it has none. Names need not differ: to
// one that is taken the place is added, so that no rule replaces another.
func ruleID(taken map[string]*rbacconfig.Policy, p *mesh.Policy, i int) string {
	id := fmt.Sprintf("%s#%s", p.Meta.Name, cmp.Or(p.Authorization.Rules[i].Name, strconv.Itoa(i)))
	if _, ok := taken[id]; ok {
		id = fmt.Sprintf("%s.%d", id, i)
	}
	return id
}

// rbacPolicy is nil for a rule that can never match.
func rbacPolicy(r mesh.Rule, namespace, trustDomain string, http bool) *rbacconfig.Policy {
	permissions := anyPermission()
	if len(r.To) > 0 {
		permissions = nil
		for _, op := range r.To {
			if !http && op.HasHTTP() && r.Action == mesh.Allow {
				continue
			}
			permissions = append(permissions, permission(op, http))
		}
		if len(permissions) == 0 {
			return nil
		}
	}
	principals := anyPrincipal()
	if len(r.From) > 0 {
		principals = nil
		for _, s := range r.From {
			principals = append(principals, principal(s, namespace, trustDomain))
		}
	}
	return &rbacconfig.Policy{Permissions: permissions, Principals: principals}
}

func anyPermission() []*rbacconfig.Permission {
	return []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_Any{Any: true}}}
}

func anyPrincipal() []*rbacconfig.Principal {
	return []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}}
}

func permission(op mesh.Operation, http bool) *rbacconfig.Permission {
	var all []*rbacconfig.Permission
	either := func(one []*rbacconfig.Permission) {
		if len(one) > 0 {
			all = append(all, &rbacconfig.Permission{Rule: &rbacconfig.Permission_OrRules{OrRules: &rbacconfig.Permission_Set{Rules: one}}})
		}
	}
	var ports, methods, paths, hosts []*rbacconfig.Permission
	for _, p := range op.Ports {
		ports = append(ports, &rbacconfig.Permission{Rule: &rbacconfig.Permission_DestinationPort{DestinationPort: uint32(p)}})
	}
	either(ports)
	if http {
		for _, m := range op.Methods {
			methods = append(methods, headerPermission(":method", exact(m)))
		}
		for _, p := range op.Paths {
			paths = append(paths, urlPath(pattern(p)))
		}
		for _, h := range op.Hosts {
			hosts = append(hosts, headerPermission(":authority", regex(hostPattern(h))))
		}
		either(methods)
		either(paths)
		either(hosts)
	}
	if len(all) == 0 {
		return anyPermission()[0]
	}
	return &rbacconfig.Permission{Rule: &rbacconfig.Permission_AndRules{AndRules: &rbacconfig.Permission_Set{Rules: all}}}
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

// hostPattern is a regular expression for a host, in any case (RFC 9110,
// section 4.2.3), with the dot of a fully qualified name or without, and with
// any port unless the pattern names one.
func hostPattern(h string) string {
	inner, before, after := h, "", ""
	switch {
	case h == "*":
		return "(?s).+"
	case strings.HasSuffix(h, "*"):
		inner, after = strings.TrimSuffix(h, "*"), ".*"
	case strings.HasPrefix(h, "*"):
		inner, before = strings.TrimPrefix(h, "*"), ".+"
	}
	port := "(:[0-9]+)?"
	if i := strings.LastIndexByte(inner, ':'); i >= 0 && !strings.HasSuffix(inner, "]") {
		port = ""
	}
	return "(?is)" + before + regexp.QuoteMeta(inner) + after + `\.?` + port
}

func principal(s mesh.Source, namespace, trustDomain string) *rbacconfig.Principal {
	var all []*rbacconfig.Principal
	either := func(one []*rbacconfig.Principal) {
		if len(one) > 0 {
			all = append(all, &rbacconfig.Principal{Identifier: &rbacconfig.Principal_OrIds{OrIds: &rbacconfig.Principal_Set{Ids: one}}})
		}
	}
	var identities, namespaces, accounts, blocks []*rbacconfig.Principal
	for _, id := range s.Identities {
		identities = append(identities, authenticated(identityPattern(id)))
	}
	for _, ns := range s.Namespaces {
		namespaces = append(namespaces, authenticated(prefix("spiffe://"+trustDomain+"/ns/"+ns+"/")))
	}
	for _, sa := range s.ServiceAccounts {
		ns := sa.Namespace
		if ns == "" {
			ns = namespace
		}
		accounts = append(accounts, authenticated(exact(Identity(trustDomain, ns, sa.Name))))
	}
	for _, b := range s.IPBlocks {
		blocks = append(blocks, peerAddress(b))
	}
	either(identities)
	either(namespaces)
	either(accounts)
	either(blocks)
	if len(all) == 0 {
		return anyPrincipal()[0]
	}
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_AndIds{AndIds: &rbacconfig.Principal_Set{Ids: all}}}
}

func identityPattern(id string) *matcher.StringMatcher {
	if p, ok := strings.CutSuffix(id, "*"); ok {
		return prefix(p)
	}
	return exact(id)
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
