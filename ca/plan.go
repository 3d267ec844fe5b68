package ca

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// plan is a rotation that is to begin.
type plan struct {
	next    *material
	why     Why
	request string
	forced  bool
}

// plan decides; nil: nothing is to be rotated. A request that is refused, and an
// intermediate that is not taken, keep nothing from being rotated in time.
func (r *Rotator) plan(ctx context.Context, m *material, now time.Time, s Settings) (*plan, Problem, error) {
	asked, refused := m.asked(s.Request, now)
	p, problem, err := r.choose(ctx, m, now, s, asked)
	if refused != nil && problem == (Problem{}) {
		problem = Problem{ReasonRefused, refused.Error()}
	}
	return p, problem, err
}

func (r *Rotator) choose(ctx context.Context, m *material, now time.Time, s Settings, asked *Ask) (*plan, Problem, error) {
	for signer := range r.ordered {
		if !sameSigner(&signer, s.Signer) && !sameSigner(&signer, m.record.Signer) {
			delete(r.ordered, signer)
			r.opts.Authority.opts.Remote.Withdraw(signer)
		}
	}
	p, problem, err := r.wanted(ctx, m, now, s, asked)
	if err == nil && problem.Reason != ReasonInvalid {
		return p, problem, nil
	}
	// Until what is wanted signs, what does is rotated in time.
	if kept := r.keep(ctx, m, now, s, asked); kept != nil {
		return kept, problem, nil
	}
	return p, problem, err
}

// wanted is the rotation to what the operator wants.
func (r *Rotator) wanted(ctx context.Context, m *material, now time.Time, s Settings, asked *Ask) (*plan, Problem, error) {
	if s.Signer != nil {
		return r.remote(ctx, m, now, s, asked)
	}
	brought, err := r.brought(ctx)
	if err != nil {
		return nil, Problem{}, err
	}
	if !brought.empty() {
		p, problem := r.bring(m, brought, now, s, asked)
		return p, problem, nil
	}
	return r.own(ctx, m, now, s, asked)
}

// keep renews what signs now, whatever is wanted; nil: it need not, or cannot, be. What
// was asked for is for what is wanted, unless what signs now is about to end.
func (r *Rotator) keep(ctx context.Context, m *material, now time.Time, s Settings, asked *Ask) *plan {
	var p *plan
	var err error
	if left(m.issuer().NotBefore, m.notAfter(), now) > DefaultBefore {
		asked = nil
	}
	switch signer := m.record.Signer; {
	case m.rootKey != nil:
		p, _, err = r.own(ctx, m, now, s, asked)
	case signer == nil:
		var brought Brought
		if brought, err = r.brought(ctx); err == nil && !brought.empty() {
			p, _ = r.bring(m, brought, now, s, nil)
		}
	case !sameSigner(signer, s.Signer):
		s.Signer, s.Roots = signer, nil
		if signer.Roots != "" { // the MeshConfig does not have them any more
			s.Roots = m.bundle
		}
		next := &plan{}
		if asked != nil {
			next = &plan{why: WhyRequested, request: s.Request, forced: asked.Forced}
		}
		p, _, err = r.renew(ctx, m, now, s, next)
	}
	if err != nil {
		r.opts.Log.Info("what signs cannot be renewed now; trying again", "of", m.record.Signer.named(), "expires", m.notAfter(), "error", err.Error())
	}
	return p
}

func (r *Rotator) brought(ctx context.Context) (Brought, error) {
	if r.opts.Brought == nil {
		return Brought{}, nil
	}
	return r.opts.Brought.Brought(ctx)
}

// bring compares with what an operator has brought.
func (r *Rotator) bring(m *material, b Brought, now time.Time, s Settings, asked *Ask) (*plan, Problem) {
	opts := r.opts.Authority.opts
	next, err := b.material(now, opts.Rand, usage{s.TrustDomain, r.opts.ServingNames})
	if err != nil {
		return nil, Problem{ReasonInvalid, fmt.Sprintf("what is in %s is not taken: %v", r.opts.Brought, err)}
	}
	if next.epoch.Issuer != m.epoch.Issuer || !sameSet(next.roots, m.roots) {
		if end := next.notAfter(); end.Before(m.notAfter()) && left(next.issuer().NotBefore, end, now) < DefaultBefore/2 {
			return nil, Problem{ReasonInvalid, fmt.Sprintf("what is in %s is not taken: it ends at %s, and what signs now ends later: bring one that lives longer",
				r.opts.Brought, end.UTC().Format(time.RFC3339))}
		}
		p := &plan{next: next, why: WhyBrought}
		if asked != nil {
			p.request, p.forced = s.Request, asked.Forced
		}
		return p, Problem{}
	}
	switch before := max(s.Issuer.Before, DefaultBefore) / 2; {
	case asked != nil:
		return nil, Problem{ReasonRefused, fmt.Sprintf("the issuer is the one in %s, and is rotated by bringing another there", r.opts.Brought)}
	case left(m.issuer().NotBefore, m.notAfter(), now) < before:
		return nil, Problem{ReasonEndsSoon, fmt.Sprintf("the issuer ends at %s: bring another in %s", m.notAfter().UTC().Format(time.RFC3339), r.opts.Brought)}
	}
	return nil, Problem{}
}

