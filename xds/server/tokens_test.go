package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const testIssuer = "https://kubernetes.default.svc"

// apiServer signs tokens and publishes its keys, as far as it is up.
type apiServer struct {
	t        testing.TB
	key      *ecdsa.PrivateKey
	kid      string
	issuer   string
	down     atomic.Bool
	fetches  atomic.Int32
	reviewed atomic.Int32
	accepts  Peer // what a review says; zero: refused
	now      time.Time
}

func newAPIServer(t testing.TB) *apiServer {
	a := &apiServer{t: t, issuer: testIssuer, now: time.Now()}
	a.rotate("one")
	return a
}

func (a *apiServer) rotate(kid string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.key, a.kid = key, kid
}

func (a *apiServer) tokens() *Tokens {
	return NewTokens(TokenOptions{
		Now: func() time.Time { return a.now },
		Keys: func(context.Context) ([]byte, error) {
			a.fetches.Add(1)
			if a.down.Load() {
				return nil, errors.New("connection refused")
			}
			return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: a.key.Public(), KeyID: a.kid, Algorithm: "ES256", Use: "sig"}}})
		},
		Issuer: func(context.Context) ([]byte, error) {
			if a.down.Load() {
				return nil, errors.New("connection refused")
			}
			return json.Marshal(map[string]string{"issuer": a.issuer})
		},
		Review: func(context.Context, string) (Peer, error) {
			a.reviewed.Add(1)
			if a.down.Load() {
				return Peer{}, &AuthError{Reason: reasonNoKeys, Temporary: true, Err: errors.New("connection refused")}
			}
			if a.accepts == (Peer{}) {
				return Peer{}, refuse(reasonReview, errors.New("not known"))
			}
			return a.accepts, nil
		},
	})
}

func peer(name string) Peer {
	return Peer{Pod: mesh.Name{Namespace: "shop", Name: name}, UID: "uid-" + name, ServiceAccount: name}
}

// said are the claims of a good token for the peer.
func (a *apiServer) said(p Peer) map[string]any {
	return map[string]any{
		"iss": testIssuer, "aud": []string{Audience}, "sub": "system:serviceaccount:" + p.Pod.Namespace + ":" + p.ServiceAccount,
		"exp": a.now.Add(time.Hour).Unix(), "nbf": a.now.Unix(), "iat": a.now.Unix(),
		"kubernetes.io": map[string]any{
			"namespace":      p.Pod.Namespace,
			"pod":            map[string]string{"name": p.Pod.Name, "uid": p.UID},
			"serviceaccount": map[string]string{"name": p.ServiceAccount, "uid": "u"},
		},
	}
}

func (a *apiServer) sign(claims map[string]any) string {
	return a.signWith(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: a.key, KeyID: a.kid}}, claims)
}

func (a *apiServer) signWith(k jose.SigningKey, claims map[string]any) string {
	a.t.Helper()
	s, err := jose.NewSigner(k, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		a.t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

func (a *apiServer) token(p Peer) string { return a.sign(a.said(p)) }

func reasonOf(t *testing.T, err error) string {
	t.Helper()
	var a *AuthError
	if !errors.As(err, &a) {
		t.Fatalf("the error is %v, not an AuthError", err)
	}
	return a.Reason
}

func TestGoodTokenIsVerifiedWithoutReview(t *testing.T) {
	a := newAPIServer(t)
	tokens := a.tokens()
	for range 3 {
		got, err := tokens.Verify(t.Context(), a.token(peer("web")))
		if err != nil || got != peer("web") {
			t.Fatalf("Verify is %v, %v", got, err)
		}
	}
	if n := a.fetches.Load(); n != 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
	if n := a.reviewed.Load(); n != 0 {
		t.Errorf("%d tokens were reviewed", n)
	}
	a.down.Store(true)
	if _, err := tokens.Verify(t.Context(), a.token(peer("api"))); err != nil {
		t.Errorf("with the API server away: %v", err)
	}
}

func TestBadTokensAreRefused(t *testing.T) {
	a := newAPIServer(t)
	tokens := a.tokens()
	other := newAPIServer(t)
	public, err := json.Marshal(jose.JSONWebKey{Key: a.key.Public(), KeyID: a.kid})
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(c map[string]any)) string {
		c := a.said(peer("web"))
		change(c)
		return a.sign(c)
	}
	for name, test := range map[string]struct{ token, reason string }{
		"no token at all":      {"x", reasonMalformed},
		"another audience":     {changed(func(c map[string]any) { c["aud"] = []string{"api"} }), reasonAudience},
		"no audience":          {changed(func(c map[string]any) { delete(c, "aud") }), reasonAudience},
		"expired":              {changed(func(c map[string]any) { c["exp"] = a.now.Add(-time.Minute).Unix() }), reasonExpired},
		"without an end":       {changed(func(c map[string]any) { delete(c, "exp") }), reasonExpired},
		"of the future":        {changed(func(c map[string]any) { c["nbf"] = a.now.Add(time.Minute).Unix() }), reasonEarly},
		"not bound to a pod":   {changed(func(c map[string]any) { c["kubernetes.io"].(map[string]any)["pod"] = nil }), reasonUnbound},
		"of another subject":   {changed(func(c map[string]any) { c["sub"] = "system:serviceaccount:shop:admin" }), reasonUnbound},
		"of another key":       {other.token(peer("web")), reasonSignature},
		"of another issuer":    {changed(func(c map[string]any) { c["iss"] = "https://elsewhere" }), reasonReview},
		"by a shared secret":   {a.signWith(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: public, KeyID: a.kid}}, a.said(peer("web"))), reasonMalformed},
		"without a signature":  {"eyJhbGciOiJub25lIn0.eyJhdWQiOlsidHVsbGUiXX0.", reasonMalformed},
		"longer than any":      {string(make([]byte, maxToken+1)), reasonMalformed},
		"signed, then changed": {tampered(a.token(peer("web")), a.token(peer("api"))), reasonSignature},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tokens.Verify(t.Context(), test.token)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if got := reasonOf(t, err); got != test.reason {
				t.Errorf("refused because of %s (%v), not %s", got, err, test.reason)
			}
		})
	}
}

