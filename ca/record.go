package ca

import (
	"encoding/json"
	"fmt"
	"time"
)

// Record is what the authority keeps of its rotations, beside its material and
// in the same place, so that both change together. There is nothing secret in
// it.
type Record struct {
	// Sequence is another, and higher, after each change of the material. It is
	// by this that acknowledgements are told apart.
	Sequence int64 `json:"sequence"`
	// Signer is who signs, if that is somebody else.
	Signer *Signer `json:"signer,omitempty"`
	// Delegation is there while it signs leaves.
	Delegation *Delegation `json:"delegation,omitempty"`
	// Request is the last one that was taken up, as it was written.
	Request string `json:"request,omitempty"`
	// Rotation is the one under way; nil: none.
	Rotation *Rotation `json:"rotation,omitempty"`
	// History are the last rotations, the newest first; at most [maxHistory].
	History []Past `json:"history,omitempty"`
}

// Delegation is that of leaves to a [Signer].
type Delegation struct {
	// Since is the sequence at which it began.
	Since int64 `json:"since"`
	// Root is the fingerprint of the root that leaves lead to.
	Root string `json:"root"`
}

// maxHistory bounds the history: a Secret holds 1 MiB.
const maxHistory = 32

// Scope is what is rotated.
type Scope string

// The scopes of a rotation.
const (
	// ScopeIssuer replaces the issuing intermediate, and leaves what is trusted.
	ScopeIssuer Scope = "issuer"
	// ScopeRoot replaces roots, and with them the issuing intermediate.
	ScopeRoot Scope = "root"
)

// Phase is how far a rotation is.
type Phase string

// The phases, in their order. Where the roots stay, there is [PhaseSign] alone.
const (
	// PhaseDistribute has everybody trust the new roots beside the old ones. The
	// old issuer signs.
	PhaseDistribute Phase = "Distribute"
	// PhaseSign has the new issuer sign, and every certificate replaced.
	PhaseSign Phase = "Sign"
	// PhaseRetire has everybody trust the new roots alone.
	PhaseRetire Phase = "Retire"
)

// Why is what a rotation was begun for.
type Why string

// The reasons of a rotation.
const (
	WhyRequested Why = "Requested" // somebody asked for it
	WhyDue       Why = "Due"       // the end of a certificate's life is near
	WhyBrought   Why = "Brought"   // an operator has brought another intermediate
	WhySwitched  Why = "Switched"  // the MeshConfig names another signer
	WhyReplaced  Why = "Replaced"  // the signer has another root
)

// Keys are the ids of an issuer's key and of its root's, see [KeyID], and whose
// they are.
type Keys struct {
	Issuer string `json:"issuer"` // empty: the signer signs leaves
	Root   string `json:"root"`
	// Signer is nil for the authority itself.
	Signer *Signer `json:"signer,omitempty"`
}

// Rotation is a rotation under way.
type Rotation struct {
	Scope Scope `json:"scope"`
	Why   Why   `json:"why"`
	Phase Phase `json:"phase"`
	// Forced says that it goes on without proxies that do not acknowledge.
	Forced bool `json:"forced,omitempty"`
	// CutOff are some of the proxies without which it went on.
	CutOff []string `json:"cutOff,omitempty"`
	// Started is when it began, Since when its phase did.
	Started time.Time `json:"started"`
	Since   time.Time `json:"since"`
	From    Keys      `json:"from"`
	To      Keys      `json:"to"`
	// Delegated is the root of the [Delegation] that it leads to; empty: to none.
	Delegated string `json:"delegated,omitempty"`
	// AddedRoots and AddedServers are how many were not trusted before.
	AddedRoots   int `json:"addedRoots,omitempty"`
	AddedServers int `json:"addedServers,omitempty"`
	// GivenUp says that it ended before all was as it leads to.
	GivenUp bool `json:"givenUp,omitempty"`
}

// Past is a rotation that has ended.
type Past struct {
	Scope   Scope     `json:"scope"`
	Why     Why       `json:"why"`
	Forced  bool      `json:"forced,omitempty"`
	CutOff  []string  `json:"cutOff,omitempty"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	From    Keys      `json:"from"`
	To      Keys      `json:"to"`
	// GivenUp says that something else was wanted before it was done.
	GivenUp bool `json:"givenUp,omitempty"`
}

func parseRecord(text []byte) (r Record, err error) {
	if len(text) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("record of rotations: %w", err)
	}
	if rotation := r.Rotation; rotation != nil {
		switch rotation.Phase {
		case PhaseDistribute, PhaseSign, PhaseRetire:
		default:
			return r, fmt.Errorf("record of rotations: there is no phase %q", rotation.Phase)
		}
	}
	return r, nil
}

// with is what is stored, with another record.
func (s Stored) with(r Record) (Stored, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return s, fmt.Errorf("record of rotations: %w", err)
	}
	s.Record = text
	return s, nil
}

func (r *Record) finish(now time.Time) {
	done := r.Rotation
	past := Past{
		Scope: done.Scope, Why: done.Why, Forced: done.Forced, CutOff: done.CutOff,
		Started: done.Started, Ended: now, From: done.From, To: done.To, GivenUp: done.GivenUp,
	}
	r.Rotation = nil
	r.History = append([]Past{past}, r.History[:min(len(r.History), maxHistory-1)]...)
}