// left is the part of a life that is left: 1 before it has begun, 0 after its
// end.
func left(from, to, now time.Time) float64 {
	return min(max(to.Sub(now).Seconds()/to.Sub(from).Seconds(), 0), 1)
}

// due reports whether it is time to rotate by itself. A certificate whose
// beginning has not come was made by a clock that was ahead.
func (t Terms) due(from, to, now time.Time) bool {
	return t.Before > 0 && (left(from, to, now) <= t.Before || now.Before(from))
}

// own renews by the own root.
func (r *Rotator) own(_ context.Context, m *material, now time.Time, s Settings, asked *Ask) (*plan, Problem, error) {
	issuer, root := m.issuer(), m.anchor
	p := &plan{why: WhyDue}
	scope := Scope("")
	switch {
	case m.record.Signer != nil: // the mesh comes back to a root of its own
		scope, p.why = ScopeRoot, WhySwitched
		if asked != nil {
			p.request, p.forced = s.Request, asked.Forced
		}
	case asked != nil:
		scope, p.why, p.request, p.forced = asked.Scope, WhyRequested, s.Request, asked.Forced
	case m.rootKey != nil && s.Root.due(root.NotBefore, root.NotAfter, now):
		scope = ScopeRoot
	case s.Issuer.due(issuer.NotBefore, issuer.NotAfter, now) && m.rootKey != nil && r.gains(m, now, s):
		scope = ScopeIssuer
	}
	last := min(left(issuer.NotBefore, m.notAfter(), now), left(root.NotBefore, root.NotAfter, now))
	switch {
	case scope == "" && now.Before(m.notBefore()):
		return nil, Problem{ReasonInvalid, fmt.Sprintf("the issuer or its root begins at %s only, and nobody takes what it signs: tulle ca rotate --root", m.notBefore().UTC().Format(time.RFC3339))}, nil
	case scope == "" && last < DefaultBefore/2:
		return nil, Problem{ReasonEndsSoon, fmt.Sprintf("the issuer or its root ends at %s and is not rotated by itself: tulle ca rotate --root", m.notAfter().UTC().Format(time.RFC3339))}, nil
	case scope == "":
		return nil, Problem{}, nil
	case scope == ScopeIssuer && m.rootKey == nil:
		return nil, Problem{ReasonRefused, "the root's key is not here, so that there can be no new issuer under it: bring one, or begin anew with a root of the mesh's own: tulle ca rotate --root"}, nil
	}
	var err error
	if p.next, err = r.make(m, scope, now, s); err != nil {
		return nil, Problem{}, err
	}
	return p, Problem{}, nil
}

// gains reports whether a new issuer would live longer, which it does not where
// the root's end limits both.
func (r *Rotator) gains(m *material, now time.Time, s Settings) bool {
	next := earlier(now.Add(s.Issuer.Lifetime), m.signer.NotAfter)
	return next.Sub(m.issuer().NotAfter) > s.Issuer.Lifetime/10 || now.Before(m.issuer().NotBefore)
}

// make makes the next issuer, and for the scope of the root a root before.
func (r *Rotator) make(m *material, scope Scope, now time.Time, s Settings) (*material, error) {
	opts := r.opts.Authority.opts
	// A root that may have no intermediate signs leaves itself until its end.
	if scope == ScopeRoot || m.signer.MaxPathLenZero {
		return newMaterial(now, opts.Rand, s.Root.Lifetime, s.Issuer.Lifetime)
	}
	next, err := m.renewed(now, opts.Rand, s.Issuer.Lifetime)
	if err != nil {
		return nil, err
	}
	if err := next.probe(now, opts.Rand, r.usage(s)); err != nil {
		return nil, errors.Join(errors.New("the intermediate that was signed is not taken"), err)
	}
	return next, nil
}

func (r *Rotator) usage(s Settings) usage { return usage{s.TrustDomain, r.opts.ServingNames} }
