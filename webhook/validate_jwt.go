package webhook

import (
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func (c *checks) jwt(at *field.Path, j *v1alpha1.JWT) {
	for n, i := range j.Issuers {
		at := at.Child("issuers").Index(n)
		if i.JWKS.Inline != "" {
			// The keys are no secret, but what was written by mistake may be.
			switch set := mesh.ParseKeySet(i.JWKS.Inline); {
			case set.JWKS == "":
				c.refuse(at.Child("jwks", "inline"), "(not shown)", "%s", set.Problem)
			case set.Problem != "":
				c.warn(at.Child("jwks", "inline"), "%s", set.Problem)
			}
			if strings.Contains(i.JWKS.Inline, `"d"`) {
				c.warn(at.Child("jwks", "inline"), "this looks like a private key, which everybody who may read the policy has now: have the issuer make another, and write the public one")
			}
		}
		if uri := i.JWKS.URI; uri != "" {
			if u, err := url.Parse(uri); err != nil || u.Host == "" || u.User != nil {
				c.refuse(at.Child("jwks", "uri"), uri, "this is no address of keys: write https://accounts.example/keys")
			}
		}
		for k, h := range i.ClaimsToHeaders {
			if problem := mesh.HeaderProblem(h.Header); problem != "" {
				c.refuse(at.Child("claimsToHeaders").Index(k).Child("header"), h.Header, "%s", problem)
			}
		}
		if len(i.Audiences) == 0 {
			c.warn(at.Child("audiences"), "a token that the issuer made for any other application is valid here, too: name the audience that is meant")
		}
	}
}
