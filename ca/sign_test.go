package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	start    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	frontend = ID{"cluster.local", "shop", "frontend"}
)

func testMaterial(t *testing.T, rootLifetime, issuerLifetime time.Duration) *material {
	t.Helper()
	m, err := newMaterial(start, rand.Reader, rootLifetime, issuerLifetime)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func signLeaf(t *testing.T, m *material, now time.Time, lifetime time.Duration) []*x509.Certificate {
	t.Helper()
	key, err := newKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := m.sign(now, rand.Reader, Request{Kind: Workload, ID: frontend, Key: key, Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// verify checks a chain as a peer does that knows the roots alone.
func verify(roots []byte, chain []*x509.Certificate, at time.Time, usage x509.ExtKeyUsage) error {
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

func TestLeafIsVerifiedThroughTheIntermediateByTheRootAlone(t *testing.T) {
	m := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime)
	chain := signLeaf(t, m, start, time.Hour)
	if len(chain) != 2 {
		t.Fatalf("a chain of %d certificates, want leaf and intermediate", len(chain))
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if err := verify(m.bundle, chain, start, usage); err != nil {
			t.Errorf("usage %d: %v", usage, err)
		}
	}
	if err := verify(m.bundle, chain[:1], start, x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("the leaf is verified without its intermediate")
	}
	other := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime)
	if err := verify(other.bundle, chain, start, x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("the leaf is verified by another mesh's root")
	}
}

// The X.509-SVID specification, sections 2 to 4.
func TestLeafIsAnX509SVID(t *testing.T) {
	leaf := signLeaf(t, testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime), start, time.Hour)[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != frontend.String() {
		t.Errorf("URI SANs %v, want %s alone", leaf.URIs, frontend)
	}
	if n := len(leaf.DNSNames) + len(leaf.IPAddresses) + len(leaf.EmailAddresses); n > 0 {
		t.Errorf("%d other SANs", n)
	}
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA %t, key usage %b", leaf.IsCA, leaf.KeyUsage)
	}
	if leaf.Subject.String() != "" {
		t.Errorf("subject %q", leaf.Subject)
	}
	for _, e := range leaf.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) && !e.Critical {
			t.Error("the SAN is not critical, though there is no subject")
		}
	}
}

func TestSerialNumbersAre128RandomBits(t *testing.T) {
	m := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime)
	seen, longest := map[string]bool{}, 0
	for range 32 {
		serial := signLeaf(t, m, start, time.Hour)[0].SerialNumber
		seen[serial.String()] = true
		longest = max(longest, serial.BitLen())
		if serial.Sign() <= 0 || serial.BitLen() > 128 {
			t.Fatalf("serial number %s", serial)
		}
	}
	if len(seen) != 32 || longest < 120 { // shorter with a probability of 2^-256
		t.Errorf("%d different serial numbers, at most %d bits long", len(seen), longest)
	}
}

func TestLeafIsBackdatedButLivesFromNow(t *testing.T) {
	m := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime)
	now := start.Add(48 * time.Hour)
	for lifetime, back := range map[time.Duration]time.Duration{
		time.Minute: time.Minute, 10 * time.Minute: 10 * time.Minute, 24 * time.Hour: time.Hour,
	} {
		leaf := signLeaf(t, m, now, lifetime)[0]
		if !leaf.NotAfter.Equal(now.Add(lifetime)) || !leaf.NotBefore.Equal(now.Add(-back)) {
			t.Errorf("lifetime %s: from %s to %s", lifetime, leaf.NotBefore.Sub(now), leaf.NotAfter.Sub(now))
		}
	}
}

func TestNothingOutlivesItsIssuer(t *testing.T) {
	m := testMaterial(t, 10*time.Hour, 100*time.Hour)
	if !m.issuer().NotAfter.Equal(m.signer.NotAfter) {
		t.Errorf("the issuer ends at %s, its root at %s", m.issuer().NotAfter, m.signer.NotAfter)
	}
	leaf := signLeaf(t, m, start.Add(9*time.Hour), 24*time.Hour)[0]
	if !leaf.NotAfter.Equal(m.issuer().NotAfter) {
		t.Errorf("the leaf ends at %s, its issuer at %s", leaf.NotAfter, m.issuer().NotAfter)
	}
	key, err := newKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.sign(start.Add(10*time.Hour), rand.Reader, Request{Kind: Workload, ID: frontend, Key: key, Lifetime: time.Hour}); err == nil {
		t.Error("an issuer that has ended signs")
	}
}

