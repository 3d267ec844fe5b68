package translate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// issuer makes tokens with a key of its own.
type issuer struct {
	t    *testing.T
	name string
	key  crypto.Signer
	alg  jose.SignatureAlgorithm
	id   string
}

func newIssuer(t *testing.T, name string, alg jose.SignatureAlgorithm) *issuer {
	t.Helper()
	out := &issuer{t: t, name: name, alg: alg, id: fmt.Sprint("key-", time.Now().UnixNano())}
	var err error
	if alg == jose.ES256 {
		out.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	} else {
		out.key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// keys is what the issuer publishes, as the mesh keeps it.
func (i *issuer) keys() *mesh.KeySet {
	i.t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.id, Algorithm: string(i.alg), Use: "sig"}}})
	if err != nil {
		i.t.Fatal(err)
	}
	set := mesh.ParseKeySet(string(b))
	if set.Problem != "" {
		i.t.Fatal(set.Problem)
	}
	return set
}

type claimsOf map[string]any

// token has the claims over those that make it valid; one that is nil is left out.
func (i *issuer) token(over claimsOf) string {
	i.t.Helper()
	return i.signed(jose.SigningKey{Algorithm: i.alg, Key: jose.JSONWebKey{Key: i.key, KeyID: i.id}}, i.claims(over))
}

func (i *issuer) claims(over claimsOf) []byte {
	i.t.Helper()
	all := claimsOf{"iss": i.name, "sub": "alice", "aud": "shop", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, over)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	b, err := json.Marshal(all)
	if err != nil {
		i.t.Fatal(err)
	}
	return b
}

func (i *issuer) signed(with jose.SigningKey, payload []byte) string {
	i.t.Helper()
	s, err := jose.NewSigner(with, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		i.t.Fatal(err)
	}
	o, err := s.Sign(payload)
	if err != nil {
		i.t.Fatal(err)
	}
	text, err := o.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

// unsigned says that it needs no signature (RFC 7519, section 6).
func (i *issuer) unsigned() string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + encode(i.claims(nil)) + "."
}

// confused is signed with the public key as though it were a secret that both sides have
// (RFC 8725, section 2.1).
func (i *issuer) confused() []string {
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		i.t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	var out []string
	for _, secret := range [][]byte{der, text, []byte(strings.TrimSpace(string(text))), i.key.Public().(*rsa.PublicKey).N.Bytes()} {
		out = append(out, i.signed(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: secret, KeyID: i.id}}, i.claims(nil)))
	}
	return out
}

func bearer(token string) []string {
	return []string{"GET / HTTP/1.1", "host: web", "authorization: Bearer " + token}
}

func auth(value string) []string {
	return []string{"GET / HTTP/1.1", "host: web", "authorization: " + value}
}

func withTokens(issuers ...mesh.Issuer) *mesh.Policy {
	return &mesh.Policy{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "tokens"}},
		JWT:  &mesh.JWT{Issuers: issuers},
	}
}

