package main

import (
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRedactReplacesSecretsAndKeepsWhereTheyComeFrom(t *testing.T) {
	pem := "-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\n"
	in := map[string]any{
		"private_key": map[string]any{"inline_bytes": "c2VjcmV0", "filename": "/key"},
		"password":    map[string]any{"environment_variable": "PASSWORD"},
		"session_ticket_keys": map[string]any{
			"keys": []any{map[string]any{"inline_string": "k1"}, map[string]any{"filename": "/k2"}},
		},
		"generic_secret": map[string]any{"secret": map[string]any{"inline_string": "token"}},
		"deep":           []any{map[string]any{"private_key_provider": map[string]any{"provider_name": "p", "typed_config": map[string]any{"key": "k"}}}},
		"unmarked":       pem,
		"unmarked_bytes": base64.StdEncoding.EncodeToString([]byte(pem)),
		"certificate":    map[string]any{"inline_string": "-----BEGIN CERTIFICATE-----"},
		"number":         json.Number("18446744073709551615"),
	}
	want := map[string]any{
		"private_key": map[string]any{"inline_bytes": redacted, "filename": "/key"},
		"password":    map[string]any{"environment_variable": "PASSWORD"},
		"session_ticket_keys": map[string]any{
			"keys": []any{map[string]any{"inline_string": redacted}, map[string]any{"filename": "/k2"}},
		},
		"generic_secret": map[string]any{"secret": map[string]any{"inline_string": redacted}},
		"deep":           []any{map[string]any{"private_key_provider": map[string]any{"provider_name": "p", "typed_config": map[string]any{"key": redacted}}}},
		"unmarked":       redacted,
		"unmarked_bytes": redacted,
		"certificate":    map[string]any{"inline_string": "-----BEGIN CERTIFICATE-----"},
		"number":         json.Number("18446744073709551615"),
	}
	if diff := cmp.Diff(want, redact(in)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
