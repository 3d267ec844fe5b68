package explain

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Request is what comes to a workload's port: a connection, and what is on it.
type Request struct {
	Peer     netip.Addr // the address that the connection comes from
	Identity string     // the SPIFFE ID that mesh mTLS proved; empty: it comes without
	Port     uint16     // the workload's
	SNI      string     // of TLS that the mesh did not make; empty: there is none
	HTTP     *HTTP      // in that TLS where there is some; nil: anything but HTTP
	// Unseen says, of HTTP with an identity, that who sends it takes it for bytes.
	Unseen bool
}

// HTTP is a request of HTTP as a client sends it.
type HTTP struct {
	Method, Host string
	Path         string // with its query
	Headers      []mesh.Header
	// Claims are those of the token (JWT) that it has, as encoding/json reads them; nil:
	// it has none. The token is well signed, in its time, and where tokens of its issuer
	// are looked for.
	Claims map[string]any
}

// Verdict is what becomes of a request.
type Verdict string

// The verdicts.
const (
	Allowed Verdict = "Allowed"
	Denied  Verdict = "Denied"
	// Depends is on what external authorizers say: it is allowed if all do.
	Depends Verdict = "Depends"
)

// Match is a rule that matches.
type Match struct {
	Policy  string `json:"policy"` // namespace/name
	Rule    string `json:"rule"`   // its name, or its place in the list
	Action  string `json:"action"` // Allow, Deny, Audit or Custom
	DryRun  bool   `json:"dryRun,omitempty"`
	Decides bool   `json:"decides,omitempty"`
	// Authorizer is whom a Custom rule asks. Unasked says that it cannot be, so that
	// the rule denies.
	Authorizer string `json:"authorizer,omitempty"`
	Unasked    bool   `json:"unasked,omitempty"`
}

// Decision is what a workload's sidecar does with a request, and why.
type Decision struct {
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason"` // a clause
	// Status is of the answer to a request of HTTP that is denied for a token, or by a
	// rule: 401 where it needs a valid token, else 403; or that may not leave the cluster.
	// 0: it is not said.
	Status int `json:"status,omitempty"`
	// Rules are all that match, in the order of their policies. None decides where
	// Reason names something else.
	Rules []Match `json:"rules,omitempty"`
	// Authorizers are asked, all of them, sorted.
	Authorizers []string `json:"authorizers,omitempty"`
	// Enforced is the verdict if DryRun rules were enforced; empty where there are
	// none, or it is the same.
	Enforced Verdict `json:"ifDryRunRulesWereEnforced,omitempty"`
	// Mode is which callers the port is open to: Strict, Permissive or Disabled; empty at a
	// gateway.
	Mode string `json:"mtls,omitempty"`
}

// Decide says what the workload does with the request. It is about rules alone: not
// about rate limits, nor about whether the application answers.
func Decide(v *mesh.View, w *mesh.Workload, r Request) Decision {
	if !w.Meshed {
		return Decision{Verdict: Allowed, Reason: "the workload has no sidecar: nothing stands before it", Mode: modeName(mesh.MTLSDisabled)}
	}
	if slices.Contains(w.Direct, r.Port) {
		return Decision{Verdict: Allowed, Reason: fmt.Sprintf("port %d goes past the sidecar, as the pod's annotation says", r.Port), Mode: modeName(mesh.MTLSDisabled)}
	}
	in := translate.InboundOf(w, v)
	d := Decision{Mode: modeName(in.Mode(r.Port))}
	hops := v.Config().TrustedHops
	known := facts{
		peer: r.Peer, port: r.Port, domains: v.Config().TrustDomains(),
		remote: hops > 0, vouched: true, hops: hops, place: "the workload",
	}
	problem := known.wayIn(in, r)
	if problem != "" {
		d.Verdict, d.Reason = Denied, problem
		return d
	}
	ended, _ := in.EndsTLS(r.Port)
	ended = ended && known.identity == ""
	if ended && known.http == nil {
		d.Verdict, d.Reason = Depends, fmt.Sprintf("TLS of clients ends at port %d, and the request of HTTP in it is decided about: say which it is", r.Port)
		return d
	}
	policies := authorizations(w, v)
	if known.http != nil {
		if problem := known.rejected(in.NormalizesPaths()); problem != "" {
			d.Verdict, d.Reason = Denied, problem
			return d
		}
		if no := known.learn(policies, translate.TokensOf(w, v), in.NormalizesPaths()); no.why != "" {
			d.Verdict, d.Reason, d.Status = Denied, no.why, no.status
			return d
		}
	}
	d = known.decide(d, policies, v)
	if ended {
		d.Reason += fmt.Sprintf("; in TLS of the client's own, which ends at port %d", r.Port)
	}
	return d
}

