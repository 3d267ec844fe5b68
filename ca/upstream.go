package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"time"
)

// Upstream signs the intermediates that the mesh's certificates are signed by:
// the built-in root, or somebody else's authority.
type Upstream interface {
	// Intermediate has a certificate of an authority made for the request's key,
	// for as long as the lifetime says or less. The request (PKCS#10) is signed
	// by that key. It may wait as long as the context; whatever fails is tried
	// again, with another key.
	Intermediate(ctx context.Context, request *x509.CertificateRequest, lifetime time.Duration) (Intermediate, error)
}

// Intermediate is what an Upstream answers.
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

// ownRoot is the Upstream whose root's key the authority keeps itself.
type ownRoot struct {
	m    *material
	now  time.Time
	rand io.Reader
}

// Intermediate signs at once.
func (o ownRoot) Intermediate(_ context.Context, request *x509.CertificateRequest, lifetime time.Duration) (Intermediate, error) {
	return o.m.signIntermediate(o.now, o.rand, request, lifetime)
}

// newIntermediate makes a key for an intermediate, and the request to sign it.
func newIntermediate(rand io.Reader) (crypto.Signer, *x509.CertificateRequest, error) {
	key, err := newKey(rand)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"Tulle"}, CommonName: "Tulle issuer"}}
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
