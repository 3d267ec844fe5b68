package observe

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func authorization(a *v1alpha1.Authorization, bad *problems) *mesh.Authorization {
	if a == nil {
		return nil
	}
	out := &mesh.Authorization{}
	switch a.Default {
	case "", v1alpha1.DefaultAllow:
	case v1alpha1.DefaultDeny:
		out.DefaultDeny = true
	default:
		bad.add("spec.authorization.default: %q is no default: write Allow or Deny", a.Default)
	}
	for i, r := range a.Rules {
		field := fmt.Sprintf("spec.authorization.rules[%d]", i)
		rule := mesh.Rule{Name: r.Name, Action: action(field, r, bad), Authorizer: r.Provider}
		switch r.Mode {
		case "", v1alpha1.RuleEnforce:
		case v1alpha1.RuleDryRun:
			rule.DryRun = true
		default:
			bad.add("%s.mode: %q is no mode: write Enforce or DryRun", field, r.Mode)
		}
		for j, s := range r.From {
			rule.From = append(rule.From, source(fmt.Sprintf("%s.from[%d]", field, j), s, bad))
		}
		for j, o := range r.To {
			rule.To = append(rule.To, operation(fmt.Sprintf("%s.to[%d]", field, j), o, bad))
		}
		rule.When = condition(field+".when", r.When, bad)
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func action(field string, r v1alpha1.AuthorizationRule, bad *problems) mesh.Action {
	switch r.Action {
	case "", v1alpha1.AuthorizationAllow:
		return mesh.Allow
	case v1alpha1.AuthorizationDeny:
		return mesh.Deny
	case v1alpha1.AuthorizationAudit:
		return mesh.Audit
	case v1alpha1.AuthorizationCustom:
		if r.Provider == "" {
			bad.add("%s.provider: a Custom rule asks somebody: write the name of one of the MeshConfig's externalAuthorizers", field)
		}
		return mesh.Custom
	default:
		bad.add("%s.action: %q is no action: write Allow, Deny, Audit or Custom", field, r.Action)
		return mesh.Deny
	}
}

func source(field string, s v1alpha1.Source, bad *problems) mesh.Source {
	return mesh.Source{
		Identities: s.Identities, NotIdentities: s.NotIdentities,
		TrustDomains: s.TrustDomains,
		Namespaces:   s.Namespaces, NotNamespaces: s.NotNamespaces,
		ServiceAccounts:      bad.accounts(field+".serviceAccounts", s.ServiceAccounts),
		NotServiceAccounts:   bad.accounts(field+".notServiceAccounts", s.NotServiceAccounts),
		IPBlocks:             bad.blocks(field+".ipBlocks", s.IPBlocks),
		NotIPBlocks:          bad.blocks(field+".notIpBlocks", s.NotIPBlocks),
		RemoteIPBlocks:       bad.blocks(field+".remoteIpBlocks", s.RemoteIPBlocks),
		NotRemoteIPBlocks:    bad.blocks(field+".notRemoteIpBlocks", s.NotRemoteIPBlocks),
		RequestPrincipals:    bad.principals(field+".requestPrincipals", s.RequestPrincipals),
		NotRequestPrincipals: bad.principals(field+".notRequestPrincipals", s.NotRequestPrincipals),
	}
}

func (p *problems) accounts(field string, names []string) []mesh.Name {
	var out []mesh.Name
	for _, name := range names {
		namespace, account, ok := strings.Cut(name, "/")
		if !ok {
			namespace, account = "", name
		}
		if account == "" || strings.Contains(account, "/") || ok && namespace == "" {
			p.add("%s: %q is no service account: write name, or namespace/name", field, name)
			continue
		}
		out = append(out, mesh.Name{Namespace: namespace, Name: account})
	}
	return out
}

func (p *problems) blocks(field string, texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		block, err := netip.ParsePrefix(text)
		if err != nil {
			p.add("%s: %q is no CIDR: write 10.0.0.0/8, or 192.0.2.7/32 for one address", field, text)
			continue
		}
		out = append(out, block.Masked())
	}
	return out
}

func operation(field string, o v1alpha1.Operation, bad *problems) mesh.Operation {
	out := mesh.Operation{
		Methods: o.Methods, NotMethods: o.NotMethods,
		Paths: o.Paths, NotPaths: o.NotPaths,
		Hosts: o.Hosts, NotHosts: o.NotHosts,
	}
	for i, p := range o.Ports {
		out.Ports = append(out.Ports, bad.port(fmt.Sprintf("%s.ports[%d]", field, i), p))
	}
	for i, p := range o.NotPorts {
		out.NotPorts = append(out.NotPorts, bad.port(fmt.Sprintf("%s.notPorts[%d]", field, i), p))
	}
	for _, h := range slices.Concat(o.Hosts, o.NotHosts) {
		if problem := mesh.HostProblem(h); problem != "" {
			bad.add("%s: host %q: %s", field, h, problem)
		}
	}
	bad.templates(field+".paths", o.Paths)
	bad.templates(field+".notPaths", o.NotPaths)
	for _, g := range o.GRPC {
		out.GRPC = append(out.GRPC, mesh.GRPCMethod{Service: g.Service, Method: g.Method})
	}
	return out
}

func (p *problems) templates(field string, paths []string) {
	for i, path := range paths {
		if !mesh.IsPathTemplate(path) {
			continue
		}
		if _, problem := mesh.PathTemplate(path); problem != "" {
			p.add("%s[%d]: %s", field, i, problem)
		}
	}
}

func condition(field string, c *v1alpha1.Condition, bad *problems) mesh.Condition {
	var out mesh.Condition
	if c == nil {
		return out
	}
	for i, h := range c.Headers {
		if problem := mesh.HeaderProblem(h.Name); problem != "" {
			bad.add("%s.headers[%d].name: %s", field, i, problem)
		}
		for _, v := range slices.Concat(h.Values, h.NotValues) {
			if problem := mesh.ValueProblem(v); problem != "" {
				bad.add("%s.headers[%d]: value %q: %s", field, i, v, problem)
			}
		}
		out.Headers = append(out.Headers, mesh.HeaderCondition{Name: strings.ToLower(h.Name), Values: h.Values, NotValues: h.NotValues})
	}
	for _, claim := range c.Claims {
		out.Claims = append(out.Claims, mesh.ClaimCondition{Path: claim.Path, Values: claim.Values, NotValues: claim.NotValues})
	}
	if c.SNI != nil {
		out.SNI, out.NotSNI = c.SNI.Values, c.SNI.NotValues
	}
	return out
}

// defaultAuthorizerTimeout holds where the API server did not fill it in.
const defaultAuthorizerTimeout = time.Second

func authorizers(as []v1alpha1.ExternalAuthorizer) []mesh.Authorizer {
	var out []mesh.Authorizer
	for _, a := range as {
		one := mesh.Authorizer{
			Name:       a.Name,
			Service:    mesh.Name{Namespace: a.Service.Namespace, Name: a.Service.Name},
			Port:       uint16(a.Service.Port), // one that is out of range is no Service's
			HTTP:       a.Protocol == v1alpha1.AuthorizerHTTP,
			Timeout:    defaultAuthorizerTimeout,
			FailOpen:   a.FailureMode == v1alpha1.FailureOpen,
			PathPrefix: a.PathPrefix, RequestHeaders: a.RequestHeaders, UpstreamHeaders: a.UpstreamHeaders,
		}
		if a.Timeout != nil && a.Timeout.Duration > 0 {
			one.Timeout = a.Timeout.Duration
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b mesh.Authorizer) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
