package explain

import (
	"net/http"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

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