// learn has of a request of HTTP what rules are asked about, and why it is refused before
// they are. Some says that its path is normalised.
func (k *facts) learn(policies []*mesh.Policy, t translate.Tokens, some bool) refused {
	if some {
		if problem := k.normalize(asked(policies, (*mesh.Operation).HasPaths)); problem != "" {
			return refused{why: problem}
		}
	}
	if asked(policies, (*mesh.Operation).HasHosts) && !plainHost.MatchString(k.http.Host) {
		return refused{why: fmt.Sprintf("rules are about hosts, and %q could be read as another one", k.http.Host)}
	}
	if name := ambiguousHeader(k.http.Headers, policies); name != "" {
		return refused{why: fmt.Sprintf("the header %q could be read as another one that rules ask for", name)}
	}
	return k.read(t)
}

// wayIn learns of the request what the listener does; problem is why it does not take it.
func (k *facts) wayIn(in translate.Inbound, r Request) (problem string) {
	mode, protocol := in.Mode(r.Port), in.Declared(r.Port)
	ends, served := in.EndsTLS(r.Port)
	if ends {
		protocol = mesh.HTTP
	}
	switch {
	case r.Identity != "" && mode != mesh.MTLSDisabled && !k.ours(r.Identity):
		return fmt.Sprintf("the identity %s is of no trust domain of the mesh", r.Identity)
	case r.Identity != "" && mode != mesh.MTLSDisabled:
		k.identity = r.Identity
		if r.SNI == "" && (!r.Unseen || protocol.IsHTTP()) {
			k.http = copied(r.HTTP)
		}
		k.noName = k.http != nil
		if k.http == nil && ends {
			return fmt.Sprintf("port %d takes HTTP alone by mesh mTLS, and this is not HTTP", r.Port)
		}
		if k.http == nil && protocol.IsHTTP() {
			return fmt.Sprintf("port %d is declared HTTP, and this is not HTTP", r.Port)
		}
	case ends && !served:
		return fmt.Sprintf("TLS of clients ends at port %d, and its certificate cannot be used: the MeshPolicy's status says why", r.Port)
	case ends && r.SNI == "" && r.Identity == "":
		return fmt.Sprintf("TLS of clients ends at port %d, which takes nothing in the clear", r.Port)
	case ends:
		if r.SNI == "" || r.Identity == "" { // else that TLS is in the TLS that ends
			k.http = copied(r.HTTP)
		}
		if k.http != nil { // nobody before the sidecar looked into it
			k.sni, k.noName, k.remote = r.SNI, r.SNI == "", false
		}
	case mode == mesh.MTLSStrict:
		return fmt.Sprintf("port %d takes mesh mTLS alone (Strict), and the caller has none", r.Port)
	case r.Identity != "":
		return fmt.Sprintf("port %d takes no mesh mTLS (Disabled)", r.Port)
	case r.HTTP != nil && r.SNI == "" && !protocol.Opaque():
		k.http, k.noName = copied(r.HTTP), true
	case protocol.IsHTTP():
		return fmt.Sprintf("port %d is declared HTTP, and this is not HTTP", r.Port)
	case in.SeesTLS(r.Port):
		k.sni, k.noName = r.SNI, r.SNI == ""
	}
	return ""
}

