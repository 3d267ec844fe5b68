package mesh

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// JWT is a policy's jwt section: whose tokens are believed. It is taken or left as a
// whole: the most specific section that selects a workload holds, and of equals the
// oldest.
//
// A token that is there must be valid, else the request is refused; that one is there
// is for rules of authorization to ask.
type JWT struct {
	Issuers []Issuer // one for each issuer
}

// Issuer is one who makes tokens (RFC 7519, section 4.1.1).
type Issuer struct {
	Issuer    string
	Audiences []string // one of which a token must be for; none: whichever
	// Keys are the public keys where they are written in the policy; else they are in
	// ConfigMapKey or SecretKey of the policy's namespace, or where URI says.
	Keys         *KeySet
	ConfigMapKey string
	SecretKey    string
	URI          string

	// Where tokens are looked for. Nothing at all is "Authorization: Bearer".
	Headers []TokenHeader
	Params  []string // of the query
	Cookies []string

	ClaimsToHeaders []ClaimHeader
	ClockSkew       time.Duration
	Strip           bool // the application does not get the token
}

// TokenHeader is a header that has a token after the prefix.
type TokenHeader struct{ Name, Prefix string }

// ClaimHeader is a header that the application gets a claim in.
type ClaimHeader struct {
	Header string // lower case, without '_'
	Claim  string // with dots for what is nested
}

// ClaimCondition matches a valid token that has at Path a value that one of Values
// matches, and none that one of NotValues does. A value that is a list is each of
// those in it. A leading or trailing "*" makes a suffix or prefix; "*" alone is any.
type ClaimCondition struct {
	Path              []string // names of members, from the outermost
	Values, NotValues []string
}

// IsNumber reports whether the text is how JSON has a number, and no other number is
// taken for that: by all who read numbers as IEEE 754 has them (RFC 8259, section 6).
func IsNumber(text string) bool {
	n, err := strconv.ParseFloat(text, 64)
	return err == nil && jsonNumber.MatchString(text) && math.Abs(n) < 1<<53
}

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,6})?$`)

// RequestPrincipal is who a valid token speaks of; a Subject that ends in "*" is a
// prefix, and an empty Issuer stands for all of them.
type RequestPrincipal struct{ Issuer, Subject string }

// ParseRequestPrincipal reads "issuer/subject", of which the subject is what follows the
// last slash; "*" is whoever has a valid token.
func ParseRequestPrincipal(text string) (p RequestPrincipal, problem string) {
	if text == "*" {
		return RequestPrincipal{Subject: "*"}, ""
	}
	const form = "write <issuer>/<subject>, such as https://accounts.example/alice, <issuer>/* for all subjects, or * for any valid token"
	i := strings.LastIndexByte(text, '/')
	if i < 0 {
		return p, form
	}
	p = RequestPrincipal{Issuer: text[:i], Subject: text[i+1:]}
	switch {
	case p.Issuer == "" || p.Subject == "":
		return p, form
	case strings.Contains(p.Issuer, "*"):
		return p, "an issuer is written out, without '*': " + form
	case strings.Contains(strings.TrimSuffix(p.Subject, "*"), "*"):
		return p, "'*' stands only at the end of a subject: " + form
	}
	return p, ""
}

// KeySet are the public keys of an issuer.
type KeySet struct {
	// JWKS is a JSON Web Key Set (RFC 7517, section 5) of the keys that can be used,
	// and of nothing secret; empty where there are none.
	JWKS string
	// Problem says what is wrong, and what to do: keys that were left out, or that the
	// latest ones could not be had. Empty: nothing.
	Problem string
}

// Keys are the key sets of a namespace, by their names in its ConfigMap or in its Secret.
// In the ConfigMap of the mesh's own namespace are those that were fetched, too, by
// [FetchedKey].
type Keys struct {
	Namespace string
	Secret    bool // they are the Secret's
	Sets      map[string]*KeySet
}

// KeysName is the name of a namespace's [Keys].
func KeysName(namespace string, secret bool) Name {
	if secret {
		return Name{Namespace: namespace, Name: "secret"}
	}
	return Name{Name: namespace}
}

// JWKSName is the name of the ConfigMap and of the Secret of a namespace that have key
// sets.
const JWKSName = "tulle-jwks"

// FetchedPrefix begins the names of key sets that were fetched.
const FetchedPrefix = "fetched."

// FetchedKey is the name of the key set that was fetched from the URI.
func FetchedKey(uri string) string {
	sum := sha256.Sum256([]byte(uri))
	return FetchedPrefix + hex.EncodeToString(sum[:16])
}

// minRSA is the least length of an RSA key in bits (RFC 7518, section 3.3). go-jose takes
// none that is longer than 4096, and BoringSSL none whose exponent is even or has more than
// 33 bits: one that Envoy does not take could have it refuse all that comes with it.
const minRSA = 2048

// MaxKeySet is how much a key set may take, in bytes as [ParseKeySet] writes it. It is
// in the configuration of every proxy whose workload's policy names it.
const MaxKeySet = 32 << 10

// ParseKeySet reads a JSON Web Key Set. What cannot verify a token's signature is left
// out: keys for encryption, of kinds that are unknown, too short ones, and symmetric
// ones, which are as good as a token for whoever reads them. Private parts and
// certificates are taken off.
func ParseKeySet(text string) *KeySet {
	var in struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil || in.Keys == nil {
		return &KeySet{Problem: `this is no JSON Web Key Set: write {"keys": [...]} with the issuer's public keys`}
	}
	var (
		out  jose.JSONWebKeySet
		left []string
	)
	for i, raw := range in.Keys {
		key, why := verifier(raw)
		if why != "" {
			left = append(left, fmt.Sprintf("keys[%d] is left out: %s", i, why))
			continue
		}
		if key != nil {
			out.Keys = append(out.Keys, *key)
		}
	}
	set := &KeySet{Problem: strings.Join(left, "; ")}
	if len(out.Keys) == 0 {
		if set.Problem == "" {
			set.Problem = "there is no key for signatures in the set"
		}
		return set
	}
	b, err := json.Marshal(out)
	switch {
	case err != nil:
		return &KeySet{Problem: "the keys cannot be written: generate them anew"}
	case len(b) > MaxKeySet:
		return &KeySet{Problem: fmt.Sprintf("the keys take %d bytes, and may take %d: leave out those that no token is signed with", len(b), MaxKeySet)}
	}
	set.JWKS = string(b)
	return set
}