func TestTokenThatIsThereMustBeValid(t *testing.T) {
	app := startApplication(t)
	rs, es := newIssuer(t, "https://rs.example", jose.RS256), newIssuer(t, "https://es.example", jose.ES256)
	other := newIssuer(t, rs.name, jose.RS256)
	lost := newIssuer(t, "https://lost.example", jose.RS256)
	s := startSidecar(t, app.Addr(), meshConfig(), withTokens(
		mesh.Issuer{Issuer: rs.name, Audiences: []string{"shop", "till"}, Keys: rs.keys(), ClockSkew: 2 * time.Second},
		mesh.Issuer{Issuer: es.name, Keys: es.keys()},
		mesh.Issuer{Issuer: lost.name, Keys: &mesh.KeySet{Problem: "they cannot be had"}},
	))
	attempts := map[string]attempt{
		"none":                            {want: 200},
		"none, with mesh mTLS":            {from: friend, want: 200},
		"RS256":                           {lines: bearer(rs.token(nil)), want: 200},
		"RS256, with mesh mTLS":           {from: friend, lines: bearer(rs.token(nil)), want: 200},
		"ES256":                           {lines: bearer(es.token(nil)), want: 200},
		"one of several audiences":        {lines: bearer(rs.token(claimsOf{"aud": []string{"x", "till"}})), want: 200},
		"any audience where none asked":   {lines: bearer(es.token(claimsOf{"aud": nil})), want: 200},
		"no subject":                      {lines: bearer(rs.token(claimsOf{"sub": nil})), want: 200},
		"expired":                         {lines: bearer(rs.token(claimsOf{"exp": time.Now().Add(-10 * time.Second).Unix()})), want: 401},
		"expired, with mesh mTLS":         {from: friend, lines: bearer(rs.token(claimsOf{"exp": time.Now().Add(-10 * time.Second).Unix()})), want: 401},
		"expired within the default skew": {lines: bearer(es.token(claimsOf{"exp": time.Now().Add(-10 * time.Second).Unix()})), want: 200},
		"not yet":                         {lines: bearer(rs.token(claimsOf{"nbf": time.Now().Add(time.Hour).Unix()})), want: 401},
		"another audience":                {lines: bearer(rs.token(claimsOf{"aud": "bank"})), want: 403},
		"no audience":                     {lines: bearer(rs.token(claimsOf{"aud": nil})), want: 403},
		"another issuer":                  {lines: bearer(rs.token(claimsOf{"iss": "https://evil.example"})), want: 401},
		"the other issuer's name":         {lines: bearer(rs.token(claimsOf{"iss": es.name})), want: 401},
		"no issuer":                       {lines: bearer(rs.token(claimsOf{"iss": nil})), want: 401},
		"another's key":                   {lines: bearer(other.token(nil)), want: 401},
		"an issuer without keys":          {lines: bearer(lost.token(nil)), want: 401},
		"alg none":                        {lines: bearer(rs.unsigned()), want: 401},
		"no token at all":                 {lines: bearer("opaque"), want: 401},
		"empty":                           {lines: bearer(""), want: 200},
		"another scheme":                  {lines: []string{"GET / HTTP/1.1", "host: web", "authorization: Basic YTpi"}, want: 200},
		"two, of which one is not valid":  {lines: append(bearer(rs.token(nil)), "authorization: Bearer "+rs.unsigned()), want: 401},
		"two, of which the first is bad":  {lines: append(bearer(rs.unsigned()), "authorization: Bearer "+rs.token(nil)), want: 401},
		"another case of the scheme":      {lines: auth("bearer " + rs.unsigned()), want: 403},
		"a valid one in another case":     {lines: auth("BEARER " + rs.token(nil)), want: 403},
		"a tab after the scheme":          {lines: auth("Bearer\t" + rs.unsigned()), want: 403},
		"another scheme before":           {lines: append(auth("Basic YTpi"), "authorization: bearer "+rs.unsigned()), want: 403},
		"a valid one before":              {lines: append(bearer(rs.token(nil)), "authorization: bearer "+rs.unsigned()), want: 401},
		"two blanks after the scheme":     {lines: auth("Bearer  " + rs.token(nil)), want: 200},
		"an expired one in the query":     {lines: []string{"GET /?access_token=" + rs.unsigned() + " HTTP/1.1", "host: web"}, want: 200},
	}
	for i, token := range rs.confused() {
		attempts[fmt.Sprintf("HS256 with the public key, %d", i)] = attempt{lines: bearer(token), want: 401}
	}
	s.expect(attempts)
	// The application gets the token, and no token is taken away where nobody asked.
	app.take()
	token := rs.token(nil)
	s.expect(map[string]attempt{"valid": {lines: bearer(token), want: 200}})
	if got := strings.Join(app.take(), ""); !strings.Contains(got, "authorization: Bearer "+token+"\n") {
		t.Errorf("the application got\n%swant the token as it was sent", got)
	}
}

