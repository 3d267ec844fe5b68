package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

func TestTheTableSaysWhatDiffers(t *testing.T) {
	rows := []row{
		{what: "wrong caller", expected: "403", seen: "403", ok: true},
		{what: "plaintext", expected: "reset", seen: "answered with 200"},
	}
	var plain bytes.Buffer
	if (&screen{out: &plain, start: time.Now()}).table(rows) {
		t.Error("a table with a difference was taken for a good one")
	}
	text := plain.String()
	if strings.Contains(text, "\x1b") {
		t.Errorf("colour codes where there is no terminal: %q", text)
	}
	if strings.Count(text, "DIFFERS") != 1 || strings.Count(text, "as expected") != 1 {
		t.Errorf("table:\n%s", text)
	}
	var coloured bytes.Buffer
	if !(&screen{out: &coloured, colour: true, start: time.Now()}).table(rows[:1]) {
		t.Error("a table without a difference was taken for a bad one")
	}
	if !strings.Contains(coloured.String(), "\x1b[32mas expected\x1b[0m") {
		t.Errorf("no colour on a terminal: %q", coloured.String())
	}
}

func TestTheShopRenders(t *testing.T) {
	for dir, want := range map[string][]string{
		"../shop":      {"name: shop", "name: reviews-v2", "containerPort: 3306", "mesh.tulle.dev/inject: enabled"},
		"../shop/mesh": {"mode: Strict", "weight: 90"},
	} {
		text, err := kube.Kustomize(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kube.Parse(text); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s has no %q", dir, w)
			}
		}
	}
}
