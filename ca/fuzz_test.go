package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

// hasKey reports whether a text has a line of a key.
func hasKey(text string, keys ...[]byte) bool {
	for _, key := range keys {
		for line := range strings.Lines(string(key)) {
			line = strings.TrimSpace(line)
			if len(line) > 30 && !strings.HasPrefix(line, "-----") && strings.Contains(text, line) {
				return true
			}
		}
	}
	return false
}

// Whatever is in the authority's Secret: what is accepted signs certificates that whoever
// trusts its roots takes, it is read the same another time, and no error has a part of a
// key.
func FuzzMaterial(f *testing.F) {
	m, err := newMaterial(start, rand.Reader, DefaultRootLifetime, DefaultIssuerLifetime)
	if err != nil {
		f.Fatal(err)
	}
	s := m.stored
	f.Add(s.Root, s.RootKey, s.Issuer, s.IssuerKey, []byte(`{"sequence":3,"rotation":{"phase":"Sign"}}`))
	f.Add(s.Root, s.RootKey, []byte(nil), []byte(nil), []byte(nil))
	f.Add(s.Root, []byte(nil), append(bytes.Clone(s.Issuer), s.Root...), s.IssuerKey, []byte(nil))
	f.Add(s.Issuer, s.IssuerKey, s.Root, s.RootKey, []byte(`{`))
	f.Add(append(bytes.Clone(s.Root), s.Root...), s.IssuerKey, s.Issuer, s.IssuerKey, []byte(`{"rotation":{"phase":"Other"}}`))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"), s.RootKey, s.Issuer, s.Root, []byte("null"))
	f.Fuzz(func(t *testing.T, root, rootKey, issuer, issuerKey, record []byte) {
		in := Stored{Root: root, RootKey: rootKey, Issuer: issuer, IssuerKey: issuerKey, Record: record}
		m, err := parseMaterial(in)
		if err != nil {
			if hasKey(err.Error(), rootKey, issuerKey) {
				t.Errorf("the error has a part of a key: %v", err)
			}
			return
		}
		if len(m.roots) == 0 || !belongs(m.key, m.issuer()) || !maySign(m.issuer()) || m.notAfter().IsZero() {
			t.Fatalf("accepted is %+v", m.epoch)
		}
		if again, err := parseMaterial(in); err != nil || again.epoch != m.epoch {
			t.Errorf("another time it is %+v, not %+v (%v)", again.epoch, m.epoch, err)
		}
		key, err := newKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := m.sign(start, rand.Reader, Request{Kind: Workload, ID: frontend, Key: key, Lifetime: time.Hour})
		if err != nil {
			return // it has ended, or cannot sign so
		}
		if chain[0].IsCA || len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != frontend.String() {
			t.Errorf("signed is %+v", chain[0])
		}
		if err := verify(m.bundle, chain, start, x509.ExtKeyUsageClientAuth); err != nil && !m.constrained() {
			t.Errorf("nobody takes what it signs: %v", err)
		}
	})
}

// An intermediate that an operator brings is refused in words, or all that the mesh signs
// by it is taken by who trusts its roots.
func FuzzBrought(f *testing.F) {
	m, err := newMaterial(start, rand.Reader, DefaultRootLifetime, DefaultIssuerLifetime)
	if err != nil {
		f.Fatal(err)
	}
	s := m.stored
	f.Add(s.Issuer, s.IssuerKey, s.Root)
	f.Add(append(bytes.Clone(s.Issuer), s.Root...), s.IssuerKey, append(bytes.Clone(s.Root), s.Issuer...))
	f.Add(s.Root, s.RootKey, s.Root)
	f.Add(s.Issuer, s.RootKey, s.Root)
	f.Add([]byte(nil), s.IssuerKey, s.Root)
	f.Fuzz(func(t *testing.T, chain, key, roots []byte) {
		b := Brought{Chain: chain, Key: key, Roots: roots}
		if hasKey(b.String()+b.GoString(), key) {
			t.Errorf("it is printed as %s", b)
		}
		m, err := b.material(start, rand.Reader, meshUse)
		if err != nil {
			if hasKey(err.Error(), key) {
				t.Errorf("the error has a part of the key: %v", err)
			}
			return
		}
		if err := verify(m.bundle, signLeaf(t, m, start, time.Hour), start, x509.ExtKeyUsageServerAuth); err != nil {
			t.Errorf("nobody takes what it signs: %v", err)
		}
	})
}
