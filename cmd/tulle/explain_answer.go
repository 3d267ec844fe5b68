package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/xds/explain"
)

// explanation is the answer to `tulle explain`.
type explanation struct{ explain.Answer }

func (e *explanation) data() any { return &e.Answer }

// lacks reports whether the call is not allowed, whatever authorizers say and wherever
// it goes.
func (e *explanation) lacks() bool { return e.Verdict != explain.Allowed }

func (e *explanation) table(time.Time) *table {
	t := &table{header: []string{"VERDICT", "BACKEND", "SHARE", "PODS", "MTLS", "WHY"}}
	var sum uint64
	for _, b := range e.Backends {
		sum += uint64(b.Weight)
	}
	if in := e.Entrance; in != nil {
		t.row(string(in.Verdict), "Gateway "+in.Gateway, "", "", "", in.Reason)
	}
	for _, b := range e.Backends {
		name, share := backendName(b), fmt.Sprintf("%.3g%%", 100*float64(b.Weight)/float64(sum))
		if b.Outside != nil {
			outside := b.Outside
			t.row(string(outside.Verdict), name, share, "", "", answered(outside.Decision))
			if x := outside.Exit; x != nil && x.Endpoints == 0 {
				t.row("", "Gateway "+x.Gateway, "", "0/0", "", "it has no proxy that is ready")
			} else if x != nil {
				t.row(string(x.Verdict), "Gateway "+x.Gateway, "", fmt.Sprintf("%d/%d", x.Endpoints, x.Endpoints), "mTLS", answered(x.Decision))
			}
			continue
		}
		if len(b.Pods) == 0 {
			why := "it has no endpoint that is ready"
			if b.Service == "" {
				why = "the rule names what does not exist, or may not be referred to: this share is " + e.unsent()
			}
			t.row("", name, share, fmt.Sprintf("0/%d", b.Endpoints), "", why)
		}
		for _, p := range b.Pods {
			t.row(string(p.Verdict), name, share, fmt.Sprintf("%d/%d", len(p.Endpoints), b.Endpoints), encryption(p), p.Reason)
		}
	}
	e.notes(t)
	return t
}

// unsent is what becomes of what has no backend.
func (e *explanation) unsent() string {
	if e.Route != nil && (e.Route.Kind == "TLSRoute" || e.Route.Kind == "TCPRoute") {
		return "closed"
	}
	return "answered with 500"
}

// answered is why a call is decided so, and with what it is answered that may not leave.
func answered(d explain.Decision) string {
	if d.Status == 0 || d.Verdict != explain.Denied {
		return d.Reason
	}
	return fmt.Sprintf("%s (answered with %d)", d.Reason, d.Status)
}

func backendName(b explain.Backend) string {
	if b.Outside != nil {
		if b.Service == "" {
			return b.Outside.Called
		}
		return fmt.Sprintf("ExternalService %s:%d", b.Service, b.Port)
	}
	if b.Service == "" {
		return ""
	}
	name := fmt.Sprintf("%s:%d", b.Service, b.Port)
	for _, k := range slices.Sorted(maps.Keys(b.Subset)) {
		name += fmt.Sprintf(" %s=%s", k, b.Subset[k])
	}
	return name
}

// encryption is how the caller speaks to the pods, and what they would take.
func encryption(p explain.Pods) string {
	how := "plaintext"
	if p.MTLS {
		how = "mTLS"
	}
	return fmt.Sprintf("%s (%s)", how, p.Mode)
}

// notes say who calls, what routes the call, and which rules match.
func (e *explanation) notes(t *table) {
	who := "The caller has no sidecar: no identity, and no route"
	switch {
	case e.Entrance != nil:
		who = "The caller is a client of the Gateway"
	case e.Caller.Meshed:
		who = "The caller is " + e.Caller.Identity
	}
	if e.Caller.Address != "" {
		who += ", from " + e.Caller.Address
	}
	t.note("%s.", who)
	answers := "the caller's sidecar"
	if in := e.Entrance; in != nil {
		answers = "the gateway"
		if in.Listener != "" {
			t.note("It comes in at listener %s of Gateway %s, port %d.", in.Listener, in.Gateway, e.Port)
			if in.Clients != "" {
				t.note("  It lets in clients %s.", in.Clients)
			}
		}
		for _, m := range in.Rules {
			t.note("  %s", ruleText(m))
		}
		dryRun(t, in.Decision)
	}
	if r := e.Route; r != nil {
		said := fmt.Sprintf("It is routed by %s %s", r.Kind, r.Name)
		if r.Rule != "" && r.Rule != r.Name {
			said += ", rule " + r.Rule
		}
		switch {
		case r.Kind == "":
			said = fmt.Sprintf("%s%s answers %s", strings.ToUpper(answers[:1]), answers[1:], r.Answer)
		case r.Answer != "":
			said += fmt.Sprintf(", and %s answers %s", answers, r.Answer)
		case r.Kind == "Gateway":
			said += "; the request is taken to leave it as it stands (ask for a URL to have its routes looked at)"
		}
		t.note("%s.", said)
	}
	for _, b := range e.Backends {
		if o := b.Outside; o != nil && o.Verdict != explain.Denied {
			outsideNotes(t, o, e.Entrance != nil)
		}
		for _, p := range b.Pods {
			if len(p.Rules)+len(p.Enforced)+len(p.Path) == 0 {
				continue
			}
			t.note("\n%s, port %d:", list(p.Endpoints, 3), p.Port)
			if p.Path != "" {
				t.note("  are asked for %s", p.Path)
			}
			for _, m := range p.Rules {
				t.note("  %s", ruleText(m))
			}
			dryRun(t, p.Decision)
		}
	}
}

// outsideNotes say where a call goes that leaves the cluster, and what rules match at the
// gateway that it leaves by.
func outsideNotes(t *table, o *explain.Outside, entered bool) {
	where, who := o.Leads, "the caller's sidecar"
	if len(o.Servers) > 0 {
		where = "to " + list(o.Servers, 3)
	}
	if entered {
		who = "the gateway"
	}
	said := o.Called + " goes "
	if o.Exit != nil {
		who = "the gateway"
		said += fmt.Sprintf("by listener %s of Gateway %s ", o.Exit.Listener, o.Exit.Gateway)
	}
	said += where
	if o.TLS != nil {
		said += fmt.Sprintf(", in TLS that %s speaks for the server name %s", who, o.TLS.ServerName)
		if len(o.TLS.Names) > 1 || o.TLS.Names[0] != o.TLS.ServerName {
			said += ", with a certificate for " + list(o.TLS.Names, 3)
		}
	}
	t.note("%s.", said)
	if x := o.Exit; x != nil {
		for _, m := range x.Rules {
			t.note("  %s", ruleText(m))
		}
		dryRun(t, x.Decision)
	}
}

func dryRun(t *table, d explain.Decision) {
	if d.Enforced != "" {
		t.note("  Enforced, the rules of DryRun would make this %s.", d.Enforced)
	}
}

// ruleText is a rule that matches, the one that decides marked.
func ruleText(m explain.Match) string {
	mark := " "
	if m.Decides {
		mark = "*"
	}
	text := fmt.Sprintf("%s %s rule %s of MeshPolicy %s", mark, m.Action, m.Rule, m.Policy)
	if m.Authorizer != "" {
		text += ", which asks " + m.Authorizer
	}
	if m.Unasked {
		text += " (there is nobody to ask, so that it denies)"
	}
	if m.DryRun {
		text += " (DryRun: it decides nothing)"
	}
	return text
}
