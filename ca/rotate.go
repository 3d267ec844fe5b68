package ca

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"time"
)

// The steps of a rotation, as pure functions from what is stored to what is to be
// stored. Each is one write, so that whoever goes on after a crash finds the one
// state or the other and nothing between.

// begin starts a rotation to the next material: its roots are trusted beside the
// present ones. Where they are trusted already it is signed with at once.
func (m *material) begin(now time.Time, next *material, r Rotation, request string) (Stored, error) {
	r.Started, r.Since, r.From, r.To = now, now, m.keys(), next.keys()
	r.Scope = ScopeIssuer
	if !sameSet(m.roots, next.roots) {
		r.Scope = ScopeRoot
	}
	r.Phase = PhaseDistribute
	record := m.record
	record.Sequence++
	record.Rotation = &r
	if request != "" {
		record.Request = request
	}
	s := m.stored
	s.NextRoot, s.NextRootKey, s.NextIssuer, s.NextIssuerKey = next.bundle, next.stored.RootKey, next.stored.Issuer, next.stored.IssuerKey
	if all := union(m.roots, next.roots); len(all) > len(m.roots) {
		s.Root = encodeCertificates(all)
		return s.with(record)
	}
	r.Phase = PhaseSign
	return s.promote().with(record)
}

// promote puts what the rotation leads to into its place; its roots alone are
// still to be told from the others. The old keys are dropped: nobody needs them.
func (s Stored) promote() Stored {
	s.RootKey, s.Issuer, s.IssuerKey = s.NextRootKey, s.NextIssuer, s.NextIssuerKey
	s.NextRootKey, s.NextIssuer, s.NextIssuerKey = nil, nil, nil
	return s
}

// advance goes from the present phase to the next one. Without are proxies that
// have not done what the phase is for.
func (m *material) advance(now time.Time, without []string) (Stored, error) {
	record := m.record
	if record.Rotation == nil {
		return Stored{}, errors.New("there is no rotation to go on with")
	}
	rotation := *record.Rotation
	record.Rotation = &rotation
	rotation.Since = now
	rotation.CutOff = merged(rotation.CutOff, without)
	s := m.stored
	switch {
	case rotation.Phase == PhaseDistribute:
		rotation.Phase = PhaseSign
		s = s.promote()
	case rotation.Phase == PhaseSign && m.leaving():
		rotation.Phase = PhaseRetire
		s.Root = s.NextRoot
	default:
		record.finish(now)
		s.NextRoot, s.NextRootKey, s.NextIssuer, s.NextIssuerKey = nil, nil, nil, nil
		return s.with(record) // nothing that anybody acknowledges is another
	}
	record.Sequence++
	return s.with(record)
}

// late reports whether the issuer that is to sign next is about to end itself, and
// is not what the present one would be replaced by.
func (m *material) late(now time.Time) bool {
	chain, err := parseCertificates(m.stored.NextIssuer)
	if err != nil {
		return false
	}
	end := chain[0].NotAfter
	for _, c := range chain {
		end = earlier(end, c.NotAfter)
	}
	return ending(chain[0].NotBefore, end, now) && end.Before(m.notAfter())
}

// abandon ends a rotation whose issuer has not come to sign. Its roots are trusted
// until a rotation leads to others.
func (m *material) abandon() (Stored, error) {
	record := m.record
	record.Rotation = nil
	s := m.stored
	s.NextRoot, s.NextRootKey, s.NextIssuer, s.NextIssuerKey = nil, nil, nil, nil
	return s.with(record) // nothing that anybody acknowledges is another
}

// leaving reports whether there are roots that the rotation does not lead to.
func (m *material) leaving() bool {
	next, err := parseCertificates(m.stored.NextRoot)
	return err == nil && !sameSet(m.roots, next)
}

// amend is what is stored with another rotation, in the same phase.
func (m *material) amend(request string, change func(*Rotation)) (Stored, error) {
	record := m.record
	rotation := *record.Rotation
	change(&rotation)
	record.Rotation = &rotation
	if request != "" {
		record.Request = request
	}
	return m.stored.with(record)
}

// union are the certificates of both, in their order, each once.
func union(a, b []*x509.Certificate) []*x509.Certificate {
	out := slices.Clone(a)
	for _, c := range b {
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

func sameSet(a, b []*x509.Certificate) bool {
	both := len(union(a, b))
	return both == len(union(nil, a)) && both == len(union(nil, b))
}

// merged keeps a few names.
func merged(have, more []string) []string {
	const most = 16
	out := slices.Concat(have, more)
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), most)]
}

func (m *material) keys() Keys { return Keys{Issuer: KeyID(m.issuer()), Root: KeyID(m.anchor)} }

// KeyID identifies the key of an authority's certificate, as the certificates
// that it signs do (RFC 5280, 4.2.1.2): in hexadecimal.
func KeyID(c *x509.Certificate) string {
	if len(c.SubjectKeyId) > 0 {
		return hex.EncodeToString(c.SubjectKeyId)
	}
	return fingerprint(c.RawSubjectPublicKeyInfo)
}
