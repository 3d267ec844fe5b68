package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/time/rate"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Audience is what a token must be meant for.
const Audience = "tulle"

// algorithms are what API servers sign tokens with: never "none", and never a
// shared secret. See --service-account-signing-key-file of kube-apiserver.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// leeway is how far the clocks of the API server and of this host may differ.
const leeway = 10 * time.Second

// TokenOptions are what Tokens needs.
type TokenOptions struct {
	// Keys fetches the key set (JWKS) with which the API server signs tokens,
	// and Issuer its name for itself: the documents at /openid/v1/jwks and
	// /.well-known/openid-configuration.
	Keys   func(ctx context.Context) ([]byte, error)
	Issuer func(ctx context.Context) ([]byte, error)
	// Review asks the API server about a token that the published keys do not
	// decide. It returns an *AuthError. nil: such tokens are refused.
	Review func(ctx context.Context, token string) (Peer, error)
	Now    func() time.Time // default time.Now
}

// Tokens verifies service account tokens here, by the keys that the API server
// publishes, so that proxies can connect while it is away. It asks the API
// server about tokens only that the keys do not decide: one whose key is not
// among them, or one of an issuer that is not the one published (an API server
// may accept several, and publishes one).
type Tokens struct {
	options TokenOptions
	reviews *rate.Limiter
	fetches *rate.Limiter

	lock   sync.RWMutex
	keys   *jose.JSONWebKeySet // nil: never fetched
	issuer string

	fetching sync.Mutex
}

// Anybody can make up a token with an unknown key; it must not cost the API
// server more than this.
const (
	fetchEvery    = 10 * time.Second
	reviewsPerSec = 20
	reviewBurst   = 100
	fetchTimeout  = 5 * time.Second
	reviewTimeout = 10 * time.Second
	maxToken      = 16 << 10 // bytes
)

// NewTokens makes a verifier. It fetches keys when it first needs them.
func NewTokens(o TokenOptions) *Tokens {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Tokens{
		options: o,
		reviews: rate.NewLimiter(reviewsPerSec, reviewBurst),
		fetches: rate.NewLimiter(rate.Every(fetchEvery), 2),
	}
}

