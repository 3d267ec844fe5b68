package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// configView is the proxy's whole configuration, without secrets.
type configView struct{ config any }

func (v configView) data() any { return v.config }

// table is the configuration as JSON: there is no table of it.
func (v configView) table(time.Time) *table {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v.config); err != nil {
		return &table{notes: []string{err.Error()}}
	}
	return &table{notes: []string{strings.TrimSuffix(b.String(), "\n")}}
}

func readConfigView(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	path := pathDump
	if o.filter != nil {
		path += "&" + url.Values{"name_regex": {o.filter.String()}}.Encode()
	}
	body, err := admin.Get(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("asking Envoy's admin: %w", err)
	}
	var config any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber() // 64-bit numbers stay what they are
	if err := dec.Decode(&config); err != nil {
		return nil, fmt.Errorf("reading Envoy's configuration: %w", err)
	}
	return configView{redact(config)}, nil
}

// redacted is what Envoy itself writes in place of a secret.
const redacted = "[redacted]"

// redact replaces whatever may be a secret. Envoy did so with the fields that
// its API marks as sensitive; this is the second lock on the same door, since
// what is printed here is pasted into bug reports. File names stay.
func redact(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			if secretField(k) {
				v[k] = redactSource(inner)
			} else {
				v[k] = redact(inner)
			}
		}
		return v
	case []any:
		for i, inner := range v {
			v[i] = redact(inner)
		}
		return v
	case string:
		if holdsKey(v) {
			return redacted
		}
	}
	return v
}

// secretField reports whether a field of Envoy's API is secret by its name.
func secretField(name string) bool {
	switch name {
	case "private_key", "private_key_provider", "password", "session_ticket_keys", "generic_secret", "pkcs12":
		return true
	}
	return false
}

// redactSource replaces the content of a secret and keeps where it comes from.
func redactSource(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			switch k {
			case "filename", "environment_variable", "path", "@type", "name", "provider_name", "sds_config":
			default:
				v[k] = redactSource(inner)
			}
		}
		return v
	case []any:
		for i, inner := range v {
			v[i] = redactSource(inner)
		}
		return v
	case nil:
		return nil
	}
	return redacted
}

// holdsKey reports whether the text is or holds a private key in PEM, plain or
// in base64.
func holdsKey(s string) bool {
	const mark = "PRIVATE KEY-----"
	if strings.Contains(s, mark) {
		return true
	}
	raw, err := base64.StdEncoding.DecodeString(s)
	return err == nil && bytes.Contains(raw, []byte(mark))
}
