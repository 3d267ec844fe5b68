package explain

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"math"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var (
	issuerNames   = []string{"https://a.example", "https://b.example/x", "c"}
	audiences     = []string{"shop", "till", "https://shop.example/", "shop.example"}
	sentAudiences = []any{nil, "shop", "shop", "Shop", []any{"x", "shop"}, []any{}, "https://shop/", "http://shop.example", "shop.example/", []any{"till"}, true, []any{1}, ""}
	principals    = []mesh.RequestPrincipal{
		{Subject: "*"}, {Issuer: "https://a.example", Subject: "*"}, {Issuer: "https://a.example", Subject: "alice"}, {Issuer: "https://b.example/x", Subject: "al*"}, {Issuer: "c", Subject: "bob"}, {Issuer: "gone", Subject: "*"},
	}
	subjects    = []any{"alice", "alice", "bob", "al", "Alice", "", nil, 7}
	claimPaths  = [][]string{{"sub"}, {"role"}, {"role"}, {"scope"}, {"scp"}, {"realm", "roles"}, {"realm"}, {"realm", "deep", "er"}, {"n"}, {"ok"}, {"iss"}, {"aud"}}
	claimValues = []string{"clerk", "clerk", "cl*", "*rk", "*", "read", "write", "7", "7.5", "7.500000", "1e3", "true", "false", "alice", "shop", "null", "https://a.example", "0x10", "07", "9007199254740993", "clerk boss"}
	sentClaims  = []any{
		"clerk", "clerk", "Clerk", "boss", "", "read", "write read", " read  write ", "7", 7, 7.5, 1000, math.Copysign(0, -1), 16, 9007199254740992, true, false, nil, "true", "null", "clerk boss",
		[]any{"clerk"},
		[]any{"x", "clerk", 7, true},
		[]any{},
		[]any{[]any{"clerk"}},
		map[string]any{"clerk": "clerk"},
		[]any{nil},
	}
)

// issuerKey is the key of all issuers: what it is is no matter of these tests.
var issuerKey = sync.OnceValues(func() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) })

// publicKeys is the issuers' key set.
var publicKeys = sync.OnceValue(func() *mesh.KeySet {
	key, err := issuerKey()
	if err != nil {
		return &mesh.KeySet{}
	}
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), Algorithm: string(jose.ES256)}}})
	if err != nil {
		return &mesh.KeySet{}
	}
	return mesh.ParseKeySet(string(b))
})

// jwt believes some of the issuers, and looks for their tokens at several places.
func (g generator) jwt() *mesh.JWT {
	out := &mesh.JWT{}
	for _, n := range g.Perm(len(issuerNames))[:2+g.IntN(2)] {
		i := mesh.Issuer{Issuer: issuerNames[n], Audiences: some(g, 30, audiences), Keys: publicKeys(), Strip: g.chance(20)}
		if g.chance(7) {
			i.Keys = &mesh.KeySet{Problem: "they cannot be had"}
		}
		switch g.IntN(6) {
		case 0:
			i.Headers = []mesh.TokenHeader{{Name: "x-token", Prefix: "is "}}
		case 1:
			i.Headers = []mesh.TokenHeader{{Name: "x-other-token"}, {Name: "authorization", Prefix: "Bearer "}}
		case 2:
			i.Cookies, i.Strip = []string{"token"}, false
		}
		if g.chance(40) {
			i.ClaimsToHeaders = []mesh.ClaimHeader{{Header: pick(g, headerNames), Claim: pick(g, []string{"sub", "role", "realm.roles", "n"})}}
		}
		out.Issuers = append(out.Issuers, i)
	}
	return out
}

// tokenRule is about the token that a request has, or about headers that claims are in.
func (g generator) tokenRule() mesh.Rule {
	r := mesh.Rule{Action: pick(g, []mesh.Action{mesh.Allow, mesh.Allow, mesh.Deny})}
	if g.chance(30) {
		r.From = []mesh.Source{said(func() mesh.Source {
			return mesh.Source{RequestPrincipals: some(g, 60, principals), NotRequestPrincipals: some(g, 30, principals)}
		})}
	}
	if g.chance(40) {
		h := mesh.HeaderCondition{Name: pick(g, headerNames), Values: g.several(append(claimValues, "admin", "user"))}
		if g.chance(30) {
			h.Values, h.NotValues = nil, h.Values
		}
		r.When.Headers = append(r.When.Headers, h)
	}
	if g.chance(70) {
		c := mesh.ClaimCondition{Path: pick(g, claimPaths), Values: g.several(claimValues)}
		if g.chance(30) {
			c.Values, c.NotValues = nil, c.Values
		}
		r.When.Claims = append(r.When.Claims, c)
	}
	return r
}

func (g generator) several(from []string) (out []string) {
	for range 4 {
		out = append(out, pick(g, from))
	}
	return out
}

func (g generator) claims() map[string]any {
	out := map[string]any{"iss": pick(g, issuerNames)}
	if g.chance(8) {
		out["iss"] = pick(g, []any{"gone", "", 7, nil, "https://a.example/"})
	}
	for name, from := range map[string][]any{"sub": subjects, "aud": sentAudiences} {
		if v := pick(g, from); v != nil {
			out[name] = v
		}
	}
	for _, name := range []string{"role", "scope", "scp", "n", "ok", "realm"} {
		if g.chance(50) {
			out[name] = pick(g, sentClaims)
		}
	}
	if g.chance(50) {
		out["realm"] = map[string]any{"roles": pick(g, sentClaims), "deep": map[string]any{"er": pick(g, sentClaims)}}
	}
	// As encoding/json reads it.
	b, _ := json.Marshal(out)
	clear(out)
	_ = json.Unmarshal(b, &out)
	return out
}

// carrying is the request with its token, where one of its issuer's is looked for.
func carrying(t *testing.T, r Request, of translate.Tokens) Request {
	t.Helper()
	if r.HTTP == nil || r.HTTP.Claims == nil {
		return r
	}
	key, err := issuerKey()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	claims := maps.Clone(r.HTTP.Claims)
	claims["exp"] = time.Now().Add(time.Hour).Unix()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	place := mesh.Issuer{}
	for n, i := range of.Issuers() {
		if n == 0 || i.Issuer == claims["iss"] {
			place = i
		}
	}
	line := mesh.Header{Name: "authorization", Value: "Bearer " + token}
	switch {
	case len(place.Headers) > 0:
		line = mesh.Header{Name: place.Headers[0].Name, Value: place.Headers[0].Prefix + token}
	case len(place.Cookies) > 0:
		line = mesh.Header{Name: "cookie", Value: place.Cookies[0] + "=" + token}
	}
	sent := *r.HTTP
	sent.Headers = append(sent.Headers[:len(sent.Headers):len(sent.Headers)], line)
	r.HTTP = &sent
	return r
}
