package ca

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"
)

// The reasons of a [Problem], and of what a [Rotator] says.
const (
	ReasonCurrent = "Current" // nothing is to be rotated
	// A rotation is in one of its phases.
	ReasonDistributing = "Distributing"
	ReasonSigning      = "Signing"
	ReasonRetiring     = "Retiring"

	ReasonWaiting     = "Waiting"     // it does not go on: proxies do not acknowledge
	ReasonInvalid     = "Invalid"     // what an operator brought cannot be used
	ReasonRefused     = "Refused"     // what was asked for cannot be done
	ReasonEndsSoon    = "EndsSoon"    // a certificate ends, and nobody rotates it
	ReasonUnavailable = "Unavailable" // what is needed for a decision does not answer

	// A signer was asked, and has not answered, refuses, or could not.
	ReasonPending = "Pending"
	ReasonDenied  = "Denied"
	ReasonFailed  = "Failed"
)

// Problem is why the authority is not as it ought to be, while nothing is
// rotated; its zero value is none.
type Problem struct {
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// AuthorityCertificate is one of the authority's, for people.
type AuthorityCertificate struct {
	KeyID     string    `json:"keyID"`
	Subject   string    `json:"subject"`
	Key       string    `json:"key"` // its kind
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// State is what there is to say about the authority. There is nothing secret in
// it.
type State struct {
	// Leading says that this replica is the one that rotates; what it waits for
	// is known to it alone.
	Leading bool `json:"leading"`
	// RootKey says that the key of the root is kept here.
	RootKey bool                   `json:"rootKey"`
	Issuer  AuthorityCertificate   `json:"issuer"`
	Roots   []AuthorityCertificate `json:"roots"` // all that are trusted
	// Servers are roots by which the control plane alone is verified.
	Servers []AuthorityCertificate `json:"servers,omitempty"`
	Record  Record                 `json:"record"`
	// Reason and Message are what the leader makes of it.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// State is the present one.
func (r *Rotator) State() State {
	m := r.opts.Authority.material.Load()
	s := State{RootKey: m.rootKey != nil, Issuer: describe(m.issuer()), Record: m.record}
	for _, root := range m.roots {
		s.Roots = append(s.Roots, describe(root))
	}
	for _, root := range m.servers {
		s.Servers = append(s.Servers, describe(root))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Leading = r.leading; s.Leading {
		s.Reason, s.Message = r.verdict(m)
	}
	return s
}

// Verdict is a reason and its words; false where this replica does not lead.
func (r *Rotator) Verdict() (reason, message string, ok bool) {
	m := r.opts.Authority.material.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.leading {
		return "", "", false
	}
	reason, message = r.verdict(m)
	return reason, message, true
}

// verdict is what there is to say. The caller holds the lock.
func (r *Rotator) verdict(m *material) (reason, message string) {
	rotation := m.record.Rotation
	unusable := r.opts.Authority.unusable.Load()
	switch {
	case unusable != nil:
		return ReasonInvalid, *unusable
	case !r.failed.since.IsZero() && r.opts.Authority.now().Sub(r.failed.since).Abs() >= troubleTime:
		return ReasonUnavailable, r.failed.why
	case rotation == nil && r.problem != Problem{}:
		return r.problem.Reason, r.problem.Message
	case rotation == nil && m.record.Delegation != nil:
		if p := r.troubled(r.opts.Authority.now()); p != (Problem{}) {
			return p.Reason, p.Message
		}
		return ReasonCurrent, fmt.Sprintf("%s signs the certificates of workloads; its root %s ends at %s", m.record.Signer,
			short(m.keys().Root), m.anchor.NotAfter.UTC().Format(time.DateOnly))
	case rotation == nil && m.record.Signer != nil:
		return ReasonCurrent, fmt.Sprintf("the issuer %s, signed by %s, ends at %s, its root %s at %s", short(m.keys().Issuer), m.record.Signer,
			m.issuer().NotAfter.UTC().Format(time.DateOnly), short(m.keys().Root), m.anchor.NotAfter.UTC().Format(time.DateOnly))
	case rotation == nil:
		return ReasonCurrent, fmt.Sprintf("the issuer %s ends at %s, its root %s at %s", short(m.keys().Issuer),
			m.issuer().NotAfter.UTC().Format(time.DateOnly), short(m.keys().Root), m.anchor.NotAfter.UTC().Format(time.DateOnly))
	}
	reason = map[Phase]string{PhaseDistribute: ReasonDistributing, PhaseSign: ReasonSigning, PhaseRetire: ReasonRetiring}[rotation.Phase]
	message = fmt.Sprintf("rotating the %s to %s", rotation.Scope, rotation.To)
	if r.waits != "" {
		message += ": " + r.waits
	}
	if p := r.troubled(r.opts.Authority.now()); p != (Problem{}) && m.record.Delegation != nil {
		message += "; " + p.Message
	}
	if r.held {
		return ReasonWaiting, fmt.Sprintf("%s (since %s in the phase %s): see to it (restart or delete pods that do not acknowledge), or cut off who is behind: tulle ca rotate%s --force=%s",
			message, rotation.Since.UTC().Format(time.RFC3339), rotation.Phase, flag(rotation.Scope), ForceWord)
	}
	return reason, message
}

// String names the issuer and its root in messages.
func (k Keys) String() string {
	switch {
	case k.Issuer == "":
		return fmt.Sprintf("leaves that %s signs, of root %s", k.Signer, short(k.Root))
	case k.Signer != nil:
		return fmt.Sprintf("issuer %s of %s, of root %s", short(k.Issuer), k.Signer, short(k.Root))
	}
	return fmt.Sprintf("issuer %s of root %s", short(k.Issuer), short(k.Root))
}

func flag(s Scope) string {
	if s == ScopeRoot {
		return " --root"
	}
	return ""
}

// short is enough of a key id to tell it from a few others.
func short(id string) string { return id[:min(len(id), 8)] }

// tell changes what there is to say, and tells whoever wants to know if that is
// something else.
func (r *Rotator) tell(change func()) {
	r.mu.Lock()
	change()
	reason, message := "", ""
	if r.leading {
		reason, message = r.verdict(r.opts.Authority.material.Load())
	}
	other := r.said != reason+message
	r.said = reason + message
	r.mu.Unlock()
	if other {
		r.opts.Changed()
	}
}

func describe(c *x509.Certificate) AuthorityCertificate {
	out := AuthorityCertificate{KeyID: KeyID(c), Subject: c.Subject.String(), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC()}
	switch key := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		out.Key = "ECDSA " + key.Curve.Params().Name
	case *rsa.PublicKey:
		out.Key = fmt.Sprintf("RSA %d", key.N.BitLen())
	default:
		out.Key = c.PublicKeyAlgorithm.String()
	}
	return out
}
