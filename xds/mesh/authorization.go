package mesh

import (
	"net/netip"
	"slices"
	"time"
)

// Authorization is a policy's authorization section.
//
// All sections that select a workload add up. Of the rules that are enforced, a
// request is refused by a Custom rule whose authorizer does not let it pass, then by
// any Deny rule; then it is let in if no section denies by default and none has an
// Allow rule, or if an Allow rule matches.
type Authorization struct {
	DefaultDeny bool
	Rules       []Rule
}

// Action is what a rule that matches does.
type Action uint8

const (
	// Allow lets the request in, unless a Deny rule matches too.
	Allow Action = iota
	// Deny refuses it.
	Deny
	// Audit notes it, and decides nothing.
	Audit
	// Custom has an external authorizer decide before Deny and Allow. Where it cannot
	// be asked, a Custom rule is a Deny rule.
	Custom
)

// Rule matches when one of From matches (or it is empty) and one of To matches
// (or it is empty) and all of When does.
//
// What cannot be known of a request counts against it: where Action is Allow it
// does not match, elsewhere it does. That is, a Source, Operation or Condition that
// asks for it matches never, or as though it did not ask.
type Rule struct {
	Name       string
	Action     Action
	DryRun     bool   // noted only
	Authorizer string // whom Custom asks
	From       []Source
	To         []Operation
	When       Condition
}

// Source matches when each field that is not empty has a value that matches, and no
// field that begins with Not has one.
//
// Identities, TrustDomains, Namespaces and ServiceAccounts are of the identity that
// the caller proved; one without any has none of them. In an Allow rule the
// not-forms of these match callers with an identity alone.
type Source struct {
	// Identities are SPIFFE IDs; a trailing "*" makes one a prefix.
	Identities, NotIdentities           []string
	TrustDomains                        []string
	Namespaces, NotNamespaces           []string
	ServiceAccounts, NotServiceAccounts []Name // an empty namespace is the policy's
	// IPBlocks have the address that the connection comes from.
	IPBlocks, NotIPBlocks []netip.Prefix
	// RemoteIPBlocks have the address of the client before the gateways, which is
	// known of HTTP with as many entries of X-Forwarded-For as [Config.TrustedHops],
	// where that is not 0. In an Allow rule of a workload it is believed of callers
	// with an identity alone.
	RemoteIPBlocks, NotRemoteIPBlocks []netip.Prefix
	// RequestPrincipals are of the valid token that a request has, which is known where
	// a jwt section holds. In an Allow rule NotRequestPrincipals matches requests with
	// a valid token alone.
	RequestPrincipals, NotRequestPrincipals []RequestPrincipal
}

// HasToken reports whether the source asks for the token of a request.
func (s *Source) HasToken() bool {
	return len(s.RequestPrincipals) > 0 || len(s.NotRequestPrincipals) > 0
}

// HasRemote reports whether the source asks for the client before the gateways.
func (s *Source) HasRemote() bool {
	return len(s.RemoteIPBlocks) > 0 || len(s.NotRemoteIPBlocks) > 0
}

// ExceptsIdentity reports whether the source is about who a caller is not.
func (s *Source) ExceptsIdentity() bool {
	return len(s.NotIdentities) > 0 || len(s.NotNamespaces) > 0 || len(s.NotServiceAccounts) > 0
}

// Operation matches when each field that is not empty has a value that matches, and
// no field that begins with Not has one. A leading or trailing "*" makes a suffix or
// prefix of a path or host; "*" alone is anything that is there. A path may be a
// template, see [PathTemplate].
type Operation struct {
	Ports, NotPorts     []uint16
	Methods, NotMethods []string
	Paths, NotPaths     []string
	Hosts, NotHosts     []string
	GRPC                []GRPCMethod
}

// GRPCMethod is the path /Service/Method; what is empty is any.
type GRPCMethod struct{ Service, Method string }

// HasHTTP reports whether the operation can only be decided on a request.
func (o *Operation) HasHTTP() bool {
	return len(o.Methods) > 0 || len(o.NotMethods) > 0 || o.HasHosts() || o.HasPaths()
}

// HasHosts reports whether the operation asks for the request's host.
func (o *Operation) HasHosts() bool { return len(o.Hosts) > 0 || len(o.NotHosts) > 0 }

// HasPaths reports whether the operation asks for the request's path.
func (o *Operation) HasPaths() bool {
	return len(o.Paths) > 0 || len(o.NotPaths) > 0 || len(o.GRPC) > 0
}

// Condition matches when all that is set does.
type Condition struct {
	Headers []HeaderCondition // of a request; unknown where there is none
	// Claims are of the valid token that a request has, which is known where a jwt
	// section holds. An Allow rule that asks for any matches no request without one.
	Claims []ClaimCondition
	// SNI is the name of the server in TLS that the mesh did not make, without regard
	// to case, with a "*" as in a host. Where there is no such TLS the name is none:
	// no value of SNI matches, and an Allow rule with NotSNI does not. Inside of mesh
	// mTLS that carries anything but HTTP it is unknown.
	SNI, NotSNI []string
}

// HasSNI reports whether the condition asks for the name of the server.
func (c *Condition) HasSNI() bool { return len(c.SNI) > 0 || len(c.NotSNI) > 0 }

// HeaderCondition matches when one of Values does (or it is empty) and none of
// NotValues does. A header's values are what stands between commas in all of its lines,
// and what they are together counts against the request. For Values of an Allow rule
// the header must have one value alone, which matches, and so for NotValues elsewhere
// to be any help; else one of its values is enough. A leading or trailing "*" makes a
// suffix or prefix; "*" alone is any, in an Allow rule any that is not empty.
type HeaderCondition struct {
	Name              string // lower case, without '_'
	Values, NotValues []string
}

// Authorizer is an external authorizer.
type Authorizer struct {
	Name     string
	Service  Name
	Port     uint16
	HTTP     bool // asked over HTTP; else over gRPC
	Timeout  time.Duration
	FailOpen bool // a request passes where the authorizer does not answer
	// Of HTTP: what is put before paths, the names of headers that it is told and
	// of those in its answer that the application is told.
	PathPrefix                      string
	RequestHeaders, UpstreamHeaders []string
}

// Authorizer returns the external authorizer with the name.
func (c *Config) Authorizer(name string) (Authorizer, bool) {
	for _, a := range c.Authorizers {
		if a.Name == name {
			return a, true
		}
	}
	return Authorizer{}, false
}

// TrustDomains are the names of the mesh's trust domain, its own first.
func (c *Config) TrustDomains() []string {
	out := []string{c.TrustDomain}
	for _, a := range c.Aliases {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