// private are members of a key that only who signs may know (RFC 7518, sections 6.2.2, 6.3.2
// and 6.4.1).
var private = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// ParsePublicKeySet is [ParseKeySet] of a text in which only public keys may be: with any
// other it is no key set at all, so that whoever left a private key there hears of it.
func ParsePublicKeySet(text string) *KeySet {
	var in struct {
		Keys []map[string]json.RawMessage `json:"keys"`
	}
	if json.Unmarshal([]byte(text), &in) == nil {
		for i, key := range in.Keys {
			for _, name := range private {
				if _, has := key[name]; has {
					return &KeySet{Problem: fmt.Sprintf("keys[%d] has a private part (%s), by which anybody could make tokens: write the issuer's public keys alone, and replace that one at the issuer", i, name)}
				}
			}
		}
	}
	return ParseKeySet(text)
}

// verifier is the public key in the member; nil with no reason is one for encryption.
func verifier(raw json.RawMessage) (*jose.JSONWebKey, string) {
	var head struct {
		Type string `json:"kty"`
		Use  string `json:"use"`
	}
	if json.Unmarshal(raw, &head) != nil {
		return nil, "it is no JSON object of a key"
	}
	switch {
	case head.Use != "" && head.Use != "sig":
		return nil, ""
	case head.Type == "oct":
		return nil, "it is symmetric, and whoever can read it could make tokens: have the issuer sign with RS256 or ES256"
	}
	var key jose.JSONWebKey
	if key.UnmarshalJSON(raw) != nil {
		return nil, "it is of a kind that is not known, or not well formed: write an RSA, EC or Ed25519 public key"
	}
	public := key.Public()
	algorithms := ""
	switch k := public.Key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Sprintf("an RSA key has %d bits at least", minRSA)
		}
		if k.N.Bit(0) == 0 || k.E < 3 || k.E%2 == 0 || int64(k.E)>>33 != 0 {
			return nil, fmt.Sprintf("it is no RSA key that can be used: make one of %d bits, with the exponent 65537", minRSA)
		}
		algorithms = "RS256 RS384 RS512 PS256 PS384 PS512"
	case *ecdsa.PublicKey:
		algorithms = map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[k.Curve.Params().BitSize]
	case ed25519.PublicKey:
		algorithms = "EdDSA"
	default:
		return nil, "it is no public key for signatures: write an RSA, EC or Ed25519 public key"
	}
	if a := public.Algorithm; a != "" && !strings.Contains(" "+algorithms+" ", " "+a+" ") {
		return nil, fmt.Sprintf("its alg %q is not one of its kind of key: %s", a, algorithms)
	}
	return &jose.JSONWebKey{Key: public.Key, KeyID: public.KeyID, Algorithm: public.Algorithm, Use: public.Use}, ""
}

// fetched is a key set as it is kept in the ConfigMap.
type fetched struct {
	URI     string          `json:"uri"`
	JWKS    json.RawMessage `json:"jwks,omitempty"`
	Problem string          `json:"problem,omitempty"`
}

// WriteFetched is what is kept of a key set from the URI.
func WriteFetched(uri string, set *KeySet) (string, error) {
	b, err := json.Marshal(fetched{URI: uri, JWKS: json.RawMessage(set.JWKS), Problem: set.Problem})
	if err != nil {
		return "", fmt.Errorf("write the keys of %s: %w", uri, err)
	}
	return string(b), nil
}

// ReadFetched is the inverse of [WriteFetched].
func ReadFetched(text string) (uri string, set *KeySet, err error) {
	var in fetched
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return "", nil, fmt.Errorf("read keys that were fetched: %w", err)
	}
	if len(in.JWKS) == 0 {
		return in.URI, &KeySet{Problem: in.Problem}, nil
	}
	set = ParseKeySet(string(in.JWKS))
	if in.Problem != "" {
		set.Problem = in.Problem
	}
	return in.URI, set, nil
}
