package observe

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

const publicKey = `{"kty":"EC","crv":"P-256","x":"WFQb12wEMcz_onl5kjbUhrxSKtBUCiGCptEtrb_Vxhk","y":"1mS1IIati1_uoYgGUecd0iAnp73Bn9IFhOpdorCzNro"}`

func TestIssuersHaveTheirDefaults(t *testing.T) {
	got := policy(parse[v1alpha1.MeshPolicy](t, `
spec:
  jwt:
    issuers:
    - {issuer: a, jwks: {inline: '{"keys":[`+publicKey+`]}'}}
    - issuer: b
      audiences: [x]
      jwks: {uri: "https://b.example"}
      fromHeaders: [{name: X-Token, prefix: "T "}]
      fromParams: [p]
      claimsToHeaders: [{header: X-User, claim: sub}]
      clockSkew: 5s
      forward: false
    - {issuer: c, jwks: {configMapKey: c.json}, fromCookies: [c], clockSkew: 0s, forward: true}
    - {issuer: d, jwks: {secretKey: d.json}}
  authorization:
    rules:
    - from: [{requestPrincipals: ["*", a/b], notRequestPrincipals: [a/c]}]
      when: {claims: [{path: [r, s], values: [v], notValues: [w]}]}
`))
	same(t, got.Invalid, "")
	same(t, got.JWT, &mesh.JWT{Issuers: []mesh.Issuer{
		{Issuer: "a", Keys: mesh.ParseKeySet(`{"keys":[` + publicKey + `]}`), ClockSkew: time.Minute},
		{
			Issuer: "b", Audiences: []string{"x"}, URI: "https://b.example",
			Headers: []mesh.TokenHeader{{Name: "x-token", Prefix: "T "}}, Params: []string{"p"},
			ClaimsToHeaders: []mesh.ClaimHeader{{Header: "x-user", Claim: "sub"}}, ClockSkew: 5 * time.Second, Strip: true,
		},
		{Issuer: "c", ConfigMapKey: "c.json", Cookies: []string{"c"}, ClockSkew: time.Second},
		{Issuer: "d", SecretKey: "d.json", ClockSkew: time.Minute},
	}})
	same(t, got.Authorization.Rules, []mesh.Rule{{
		From: []mesh.Source{{
			RequestPrincipals:    []mesh.RequestPrincipal{{Subject: "*"}, {Issuer: "a", Subject: "b"}},
			NotRequestPrincipals: []mesh.RequestPrincipal{{Issuer: "a", Subject: "c"}},
		}},
		When: mesh.Condition{Claims: []mesh.ClaimCondition{{Path: []string{"r", "s"}, Values: []string{"v"}, NotValues: []string{"w"}}}},
	}})
}