// ours reports whether the identity is of the mesh.
func (k *facts) ours(identity string) bool {
	return slices.ContainsFunc(k.domains, func(d string) bool { return strings.HasPrefix(identity, "spiffe://"+d+"/") })
}

func copied(r *HTTP) *HTTP {
	if r == nil {
		return nil
	}
	out := *r
	out.Headers = slices.Clone(r.Headers)
	return &out
}

// authorizations are the policies with rules about the workload, those for the whole
// mesh first.
func authorizations(w *mesh.Workload, v *mesh.View) []*mesh.Policy {
	selects := func(p *mesh.Policy) bool {
		return len(p.Targets) == 0 && p.Selector.Matches(mesh.ProfileOf(w).Labels) // targets are no workloads
	}
	root := v.Config().RootNamespace
	out := v.Policies(root, mesh.SectionAuthorization, selects)
	if w.Namespace != root {
		out = append(out, v.Policies(w.Namespace, mesh.SectionAuthorization, selects)...)
	}
	return out
}

// decides reports whether what the rule asks for must not be told two ways.
func decides(r mesh.Rule) bool { return r.Action != mesh.Audit && !r.DryRun }

// asked reports whether a rule that decides asks for something.
func asked(policies []*mesh.Policy, asks func(*mesh.Operation) bool) bool {
	return slices.ContainsFunc(policies, func(p *mesh.Policy) bool {
		return slices.ContainsFunc(p.Authorization.Rules, func(r mesh.Rule) bool {
			return decides(r) && slices.ContainsFunc(r.To, func(o mesh.Operation) bool { return asks(&o) })
		})
	})
}

// tally is which rules match, by what they do.
type tally struct {
	rules           []Match
	deny, dryDeny   []int // in rules
	allow, dryAllow []int
	asked           []string
	// defaultDeny says that only what a rule allows comes in, and which policy says so.
	defaultDeny, dryDefaultDeny string
	invalid                     *mesh.Policy
	// lacking is of a rule by which the request is refused since it has no token; nil:
	// there is none.
	lacking *lacking
}

// lacking is a rule for which a request lacks a token. It denies, or would let it in.
type lacking struct {
	Match
	denies bool
}

func (k *facts) decide(d Decision, policies []*mesh.Policy, v *mesh.View) Decision {
	t := k.tally(policies, v)
	d.Rules = t.rules
	mark := func(at []int) {
		for _, i := range at[:min(1, len(at))] {
			d.Rules[i].Decides = true
		}
	}
	denied := func(format string, args ...any) {
		d.Verdict, d.Reason = Denied, fmt.Sprintf(format, args...)
		if k.http != nil {
			d.Status = http.StatusForbidden
		}
	}
	switch {
	case t.invalid != nil:
		denied("MeshPolicy %s cannot be understood, and so denies everything: %s", t.invalid.Meta.Name, t.invalid.Invalid)
	case len(t.deny) > 0:
		m := t.rules[t.deny[0]]
		mark(t.deny)
		denied("rule %s of MeshPolicy %s denies it", m.Rule, m.Policy)
		if m.Unasked {
			d.Reason += fmt.Sprintf(": the authorizer %s cannot be asked", m.Authorizer)
		}
	case t.defaultDeny != "" && len(t.allow) == 0:
		denied("%s, and no Allow rule matches", t.defaultDeny)
	default:
		d.Verdict, d.Reason = Allowed, "no rule denies it, and there is no Allow rule for "+k.place
		if len(t.allow) > 0 {
			mark(t.allow)
			d.Reason = fmt.Sprintf("rule %s of MeshPolicy %s allows it", t.rules[t.allow[0]].Rule, t.rules[t.allow[0]].Policy)
		}
		if len(t.asked) > 0 {
			d.Verdict, d.Authorizers = Depends, t.asked
			d.Reason = fmt.Sprintf("it is let in if the authorizer %s says so", strings.Join(t.asked, " and the authorizer "))
		}
	}
	if d.Verdict == Denied && t.invalid == nil && t.lacking != nil && (t.lacking.denies || len(t.allow) == 0) {
		d.Status = http.StatusUnauthorized
		d.Reason += fmt.Sprintf("; it is asked for a token, which rule %s of MeshPolicy %s asks for", t.lacking.Rule, t.lacking.Policy)
	}
	if e := t.enforced(); e != d.Verdict {
		d.Enforced = e
	}
	return d
}

