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
	if d := next.record.Delegation; d != nil {
		r.Delegated = d.Root
	}
	record := m.record
	record.Sequence++
	record.Rotation = &r
	if request != "" {
		record.Request = request
	}
	s := m.stored
	s.NextRoot, s.NextRootKey, s.NextIssuer, s.NextIssuerKey = next.bundle, next.stored.RootKey, next.stored.Issuer, next.stored.IssuerKey
	s.NextServers, s.NextServersKey = encodeCertificates(next.servers), next.stored.ServersKey
	roots, servers := union(m.roots, next.roots), union(m.servers, next.servers)
	r.AddedRoots, r.AddedServers = len(roots)-len(m.roots), len(servers)-len(m.servers)
	if serving := m.serving(); r.AddedRoots+r.AddedServers > 0 || len(union(serving, next.serving())) > len(serving) {
		s.Root, s.Servers = encodeCertificates(roots), encodeCertificates(servers)
		return s.with(record)
	}
	r.Phase = PhaseSign
	return s.promote(&record).with(record)
}

// upkeep reports whether it renews what signs for the time being, while the MeshConfig
// names somebody else, who does not sign yet. Without, what signs would end. It ends as
// soon as the new is signed with, where all that it waits for yet are leaves that a signer
// may never sign.
func (r *Rotation) upkeep() bool {
	return sameSigner(r.To.Signer, r.From.Signer) && (r.Phase == PhaseDistribute || r.Delegated == "")
}

// promote puts what the rotation leads to into its place; its roots alone are
// still to be told from the others. The old keys are dropped: nobody needs them.
func (s Stored) promote(r *Record) Stored {
	s.RootKey, s.Issuer, s.IssuerKey, s.ServersKey = s.NextRootKey, s.NextIssuer, s.NextIssuerKey, s.NextServersKey
	s.NextRootKey, s.NextIssuer, s.NextIssuerKey, s.NextServersKey = nil, nil, nil, nil
	r.Signer, r.Delegation = r.Rotation.To.Signer, nil
	if r.Rotation.Delegated != "" {
		r.Delegation = &Delegation{Since: r.Sequence, Root: r.Rotation.Delegated}
	}
	return s
}

// drop is what is stored without anything that a rotation leads to.
func (s Stored) drop() Stored {
	s.NextRoot, s.NextRootKey, s.NextIssuer, s.NextIssuerKey, s.NextServers, s.NextServersKey = nil, nil, nil, nil, nil, nil
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
		record.Sequence++
		s = s.promote(&record)
	case rotation.Phase == PhaseSign && m.leaving():
		rotation.Phase = PhaseRetire
		record.Sequence++
		s.Root, s.Servers = s.NextRoot, s.NextServers
	default:
		record.finish(now)
		s = s.drop() // nothing that anybody acknowledges is another
	}
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
	return m.stored.drop().with(record) // nothing that anybody acknowledges is another
}

// giveUp is for a rotation to what is wanted no longer. Before it signs, what was
// trusted before is trusted again alone: nobody has anything that leads to the
// rest. Afterwards all of it stays, for the next rotation to take away.
func (m *material) giveUp(now time.Time) (Stored, error) {
	record, s := m.record, m.stored
	rotation := *record.Rotation
	rotation.GivenUp = true
	record.Rotation = &rotation
	if rotation.Phase != PhaseDistribute {
		record.finish(now)
		return s.drop().with(record)
	}
	record.Sequence++
	rotation.Phase, rotation.Since = PhaseRetire, now
	s = s.drop()
	s.Root = encodeCertificates(m.roots[:len(m.roots)-rotation.AddedRoots])
	s.Servers = encodeCertificates(m.servers[:len(m.servers)-rotation.AddedServers])
	s.NextRoot, s.NextServers = s.Root, s.Servers
	return s.with(record)
}

// leftOver reports whether roots are left from before a rotation to the present
// signer, which was given up while it signed.
func (m *material) leftOver() bool {
	if len(m.record.History) == 0 {
		return false
	}
	past, servers := m.record.History[0], 0
	if m.record.Delegation != nil {
		servers = 1
	}
	return past.GivenUp && sameSigner(past.To.Signer, m.record.Signer) && (len(m.roots) > 1 || len(m.servers) > servers)
}

// serving are the roots that the control plane's servers are verified by. Where somebody
// else signs leaves, and did before a rotation, too, those of workloads are not among them:
// what he signs for others under the same root may have any name.
func (m *material) serving() []*x509.Certificate {
	leaves := m.record.Delegation != nil
	if r := m.record.Rotation; r != nil {
		leaves = r.From.Issuer == "" && r.To.Issuer == ""
	} else if leaves && m.leftOver() { // a server may still present what was signed before
		leaves = m.record.History[0].From.Issuer == ""
	}
	if leaves {
		return m.servers
	}
	return union(m.roots, m.servers)
}

// leaving reports whether there are roots that the rotation does not lead to.
func (m *material) leaving() bool {
	next, err := parseCertificates(m.stored.NextRoot)
	if err != nil {
		return false
	}
	var servers []*x509.Certificate
	if len(m.stored.NextServers) > 0 {
		if servers, err = parseCertificates(m.stored.NextServers); err != nil {
			return false
		}
	}
	return !sameSet(m.roots, next) || !sameSet(m.servers, servers)
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

// supersedes reports whether what is stored is of before a rotation that this material
// has gone on with. What somebody has put in its place is not: it has other keys.
func (m *material) supersedes(s Stored) bool {
	record, err := parseRecord(s.Record)
	if err != nil || record.Sequence >= m.record.Sequence {
		return false
	}
	before, err := parseMaterial(s)
	if err != nil {
		return false
	}
	known := []Keys{m.keys()}
	if r := m.record.Rotation; r != nil {
		known = append(known, r.From)
	}
	for _, past := range m.record.History {
		known = append(known, past.From, past.To)
	}
	keys := before.keys()
	return slices.ContainsFunc(known, func(k Keys) bool { return k.Issuer == keys.Issuer && k.Root == keys.Root })
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

func (m *material) keys() Keys {
	k := Keys{Issuer: KeyID(m.issuer()), Root: KeyID(m.anchor), Signer: m.record.Signer}
	if m.record.Delegation != nil {
		k.Issuer = ""
	}
	return k
}

// KeyID identifies the key of an authority's certificate, as the certificates
// that it signs do (RFC 5280, 4.2.1.2): in hexadecimal.
func KeyID(c *x509.Certificate) string {
	if len(c.SubjectKeyId) > 0 {
		return hex.EncodeToString(c.SubjectKeyId)
	}
	return fingerprint(c.RawSubjectPublicKeyInfo)
}