// Every key that a set may have is one that Envoy takes, whatever stands beside it, and
// verifies by.
func TestKeysOfEveryKind(t *testing.T) {
	app := startApplication(t)
	generate := func(key crypto.Signer, err error) crypto.Signer {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	var rsaKey, p256, p384, p521, ed crypto.Signer
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	rsaKey = generate(k, err)
	for curve, to := range map[elliptic.Curve]*crypto.Signer{elliptic.P256(): &p256, elliptic.P384(): &p384, elliptic.P521(): &p521} {
		e, err := ecdsa.GenerateKey(curve, rand.Reader)
		*to = generate(e, err)
	}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	ed = generate(e, err)
	longest := &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 4096), big.NewInt(1)), E: 3}
	algorithms := map[jose.SignatureAlgorithm]crypto.Signer{
		jose.RS256: rsaKey, jose.RS384: rsaKey, jose.RS512: rsaKey, jose.PS256: rsaKey, jose.PS384: rsaKey, jose.PS512: rsaKey,
		jose.ES256: p256, jose.ES384: p384, jose.ES512: p521, jose.EdDSA: ed,
	}
	var issuers []mesh.Issuer
	alone := func(name string, keys ...any) {
		var set jose.JSONWebKeySet
		for _, k := range keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k})
		}
		b, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		parsed := mesh.ParseKeySet(string(b))
		if parsed.Problem != "" {
			t.Fatal(parsed.Problem)
		}
		issuers = append(issuers, mesh.Issuer{Issuer: name, Keys: parsed})
	}
	alone("all", rsaKey.Public(), p256.Public(), p384.Public(), p521.Public(), ed.Public(), longest, longest)
	alone("longest", longest)
	alone("P-384", p384.Public())
	alone("P-521", p521.Public())
	alone("Ed25519", ed.Public())
	s := startSidecar(t, app.Addr(), meshConfig(), withTokens(issuers...))
	for alg, key := range algorithms {
		i := &issuer{t: t, name: "all", key: key, alg: alg}
		s.expect(map[string]attempt{string(alg): {lines: bearer(i.token(nil)), want: 200}})
	}
}

func TestTokensPassUntouchedWithoutJWT(t *testing.T) {
	app := startApplication(t)
	rs := newIssuer(t, "https://rs.example", jose.RS256)
	s := startSidecar(t, app.Addr(), meshConfig())
	for _, token := range []string{rs.token(nil), rs.unsigned(), "opaque"} {
		s.expect(map[string]attempt{token: {from: friend, lines: bearer(token), want: 200}})
		if got := strings.Join(app.take(), ""); !strings.Contains(got, "authorization: Bearer "+token+"\n") {
			t.Errorf("the application got\n%swant the token as it was sent", got)
		}
	}
}

func TestTokenIsLookedForWhereThePolicySays(t *testing.T) {
	app := startApplication(t)
	rs := newIssuer(t, "https://rs.example", jose.RS256)
	good, bad := rs.token(nil), rs.unsigned()
	get := func(target string, headers ...string) []string {
		return append([]string{"GET " + target + " HTTP/1.1", "host: web"}, headers...)
	}
	policy := withTokens(mesh.Issuer{
		Issuer: rs.name, Keys: rs.keys(), Strip: true,
		Headers: []mesh.TokenHeader{{Name: "x-token", Prefix: "Token "}, {Name: "x-raw"}}, Params: []string{"token"}, Cookies: []string{"session"},
	})
	s := startSidecar(t, app.Addr(), meshConfig(), policy, authorized(mesh.Rule{From: []mesh.Source{{RequestPrincipals: []mesh.RequestPrincipal{{Subject: "*"}}}}}))
	for name, a := range map[string]attempt{
		"header":                       {lines: get("/", "x-token: Token "+good), want: 200},
		"header without prefix":        {lines: get("/", "x-raw: "+good), want: 200},
		"query":                        {lines: get("/?a=b&token=" + good), want: 200},
		"cookie":                       {lines: get("/", "cookie: a=b; session="+good), want: 200},
		"bad header":                   {lines: get("/", "x-token: Token "+bad), want: 401},
		"bad query":                    {lines: get("/?token=" + bad), want: 401},
		"bad cookie":                   {lines: get("/", "cookie: session="+bad), want: 401},
		"good header, bad query":       {lines: get("/?token="+bad, "x-token: Token "+good), want: 401},
		"good cookie, bad header":      {lines: get("/", "cookie: session="+good, "x-raw: "+bad), want: 401},
		"bad cookie, good query":       {lines: get("/?token="+good, "cookie: session="+bad), want: 401},
		"two that are valid":           {lines: get("/?token="+good, "x-raw: "+good), want: 403},
		"two in the query, bad first":  {lines: get("/?token=" + bad + "&token=" + good), want: 403},
		"two in the query, bad last":   {lines: get("/?token=" + good + "&token=" + bad), want: 403},
		"two cookies, bad last":        {lines: get("/", "cookie: session="+good+"; session="+bad), want: 403},
		"two cookie lines, bad last":   {lines: get("/", "cookie: session="+good, "cookie: session="+bad), want: 403},
		"two header lines, bad last":   {lines: get("/", "x-raw: "+good, "x-raw: "+bad), want: 403},
		"two with a prefix, bad last":  {lines: get("/", "x-token: Token "+good, "x-token: Token "+bad), want: 403},
		"two with a prefix in a list":  {lines: get("/", "x-token: Token "+good+", Token "+bad), want: 403},
		"another case of the prefix":   {lines: get("/", "x-raw: "+good, "x-token: token "+bad), want: 403},
		"another spelling of the name": {lines: get("/", "x-raw: "+good, "x_token: Token "+bad), want: 403},
		"the other's name, too":        {lines: get("/", "x-raw: "+good, "X_Raw: "+bad), want: 403},
		"a blank after the cookie":     {lines: get("/", "x-raw: "+good, "cookie: a=b; session ="+bad), want: 403},
		"a tab before the cookie":      {lines: get("/", "x-raw: "+good, "cookie: a=b;\tsession="+bad), want: 403},
		"a blank between cookies":      {lines: get("/", "x-raw: "+good, "cookie: a=b session="+bad), want: 403},
		"a comma between cookies":      {lines: get("/", "x-raw: "+good, "cookie: a=b, session="+bad), want: 403},
		"another cookie like it":       {lines: get("/", "x-raw: "+good, "cookie: a=b; xsession=c; session2=d; e=session"), want: 200},
		"a semicolon in the query":     {lines: get("/?a=b;%74oken="+bad, "x-raw: "+good), want: 403},
		"another parameter like it":    {lines: get("/;token=x?a=b;xtoken=c;token2=d", "x-raw: "+good), want: 200},
		"another scheme with a list":   {lines: get("/", "x-token: Digest a=b, c=d", "x-raw: "+good), want: 200},
		"escaped name, bad last":       {lines: get("/?token=" + good + "&%74oken=" + bad), want: 403},
		"escaped name, bad":            {lines: get("/?%74oken=" + bad), want: 401},
		"another place, so none":       {lines: bearer(good), want: 401},
		"none":                         {lines: get("/"), want: 401},
		"good query, but not the name": {lines: get("/?access_token=" + good), want: 401},
	} {
		app.take()
		s.expect(map[string]attempt{name: a})
		got := strings.Join(app.take(), "")
		if a.want == 200 && strings.Contains(got, good) && name != "cookie" { // which Envoy leaves, so the API refuses it
			t.Errorf("%s: the application got the token, and was not to:\n%s", name, got)
		}
	}
}

