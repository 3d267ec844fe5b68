package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tulle-mesh/tulle/xds/explain"
)

const explained = `{"verdict":"Denied","caller":{"pod":"shop/web-1","meshed":true,"identity":"spiffe://cluster.local/ns/shop/sa/web","address":"10.0.0.1"},
"service":"shop/cart","port":80,"route":{"kind":"HTTPRoute","name":"shop/cart","rule":"beta#0.0"},"backends":[
{"service":"shop/cart","port":80,"subset":{"version":"1"},"weight":3,"endpoints":2,"pods":[{"endpoints":["shop/cart-1","shop/cart-2"],"port":8080,"encrypted":true,"path":"/x",
"verdict":"Denied","reason":"rule a of MeshPolicy shop/p denies it","mtls":"Strict","ifDryRunRulesWereEnforced":"Allowed",
"rules":[{"policy":"shop/p","rule":"a","action":"Deny","decides":true},{"policy":"shop/q","rule":"0","action":"Custom","dryRun":true,"authorizer":"opa","unasked":true}]}]},
{"weight":1,"endpoints":0}]}`

func TestExplainShowsWhoDecides(t *testing.T) {
	h := harness{objects: []runtime.Object{pod("shop/web-1", withProxy), tulled("tulled-1", isReady)}, replies: map[string]string{"tulled-1": explained}}
	code, out, errOut := h.run(t, "explain web-1 cart:80")
	const want = `VERDICT   BACKEND                  SHARE   PODS   MTLS            WHY
Denied    shop/cart:80 version=1   75%     2/2    mTLS (Strict)   rule a of MeshPolicy shop/p denies it
-         -                        25%     0/0    -               the rule names what does not exist, or may not be referred to: this share is answered with 500

The caller is spiffe://cluster.local/ns/shop/sa/web, from 10.0.0.1.
It is routed by HTTPRoute shop/cart, rule beta#0.0.

shop/cart-1, shop/cart-2, port 8080:
  are asked for /x
  * Deny rule a of MeshPolicy shop/p
    Custom rule 0 of MeshPolicy shop/q, which asks opa (there is nobody to ask, so that it denies) (DryRun: it decides nothing)
  Enforced, the rules of DryRun would make this Allowed.
`
	if code != exitLacking || out != want {
		t.Errorf("exit code %d %s\n%s\nwant\n%s", code, errOut, out, want)
	}
	code, out, _ = h.run(t, "explain web-1 cart -o json")
	var a explain.Answer
	if err := json.Unmarshal([]byte(out), &a); err != nil || code != exitLacking || a.Backends[0].Pods[0].Rules[0].Policy != "shop/p" {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
	h.replies["tulled-1"] = `{"verdict":"Allowed"}`
	if code, _, _ := h.run(t, "explain outside cart"); code != exitHealthy {
		t.Errorf("exit code %d of what is allowed", code)
	}
}

const entered = `{"verdict":"Allowed","caller":{"address":"192.0.2.7"},"port":443,
"entrance":{"gateway":"shop/edge","listener":"web","verdict":"Allowed","reason":"rule a of MeshPolicy shop/p allows it","rules":[{"policy":"shop/p","rule":"a","action":"Allow","decides":true}]},
"route":{"kind":"HTTPRoute","name":"shop/cart","rule":"cart#0.0"},"backends":[{"service":"shop/cart","port":80,"weight":1,"endpoints":1,"pods":[
{"endpoints":["shop/cart-1"],"port":8080,"encrypted":true,"verdict":"Allowed","reason":"no rule denies it","mtls":"Strict"}]}]}`

func TestExplainShowsWhatAGatewayDoes(t *testing.T) {
	h := harness{objects: []runtime.Object{pod("shop/edge-1", withLabel(labelGateway, "edge")), tulled("tulled-1", isReady)}, replies: map[string]string{"tulled-1": entered}}
	code, out, errOut := h.run(t, "explain gateway/edge https://a.test/x")
	const want = `VERDICT   BACKEND             SHARE   PODS   MTLS            WHY
Allowed   Gateway shop/edge   -       -      -               rule a of MeshPolicy shop/p allows it
Allowed   shop/cart:80        100%    1/1    mTLS (Strict)   no rule denies it

The caller is a client of the Gateway, from 192.0.2.7.
It comes in at listener web of Gateway shop/edge, port 443.
  * Allow rule a of MeshPolicy shop/p
It is routed by HTTPRoute shop/cart, rule cart#0.0.
`
	if code != exitHealthy || out != want {
		t.Errorf("exit code %d %s\n%s\nwant\n%s", code, errOut, out, want)
	}
	h.replies["tulled-1"] = `{"caller":{},"port":80,"entrance":{"gateway":"shop/edge","listener":"web","verdict":"Allowed"},"route":{"answer":"404: no rule matches"},"backends":[]}`
	if code, out, _ := h.run(t, "explain gateway/edge a.test/x"); code != exitLacking || !strings.Contains(out, "The gateway answers 404: no rule matches.") {
		t.Errorf("exit code %d of what no route is for:\n%s", code, out)
	}
}

const left = `{"verdict":"Denied","caller":{"pod":"shop/web-1","meshed":true,"identity":"spiffe://cluster.local/ns/shop/sa/web"},"port":80,
"backends":[{"service":"shop/api","port":80,"weight":1,"endpoints":0,"outside":{"called":"api.test:80","verdict":"Allowed","reason":"ExternalService shop/api names it",
"gateway":{"gateway":"egress/exit","listener":"out","endpoints":2,"verdict":"Denied","reason":"rule a of MeshPolicy egress/p denies it","status":403,
"rules":[{"policy":"egress/p","rule":"a","action":"Deny","decides":true}]},"servers":["192.0.2.7:443"],"tls":{"serverName":"api.test","names":["*.test"]}}}]}`

func TestExplainShowsWhoLetsACallOutAndWhereItGoes(t *testing.T) {
	h := harness{objects: []runtime.Object{pod("shop/web-1", withProxy), tulled("tulled-1", isReady)}, replies: map[string]string{"tulled-1": left}}
	code, out, errOut := h.run(t, "explain web-1 api.test")
	const want = `VERDICT   BACKEND                       SHARE   PODS   MTLS   WHY
Allowed   ExternalService shop/api:80   100%    -      -      ExternalService shop/api names it
Denied    Gateway egress/exit           -       2/2    mTLS   rule a of MeshPolicy egress/p denies it (answered with 403)

The caller is spiffe://cluster.local/ns/shop/sa/web.
api.test:80 goes by listener out of Gateway egress/exit to 192.0.2.7:443, in TLS that the gateway speaks for the server name api.test, with a certificate for *.test.
  * Deny rule a of MeshPolicy egress/p
`
	if code != exitLacking || out != want {
		t.Errorf("exit code %d %s\n%s\nwant\n%s", code, errOut, out, want)
	}
	h.replies["tulled-1"] = `{"verdict":"Denied","caller":{"meshed":true,"identity":"i"},"port":443,"backends":[{"service":"","port":443,"weight":1,"endpoints":0,"outside":{"called":"x.test:443","verdict":"Denied","reason":"no ExternalService names it","status":502}}]}`
	const refused = `VERDICT   BACKEND      SHARE   PODS   MTLS   WHY
Denied    x.test:443   100%    -      -      no ExternalService names it (answered with 502)

The caller is i.
`
	if code, out, _ := h.run(t, "explain web-1 x.test:443"); code != exitLacking || out != refused {
		t.Errorf("exit code %d\n%s\nwant\n%s", code, out, refused)
	}
}

// What the flags say is what the control plane is asked.
func TestExplainAsksForTheCallThatIsMeant(t *testing.T) {
	file := filepath.Join(t.TempDir(), "claims.json")
	if err := os.WriteFile(file, []byte(`{"sub":"alice"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"web-1 cart":                                                      `{"pod":"shop/web-1","service":"shop/cart","method":"GET","path":"/"}`,
		"front/sa/api shop/cart:8080":                                     `{"serviceAccount":"front/api","service":"shop/cart","port":8080,"method":"GET","path":"/"}`,
		"sa/api cart --header a=b=c":                                      `{"serviceAccount":"shop/api","service":"shop/cart","method":"GET","path":"/","headers":[{"name":"a","value":"b=c"}]}`,
		"gateway/edge cart --method PUT":                                  `{"pod":"shop/edge-1","service":"shop/cart","method":"PUT","path":"/"}`,
		"outside cart --source-ip 192.0.2.7":                              `{"address":"192.0.2.7","service":"shop/cart","method":"GET","path":"/"}`,
		"web-1 cart --path /x?y --host a.test":                            `{"pod":"shop/web-1","service":"shop/cart","method":"GET","path":"/x?y","host":"a.test"}`,
		`web-1 cart --jwt-claims {"iss":"a","n":7}`:                       `{"pod":"shop/web-1","service":"shop/cart","method":"GET","path":"/","claims":{"iss":"a","n":7}}`,
		"web-1 cart --jwt-claims @" + file:                                `{"pod":"shop/web-1","service":"shop/cart","method":"GET","path":"/","claims":{"sub":"alice"}}`,
		"gateway/edge https://a.test:8443/x/../y?z --source-ip 192.0.2.7": `{"pod":"shop/edge-1","address":"192.0.2.7","port":8443,"scheme":"https","method":"GET","path":"/x/../y?z","host":"a.test:8443"}`,
		"gateway/edge a.test":                                             `{"pod":"shop/edge-1","port":80,"scheme":"http","method":"GET","path":"/","host":"a.test"}`,
		"gateway/edge https://local/%2f":                                  `{"pod":"shop/edge-1","port":443,"scheme":"https","method":"GET","path":"/%2f","host":"local"}`,
		"web-1 cart --sni db":                                             `{"pod":"shop/web-1","service":"shop/cart","sni":"db"}`,
		"web-1 cart --sni db --path /x":                                   `{"pod":"shop/web-1","service":"shop/cart","sni":"db","method":"GET","path":"/x"}`,
		"gateway/edge tls://db.test:5432":                                 `{"pod":"shop/edge-1","port":5432,"scheme":"tls","method":"GET","path":"/","host":"db.test:5432"}`,
		"gateway/edge tcp://edge:6379":                                    `{"pod":"shop/edge-1","port":6379,"scheme":"tcp","method":"GET","path":"/","host":"edge:6379"}`,
		"web-1 api.test":                                                  `{"pod":"shop/web-1","outside":"api.test","method":"GET","path":"/"}`,
		"web-1 api.test:8443/x":                                           `{"pod":"shop/web-1","port":8443,"outside":"api.test","method":"GET","path":"/x"}`,
		"sa/web https://api.test/x":                                       `{"serviceAccount":"shop/web","outside":"api.test","scheme":"https","method":"GET","path":"/x"}`,
		"web-1 192.0.2.7:5432 --tcp":                                      `{"pod":"shop/web-1","port":5432,"outside":"192.0.2.7","tcp":true,"method":"GET","path":"/"}`,
		"web-1 [2001:db8::7]:443 --sni api.test":                          `{"pod":"shop/web-1","port":443,"outside":"2001:db8::7","sni":"api.test"}`,
	} {
		var asked string
		h := harness{
			objects: []runtime.Object{pod("shop/web-1", withProxy), pod("shop/edge-1", withLabel(labelGateway, "edge")), tulled("tulled-1", isReady)},
			replies: map[string]string{"tulled-1": `{"verdict":"Allowed"}`}, heard: &asked,
		}
		if code, _, errOut := h.run(t, "explain "+line); code != exitHealthy || asked != want {
			t.Errorf("explain %s: exit code %d %s\nasks %s\nwant %s", line, code, errOut, asked, want)
		}
	}
	for line, want := range map[string]string{
		"web-1 cart:http":                  `"http" is no port of a Service`,
		"web-1 cart --header a":            "write it as name=value",
		"web-1 cart --jwt-claims []":       "these are no claims",
		"web-1 cart --jwt-claims @/no":     "no such file",
		"web-1 cart --tcp --jwt-claims {}": "none of the others can be",
		"web-1 ftp://a.test/x":             "is no URL of HTTP",
		"web-1 tls://a.test --sni b":       "the URL says it",
		"web-1 a.test/x --path /y":         "the URL says it",
		"gateway/edge tcp://a.test":        "says no port",
		"gateway/edge ftp://a.test/x":      "is no URL of HTTP",
		"gateway/edge a.test:0/x":          "is no port",
		"gateway/edge a.test/x --path /y":  "the URL says it all",
		"gone cart":                        "looking for pod shop/gone",
		"gateway/gone cart":                "the Gateway shop/gone has no pods",
		"web-1 cart --tcp --path x":        "none of the others can be",
	} {
		h := harness{objects: []runtime.Object{pod("shop/web-1", withProxy), tulled("tulled-1", isReady)}, replies: map[string]string{"tulled-1": "{}"}}
		if code, _, errOut := h.run(t, "explain "+line); code != exitError || !strings.Contains(errOut, want) {
			t.Errorf("explain %s: exit code %d %s, want %s", line, code, errOut, want)
		}
	}
}

// The control plane says what is wrong with a question.
func TestExplainTellsWhatTheControlPlaneRefuses(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		http.Error(w, "there is no Service shop/gone", http.StatusUnprocessableEntity)
	}))
	defer s.Close()
	c := &cluster{
		client: fake.NewClientset(tulled("tulled-1", isReady)), meshNamespace: "tulle-system",
		reach: func(*corev1.Pod, int) (endpoint, error) {
			return &httpEndpoint{base: s.URL, client: s.Client(), close: func() error { return nil }}, nil
		},
	}
	err := c.askControlPlane(t.Context(), pathExplain, explain.Question{}, &explain.Answer{})
	if err == nil || !strings.Contains(err.Error(), "there is no Service shop/gone") {
		t.Errorf("%v", err)
	}
}
