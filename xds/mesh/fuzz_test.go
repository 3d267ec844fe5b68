package mesh

import (
	"regexp"
	"strings"
	"testing"
)

// Whatever an issuer publishes, what is kept of it are public keys, and few enough.
func FuzzKeySetsAreOfPublicKeys(f *testing.F) {
	for _, text := range []string{
		`{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA"}]}`, `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}]}`, `[]`, `{`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set := ParseKeySet(text)
		if set.JWKS == "" {
			if set.Problem == "" {
				t.Error("there are no keys, and nothing is said")
			}
			return
		}
		if len(set.JWKS) > MaxKeySet || strings.Contains(set.JWKS, `"d":`) || strings.Contains(set.JWKS, `"oct"`) {
			t.Errorf("kept is %s", set.JWKS)
		}
		if again := ParseKeySet(set.JWKS); again.JWKS != set.JWKS || again.Problem != "" {
			t.Errorf("what is kept is read as %+v", again)
		}
	})
}

// A template is refused, or an expression that proxies take.
func FuzzPathTemplates(f *testing.F) {
	for _, path := range []string{"/users/{id}/orders", "/files/**", "/a/{rest=**}", "/{a}/{a}", "/a/*/b", "", "/{", "/a.b/{c}"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		expression, problem := PathTemplate(path)
		if (expression == "") == (problem == "") {
			t.Fatalf("%q: %q and %q", path, expression, problem)
		}
		if problem != "" {
			return
		}
		whole, err := regexp.Compile("^(?:" + expression + ")$")
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if whole.MatchString("") || whole.MatchString("x"+path) {
			t.Errorf("%q matches what is no path: %s", path, expression)
		}
	})
}
