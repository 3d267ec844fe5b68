package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"
)

const (
	// askTime is how long a Rotator waits for a signer in one step. It goes on with
	// the same request in the next one.
	askTime = 2 * time.Second
	// lookInterval is between two looks at how the requests of all replicas fare.
	lookInterval = 10 * time.Second
	// troubleTime is how long the oldest request waits before that is said.
	troubleTime = 30 * time.Second
	// compareInterval is between two orders that show whether the signer's root is
	// another, for the sake of an answer that was not taken.
	compareInterval = time.Minute
	// tryLifetime is that of a leaf by which it is seen whether an issuer signs them.
	// Nobody uses it; many issuers give no less.
	tryLifetime = time.Hour
	// minIssuer is how long an intermediate has to live at least when it comes.
	minIssuer = 30 * time.Minute
)

// ordered is what a signer was asked for, and may answer yet. It is not stored: who
// comes to lead asks with a key of its own.
type ordered struct {
	signer  Signer
	roots   string // of the settings
	key     crypto.Signer
	request *x509.CertificateRequest
}

// remote has somebody else sign, or sees to it that he goes on.
func (r *Rotator) remote(ctx context.Context, m *material, now time.Time, s Settings, asked *Ask) (*plan, Problem, error) {
	p := &plan{}
	if asked != nil {
		p.request, p.forced = s.Request, asked.Forced
	}
	switch {
	case !sameSigner(m.record.Signer, s.Signer):
		p.why = WhySwitched
	case asked != nil && asked.Scope == ScopeRoot: // it stays in the MeshConfig, and must not hold up what is due
		p, problem, err := r.remote(ctx, m, now, s, nil)
		if err == nil && problem == (Problem{}) {
			problem = Problem{ReasonRefused, fmt.Sprintf("the root is that of %s, and is replaced there: the mesh follows by itself", s.Signer)}
		}
		return p, problem, err
	case asked != nil:
		p.why = WhyRequested
	case m.leftOver():
		p.why = WhySwitched
	}
	return r.renew(ctx, m, now, s, p)
}

// renew has the signer sign anew, where there is a reason to.
func (r *Rotator) renew(ctx context.Context, m *material, now time.Time, s Settings, p *plan) (*plan, Problem, error) {
	leaves := s.Signer.Signs == SignsLeaves
	switch {
	case p.why != "":
	case r.foreign, leaves && r.mayBeAnother(m, now):
		p.why = WhyReplaced
	case leaves && Terms{Before: DefaultBefore}.due(m.server.anchor.NotBefore, m.server.anchor.NotAfter, now),
		!leaves && s.Issuer.due(m.issuer().NotBefore, m.notAfter(), now): // a signer may end before what it signs
		p.why = WhyDue
	case min(left(m.issuer().NotBefore, m.notAfter(), now), left(m.anchor.NotBefore, m.anchor.NotAfter, now)) < DefaultBefore/2:
		delete(r.ordered, *s.Signer)
		return nil, Problem{ReasonEndsSoon, fmt.Sprintf("the issuer or its root ends at %s: replace what %s signs with, and then: tulle ca rotate", m.notAfter().UTC().Format(time.RFC3339), s.Signer)}, nil
	default:
		delete(r.ordered, *s.Signer)
		return nil, Problem{}, nil
	}
	var err error
	if p.next, err = r.order(ctx, s); err != nil {
		return nil, Problem{}, err
	}
	if p.why == WhyReplaced {
		if r.foreign, r.compared = false, now; sameSet(m.roots, p.next.roots) && !p.next.anchor.NotAfter.After(m.anchor.NotAfter) {
			return r.renew(ctx, m, now, s, &plan{}) // it was another's answer, or of before, or there is no other root yet
		}
	}
	return p, Problem{}, nil
}

// mayBeAnother reports whether it is time to see if the signer has a new root: of one
// that is for the same key leaves lead to the old root, too, until that ends.
func (r *Rotator) mayBeAnother(m *material, now time.Time) bool {
	pause := max(min(m.anchor.NotAfter.Sub(now)/20, time.Hour), compareInterval)
	return Terms{Before: DefaultBefore}.due(m.anchor.NotBefore, m.anchor.NotAfter, now) && now.Sub(r.compared).Abs() >= pause
}

// overtaken reports whether the signer that a rotation leads to has a root that it does
// not lead to. None of its leaves are taken then, so that it could not come to its end.
func (r *Rotator) overtaken(ctx context.Context, m *material, now time.Time, s Settings) bool {
	if to := m.record.Rotation.To.Signer; to == nil || !sameSigner(to, s.Signer) {
		return false
	}
	next, err := r.order(ctx, s)
	if err != nil {
		return false // it is asked again
	}
	r.foreign, r.compared = false, now
	return len(union(m.roots, next.roots)) > len(m.roots)
}

