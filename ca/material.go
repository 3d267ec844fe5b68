package ca

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Stored is the authority's material as a Store keeps it, all in PEM.
type Stored struct {
	// Root holds the certificates of the roots that everybody trusts. The first
	// that RootKey belongs to signs new issuers.
	Root []byte
	// RootKey may be empty where the key is kept elsewhere; then issuers are not
	// renewed here.
	RootKey []byte
	// Issuer is the issuing intermediate, followed by those between it and the
	// root, if any. Where it is empty, the root signs leaves itself until an
	// intermediate is made by the first rotation.
	Issuer    []byte
	IssuerKey []byte
	// Servers holds roots by which the control plane's servers are verified, beside
	// Root, and workloads are not. The one that ServersKey belongs to signs for the
	// servers where leaves are signed by somebody else. Empty where they are not.
	Servers, ServersKey []byte
	// NextRoot, NextRootKey, NextIssuer, NextIssuerKey, NextServers and
	// NextServersKey are the same of what a rotation leads to, as far as it has not
	// been put into their place; empty when there is none.
	NextRoot, NextRootKey, NextIssuer, NextIssuerKey, NextServers, NextServersKey []byte
	// Record is a [Record] in JSON; empty where nothing was ever rotated.
	Record []byte
	// Revision is the store's, for an Update to notice that somebody else was
	// first. It is not part of the material.
	Revision string
}

// String keeps keys out of logs and messages.
func (s Stored) String() string { return "authority material, revision " + s.Revision }

// GoString is String.
func (s Stored) GoString() string { return s.String() }

// MarshalLog is what logr prints.
func (s Stored) MarshalLog() any { return s.String() }

// material is a parsed and verified Stored. It is immutable.
type material struct {
	roots   []*x509.Certificate
	signer  *x509.Certificate // the root that rootKey belongs to, or anchor
	rootKey crypto.Signer     // nil: kept elsewhere
	anchor  *x509.Certificate // the root that the chain leads to
	chain   []*x509.Certificate
	key     crypto.Signer
	bundle  []byte              // roots, in PEM without anything between
	volumes []byte              // roots that servers are verified by, the same way
	servers []*x509.Certificate // roots of servers alone
	server  *material           // signs for servers; nil: issuer does
	trusted map[string]struct{} // fingerprints of the roots, those of servers too
	epoch   Epoch
	record  Record
	stored  Stored
}

// issuer is the certificate that leaves are signed by; the root where somebody else
// signs them.
func (m *material) issuer() *x509.Certificate {
	if len(m.chain) == 0 {
		return m.anchor
	}
	return m.chain[0]
}

// notAfter is when the first certificate above the leaves ends.
func (m *material) notAfter() time.Time {
	end := m.anchor.NotAfter
	for _, c := range m.chain {
		end = earlier(end, c.NotAfter)
	}
	return end
}

// last reports whether what signs is about to end, see lastTime, or has not begun: it
// was made by a clock that was ahead, and nobody takes anything of it.
func (m *material) last(now time.Time) bool {
	return now.Before(m.notBefore()) || ending(m.issuer().NotBefore, m.notAfter(), now)
}

// notBefore is when the last certificate above the leaves begins.
func (m *material) notBefore() time.Time {
	begin := m.anchor.NotBefore
	for _, c := range m.chain {
		begin = later(begin, c.NotBefore)
	}
	return begin
}

func ending(from, to, now time.Time) bool {
	return to.Sub(now) < min(lastTime, to.Sub(from)/lastPart)
}

// rootsNotAfter is when the first root ends.
func (m *material) rootsNotAfter() time.Time {
	end := m.roots[0].NotAfter
	for _, c := range m.roots[1:] {
		end = earlier(end, c.NotAfter)
	}
	return end
}

// parseMaterial reads and verifies what is stored. Certificates that have ended
// are no error: an ended issuer can be renewed.
func parseMaterial(s Stored) (*material, error) {
	m := &material{stored: s}
	var err error
	if m.roots, err = parseCertificates(s.Root); err != nil {
		return nil, fmt.Errorf("root certificates: %w", err)
	}
	if m.record, err = parseRecord(s.Record); err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(s.Servers)) > 0 {
		if m.servers, err = parseCertificates(s.Servers); err != nil {
			return nil, fmt.Errorf("root certificates of servers: %w", err)
		}
	}
	if r := m.record.Rotation; r != nil && r.Phase == PhaseDistribute &&
		(r.AddedRoots < 0 || r.AddedRoots >= len(m.roots) || r.AddedServers < 0 || r.AddedServers > len(m.servers)) {
		return nil, fmt.Errorf("record of rotations: %d roots and %d of servers cannot be new, of %d and %d", r.AddedRoots, r.AddedServers, len(m.roots), len(m.servers))
	}
	switch {
	case m.record.Delegation != nil:
		err = m.delegate(s)
	case len(bytes.TrimSpace(s.Issuer)) > 0:
		err = m.takeIssuer(s)
	default:
		err = m.signWithRoot(s.RootKey)
	}
	if err != nil {
		return nil, err
	}
	m.signer = m.anchor
	if len(bytes.TrimSpace(s.RootKey)) > 0 {
		if err := m.takeRootKey(s.RootKey); err != nil {
			return nil, err
		}
	}
	m.bundle, m.volumes = encodeCertificates(m.roots), encodeCertificates(m.serving())
	m.trusted = map[string]struct{}{}
	for _, root := range union(m.roots, m.servers) {
		m.trusted[fingerprint(root.Raw)] = struct{}{}
	}
	m.epoch = Epoch{Issuer: chainID(m.chain), Root: fingerprint(m.anchor.Raw)}
	if d := m.record.Delegation; d != nil {
		m.epoch.Issuer = fingerprint(fmt.Appendf(nil, "%+v %d", *m.record.Signer, d.Since))
	}
	return m, nil
}