func TestIntermediateSignsNoFurtherAuthority(t *testing.T) {
	m := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime)
	for name, c := range map[string]struct {
		cert   *x509.Certificate
		length int
	}{"root": {m.signer, 1}, "issuer": {m.issuer(), 0}} {
		if !c.cert.IsCA || c.cert.MaxPathLen != c.length || c.cert.KeyUsage&x509.KeyUsageDigitalSignature != 0 {
			t.Errorf("%s: CA %t, path length %d, key usage %b", name, c.cert.IsCA, c.cert.MaxPathLen, c.cert.KeyUsage)
		}
	}
	// An authority that the intermediate signs all the same is not believed.
	below := *m
	below.signer, below.rootKey = m.issuer(), m.key
	below.roots = []*x509.Certificate{m.issuer()} // for its own check
	below.stored.RootKey = m.stored.IssuerKey
	further, err := below.renewed(start, rand.Reader, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	chain := append(signLeaf(t, further, start, time.Hour), m.chain...)
	if err := verify(m.bundle, chain, start, x509.ExtKeyUsageClientAuth); !errors.As(err, new(x509.CertificateInvalidError)) {
		t.Errorf("a further authority: %v, want too many intermediates", err)
	}
}

func TestParseMaterialRefusesWhatDoesNotFit(t *testing.T) {
	good := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime).stored
	other := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime).stored
	for name, spoil := range map[string]func(*Stored){
		"no root":              func(s *Stored) { s.Root = nil },
		"another root":         func(s *Stored) { s.Root, s.RootKey = other.Root, other.RootKey },
		"another root's key":   func(s *Stored) { s.RootKey = other.RootKey },
		"another issuer's key": func(s *Stored) { s.IssuerKey = other.IssuerKey },
		"no issuer's key":      func(s *Stored) { s.IssuerKey = nil },
		"key as certificate":   func(s *Stored) { s.Issuer = s.IssuerKey },
		"junk":                 func(s *Stored) { s.Issuer = []byte("junk") },
		"broken key":           func(s *Stored) { s.IssuerKey = bytes.Replace(s.IssuerKey, []byte("M"), []byte("N"), 4) },
		"a leaf as issuer": func(s *Stored) {
			m, err := parseMaterial(good)
			if err != nil {
				t.Fatal(err)
			}
			key, err := newKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			chain, err := m.sign(start, rand.Reader, Request{Kind: Workload, ID: frontend, Key: key, Lifetime: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			s.Issuer = encodeCertificates(chain)
			if s.IssuerKey, err = encodeKey(key); err != nil {
				t.Fatal(err)
			}
		},
	} {
		s := good
		spoil(&s)
		if _, err := parseMaterial(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	offline := good
	offline.RootKey = nil
	if _, err := parseMaterial(offline); err != nil {
		t.Errorf("a root whose key is kept elsewhere: %v", err)
	}
}

func TestSeveralRootsAreTrusted(t *testing.T) {
	old := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime)
	both := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime).stored
	both.Root = append([]byte("# retired later\n"), append(bytes.Clone(old.stored.Root), both.Root...)...)
	m, err := parseMaterial(both)
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][]*x509.Certificate{"old": signLeaf(t, old, start, time.Hour), "new": signLeaf(t, m, start, time.Hour)} {
		if err := verify(m.bundle, chain, start, x509.ExtKeyUsageClientAuth); err != nil {
			t.Errorf("%s root: %v", name, err)
		}
	}
	if _, err := m.renewed(start, rand.Reader, time.Hour); err != nil {
		t.Errorf("renewing under the root that has the key: %v", err)
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	m := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime)
	cert := &Certificate{Key: m.stored.IssuerKey}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		text := fmt.Sprintf(format+format, m.stored, cert)
		if strings.Contains(text, "PRIVATE") || strings.Contains(text, fmt.Sprint(m.stored.IssuerKey[:8])) || len(text) > 400 {
			t.Errorf("%s prints %s", format, text)
		}
	}
}
