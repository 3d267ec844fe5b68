package ca

import (
	"strings"
	"testing"
)

func TestParseIDReadsWhatStringWrites(t *testing.T) {
	for _, id := range []ID{
		{"cluster.local", "shop", "frontend"},
		{"example.org", "a", "b.c-d_E9"},
		{"under_score", "default", "default"},
	} {
		got, err := ParseID(id.String())
		if err != nil || got != id {
			t.Errorf("ParseID(%q) = %+v, %v", id, got, err)
		}
		if url := id.URL().String(); url != id.String() {
			t.Errorf("URL() is %q, want %q", url, id)
		}
	}
}

func TestParseIDRefusesEverythingElse(t *testing.T) {
	for _, s := range []string{
		"",
		"cluster.local/ns/a/sa/b",
		"https://cluster.local/ns/a/sa/b",
		"SPIFFE://cluster.local/ns/a/sa/b",
		"spiffe:///ns/a/sa/b",
		"spiffe://cluster.local",
		"spiffe://cluster.local/ns/a",
		"spiffe://cluster.local/ns/a/sa/b/",
		"spiffe://cluster.local/ns/a/sa/b/c",
		"spiffe://cluster.local/ns//sa/b",
		"spiffe://cluster.local/ns/a/sa/",
		"spiffe://cluster.local/ns/./sa/b",
		"spiffe://cluster.local/ns/../sa/b",
		"spiffe://cluster.local/sa/a/ns/b",
		"spiffe://cluster.local/ns/a/sa/b?c",
		"spiffe://cluster.local/ns/a/sa/b#c",
		"spiffe://cluster.local/ns/a%2fb/sa/c",
		"spiffe://cluster.local/ns/ä/sa/c",
		"spiffe://Cluster.local/ns/a/sa/b",
		"spiffe://cluster.local:443/ns/a/sa/b",
		"spiffe://user@cluster.local/ns/a/sa/b",
		"spiffe://cluster..local/ns/a/sa/b",
		"spiffe://" + strings.Repeat("a", 256) + "/ns/a/sa/b",
		"spiffe://cluster.local/ns/a/sa/" + strings.Repeat("b", 2048),
	} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q) = %+v, want an error", s, id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/a/sa/b")
	f.Add("spiffe://a/ns/%/sa/b")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err == nil && id.String() != s {
			t.Errorf("%q was read as %q", s, id)
		}
	})
}
