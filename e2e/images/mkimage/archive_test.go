package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// write makes the image of one program with the content, and returns its digest
// and the archive's entries.
func write(t *testing.T, content string, modified time.Time) (digest string, entries map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(program, modified, modified); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "image.tar")
	digest, err := writeArchive(out, imageSpec{
		name: "localhost/program:dev", user: "1337:1337", entrypoint: "/program",
		files: []imageFile{parseFile(program + "=/opt/program")},
	})
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return digest, untar(t, archive)
}

func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	entries := map[string][]byte{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		if entries[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSameFilesGiveSameDigestWheneverTheyWereWritten(t *testing.T) {
	first, _ := write(t, "one", time.Unix(1_000_000_000, 0))
	later, _ := write(t, "one", time.Unix(1_700_000_000, 0))
	other, _ := write(t, "two", time.Unix(1_000_000_000, 0))
	if first != later {
		t.Errorf("the file's time changed the digest: %s, then %s", first, later)
	}
	if first == other {
		t.Errorf("other content, same digest %s", first)
	}
}

func TestArchiveLeadsFromItsIndexToTheFiles(t *testing.T) {
	digest, entries := write(t, "one", time.Unix(0, 0))
	var top index
	if err := json.Unmarshal(entries["index.json"], &top); err != nil {
		t.Fatal(err)
	}
	if len(top.Manifests) != 1 || top.Manifests[0].Digest != digest {
		t.Fatalf("index lists %v, want %s alone", top.Manifests, digest)
	}
	var m manifest
	if err := json.Unmarshal(entries[blob(top.Manifests[0])[1:]], &m); err != nil {
		t.Fatal(err)
	}
	layer, ok := entries[blob(m.Layers[0])[1:]]
	if !ok || int64(len(layer)) != m.Layers[0].Size {
		t.Fatalf("layer %s: present %v, %d bytes, want %d", m.Layers[0].Digest, ok, len(layer), m.Layers[0].Size)
	}
	if got := string(untar(t, layer)["opt/program"]); got != "one" {
		t.Errorf("the layer's opt/program holds %q, want %q", got, "one")
	}
}

func TestParseFile(t *testing.T) {
	for argument, want := range map[string]imageFile{
		"bin/echo":                 {source: "bin/echo", destination: "/echo"},
		"/lib64/ld.so":             {source: "/lib64/ld.so", destination: "/lib64/ld.so"},
		"bin/envoy=/usr/bin/envoy": {source: "bin/envoy", destination: "/usr/bin/envoy"},
	} {
		if got := parseFile(argument); got != want {
			t.Errorf("parseFile(%q) = %+v, want %+v", argument, got, want)
		}
	}
}

func TestUnusableImageIsRefusedAndLeavesNoFile(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	missing := []imageFile{{source: "/does/not/exist", destination: "/x"}}
	for name, image := range map[string]imageSpec{
		"no tag":       {name: "localhost/program", files: missing},
		"no files":     {name: "localhost/program:dev"},
		"missing file": {name: "localhost/program:dev", files: missing},
	} {
		if _, err := writeArchive(out, image); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: left %s", name, out)
		}
	}
}