// delegate has somebody else sign leaves, and a key of the mesh's for its own
// servers: the control plane must not have to wait for anybody in order to start.
func (m *material) delegate(s Stored) error {
	if m.record.Signer == nil {
		return errors.New("leaves are signed by somebody else, and nobody is named")
	}
	for _, root := range m.roots {
		if fingerprint(root.Raw) == m.record.Delegation.Root {
			m.anchor = root
		}
	}
	if m.anchor == nil {
		return fmt.Errorf("the root of %s is none of those that are trusted", m.record.Signer)
	}
	var err error
	if m.server, err = parseMaterial(Stored{Root: s.Servers, RootKey: s.ServersKey}); err != nil {
		return fmt.Errorf("what signs for servers: %w", err)
	}
	return nil
}

// chainID identifies the certificates above a leaf.
func chainID(chain []*x509.Certificate) string { return fingerprint(encodeCertificates(chain)) }

func (m *material) takeIssuer(s Stored) error {
	var err error
	if m.chain, err = parseCertificates(s.Issuer); err != nil {
		return fmt.Errorf("issuer's certificate: %w", err)
	}
	if m.key, err = parseKey(s.IssuerKey); err != nil {
		return fmt.Errorf("issuer's key: %w", err)
	}
	if !belongs(m.key, m.issuer()) {
		return errors.New("issuer's key: does not belong to the issuer's certificate")
	}
	if m.anchor, err = m.verifyIssuer(); err != nil {
		return fmt.Errorf("issuer's certificate: %w", err)
	}
	return nil
}

// signWithRoot has the root sign leaves, where there is no intermediate.
func (m *material) signWithRoot(key []byte) error {
	if err := m.takeRootKey(key); err != nil {
		return fmt.Errorf("there is no issuer: %w", err)
	}
	m.anchor, m.key = m.signer, m.rootKey
	if !maySign(m.anchor) {
		return errors.New("there is no issuer, and the root may not sign certificates")
	}
	return nil
}

func (m *material) takeRootKey(text []byte) error {
	key, err := parseKey(text)
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	for _, root := range m.roots {
		if belongs(key, root) {
			m.signer, m.rootKey = root, key
			return nil
		}
	}
	return errors.New("root key: belongs to none of the root certificates")
}

func maySign(c *x509.Certificate) bool { return c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0 }

// verifyIssuer checks that the chain leads to a root, at the latest time when
// all of it was valid, and returns that root.
func (m *material) verifyIssuer() (*x509.Certificate, error) {
	issuer := m.issuer()
	if !maySign(issuer) {
		return nil, errors.New("may not sign certificates")
	}
	between := x509.NewCertPool()
	end := issuer.NotAfter
	for _, c := range m.chain[1:] {
		between.AddCert(c)
		end = earlier(end, c.NotAfter)
	}
	var err error
	for _, root := range m.roots {
		roots := x509.NewCertPool()
		roots.AddCert(root)
		// Some sign what outlives them.
		_, failed := issuer.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, CurrentTime: earlier(end, root.NotAfter),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if failed == nil {
			return root, nil
		}
		if err == nil {
			err = failed
		}
	}
	return nil, fmt.Errorf("does not lead to a root: %w", err)
}

func belongs(key crypto.Signer, cert *x509.Certificate) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

const (
	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"
)

// parseCertificates reads one certificate or more; text between them is
// ignored.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != certificateBlock {
			return nil, fmt.Errorf("PEM block of type %q among certificates", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

func encodeCertificates(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: c.Raw}))
	}
	return out.Bytes()
}

// parseKey reads a private key in PKCS#8, SEC 1 or PKCS#1. Its errors never
// quote the key.
func parseKey(text []byte) (crypto.Signer, error) {
	block, text := pem.Decode(text)
	for block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam writes it before the key
		block, text = pem.Decode(text)
	}
	if block == nil {
		return nil, errors.New("no private key in PEM")
	}
	var key any
	var err error
	switch block.Type {
	case keyBlock:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, errors.New("PEM block is no private key that is supported (PKCS#8, EC or RSA)")
	}
	if err != nil {
		return nil, errors.New("cannot be parsed")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("cannot sign")
	}
	return signer, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

func fingerprint(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