// enforced is the verdict with all rules enforced.
func (t *tally) enforced() Verdict {
	switch {
	case t.invalid != nil || len(t.deny)+len(t.dryDeny) > 0,
		t.defaultDeny+t.dryDefaultDeny != "" && len(t.allow)+len(t.dryAllow) == 0:
		return Denied
	case len(t.asked) > 0:
		return Depends
	}
	return Allowed
}

func (k *facts) tally(policies []*mesh.Policy, v *mesh.View) tally {
	var t tally
	for _, p := range policies {
		if p.Invalid != "" {
			t.invalid = cmp.Or(t.invalid, p)
			continue
		}
		if p.Authorization.DefaultDeny && t.defaultDeny == "" {
			t.defaultDeny = fmt.Sprintf("MeshPolicy %s denies by default", p.Meta.Name)
		}
		for i, r := range p.Authorization.Rules {
			m := Match{
				Policy: p.Meta.Name.String(), Rule: cmp.Or(r.Name, strconv.Itoa(i)), Action: actionName(r.Action),
				DryRun: r.DryRun, Authorizer: r.Authorizer,
			}
			m.Unasked = r.Action == mesh.Custom && !k.canAsk(r.Authorizer, v)
			if r.Action == mesh.Allow {
				needs := k.place + " has Allow rules"
				if r.DryRun {
					t.dryDefaultDeny = needs
				} else {
					t.defaultDeny = cmp.Or(t.defaultDeny, needs)
				}
			}
			if k.tokens && k.claims == nil && k.lacksToken(r, p.Meta.Namespace) && (t.lacking == nil || !t.lacking.denies) {
				t.lacking = &lacking{m, r.Action == mesh.Deny}
			}
			if !k.matches(r, p.Meta.Namespace) {
				continue
			}
			at := len(t.rules)
			t.rules = append(t.rules, m)
			switch denies := r.Action == mesh.Deny || m.Unasked; {
			case denies && r.DryRun:
				t.dryDeny = append(t.dryDeny, at)
			case denies:
				t.deny = append(t.deny, at)
			case r.Action == mesh.Allow && r.DryRun:
				t.dryAllow = append(t.dryAllow, at)
			case r.Action == mesh.Allow:
				t.allow = append(t.allow, at)
			case r.Action == mesh.Custom && !r.DryRun && !slices.Contains(t.asked, r.Authorizer):
				t.asked = append(t.asked, r.Authorizer)
			}
		}
	}
	slices.Sort(t.asked)
	return t
}

// canAsk reports whether there is somebody to ask: of HTTP alone, and an authorizer
// whose Service and port exist.
func (k *facts) canAsk(name string, v *mesh.View) bool {
	a, ok := v.Config().Authorizer(name)
	if !ok || k.http == nil {
		return false
	}
	svc, ok := v.Service(a.Service)
	if !ok {
		return false
	}
	_, ok = svc.Port(a.Port)
	return ok
}

func actionName(a mesh.Action) string {
	return [...]string{mesh.Allow: "Allow", mesh.Deny: "Deny", mesh.Audit: "Audit", mesh.Custom: "Custom"}[a]
}

func modeName(m mesh.MTLSMode) string {
	return [...]string{mesh.MTLSUnset: "", mesh.MTLSDisabled: "Disabled", mesh.MTLSPermissive: "Permissive", mesh.MTLSStrict: "Strict"}[m]
}