// What the API takes for a place Envoy takes, too, and what is refused there is.
func TestTheLongestPlacesOfTokensAreTaken(t *testing.T) {
	app := startApplication(t)
	rs := newIssuer(t, "https://rs.example", jose.RS256)
	good, bad := rs.token(nil), rs.unsigned()
	name, prefix := strings.Repeat("o", 64), strings.Repeat("k", 31)+" "
	s := startSidecar(t, app.Addr(), meshConfig(), withTokens(mesh.Issuer{
		Issuer: rs.name, Keys: rs.keys(),
		Headers: []mesh.TokenHeader{{Name: "a-b-c-d-e-" + name[:54], Prefix: prefix}}, Params: []string{name}, Cookies: []string{name},
	}))
	get := func(target string, headers ...string) []string {
		return append([]string{"GET " + target + " HTTP/1.1", "host: web"}, headers...)
	}
	s.expect(map[string]attempt{
		"header":                   {lines: get("/", "a-b-c-d-e-"+name[:54]+": "+prefix+good), want: 200},
		"query":                    {lines: get("/?" + name + "=" + good), want: 200},
		"cookie":                   {lines: get("/", "cookie: "+name+"="+good), want: 200},
		"two in the query":         {lines: get("/?" + name + "=" + good + "&" + name + "=" + bad), want: 403},
		"two cookies":              {lines: get("/", "cookie: "+name+"="+good+"; "+name+"="+bad), want: 403},
		"another case":             {lines: get("/", "a-b-c-d-e-"+name[:54]+": "+strings.ToUpper(prefix)+bad), want: 403},
		"another name":             {lines: get("/", "a_b-c_d-e-"+name[:54]+": "+prefix+bad), want: 403},
		"a semicolon":              {lines: get("/?a;" + name + "=" + bad), want: 403},
		"a blank after the cookie": {lines: get("/", "cookie: "+name+" ="+bad), want: 403},
	})
}