// tampered has the header and signature of one token and the claims of another.
func tampered(one, two string) string {
	a, b := split(one), split(two)
	return a[0] + "." + b[1] + "." + a[2]
}

func split(token string) (parts [3]string) {
	i := 0
	for _, c := range token {
		if c == '.' {
			i++
			continue
		}
		parts[i] += string(c)
	}
	return parts
}

func TestNewKeyIsFetchedAndMadeUpKeysAreNot(t *testing.T) {
	a := newAPIServer(t)
	tokens := a.tokens()
	if _, err := tokens.Verify(t.Context(), a.token(peer("web"))); err != nil {
		t.Fatal(err)
	}
	a.rotate("two")
	if _, err := tokens.Verify(t.Context(), a.token(peer("web"))); err != nil {
		t.Fatalf("after the key changed: %v", err)
	}
	forger := newAPIServer(t)
	for i := range 20 {
		forger.kid = "made-up-" + string(rune('a'+i))
		if _, err := tokens.Verify(t.Context(), forger.token(peer("web"))); err == nil {
			t.Fatal("a token of a made-up key was accepted")
		}
	}
	if n := a.fetches.Load(); n > 3 {
		t.Errorf("20 made-up keys had the key set fetched: %d times", n)
	}
}

func TestReviewDecidesWhenTheIssuerIsAnother(t *testing.T) {
	a := newAPIServer(t)
	a.issuer = "https://new-issuer"
	a.accepts = peer("web")
	if got, err := a.tokens().Verify(t.Context(), a.token(peer("web"))); err != nil || got != peer("web") {
		t.Errorf("Verify is %v, %v", got, err)
	}
	// The API server's word counts over the token's.
	if _, err := a.tokens().Verify(t.Context(), a.token(peer("api"))); err == nil || reasonOf(t, err) != reasonReview {
		t.Errorf("a token that the API server says is another pod's gives %v", err)
	}
}

func TestTokensAreNotRefusedForGoodWhileTheAPIServerIsAway(t *testing.T) {
	a := newAPIServer(t)
	a.down.Store(true)
	tokens := a.tokens()
	_, err := tokens.Verify(t.Context(), a.token(peer("web")))
	var auth *AuthError
	if !errors.As(err, &auth) || !auth.Temporary {
		t.Fatalf("Verify gives %v", err)
	}
	a.down.Store(false)
	if _, err := tokens.Verify(t.Context(), a.token(peer("web"))); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

func TestSilentAPIServerIsNotWaitedForWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newAPIServer(t)
		tokens := NewTokens(TokenOptions{
			Keys:   func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
			Issuer: func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
			Review: func(ctx context.Context, _ string) (Peer, error) {
				<-ctx.Done()
				return Peer{}, &AuthError{Reason: reasonNoKeys, Temporary: true, Err: ctx.Err()}
			},
		})
		started := time.Now()
		_, err := tokens.Verify(t.Context(), api.token(peer("web")))
		if took := time.Since(started); took > fetchTimeout+reviewTimeout {
			t.Errorf("it took %v", took)
		}
		if reason := reasonOf(t, err); reason != reasonNoKeys {
			t.Errorf("refused because of %s: %v", reason, err)
		}
	})
}
