package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
)

// Intermediate is one that was signed.
type Intermediate struct {
	// Chain is the intermediate, followed by those between it and the root.
	Chain []*x509.Certificate
	// Roots are those to be trusted; the chain leads to one of them.
	Roots []*x509.Certificate
}

// Source is where an operator puts an intermediate together with its key.
type Source interface {
	// Brought returns what is there; the zero value where nothing is.
	Brought(ctx context.Context) (Brought, error)
	// String names the place in messages.
	String() string
}

// Brought is an intermediate that an operator brings, all in PEM. Chain is the
// issuing intermediate, followed by those between it and the root; Roots are all
// that are to be trusted.
type Brought struct{ Chain, Key, Roots []byte }

// String keeps the key out of logs and messages.
func (Brought) String() string { return "an intermediate that was brought" }

// GoString is String.
func (b Brought) GoString() string { return b.String() }

// MarshalLog is what logr prints.
func (b Brought) MarshalLog() any { return b.String() }

func (b Brought) empty() bool { return len(b.Chain)+len(b.Key)+len(b.Roots) == 0 }

// newIntermediate makes a key for an intermediate, and the request to sign it.
func newIntermediate(rand io.Reader) (crypto.Signer, *x509.CertificateRequest, error) {
	key, err := newKey(rand)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial(rand)
	if err != nil {
		return nil, nil, err
	}
	// A signer that takes the subject as it is has each be another.
	template := &x509.CertificateRequest{Subject: authorityTemplate("issuer", serial).Subject}
	der, err := x509.CreateCertificateRequest(rand, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("request an intermediate: %w", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	return key, request, err
}

// material is what signs with the intermediate.
func (i Intermediate) material(rootKey []byte, key crypto.Signer) (*material, error) {
	if len(i.Chain) == 0 || len(i.Roots) == 0 {
		return nil, errors.New("the intermediate's certificate or its root is missing")
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return parseMaterial(Stored{
		Root: encodeCertificates(i.Roots), RootKey: rootKey, Issuer: encodeCertificates(i.Chain), IssuerKey: encoded,
	})
}