// Claims of the token decide, and nothing that is not in a valid token does.
func TestRulesAboutClaims(t *testing.T) {
	app := startApplication(t)
	a, b := newIssuer(t, "https://a.example/realm", jose.RS256), newIssuer(t, "https://b.example", jose.ES256)
	tokens := withTokens(mesh.Issuer{Issuer: a.name, Keys: a.keys()}, mesh.Issuer{Issuer: b.name, Keys: b.keys()})
	claim := func(action mesh.Action, c mesh.ClaimCondition) mesh.Rule {
		return mesh.Rule{Action: action, When: mesh.Condition{Claims: []mesh.ClaimCondition{c}}}
	}
	principal := func(action mesh.Action, texts ...string) mesh.Rule {
		var s mesh.Source
		for _, text := range texts {
			not := strings.HasPrefix(text, "!")
			p, problem := mesh.ParseRequestPrincipal(strings.TrimPrefix(text, "!"))
			if problem != "" {
				t.Fatal(problem)
			}
			if not {
				s.NotRequestPrincipals = append(s.NotRequestPrincipals, p)
			} else {
				s.RequestPrincipals = append(s.RequestPrincipals, p)
			}
		}
		return mesh.Rule{Action: action, From: []mesh.Source{s}}
	}
	roles := []string{"realm_access", "roles"}
	type tries map[string]struct {
		token string
		want  int
	}
	for _, c := range []struct {
		name string
		rule mesh.Rule
		tries
	}{
		{"allow a claim in a list", claim(mesh.Allow, mesh.ClaimCondition{Path: roles, Values: []string{"admin", "op*"}}), tries{
			"in the list":  {a.token(claimsOf{"realm_access": claimsOf{"roles": []string{"user", "admin"}}}), 200},
			"by prefix":    {a.token(claimsOf{"realm_access": claimsOf{"roles": []string{"operator"}}}), 200},
			"as a text":    {a.token(claimsOf{"realm_access": claimsOf{"roles": "admin"}}), 200},
			"not in it":    {a.token(claimsOf{"realm_access": claimsOf{"roles": []string{"user"}}}), 403},
			"another path": {a.token(claimsOf{"roles": []string{"admin"}}), 403},
			"no such":      {a.token(nil), 403},
			"no token":     {"", 401},
			"not valid":    {a.unsigned(), 401},
		}},
		{"allow by not having", claim(mesh.Allow, mesh.ClaimCondition{Path: []string{"role"}, NotValues: []string{"guest"}}), tries{
			"has not": {a.token(nil), 200}, "has": {a.token(claimsOf{"role": "guest"}), 403},
			"in a list": {a.token(claimsOf{"role": []string{"x", "guest"}}), 403}, "no token": {"", 401},
		}},
		{"deny a claim", claim(mesh.Deny, mesh.ClaimCondition{Path: []string{"role"}, Values: []string{"guest"}}), tries{
			"has": {a.token(claimsOf{"role": "guest"}), 403}, "has not": {a.token(nil), 200}, "no token": {"", 200},
		}},
		{"deny all without a claim", claim(mesh.Deny, mesh.ClaimCondition{Path: []string{"role"}, NotValues: []string{"admin"}}), tries{
			"has": {a.token(claimsOf{"role": "admin"}), 200}, "has not": {a.token(nil), 403}, "no token": {"", 401},
		}},
		{"other kinds of values", claim(mesh.Allow, mesh.ClaimCondition{Path: []string{"v"}, Values: []string{"true", "7"}}), tries{
			"bool": {a.token(claimsOf{"v": true}), 200}, "number": {a.token(claimsOf{"v": 7}), 200}, "number in a list": {a.token(claimsOf{"v": []int{5, 7}}), 200},
			"text": {a.token(claimsOf{"v": "7"}), 200}, "false": {a.token(claimsOf{"v": false}), 403}, "another": {a.token(claimsOf{"v": 8}), 403},
		}},
		{"numbers that are no such text", claim(mesh.Allow, mesh.ClaimCondition{Path: []string{"v"}, Values: []string{"007", "1e3", "9007199254740993", "9007199254740991"}}), tries{
			"7": {a.token(claimsOf{"v": 7}), 403}, "a text": {a.token(claimsOf{"v": "007"}), 200}, "1000": {a.token(claimsOf{"v": 1000}), 403},
			"next to one that is too large": {a.token(claimsOf{"v": int64(9007199254740992)}), 403}, "too large": {a.token(claimsOf{"v": int64(9007199254740993)}), 403},
			"as a text": {a.token(claimsOf{"v": "9007199254740993"}), 200}, "the largest": {a.token(claimsOf{"v": int64(9007199254740991)}), 200},
		}},
		{"deny numbers that are no such text", claim(mesh.Deny, mesh.ClaimCondition{Path: []string{"v"}, Values: []string{"007", "9007199254740993"}}), tries{
			"7": {a.token(claimsOf{"v": 7}), 403}, "too large": {a.token(claimsOf{"v": int64(9007199254740993)}), 403}, "8": {a.token(claimsOf{"v": 8}), 200},
		}},
		{"deny all but a number that is too large", claim(mesh.Deny, mesh.ClaimCondition{Path: []string{"v"}, NotValues: []string{"9007199254740993"}}), tries{
			"next to it": {a.token(claimsOf{"v": int64(9007199254740992)}), 403}, "as a text": {a.token(claimsOf{"v": "9007199254740993"}), 200},
		}},
		{"any value", claim(mesh.Allow, mesh.ClaimCondition{Path: []string{"https://a.example/team"}, Values: []string{"*"}}), tries{
			"has": {a.token(claimsOf{"https://a.example/team": "x"}), 200}, "has not": {a.token(nil), 403},
		}},
		{"scopes", claim(mesh.Allow, mesh.ClaimCondition{Path: []string{"scope"}, Values: []string{"write"}}), tries{
			"one of them": {a.token(claimsOf{"scope": "read write"}), 200}, "none": {a.token(claimsOf{"scope": "read writer"}), 403},
		}},
		{"any valid token", principal(mesh.Allow, "*"), tries{
			"one": {a.token(nil), 200}, "without a subject": {a.token(claimsOf{"sub": nil}), 200}, "none": {"", 401}, "not valid": {a.unsigned(), 401},
		}},
		{"an issuer's", principal(mesh.Allow, a.name+"/*"), tries{
			"one": {a.token(nil), 200}, "another's": {b.token(nil), 403}, "none": {"", 401},
		}},
		{"a subject", principal(mesh.Allow, a.name+"/alice", b.name+"/svc-*"), tries{
			"it": {a.token(nil), 200}, "another": {a.token(claimsOf{"sub": "bob"}), 403}, "at another issuer": {b.token(nil), 403},
			"a prefix": {b.token(claimsOf{"sub": "svc-x"}), 200}, "a subject that looks like two": {b.token(claimsOf{"sub": "realm/alice"}), 403},
		}},
		{"deny without a token", principal(mesh.Deny, "!*"), tries{"one": {a.token(nil), 200}, "none": {"", 401}}},
		{"allow all but one", principal(mesh.Allow, "!"+a.name+"/alice"), tries{
			"it": {a.token(nil), 403}, "another": {b.token(nil), 200}, "none": {"", 401},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := startSidecar(t, app.Addr(), meshConfig(), tokens, authorized(c.rule))
			s.t = t
			for name, try := range c.tries {
				var lines []string
				if try.token != "" {
					lines = bearer(try.token)
				}
				s.expect(map[string]attempt{name: {lines: lines, want: try.want}})
			}
		})
	}
}

