package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"time"
)

// Kind is what a certificate is for.
type Kind string

const (
	// Workload certificates prove a workload's identity to other workloads.
	Workload Kind = "workload"
	// Serving certificates are those of the control plane's own servers.
	Serving Kind = "serving"
)

// Request asks an Issuer for one certificate.
type Request struct {
	Kind Kind
	// ID is the one identity of a Workload certificate.
	ID ID
	// DNSNames are the names of a Serving certificate.
	DNSNames []string
	// Key is the subject's. An issuer uses its public half, and the private one
	// only to sign a certificate request; it keeps neither.
	Key crypto.Signer
	// Lifetime counts from now. The certificate may end sooner, with its issuer.
	Lifetime time.Duration
}

// Epoch says what certificates are signed by. Certificates of another issuer are
// to be replaced.
type Epoch struct {
	// Issuer identifies the chain above the leaf, or who signs it where that is
	// somebody else.
	Issuer string
	// Root identifies the root that the chain leads to. When it is trusted no
	// longer, certificates are replaced at once.
	Root string
}

// Signed is a certificate that was signed.
type Signed struct {
	// Chain is what to present: the leaf, then intermediates; the root is not part
	// of it.
	Chain []*x509.Certificate
	// Epoch is what it was signed by.
	Epoch Epoch
}

// Issuer signs the certificates of workloads and of the control plane's servers.
type Issuer interface {
	// Sign may wait as long as the context. Where an answer may come yet, the error
	// is a [*NotSigned] that says so, and whoever asks again with the same key is
	// not a second one.
	Sign(ctx context.Context, r Request) (Signed, error)
	// Epoch is cheap.
	Epoch() Epoch
	// Trusts reports whether everybody is to trust the root, an [Epoch]'s. It is
	// cheap, too.
	Trusts(root string) bool
	// Notify has f called after each change of Epoch or of what is trusted, on a
	// goroutine of the issuer's, without locks; f must not block.
	Notify(f func())
}