// order has an intermediate signed, or a leaf to see whether and under which root
// that is done.
func (r *Rotator) order(ctx context.Context, s Settings) (*material, error) {
	a := r.opts.Authority
	if a.opts.Remote == nil {
		return nil, &NotSigned{ReasonUnavailable, fmt.Sprintf("nobody asks %s here", s.Signer)}
	}
	o := r.ordered[*s.Signer]
	if o == nil || o.roots != RootsID(s.Roots) {
		var err error
		if o, err = r.newOrder(s); err != nil {
			return nil, err
		}
		r.ordered[*s.Signer] = o
	}
	leaves := s.Signer.Signs == SignsLeaves
	order := Order{Signer: o.signer, Request: o.request, Key: o.key, Lifetime: s.Issuer.Lifetime}
	if leaves {
		order.For, order.Lifetime = r.self(s).String(), tryLifetime
	}
	var next *material
	order.Accept = func(answer Answer) error {
		now := a.now() // it begins with the second in which it was signed, which is later
		roots, err := rootsOf(s.Roots, answer)
		if err != nil {
			return err
		}
		if leaves {
			next, err = r.acceptLeaf(now, s, o, answer, roots)
		} else {
			next, err = r.acceptIssuer(now, s, o, answer, roots)
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	_, err := a.opts.Remote.Sign(ctx, order)
	if !pending(err) {
		delete(r.ordered, *s.Signer)
	}
	return next, err
}

// self is the control plane's own identity.
func (r *Rotator) self(s Settings) ID {
	return ID{TrustDomain: s.TrustDomain, Namespace: r.opts.Namespace, ServiceAccount: r.opts.ServiceAccount}
}

func (r *Rotator) newOrder(s Settings) (*ordered, error) {
	a := r.opts.Authority
	o := &ordered{signer: *s.Signer, roots: RootsID(s.Roots)}
	var err error
	if s.Signer.Signs != SignsLeaves {
		o.key, o.request, err = newIntermediate(a.opts.Rand)
		return o, err
	}
	if o.key, err = newKey(a.opts.Rand); err != nil {
		return nil, err
	}
	if err := r.self(s).Validate(); err != nil {
		return nil, err
	}
	o.request, err = newRequest(a, o.key, &x509.CertificateRequest{URIs: []*url.URL{r.self(s).URL()}})
	return o, err
}

// acceptIssuer makes an intermediate that was signed what is to sign, or says why it
// cannot.
func (r *Rotator) acceptIssuer(now time.Time, s Settings, o *ordered, answer Answer, roots []*x509.Certificate) (*material, error) {
	chain := presented(answer.Chain)
	for _, c := range chain {
		if err := checkKey(c.PublicKey); err != nil {
			return nil, fmt.Errorf("certificate %q has %w", c.Subject, err)
		}
	}
	if len(chain) > 0 && !belongs(o.key, chain[0]) {
		return nil, errors.New("the certificate is for another key than the one that was sent")
	}
	next, err := Intermediate{Chain: chain, Roots: roots}.material(nil, o.key)
	if err != nil {
		return nil, err
	}
	if err := next.probe(now, r.opts.Authority.opts.Rand, r.usage(s)); err != nil {
		return nil, err
	}
	if life := next.notAfter().Sub(now); life < minIssuer {
		return nil, fmt.Errorf("the intermediate, or what is above it, ends in %s, which is too soon: %s was asked for", life.Round(time.Second), s.Issuer.Lifetime)
	}
	next.record.Signer = s.Signer
	return next, nil
}

// acceptLeaf makes whoever has signed a leaf the one who signs all.
func (r *Rotator) acceptLeaf(now time.Time, s Settings, o *ordered, answer Answer, roots []*x509.Certificate) (*material, error) {
	opts := r.opts.Authority.opts
	root, err := (&material{roots: roots}).takes(now, Request{Kind: Workload, ID: r.self(s), Key: o.key, Lifetime: tryLifetime}, answer.Chain)
	if errors.Is(err, errUntrusted) {
		return nil, errors.New("the certificate leads to none of the roots that the answer, or spec.ca.certManager.roots, names")
	}
	if err != nil {
		return nil, err
	}
	stored := Stored{Root: encodeCertificates(roots)}
	if stored.Servers, stored.ServersKey, err = newRoot(now, opts.Rand, DefaultRootLifetime, "control plane", 0); err != nil {
		return nil, err
	}
	record := Record{Signer: s.Signer, Delegation: &Delegation{Root: fingerprint(root.Raw)}}
	if stored, err = stored.with(record); err != nil {
		return nil, err
	}
	return parseMaterial(stored)
}

// look looks at how requests fare, now and then.
func (r *Rotator) look(ctx context.Context, m *material) {
	a := r.opts.Authority
	now := a.now()
	idle := m.record.Signer == nil && r.opts.Settings().Signer == nil && !r.looked.IsZero() // what a predecessor left is gone
	if a.opts.Remote == nil || idle || !r.looked.IsZero() && now.Sub(r.looked).Abs() < lookInterval {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var leaves *Signer
	if m.record.Delegation != nil {
		leaves = m.record.Signer
	}
	outlook, err := a.opts.Remote.Look(ctx, leaves)
	if err != nil && leaves != nil {
		outlook.Refused = Problem{ReasonUnavailable, err.Error()}
	}
	r.looked = now
	r.foreign = false
	for _, answer := range outlook.NotTaken {
		r.foreign = r.foreign || m.record.Delegation != nil && now.Sub(r.compared).Abs() >= compareInterval && !m.leads(now, answer.Chain)
	}
	r.tell(func() { r.outlook = outlook })
}

// troubled is what is wrong with requests for leaves. The caller holds the lock.
func (r *Rotator) troubled(now time.Time) Problem {
	o := r.outlook
	const goes = "; workloads that have a certificate go on with it while it lives, others wait"
	switch waited := now.Sub(o.Since); {
	case o.Refused != Problem{}:
		return Problem{o.Refused.Reason, o.Refused.Message + goes}
	case o.Waiting > 0 && waited >= troubleTime:
		return Problem{ReasonPending, fmt.Sprintf("%d certificates are asked for and not signed yet, the first, for %s, since %s%s",
			o.Waiting, o.For, o.Since.UTC().Format(time.RFC3339), goes)}
	}
	return Problem{}
}
