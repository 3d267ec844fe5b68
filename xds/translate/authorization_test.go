package translate

import (
	"maps"
	"regexp"
	"slices"
	"testing"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func policyWith(a *mesh.Authorization) []*mesh.Policy {
	return []*mesh.Policy{{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "p"}}, Authorization: a}}
}

func TestRulesOfOneNameAllHold(t *testing.T) {
	deny := func(name, method string) mesh.Rule {
		return mesh.Rule{Name: name, Action: mesh.Deny, To: []mesh.Operation{{Methods: []string{method}}}}
	}
	v := authorization(policyWith(&mesh.Authorization{Rules: []mesh.Rule{
		deny("admin", "A"), deny("admin", "B"), deny("admin", "C"), deny("4", "D"), deny("", "E"),
	}}), view(), true)
	if got := len(v.deny.GetPolicies()); got != 5 {
		t.Errorf("of five rules %d hold: %v", got, v.deny.GetPolicies())
	}
}

// Rules may be named as others are, or as one without a name is called: none replaces
// another.
func TestRulesOfTheSameNameAreApart(t *testing.T) {
	names := []string{"", "0", "0.1", "0", "0.3", "0"}
	p := &mesh.Policy{Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "p"}}, Authorization: &mesh.Authorization{}}
	for _, n := range names {
		p.Authorization.Rules = append(p.Authorization.Rules, mesh.Rule{Name: n})
	}
	for _, before := range []string{"", orderWould} {
		taken := map[string]*rbacconfig.Policy{}
		for i := range names {
			taken[ruleID(taken, before, p, i)] = &rbacconfig.Policy{}
		}
		if len(taken) != len(names) {
			t.Errorf("of %d rules, %d are left: %v", len(names), len(taken), slices.Sorted(maps.Keys(taken)))
		}
	}
}

// A rule that is tried may have the name of the one that it is to take the place of.
func TestRulesOfDryRunAreLookedAtBesideEnforcedOnesOfTheirName(t *testing.T) {
	rule := func(dry bool, host string) mesh.Rule {
		return mesh.Rule{Name: "web", DryRun: dry, To: []mesh.Operation{{Hosts: []string{host}}}}
	}
	v := authorization(policyWith(&mesh.Authorization{Rules: []mesh.Rule{rule(false, "a"), rule(true, "b")}}), view(), true)
	if enforced, tried := len(v.allow.GetPolicies()), len(v.dryAllow.GetPolicies()); enforced != 1 || tried != 2 {
		t.Errorf("%d rules are enforced and %d tried, want 1 and 2", enforced, tried)
	}
}

func TestHostOfARuleIsTheHostHoweverItIsWritten(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		match         bool
	}{
		{"shop.example", "shop.example", true},
		{"shop.example", "SHOP.example", true},
		{"shop.example", "shop.example:8080", true},
		{"shop.example", "shop.example.", true},
		{"shop.example", "shop.example.:8080", true},
		{"shop.example", "shop.example:", true},
		{"shop.example.", "shop.example", true},
		{"*.example.", "shop.example:80", true},
		{"shop.example", "shopXexample", false},
		{"shop.example", "a.shop.example", false},
		{"shop.example", "shop.example.org", false},
		{"*.example", "shop.example.:80", true},
		{"*.example", ".example", false},
		{"shop.*", "shop.example:80", true},
		{"*", "anything", true},
		{"*", "", false},
	} {
		whole := regexp.MustCompile("^(?:" + hostPattern(c.pattern) + ")$")
		if got := whole.MatchString(c.host); got != c.match {
			t.Errorf("%q and the host %q: %v, want %v", c.pattern, c.host, got, c.match)
		}
	}
}

// On a connection that is not HTTP nobody can say what the request is: who is
// allowed some requests is not let in, who is refused some is not either.
func TestHTTPAttributesOnTCPNeverOpen(t *testing.T) {
	get := []mesh.Operation{{Methods: []string{"GET"}, Ports: []uint16{9000}}}
	v := authorization(policyWith(&mesh.Authorization{Rules: []mesh.Rule{
		{Action: mesh.Allow, To: get},
		{Action: mesh.Deny, To: get},
	}}), view(), false)
	if v.allow == nil || len(v.allow.GetPolicies()) != 0 {
		t.Errorf("the allow rule lets in %v, want nobody", v.allow)
	}
	rule := v.deny.GetPolicies()["shop/p#1"].GetPermissions()
	if len(rule) != 1 || len(rule[0].GetAndRules().GetRules()) != 1 ||
		rule[0].GetAndRules().GetRules()[0].GetOrRules().GetRules()[0].GetDestinationPort() != 9000 {
		t.Errorf("the deny rule refuses %v, want all of port 9000", rule)
	}
}

func TestInvalidAuthorizationRefusesEverybody(t *testing.T) {
	ps := policyWith(&mesh.Authorization{Rules: []mesh.Rule{{Action: mesh.Allow}}})
	ps[0].Invalid = "it makes no sense"
	for _, http := range []bool{true, false} {
		v := authorization(ps, view(), http)
		for _, p := range v.deny.GetPolicies() {
			if !p.GetPermissions()[0].GetAny() || !p.GetPrincipals()[0].GetAny() {
				t.Errorf("http=%v: refused is %v, want everything", http, p)
			}
		}
		if len(v.deny.GetPolicies()) != 1 {
			t.Errorf("http=%v: nothing is refused", http)
		}
	}
}