// claims are what a token says. See
// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens.
type claims struct {
	jwt.Claims
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		Pod            object `json:"pod"`
		ServiceAccount object `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

type object struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Verify returns the pod that the token is bound to.
func (t *Tokens) Verify(ctx context.Context, token string) (Peer, error) {
	if len(token) > maxToken {
		return Peer{}, refuse(reasonMalformed, errors.New("the token is too long"))
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return Peer{}, refuse(reasonMalformed, fmt.Errorf("reading the token: %w", err))
	}
	// What is wrong whoever signed it is refused before anybody is asked.
	var c claims
	if err := parsed.UnsafeClaimsWithoutVerification(&c); err != nil {
		return Peer{}, refuse(reasonMalformed, fmt.Errorf("reading the token's claims: %w", err))
	}
	peer, err := t.check(&c)
	if err != nil {
		return Peer{}, err
	}
	verdict, err := t.signed(ctx, parsed, c.Issuer)
	switch verdict {
	case accepted:
		return peer, nil
	case forged:
		return Peer{}, refuse(reasonSignature, err)
	default:
		return t.review(ctx, token, peer, err)
	}
}

// check is all that a token must say, whoever signed it.
func (t *Tokens) check(c *claims) (Peer, error) {
	now := t.options.Now()
	switch {
	case !c.Audience.Contains(Audience):
		return Peer{}, refuse(reasonAudience, fmt.Errorf("the token is for %q, not for %q", c.Audience, Audience))
	case c.Expiry == nil || now.After(c.Expiry.Time().Add(leeway)):
		return Peer{}, refuse(reasonExpired, errors.New("the token has expired"))
	case c.NotBefore != nil && now.Before(c.NotBefore.Time().Add(-leeway)):
		return Peer{}, refuse(reasonEarly, errors.New("the token is not valid yet"))
	}
	k := c.Kubernetes
	if k.Namespace == "" || k.Pod.Name == "" || k.Pod.UID == "" || k.ServiceAccount.Name == "" ||
		c.Subject != "system:serviceaccount:"+k.Namespace+":"+k.ServiceAccount.Name {
		return Peer{}, refuse(reasonUnbound, errors.New("the token is not bound to a pod: use a projected service account token"))
	}
	return Peer{
		Pod: mesh.Name{Namespace: k.Namespace, Name: k.Pod.Name},
		UID: k.Pod.UID, ServiceAccount: k.ServiceAccount.Name,
	}, nil
}

// verdict is what the published keys say about a token.
type verdict uint8

const (
	accepted verdict = iota
	forged
	undecided
)

func (t *Tokens) signed(ctx context.Context, token *jwt.JSONWebToken, issuer string) (verdict, error) {
	kid := token.Headers[0].KeyID
	keys, published := t.current()
	var failed error
	if keys == nil || len(keys.Key(kid)) == 0 || published == "" {
		failed = t.fetch(ctx, kid)
		keys, published = t.current()
	}
	if keys == nil {
		return undecided, errors.Join(errors.New("the API server's keys are not known"), failed)
	}
	candidates := keys.Key(kid)
	if kid == "" || len(candidates) == 0 {
		return undecided, errors.Join(errors.New("the token's key is not among those that the API server publishes"), failed)
	}
	for _, k := range candidates {
		if !k.Valid() || !k.IsPublic() {
			continue
		}
		if err := token.Claims(k.Key); err != nil {
			continue
		}
		if published == "" || issuer != published {
			return undecided, fmt.Errorf("the token's issuer is %q, the API server's is %q", issuer, published)
		}
		return accepted, nil
	}
	return forged, errors.New("the token's signature is wrong")
}

func (t *Tokens) current() (*jose.JSONWebKeySet, string) {
	t.lock.RLock()
	defer t.lock.RUnlock()
	return t.keys, t.issuer
}

// fetch gets the keys anew, unless another caller just did, or it was done a
// moment ago. What is known stays when that fails.
func (t *Tokens) fetch(ctx context.Context, kid string) error {
	t.fetching.Lock()
	defer t.fetching.Unlock()
	if keys, issuer := t.current(); keys != nil && len(keys.Key(kid)) > 0 && issuer != "" || !t.fetches.AllowN(t.options.Now(), 1) {
		return nil
	}
	// The result is for all: it does not depend on who waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	defer cancel()
	raw, err := t.options.Keys(ctx)
	if err != nil {
		return fmt.Errorf("fetching the key set: %w", err)
	}
	keys := &jose.JSONWebKeySet{}
	if err := json.Unmarshal(raw, keys); err != nil {
		return fmt.Errorf("reading the key set: %w", err)
	}
	var discovery struct {
		Issuer string `json:"issuer"`
	}
	raw, err = t.options.Issuer(ctx)
	if err == nil {
		err = json.Unmarshal(raw, &discovery)
	}
	t.lock.Lock()
	defer t.lock.Unlock()
	t.keys = keys
	if err != nil {
		return fmt.Errorf("reading the issuer: %w", err) // tokens are reviewed until it is known
	}
	t.issuer = discovery.Issuer
	return nil
}

// review asks the API server, and holds its answer against what the token says.
func (t *Tokens) review(ctx context.Context, token string, said Peer, why error) (Peer, error) {
	temporary := func(err error) error {
		return &AuthError{Reason: reasonNoKeys, Temporary: true, Err: err}
	}
	if t.options.Review == nil {
		return Peer{}, temporary(why)
	}
	if !t.reviews.AllowN(t.options.Now(), 1) {
		return Peer{}, temporary(fmt.Errorf("too many tokens to review; this one because: %w", why))
	}
	// A stream whose client waits patiently would wait for a silent API server
	// as long as that takes.
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	peer, err := t.options.Review(ctx, token)
	if err != nil {
		return Peer{}, err
	}
	if peer != said {
		return Peer{}, refuse(reasonReview, errors.New("the API server says that the token belongs to another pod"))
	}
	return peer, nil
}