// Of two valid tokens of a request none counts: it is refused.
func TestClaimsOfTwoTokensAreNotMixed(t *testing.T) {
	app := startApplication(t)
	a, b := newIssuer(t, "https://a.example", jose.RS256), newIssuer(t, "https://b.example", jose.ES256)
	s := startSidecar(t, app.Addr(), meshConfig(),
		withTokens(mesh.Issuer{Issuer: a.name, Keys: a.keys()}, mesh.Issuer{Issuer: b.name, Keys: b.keys(), Headers: []mesh.TokenHeader{{Name: "x-b"}}}),
		authorized(mesh.Rule{
			From: []mesh.Source{{RequestPrincipals: []mesh.RequestPrincipal{{Issuer: a.name, Subject: "*"}}}},
			When: mesh.Condition{Claims: []mesh.ClaimCondition{{Path: []string{"role"}, Values: []string{"admin"}}}},
		}))
	s.expect(map[string]attempt{
		"both in one":           {lines: bearer(a.token(claimsOf{"role": "admin"})), want: 200},
		"one in each":           {lines: append(bearer(a.token(nil)), "x-b: "+b.token(claimsOf{"role": "admin"})), want: 403},
		"two that would do":     {lines: append(bearer(a.token(claimsOf{"role": "admin"})), "x-b: "+b.token(claimsOf{"role": "admin"})), want: 403},
		"one that is not valid": {lines: append(bearer(a.token(claimsOf{"role": "admin"})), "x-b: "+b.unsigned()), want: 401},
		"in the wrong one":      {lines: []string{"GET / HTTP/1.1", "host: web", "x-b: " + b.token(claimsOf{"role": "admin"})}, want: 403},
	})
}