func TestTokensThatCannotBeUnderstoodSayWhy(t *testing.T) {
	for name, c := range map[string]struct{ spec, says string }{
		"none":      {`jwt: {issuers: []}`, "spec.jwt.issuers: there is none"},
		"no name":   {`jwt: {issuers: [{jwks: {uri: "https://a"}}]}`, `spec.jwt.issuers[0].issuer: "" is empty or there twice`},
		"twice":     {`jwt: {issuers: [{issuer: a, jwks: {uri: "https://a"}}, {issuer: a, jwks: {uri: "https://a"}}]}`, `spec.jwt.issuers[1].issuer: "a" is empty or there twice`},
		"no keys":   {`jwt: {issuers: [{issuer: a}]}`, "spec.jwt.issuers[0].jwks: the keys are in one place"},
		"both keys": {`jwt: {issuers: [{issuer: a, jwks: {inline: x, uri: "https://a"}}]}`, "spec.jwt.issuers[0].jwks: the keys are in one place"},
		"header":    {`jwt: {issuers: [{issuer: a, jwks: {uri: "https://a"}, claimsToHeaders: [{header: x_a, claim: sub}]}]}`, "spec.jwt.issuers[0].claimsToHeaders[0].header"},
		"cookie":    {`jwt: {issuers: [{issuer: a, jwks: {uri: "https://a"}, fromCookies: [c], forward: false}]}`, "spec.jwt.issuers[0].forward: a token is not taken out of a cookie"},
		"prefix":    {`jwt: {issuers: [{issuer: a, jwks: {uri: "https://a"}, fromHeaders: [{name: a, prefix: "\n"}]}]}`, "spec.jwt.issuers[0].fromHeaders[0].prefix"},
		"skew":      {`jwt: {issuers: [{issuer: a, jwks: {uri: "https://a"}, clockSkew: -1s}]}`, "spec.jwt.issuers[0].clockSkew: -1s is negative"},
		"principal": {`authorization: {rules: [{from: [{requestPrincipals: [a]}]}]}`, "spec.authorization.rules[0].from[0].requestPrincipals[0]: write <issuer>/<subject>"},
		"limit":     {`rateLimit: {rules: [{limit: {requests: 1, unit: Second}, from: [{requestPrincipals: ["*"]}]}]}`, "a rate limit tells callers apart by their certificates"},
	} {
		if got := policy(parse[v1alpha1.MeshPolicy](t, `{spec: {`+c.spec+`}}`)); !strings.Contains(got.Invalid, c.says) {
			t.Errorf("%s: got %q, want it to say %q", name, got.Invalid, c.says)
		}
	}
}

// What claims to be of a URI whose name it does not have is nobody's.
func TestKeySetsOfAConfigMap(t *testing.T) {
	c := parse[corev1.ConfigMap](t, `{metadata: {name: tulle-jwks, namespace: a}, data: {}}`)
	fetched, err := mesh.WriteFetched("https://a.example", mesh.ParseKeySet(`{"keys":[`+publicKey+`]}`))
	if err != nil {
		t.Fatal(err)
	}
	c.Data = map[string]string{
		"mine.json": `{"keys":[` + publicKey + `]}`, "bad.json": "x",
		mesh.FetchedKey("https://a.example"): fetched, mesh.FetchedKey("https://b.example"): fetched, mesh.FetchedPrefix + "x": "x",
	}
	keys := keys(c)
	want := mesh.ParseKeySet(c.Data["mine.json"])
	same(t, keys, &mesh.Keys{Namespace: "a", Sets: map[string]*mesh.KeySet{
		"mine.json": want, "bad.json": mesh.ParseKeySet("x"), mesh.FetchedKey("https://a.example"): want,
	}})
}

// A private key in a Secret is used for nothing, nor are those beside it, and the status
// has none of it.
func TestKeySetsOfASecret(t *testing.T) {
	private := map[string]string{
		"d": strings.TrimSuffix(publicKey, "}") + `,"d":"hidden"}`, "k": `{"kty":"oct","k":"hidden"}`, "p": `{"kty":"RSA","n":"x","e":"AQAB","p":"hidden"}`,
	}
	s := parse[corev1.Secret](t, `{metadata: {name: tulle-jwks, namespace: a}}`)
	s.Data = map[string][]byte{"good.json": []byte(`{"keys":[` + publicKey + `]}`), "bad.json": []byte("x")}
	for name, key := range private {
		s.Data[name] = []byte(`{"keys":[` + publicKey + `,` + key + `]}`)
	}
	got := secretKeys(s)
	same(t, got.Secret, true)
	same(t, got.Sets["good.json"], mesh.ParseKeySet(string(s.Data["good.json"])))
	same(t, got.Sets["bad.json"], mesh.ParseKeySet("x"))
	for name := range private {
		set := got.Sets[name]
		if set.JWKS != "" || !strings.Contains(set.Problem, "keys[1] has a private part ("+name+")") || strings.Contains(set.Problem, "hidden") {
			t.Errorf("%s: %+v", name, set)
		}
	}
}
