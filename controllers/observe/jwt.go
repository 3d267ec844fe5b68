package observe

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// defaultClockSkew is how far an issuer's clock may be off where nothing is written.
const defaultClockSkew = time.Minute

func jwt(j *v1alpha1.JWT, bad *problems) *mesh.JWT {
	if j == nil {
		return nil
	}
	out := &mesh.JWT{}
	seen := map[string]bool{}
	for n, i := range j.Issuers {
		field := fmt.Sprintf("spec.jwt.issuers[%d]", n)
		if i.Issuer == "" || seen[i.Issuer] {
			bad.add("%s.issuer: %q is empty or there twice: write each issuer once", field, i.Issuer)
		}
		seen[i.Issuer] = true
		one := mesh.Issuer{
			Issuer: i.Issuer, Audiences: i.Audiences,
			ConfigMapKey: i.JWKS.ConfigMapKey, SecretKey: i.JWKS.SecretKey, URI: i.JWKS.URI,
			Params: i.FromParams, Cookies: i.FromCookies,
			ClockSkew: defaultClockSkew,
			Strip:     i.Forward != nil && !*i.Forward,
		}
		switch places := []bool{i.JWKS.Inline != "", i.JWKS.ConfigMapKey != "", i.JWKS.SecretKey != "", i.JWKS.URI != ""}; {
		case count(places) != 1:
			bad.add("%s.jwks: the keys are in one place: write inline, configMapKey, secretKey or uri", field)
		case places[0]:
			one.Keys = mesh.ParseKeySet(i.JWKS.Inline)
		}
		if one.Strip && len(one.Cookies) > 0 {
			bad.add("%s.forward: a token is not taken out of a cookie: leave forward out, or have the token in a header", field)
		}
		for k, h := range i.FromHeaders {
			if strings.ContainsFunc(h.Prefix, func(r rune) bool { return r < ' ' || r > '~' }) {
				bad.add("%s.fromHeaders[%d].prefix: write printable ASCII, such as \"Bearer \"", field, k)
			}
			one.Headers = append(one.Headers, mesh.TokenHeader{Name: strings.ToLower(h.Name), Prefix: h.Prefix})
		}
		for k, c := range i.ClaimsToHeaders {
			if problem := mesh.HeaderProblem(c.Header); problem != "" {
				bad.add("%s.claimsToHeaders[%d].header: %s", field, k, problem)
			}
			one.ClaimsToHeaders = append(one.ClaimsToHeaders, mesh.ClaimHeader{Header: strings.ToLower(c.Header), Claim: c.Claim})
		}
		if d := bad.duration(field+".clockSkew", i.ClockSkew); d != nil {
			one.ClockSkew = max(*d, time.Second) // less is the proxy's default
		}
		out.Issuers = append(out.Issuers, one)
	}
	if len(out.Issuers) == 0 {
		bad.add("spec.jwt.issuers: there is none: write whose tokens are believed")
	}
	return out
}

func count(bs []bool) (n int) {
	for _, b := range bs {
		if b {
			n++
		}
	}
	return n
}

func (p *problems) principals(field string, texts []string) []mesh.RequestPrincipal {
	var out []mesh.RequestPrincipal
	for i, text := range texts {
		one, problem := mesh.ParseRequestPrincipal(text)
		if problem != "" {
			p.add("%s[%d]: %s", field, i, problem)
			continue
		}
		out = append(out, one)
	}
	return out
}

// secretKeys are the key sets of a Secret.
func secretKeys(s *corev1.Secret) *mesh.Keys {
	out := &mesh.Keys{Namespace: s.Namespace, Secret: true, Sets: map[string]*mesh.KeySet{}}
	for name, text := range s.Data {
		out.Sets[name] = mesh.ParsePublicKeySet(string(text))
	}
	return out
}

// keys are the key sets of a ConfigMap. What was fetched is read under the name of where
// it came from alone.
func keys(c *corev1.ConfigMap) *mesh.Keys {
	out := &mesh.Keys{Namespace: c.Namespace, Sets: map[string]*mesh.KeySet{}}
	for name, text := range c.Data {
		if !strings.HasPrefix(name, mesh.FetchedPrefix) {
			out.Sets[name] = mesh.ParseKeySet(text)
			continue
		}
		if uri, set, err := mesh.ReadFetched(text); err == nil && mesh.FetchedKey(uri) == name {
			out.Sets[name] = set
		}
	}
	return out
}
