package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// minRSA is the least length of an RSA key, in bits (NIST SP 800-131A).
const minRSA = 2048

// checkKey refuses keys that are weak or that Envoy cannot verify by.
func checkKey(public any) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return fmt.Errorf("an ECDSA key on the curve %s: bring one on P-256 or P-384", key.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA {
			return fmt.Errorf("an RSA key of %d bits: bring one of %d at least", n, minRSA)
		}
	default:
		return fmt.Errorf("a key of type %T: bring ECDSA (P-256, P-384) or RSA (%d bits at least)", public, minRSA)
	}
	return nil
}

// usage is what the mesh's certificates have to be good for.
type usage struct {
	trustDomain string
	serving     []string // DNS names of the control plane
}

// material reads what an operator has brought, and refuses what the mesh could
// not sign all of its certificates with.
func (b Brought) material(now time.Time, rand io.Reader, u usage) (*material, error) {
	switch {
	case len(bytes.TrimSpace(b.Chain)) == 0:
		return nil, errors.New("tls.crt is missing: it has the intermediate's certificate, followed by those between it and the root")
	case len(bytes.TrimSpace(b.Key)) == 0:
		return nil, errors.New("tls.key is missing: it has the intermediate's private key")
	case len(bytes.TrimSpace(b.Roots)) == 0:
		return nil, errors.New("ca.crt is missing: it has the root's certificate")
	}
	chain, err := parseCertificates(b.Chain)
	if err != nil {
		return nil, fmt.Errorf("tls.crt: %w", err)
	}
	roots, err := parseCertificates(b.Roots)
	if err != nil {
		return nil, fmt.Errorf("ca.crt: %w", err)
	}
	roots = union(nil, roots)
	// Some write the root after the intermediates; it is not to be presented.
	for len(chain) > 1 && bytes.Equal(chain[len(chain)-1].RawSubject, chain[len(chain)-1].RawIssuer) {
		chain = chain[:len(chain)-1]
	}
	for _, c := range union(chain, roots) {
		if err := checkKey(c.PublicKey); err != nil {
			return nil, fmt.Errorf("certificate %q has %w", c.Subject, err)
		}
	}
	key, err := parseKey(b.Key)
	if err != nil {
		return nil, fmt.Errorf("tls.key: %w", err)
	}
	m, err := Intermediate{Chain: chain, Roots: roots}.material(nil, key)
	if err != nil {
		return nil, err
	}
	return m, m.probe(now, rand, u)
}

// probe signs certificates as the mesh has them, and verifies them as its peers
// do: that the chain is in force, its path lengths, name constraints and
// extended key usages are all in that.
func (m *material) probe(now time.Time, rand io.Reader, u usage) error {
	for _, c := range append([]*x509.Certificate{m.anchor}, m.chain...) {
		switch {
		case !now.Before(c.NotAfter):
			return fmt.Errorf("certificate %q ended at %s", c.Subject, c.NotAfter.Format(time.RFC3339))
		case now.Before(c.NotBefore):
			return beginsAt(fmt.Sprintf("certificate %q", c.Subject), c, now)
		}
	}
	requests := []Request{
		{Kind: Workload, ID: ID{TrustDomain: u.trustDomain, Namespace: "default", ServiceAccount: "default"}},
		{Kind: Serving, DNSNames: u.serving},
	}
	for _, r := range requests {
		if r.Kind == Serving && len(u.serving) == 0 {
			continue
		}
		key, err := newKey(rand)
		if err != nil {
			return err
		}
		r.Key, r.Lifetime = key, MinLifetime
		chain, err := m.sign(now, rand, r)
		if err != nil {
			return err
		}
		usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		what := "the control plane's certificate"
		if r.Kind == Workload {
			usages = append(usages, x509.ExtKeyUsageClientAuth)
			what = "a certificate for " + r.ID.String()
		}
		for _, usage := range usages {
			if err := m.verify(now, chain[0], usage); err != nil {
				return fmt.Errorf("%s that it signs would not be taken by others (see its path length, name constraints and key usages): %w", what, err)
			}
		}
	}
	return nil
}

// verify is what a peer does with a leaf of the material's.
func (m *material) verify(now time.Time, leaf *x509.Certificate, usage x509.ExtKeyUsage) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range m.roots {
		roots.AddCert(c)
	}
	for _, c := range m.chain {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

// constrained reports whether names that are signed have to be in certain domains.
func (m *material) constrained() bool {
	return slices.ContainsFunc(append([]*x509.Certificate{m.anchor}, m.chain...), func(c *x509.Certificate) bool {
		return len(c.PermittedURIDomains)+len(c.ExcludedURIDomains)+len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains) > 0
	})
}
