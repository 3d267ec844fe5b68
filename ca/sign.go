package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"time"
)

// maxBackdate is how far a certificate's beginning lies before its making at
// most: a verifier whose clock is behind by so much takes it all the same.
const maxBackdate = time.Hour

// backdate is by how much to backdate a certificate: as long as it lives, at
// most maxBackdate, so that even the shortest-lived one tolerates clocks that
// are behind as far as one can be ahead.
func backdate(lifetime time.Duration) time.Duration { return min(lifetime, maxBackdate) }

// newKey makes an ECDSA P-256 key, which is what every proxy can verify at the
// least cost.
func newKey(rand io.Reader) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// newSerial makes a serial number of 128 random bits.
func newSerial(rand io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	serial := new(big.Int).SetBytes(b[:])
	if serial.Sign() == 0 { // RFC 5280, 4.1.2.2: positive
		return nil, errors.New("make a serial number: no randomness")
	}
	return serial, nil
}

// fraction is a random number in [0, 1).
func fraction(rand io.Reader) (float64, error) {
	var b [8]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return 0, fmt.Errorf("make a random number: %w", err)
	}
	return float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53), nil
}

// newMaterial makes a self-signed root and an issuing intermediate.
func newMaterial(now time.Time, rand io.Reader, rootLifetime, issuerLifetime time.Duration) (*material, error) {
	root, key, err := newRoot(now, rand, rootLifetime, "root", 1) // one intermediate, no more
	if err != nil {
		return nil, err
	}
	m, err := parseMaterial(Stored{Root: root, RootKey: key})
	if err != nil {
		return nil, err
	}
	return m.renewed(now, rand, issuerLifetime)
}

// newRoot makes a self-signed root, and returns it and its key in PEM.
func newRoot(now time.Time, rand io.Reader, lifetime time.Duration, role string, between int) (root, key []byte, err error) {
	signer, err := newKey(rand)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial(rand)
	if err != nil {
		return nil, nil, err
	}
	template := authorityTemplate(role, serial)
	template.NotBefore, template.NotAfter = now.Add(-maxBackdate), now.Add(lifetime)
	template.MaxPathLen, template.MaxPathLenZero = between, between == 0
	cert, err := create(rand, template, template, signer.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the root certificate: %w", err)
	}
	key, err = encodeKey(signer)
	return encodeCertificates([]*x509.Certificate{cert}), key, err
}

// renewed is the material with a new issuing intermediate, signed by its own
// root.
func (m *material) renewed(now time.Time, rand io.Reader, lifetime time.Duration) (*material, error) {
	key, request, err := newIntermediate(rand)
	if err != nil {
		return nil, err
	}
	signed, err := m.signIntermediate(now, rand, request, lifetime)
	if err != nil {
		return nil, err
	}
	signed.Roots = m.roots
	stored := m.stored
	return signed.material(stored.RootKey, key)
}

// signIntermediate signs the request of an issuing intermediate, which does not
// outlive its root.
func (m *material) signIntermediate(now time.Time, rand io.Reader, request *x509.CertificateRequest, lifetime time.Duration) (Intermediate, error) {
	if m.rootKey == nil {
		return Intermediate{}, errors.New("renew the issuer: the root's key is not here")
	}
	if !now.Before(m.signer.NotAfter) {
		return Intermediate{}, fmt.Errorf("renew the issuer: the root ended at %s", m.signer.NotAfter.Format(time.RFC3339))
	}
	serial, err := newSerial(rand)
	if err != nil {
		return Intermediate{}, err
	}
	template := authorityTemplate("issuer", serial)
	template.NotBefore = later(now.Add(-backdate(lifetime)), m.signer.NotBefore)
	template.NotAfter = earlier(now.Add(lifetime), m.signer.NotAfter)
	template.MaxPathLenZero = true // it signs leaves only
	cert, err := create(rand, template, m.signer, request.PublicKey, m.rootKey)
	if err != nil {
		return Intermediate{}, fmt.Errorf("sign the issuer's certificate: %w", err)
	}
	return Intermediate{Chain: []*x509.Certificate{cert}, Roots: []*x509.Certificate{m.signer}}, nil
}

func authorityTemplate(role string, serial *big.Int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial,
		// The number tells certificates of the same role apart for verifiers
		// that look an issuer up by its name alone.
		Subject: pkix.Name{
			Organization: []string{"Tulle"},
			CommonName:   fmt.Sprintf("Tulle %s %.8x", role, serial.Bytes()),
		},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// sign makes a leaf as the X.509-SVID specification says, and returns it with
// the chain above it. It never outlives any certificate of that chain.
func (m *material) sign(now time.Time, rand io.Reader, r Request) ([]*x509.Certificate, error) {
	end := m.notAfter()
	if !now.Before(end) {
		return nil, fmt.Errorf("the issuer ended at %s", end.Format(time.RFC3339))
	}
	if r.Lifetime <= 0 {
		return nil, fmt.Errorf("a lifetime of %s", r.Lifetime)
	}
	serial, err := newSerial(rand)
	if err != nil {
		return nil, err
	}
	// With an empty subject the alternative names are marked critical, as
	// RFC 5280, 4.2.1.6, wants it.
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdate(r.Lifetime)),
		NotAfter:              earlier(now.Add(r.Lifetime), end),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	switch r.Kind {
	case Workload:
		if err := r.ID.Validate(); err != nil {
			return nil, err
		}
		template.URIs = []*url.URL{r.ID.URL()}
	case Serving:
		if len(r.DNSNames) == 0 {
			return nil, errors.New("a serving certificate needs a DNS name")
		}
		template.DNSNames = r.DNSNames
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	default:
		return nil, fmt.Errorf("a certificate of kind %q", r.Kind)
	}
	leaf, err := create(rand, template, m.issuer(), r.Key.Public(), m.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return append([]*x509.Certificate{leaf}, m.chain...), nil
}

func create(rand io.Reader, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