func TestHeadersWithClaimsAreTheTokensAlone(t *testing.T) {
	app := startApplication(t)
	rs := newIssuer(t, "https://rs.example", jose.RS256)
	s := startSidecar(t, app.Addr(), meshConfig(), withTokens(mesh.Issuer{
		Issuer: rs.name, Keys: rs.keys(),
		ClaimsToHeaders: []mesh.ClaimHeader{{Header: "x-jwt-sub", Claim: "sub"}, {Header: "x-role", Claim: "realm.role"}, {Header: "x-groups", Claim: "groups"}},
	}))
	spoofed := []string{"x-jwt-sub: mallory", "X-JWT-Sub: mallory", "x_jwt_sub: mallory", "x-jwt_sub: mallory", "x-role: mallory", "x_role: mallory", "x-groups: mallory"}
	reaches := func(lines []string) string {
		app.take()
		s.expect(map[string]attempt{strings.Join(lines, "|"): {lines: append(lines, spoofed...), want: 200}})
		return strings.Join(app.take(), "")
	}
	if got := reaches([]string{"GET / HTTP/1.1", "host: web"}); strings.Contains(got, "mallory") {
		t.Errorf("without a token the application got\n%s", got)
	}
	got := reaches(bearer(rs.token(claimsOf{"realm": claimsOf{"role": "clerk"}})))
	if strings.Contains(got, "mallory") || !strings.Contains(got, "x-jwt-sub: alice\n") || !strings.Contains(got, "x-role: clerk\n") {
		t.Errorf("with a token the application got\n%s", got)
	}
	if got := reaches(bearer(rs.token(claimsOf{"groups": []string{"a", "b"}}))); !strings.Contains(got, "x-groups: "+base64.StdEncoding.EncodeToString([]byte(`["a","b"]`))) {
		t.Errorf("of a list the application got\n%s", got)
	}
}

// A policy that cannot be understood refuses whatever it selects, and one that asks for
// claims where no jwt section holds lets in nobody.
func TestRulesAboutTokensFailClosed(t *testing.T) {
	app := startApplication(t)
	rs := newIssuer(t, "https://rs.example", jose.RS256)
	lines := bearer(rs.token(nil))
	invalid := withTokens()
	invalid.Invalid = "it makes no sense"
	any := mesh.RequestPrincipal{Subject: "*"}
	for name, policy := range map[string]*mesh.Policy{
		"invalid":              invalid,
		"allow without jwt":    authorized(mesh.Rule{From: []mesh.Source{{RequestPrincipals: []mesh.RequestPrincipal{any}}}}),
		"deny without jwt":     authorized(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{RequestPrincipals: []mesh.RequestPrincipal{any}}}}),
		"deny not without jwt": authorized(mesh.Rule{Action: mesh.Deny, From: []mesh.Source{{NotRequestPrincipals: []mesh.RequestPrincipal{any}}}}),
		"allow claims":         authorized(mesh.Rule{When: mesh.Condition{Claims: []mesh.ClaimCondition{{Path: []string{"x"}, NotValues: []string{"y"}}}}}),
	} {
		s := startSidecar(t, app.Addr(), meshConfig(), policy)
		s.expect(map[string]attempt{name: {lines: lines, want: 403}, name + ", without a token": {want: 403}})
	}
}

func TestNobodyHasTheKeyOfNoKeys(t *testing.T) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(noKeys), &set); err != nil {
		t.Fatal(err)
	}
	x := sha256.Sum256([]byte("nobody has the private key of this point 0"))
	point, err := set.Keys[0].Key.(*ecdsa.PublicKey).Bytes() // uncompressed: 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	if got := point[1:33]; !bytes.Equal(got, x[:]) {
		t.Errorf("x is %x, want the sentence's hash %x", got, x)
	}
}
