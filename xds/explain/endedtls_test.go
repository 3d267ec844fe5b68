package explain

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Of clients whose TLS ends there it is known what name they asked for, and not who they are
// before a gateway.
func TestRulesAboutClientsWhoseTLSEnds(t *testing.T) {
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, ServiceAccount: "web", Meshed: true}
	secret := mesh.Name{Namespace: "shop", Name: "web"}
	far := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	said := func(address string) *HTTP {
		return &HTTP{Method: http.MethodGet, Path: "/", Host: "web.example:443", Headers: []mesh.Header{{Name: "x-forwarded-for", Value: address}}}
	}
	for _, c := range []struct {
		rule    mesh.Rule
		r       Request
		verdict Verdict
	}{
		{mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{RemoteIPBlocks: far}}}, Request{HTTP: said("203.0.113.9"), SNI: "web.example"}, Denied},
		{mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{NotRemoteIPBlocks: far}}}, Request{HTTP: said("198.51.100.7"), SNI: "web.example"}, Denied},
		{mesh.Rule{From: []mesh.Source{{RemoteIPBlocks: far}}}, Request{HTTP: said("198.51.100.7"), SNI: "web.example"}, Denied},
		{mesh.Rule{When: mesh.Condition{SNI: []string{"web.example"}}}, Request{HTTP: said(""), SNI: "web.example"}, Allowed},
		{mesh.Rule{When: mesh.Condition{SNI: []string{"web.example"}}}, Request{HTTP: said(""), SNI: "other"}, Denied},
		{mesh.Rule{When: mesh.Condition{NotSNI: []string{"web.example"}}}, Request{HTTP: said(""), SNI: "other"}, Allowed},
	} {
		policy := &mesh.Policy{
			Meta: mesh.Meta{Name: secret}, Selector: &mesh.Selector{}, TLS: &mesh.EndedTLS{Ports: []mesh.PortTLS{{Port: 8443, Target: 8080, Certificate: secret}}},
			Authorization: &mesh.Authorization{Rules: []mesh.Rule{c.rule}},
		}
		s, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system", TrustedHops: 1}).Apply(mesh.Put(w), mesh.Put(policy), mesh.Put(&mesh.Certificate{Name: secret}))
		c.r.Port = 8443
		if d := Decide(mesh.NewView(s), w, c.r); d.Verdict != c.verdict {
			t.Errorf("%+v, %+v: %s, %s; want %s", c.rule, c.r, d.Verdict, d.Reason, c.verdict)
		}
	}
}

func TestPortAtWhichTLSOfClientsEnds(t *testing.T) {
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, ServiceAccount: "web", Labels: map[string]string{"app": "web"}, Meshed: true}
	secret := mesh.Name{Namespace: "shop", Name: "web"}
	policy := &mesh.Policy{
		Meta: mesh.Meta{Name: secret}, Selector: &mesh.Selector{MatchLabels: w.Labels},
		MTLS:          &mesh.MTLS{Mode: mesh.MTLSStrict},
		TLS:           &mesh.EndedTLS{Ports: []mesh.PortTLS{{Port: 8443, Target: 8080, Certificate: secret}}},
		Authorization: &mesh.Authorization{Rules: []mesh.Rule{{Name: "reads", To: []mesh.Operation{{Methods: []string{http.MethodGet}}}}}},
	}
	get, post := &HTTP{Method: http.MethodGet, Path: "/"}, &HTTP{Method: http.MethodPost, Path: "/"}
	friend := "spiffe://cluster.local/ns/front/sa/friend"
	for _, c := range []struct {
		what    string
		r       Request
		usable  bool
		verdict Verdict
		says    string
	}{
		{"a request in TLS", Request{Port: 8443, HTTP: get, SNI: "web.example"}, true, Allowed, "in TLS of the client's own, which ends at port 8443"},
		{"one that no rule allows", Request{Port: 8443, HTTP: post, SNI: "web.example"}, true, Denied, "no Allow rule matches"},
		{"a request in the clear", Request{Port: 8443, HTTP: get}, true, Denied, "nothing in the clear"},
		{"TLS", Request{Port: 8443, SNI: "web.example"}, true, Depends, "the request of HTTP in it"},
		{"without the certificate", Request{Port: 8443, HTTP: get, SNI: "web.example"}, false, Denied, "cannot be used"},
		{"by mesh mTLS", Request{Port: 8443, HTTP: get, Identity: friend}, false, Allowed, "allows it"},
		{"no HTTP by mesh mTLS", Request{Port: 8443, Identity: friend}, true, Denied, "this is not HTTP"},
		{"HTTP that its caller took for bytes", Request{Port: 8443, HTTP: get, Identity: friend, Unseen: true}, true, Allowed, "allows it"},
		{"TLS in mesh mTLS", Request{Port: 8443, HTTP: get, Identity: friend, SNI: "web.example"}, true, Denied, "this is not HTTP"},
		{"at another port", Request{Port: 8080, HTTP: get}, true, Denied, "Strict"},
	} {
		changes := []mesh.Change{mesh.Put(w), mesh.Put(policy)}
		if c.usable {
			changes = append(changes, mesh.Put(&mesh.Certificate{Name: secret}))
		}
		s, _ := mesh.New(&mesh.Config{TrustDomain: "cluster.local", RootNamespace: "tulle-system"}).Apply(changes...)
		if d := Decide(mesh.NewView(s), w, c.r); d.Verdict != c.verdict || !strings.Contains(d.Reason, c.says) {
			t.Errorf("%s: %s, %s; want %s, %s", c.what, d.Verdict, d.Reason, c.verdict, c.says)
		}
	}
}
