package mesh

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"math/big"
	"strings"
	"testing"

	jose "github.com/go-jose/go-jose/v4"
)

func member(t *testing.T, k jose.JSONWebKey) string {
	t.Helper()
	b, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestKeySetHasWhatVerifiesAndNothingSecret(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		keys    []string
		kept    int
		problem string // a part; empty: none
	}{
		"public":                {[]string{member(t, jose.JSONWebKey{Key: ec.Public(), KeyID: "a"}), member(t, jose.JSONWebKey{Key: long.Public()}), member(t, jose.JSONWebKey{Key: ed.Public()})}, 3, ""},
		"private":               {[]string{member(t, jose.JSONWebKey{Key: ec}), member(t, jose.JSONWebKey{Key: long}), member(t, jose.JSONWebKey{Key: ed})}, 3, ""},
		"for encryption":        {[]string{member(t, jose.JSONWebKey{Key: ec.Public(), Use: "enc"}), member(t, jose.JSONWebKey{Key: ec.Public(), Use: "sig"})}, 1, ""},
		"for encryption alone":  {[]string{member(t, jose.JSONWebKey{Key: ec.Public(), Use: "enc"})}, 0, "no key for signatures"},
		"short":                 {[]string{member(t, jose.JSONWebKey{Key: short.Public()}), member(t, jose.JSONWebKey{Key: ec.Public()})}, 1, "keys[0] is left out: an RSA key has 2048 bits at least"},
		"long":                  {[]string{member(t, jose.JSONWebKey{Key: &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 8192, 1), E: 65537}})}, 0, "of a kind that is not known"},
		"even":                  {[]string{member(t, jose.JSONWebKey{Key: &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int), 2048, 1), E: 65537}})}, 0, "no RSA key that can be used"},
		"exponent of one":       {[]string{member(t, jose.JSONWebKey{Key: &rsa.PublicKey{N: long.N, E: 1}})}, 0, "keys[0] is left out"},
		"exponent of two":       {[]string{member(t, jose.JSONWebKey{Key: &rsa.PublicKey{N: long.N, E: 2}})}, 0, "keys[0] is left out"},
		"symmetric":             {[]string{member(t, jose.JSONWebKey{Key: []byte("secret")})}, 0, "it is symmetric"},
		"symmetric beside":      {[]string{member(t, jose.JSONWebKey{Key: ec.Public()}), member(t, jose.JSONWebKey{Key: []byte("secret"), Algorithm: "HS256"})}, 1, "keys[1] is left out: it is symmetric"},
		"RSA posing as HMAC":    {[]string{member(t, jose.JSONWebKey{Key: long.Public(), Algorithm: "HS256"})}, 0, `its alg "HS256" is not one of its kind of key`},
		"EC posing as RSA":      {[]string{member(t, jose.JSONWebKey{Key: ec.Public(), Algorithm: "RS256"})}, 0, `its alg "RS256" is not one of its kind of key`},
		"alg none":              {[]string{member(t, jose.JSONWebKey{Key: ec.Public(), Algorithm: "none"})}, 0, `its alg "none"`},
		"of an unknown kind":    {[]string{`{"kty":"new"}`, member(t, jose.JSONWebKey{Key: ec.Public()})}, 1, "of a kind that is not known"},
		"a point off the curve": {[]string{`{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}`}, 0, "not well formed"},
		"too many":              {slicesOf(member(t, jose.JSONWebKey{Key: long.Public()}), 200), 0, "leave out those that no token is signed with"},
	} {
		set := ParseKeySet(`{"keys":[` + strings.Join(c.keys, ",") + `]}`)
		var got jose.JSONWebKeySet
		if set.JWKS != "" {
			if err := json.Unmarshal([]byte(set.JWKS), &got); err != nil {
				t.Fatal(err)
			}
		}
		if len(got.Keys) != c.kept || !strings.Contains(set.Problem, c.problem) || (c.problem == "") != (set.Problem == "") {
			t.Errorf("%s: %d keys, %q; want %d, %q", name, len(got.Keys), set.Problem, c.kept, c.problem)
		}
		for _, k := range got.Keys {
			if !k.IsPublic() {
				t.Errorf("%s: a private key is kept", name)
			}
		}
		if again := ParseKeySet(set.JWKS); set.JWKS != "" && *again != (KeySet{JWKS: set.JWKS}) {
			t.Errorf("%s: read again it is %+v", name, again)
		}
	}
	for _, text := range []string{"", "x", "{}", "[]", `{"keys":"x"}`} {
		if set := ParseKeySet(text); set.JWKS != "" || set.Problem == "" {
			t.Errorf("%q is %+v, want a problem", text, set)
		}
	}
}

func slicesOf(text string, n int) (out []string) {
	for range n {
		out = append(out, text)
	}
	return out
}

func TestKeysThatWereFetchedAreReadAsTheyWereWritten(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwks := ParseKeySet(`{"keys":[` + member(t, jose.JSONWebKey{Key: ec.Public()}) + `]}`).JWKS
	for _, set := range []KeySet{{JWKS: jwks}, {JWKS: jwks, Problem: "it is old"}, {Problem: "nobody answers"}} {
		text, err := WriteFetched("https://a.example", &set)
		if err != nil {
			t.Fatal(err)
		}
		uri, got, err := ReadFetched(text)
		if err != nil || uri != "https://a.example" || *got != set {
			t.Errorf("%+v is read as %s, %+v: %v", set, uri, got, err)
		}
	}
	if _, _, err := ReadFetched("x"); err == nil {
		t.Error("what is no JSON is read")
	}
}

func TestRequestPrincipalsAreCutAtTheLastSlash(t *testing.T) {
	for text, want := range map[string]RequestPrincipal{
		"*": {Subject: "*"}, "https://a.example/realm/alice": {"https://a.example/realm", "alice"},
		"https://a.example/*": {"https://a.example", "*"}, "issuer/svc-*": {"issuer", "svc-*"},
		"https://a.example//x": {"https://a.example/", "x"},
	} {
		if got, problem := ParseRequestPrincipal(text); problem != "" || got != want {
			t.Errorf("%s is %+v %s, want %+v", text, got, problem, want)
		}
	}
	for _, text := range []string{"", "alice", "/alice", "issuer/", "https://*/alice", "*/alice", "issuer/a*b", "issuer/**"} {
		if got, problem := ParseRequestPrincipal(text); problem == "" {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}
