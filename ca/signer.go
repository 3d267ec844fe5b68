package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"time"
)

// Signs is what a [Signer] signs.
type Signs string

const (
	// SignsIntermediate has it sign an intermediate, whose key stays with the
	// authority and signs leaves.
	SignsIntermediate Signs = "Intermediate"
	// SignsLeaves has it sign each certificate of a workload.
	SignsLeaves Signs = "Leaves"
)

// Signer is somebody else's authority, as cert-manager refers to it. Where there
// is none, the authority signs with a root of its own, or with what an operator
// has brought.
type Signer struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Group string `json:"group"`
	Signs Signs  `json:"signs"`
	// Roots identifies the roots that the operator names, see Settings.Roots;
	// empty: the signer's answers have them.
	Roots string `json:"roots,omitempty"`
}

// String names it in messages.
func (s Signer) String() string { return fmt.Sprintf("%s %s (%s)", s.Kind, s.Name, s.Group) }

func sameSigner(a, b *Signer) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

// named names it in messages; nil: the authority itself.
func (s *Signer) named() string {
	if s == nil {
		return "the mesh's own authority"
	}
	return s.String()
}

// RootsID identifies roots in PEM, see [Signer].
func RootsID(pem []byte) string {
	if len(pem) == 0 {
		return ""
	}
	return fingerprint(pem)
}

// Remote asks Signers. ca/certmanager is one.
type Remote interface {
	// Sign has a request signed, and waits as long as the context. An order that is
	// given again, with the same request, is waited for and not made anew. Its errors
	// are of the type [*NotSigned].
	Sign(ctx context.Context, o Order) (Answer, error)
	// Look tells how the requests of all replicas fare, and clears away those that
	// nobody waits for. It is for the leader. Where a signer of leaves is named, that
	// he cannot be asked is an error, of the type [*NotSigned].
	Look(ctx context.Context, leaves *Signer) (Outlook, error)
	// Withdraw says that nobody on this replica waits for what the signer has not
	// answered. It does not block.
	Withdraw(s Signer)
}

// Order is what a Remote is to have signed.
type Order struct {
	Signer Signer
	// For is the identity of a leaf; empty: the mesh's intermediate.
	For string
	// Request (PKCS#10) is signed by Key, which a signer sees only where it is that
	// key that signs: a root that signs itself.
	Request  *x509.CertificateRequest
	Key      crypto.Signer
	Lifetime time.Duration
	// Accept reports, as an error, what is wrong with an answer. A [*NotSigned] says that
	// the same answer may be taken later.
	Accept func(Answer) error
}

// Answer is a certificate that was signed, followed by those between it and the
// root, and the roots that the signer names, if any.
type Answer struct{ Chain, Roots []*x509.Certificate }

// NotSigned is why there is no certificate.
type NotSigned struct {
	// Reason is one of [Problem]: ReasonPending or ReasonUnavailable where an answer may
	// come yet.
	Reason, Message string
}

// Error is the message.
func (n *NotSigned) Error() string { return n.Message }

// Outlook is how the requests of all replicas for leaves fare.
type Outlook struct {
	// Waiting is how many have no answer, Since when the first of them was made, and
	// For whom.
	Waiting int
	Since   time.Time
	For     string
	// Refused is the newest of those that have no certificate for good; its zero
	// value: none.
	Refused Problem
	// NotTaken are answers that were not taken.
	NotTaken []Answer
}
