package ca

import (
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"
)

// named is a signer of the name.
func named(name string, signs Signs) *Signer {
	s := by(signs)
	s.Name = name
	return s
}

// hangs has the office be with the first of two companies, and go over to the second,
// which does not answer.
func hangs(t *testing.T, o *office, signs Signs, edits ...func(*x509.Certificate)) (e *elsewhere, companies map[string]*company) {
	t.Helper()
	companies = map[string]*company{"first": newCompany(t, ecKey(t, elliptic.P256()), edits...)}
	e = refer(t, o, signs)
	e.signer = func(s Signer) (*company, bool) { return companies[s.Name], companies[s.Name] != nil }
	o.settings.Signer = named("first", signs)
	o.step()
	o.until("")
	o.is("", ReasonCurrent)
	o.settings.Signer = named("second", signs)
	o.step()
	o.is("", ReasonPending)
	return e, companies
}

// lives fails the test where somebody is shown what has ended, or trusts what has.
func (o *office) lives() {
	o.t.Helper()
	for _, kind := range []Kind{Workload, Serving} {
		r := Request{Kind: kind, Key: ecKey(o.t, elliptic.P256()), Lifetime: time.Hour}
		roots := o.opts.Authority.Roots()
		if r.ID, r.DNSNames = frontend, nil; kind == Serving {
			r.ID, r.DNSNames = ID{}, []string{"tulled"}
		} else {
			roots = o.opts.Authority.Bundle().Roots
		}
		signed, err := o.opts.Authority.Sign(o.t.Context(), r)
		if err != nil {
			o.t.Fatalf("at %s: %v", o.clock, err)
		}
		if err := verify(roots, signed.Chain, o.clock.Add(time.Minute), x509.ExtKeyUsageServerAuth); err != nil {
			o.t.Fatalf("at %s a certificate of kind %q is refused: %v", o.clock, kind, err)
		}
	}
}

func TestWhatSignsIsRenewedForAsLongAsASwitchHangs(t *testing.T) {
	const life = 300 * time.Hour
	for name, c := range map[string]struct {
		begin func(*testing.T, *office) (answer func())
		of    string // the signer that goes on; empty: the mesh itself
	}{
		"from the mesh's own": {func(t *testing.T, o *office) func() {
			o.settings.Root.Lifetime = 4 * life
			o.settings.Request = ask(ScopeRoot, false) // of such lives
			o.step()
			o.until("")
			e := refer(t, o, SignsLeaves)
			e.err = &NotSigned{ReasonPending, "no answer yet"}
			return func() { e.err = nil }
		}, ""},
		"from a company's": {func(t *testing.T, o *office) func() {
			_, companies := hangs(t, o, SignsIntermediate)
			return func() { companies["second"] = newCompany(t, ecKey(t, elliptic.P256())) }
		}, "first"},
		"from a company's, its root named": {func(t *testing.T, o *office) func() {
			e := refer(t, o, SignsIntermediate)
			first := e.company
			o.settings.Roots = encodeCertificates([]*x509.Certificate{first.root})
			o.settings.Signer = named("first", SignsIntermediate)
			o.settings.Signer.Roots = RootsID(o.settings.Roots)
			e.answers = func(a Answer) Answer { a.Roots = nil; return a }
			o.step()
			o.until("")
			o.settings.Signer, o.settings.Roots = named("second", SignsIntermediate), nil
			e.signer = func(s Signer) (*company, bool) { return first, s.Name == "first" }
			return func() { e.answers, e.signer = nil, nil }
		}, "first"},
		"from a company's to what is brought and not taken": {func(t *testing.T, o *office) func() {
			hangs(t, o, SignsIntermediate)
			o.settings.Signer = nil
			o.brought.content = Brought{Chain: []byte("junk"), Key: []byte("junk"), Roots: []byte("junk")}
			return func() { o.brought.content = Brought{} }
		}, "first"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.settings.Issuer.Lifetime = life
			answer := c.begin(t, o)
			epochs := map[Epoch]bool{}
			for until := o.clock.Add(8 * life); o.clock.Before(until); {
				o.pass(2 * time.Hour)
				o.lives()
				epochs[o.opts.Authority.Epoch()] = true
				if m := o.material(); m.record.Signer.nameOr("") != c.of {
					t.Fatalf("%s signs", m.record.Signer.named())
				}
			}
			if n := len(epochs); n < 10 || n > 16 { // 8 lives of which two thirds pass, and those of roots
				t.Errorf("signed with %d issuers", n)
			}
			answer()
			o.step()
			o.until("")
			o.step()
			o.until("")
			if m := o.material(); !sameSigner(m.record.Signer, o.settings.Signer) || len(m.roots) != 1 {
				t.Errorf("%s signs, and %d roots are trusted", m.record.Signer.named(), len(m.roots))
			}
			for _, past := range o.material().record.History {
				if past.GivenUp {
					t.Errorf("given up: %+v", past)
				}
			}
		})
	}
}

func (s *Signer) nameOr(name string) string {
	if s == nil {
		return name
	}
	return s.Name
}

func TestASignerOfLeavesIsFollowedForAsLongAsASwitchHangs(t *testing.T) {
	o := newOffice(t)
	e, companies := hangs(t, o, SignsLeaves, func(c *x509.Certificate) { c.NotAfter = start.Add(300 * time.Hour) })
	epochs := map[Epoch]bool{}
	for o.clock.Before(start.Add(290 * time.Hour)) {
		if o.clock.After(start.Add(250*time.Hour)) && companies["first"].root.NotAfter.Before(start.Add(301*time.Hour)) {
			companies["first"] = newCompany(t, ecKey(t, elliptic.P256())) // its root ends, and is replaced
		}
		o.pass(30 * time.Minute)
		epochs[o.opts.Authority.Epoch()] = true
	}
	m := o.material()
	if !m.anchor.Equal(companies["first"].root) || m.record.Signer.Name != "first" {
		t.Fatalf("%s signs under a root that ends at %s", m.record.Signer.named(), m.anchor.NotAfter)
	}
	o.lives()
	// The root of servers is made anew, and once.
	server := m.server.anchor
	o.clock = server.NotAfter.Add(-server.NotAfter.Sub(server.NotBefore) / 4)
	companies["first"] = newCompany(t, ecKey(t, elliptic.P256()), func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = o.clock.Add(-time.Hour), o.clock.Add(10000*time.Hour)
	})
	e.edit = nil
	for range 300 {
		o.pass(time.Minute)
		epochs[o.opts.Authority.Epoch()] = true
	}
	if m = o.material(); m.server.anchor.Equal(server) || len(epochs) > 4 {
		t.Errorf("the root of servers ends at %s; signed under %d epochs", m.server.anchor.NotAfter, len(epochs))
	}
	o.lives()
	// Back to the first: nothing is left over.
	o.settings.Signer = named("first", SignsLeaves)
	for range 3 {
		o.step()
	}
	o.until("")
	o.step()
	o.is("", ReasonCurrent)
	if m := o.material(); len(m.roots) != 1 || len(m.servers) != 1 {
		t.Errorf("%d roots are trusted, and %d of servers", len(m.roots), len(m.servers))
	}
}

// A rotation that is under way keeps nobody from going over for whom a signer of leaves
// never answers.
func TestASwitchIsNotHeldByLeavesThatTheSignerBeforeDoesNotSign(t *testing.T) {
	o := newOffice(t)
	_, companies := hangs(t, o, SignsLeaves)
	o.settings.Signer = named("first", SignsLeaves)
	o.settings.Request = ask(ScopeIssuer, false)
	o.step()
	o.until(PhaseSign)
	o.live.frozen = []string{"shop/a"} // has no certificate of it
	o.step()
	o.is(PhaseSign, ReasonSigning)
	delete(companies, "first")
	companies["second"] = newCompany(t, ecKey(t, elliptic.P256()))
	o.settings.Signer = named("second", SignsLeaves)
	o.step()
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	if to := o.material().record.Rotation.To.Signer; to.Name != "second" {
		t.Errorf("rotated to %s", to)
	}
}

func TestWhoIsNamedWhileAnotherDoesNotAnswerIsFollowed(t *testing.T) {
	for _, signs := range []Signs{SignsIntermediate, SignsLeaves} {
		t.Run(string(signs), func(t *testing.T) {
			o := newOffice(t)
			e, companies := hangs(t, o, signs)
			before := o.material()
			o.settings.Signer = named("first", signs) // back
			o.step()
			o.is("", ReasonCurrent)
			if o.material() != before || len(o.ordered) > 0 || len(e.withdrawn) != 1 || e.withdrawn[0].Name != "second" {
				t.Errorf("something has changed, or %d requests are left; withdrawn: %v", len(o.ordered), e.withdrawn)
			}
			o.settings.Signer = named("second", signs)
			o.step()
			o.is("", ReasonPending)
			companies["third"] = newCompany(t, ecKey(t, elliptic.P256()))
			o.settings.Signer = named("third", signs) // on
			o.step()
			o.is(PhaseDistribute, ReasonDistributing)
			o.until("")
			if m := o.material(); m.record.Signer.Name != "third" || len(m.roots) != 1 || len(o.ordered) > 0 {
				t.Errorf("%s signs, %d roots, %d requests are left", m.record.Signer.named(), len(m.roots), len(o.ordered))
			}
		})
	}
}

// An issuer that signs leaves may sign any name for others, that of the control plane too.
func TestNothingThatASignerOfLeavesSignsIsTakenForTheControlPlane(t *testing.T) {
	o := newOffice(t)
	o.step()
	e := refer(t, o, SignsLeaves)
	poses := func() error {
		template := e.template("not the control plane")
		template.IsCA, template.KeyUsage, template.DNSNames = false, x509.KeyUsageDigitalSignature, []string{"tulled"}
		template.NotBefore, template.NotAfter = o.clock.Add(-time.Minute), o.clock.Add(time.Hour)
		chain := []*x509.Certificate{e.sign(template, e.root, ecKey(t, elliptic.P256()).Public())}
		return verify(o.opts.Authority.Roots(), chain, o.clock, x509.ExtKeyUsageServerAuth)
	}
	o.step()
	o.until("")
	o.lives()
	if poses() == nil {
		t.Error("proxies take it while nothing is rotated")
	}
	o.settings.Request = ask(ScopeIssuer, false) // from leaves to leaves
	o.step()
	for _, phase := range []Phase{PhaseDistribute, PhaseSign, PhaseRetire, ""} {
		o.until(phase)
		o.lives()
		if poses() == nil {
			t.Errorf("proxies take it in the phase %q", phase)
		}
	}
	// The same company's root is to sign for servers, by way of an intermediate: all have to
	// know of it before.
	o.settings.Signer = by(SignsIntermediate)
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	o.lives()
	if poses() != nil {
		t.Error("nobody is told of the root")
	}
	o.until("")
	o.lives()
	if m := o.material(); m.record.Signer.Signs != SignsIntermediate || len(m.servers) != 0 {
		t.Errorf("%+v", m.record)
	}
}

// silent is a Remote that takes requests and does not answer.
type silent struct {
	*elsewhere
	asked chan Order
}

func (s *silent) Sign(ctx context.Context, o Order) (Answer, error) {
	s.asked <- o
	<-ctx.Done()
	return Answer{}, &NotSigned{ReasonPending, "no answer yet"}
}

func TestWhoWaitsForALeafIsAnsweredByWhoeverSignsNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		e := refer(t, o, SignsLeaves)
		o.step()
		o.until("")
		s := &silent{e, make(chan Order, 1)}
		o.opts.Authority.opts.Remote = s
		type answer struct {
			Signed
			err error
		}
		answers := make(chan answer, 1)
		go func() {
			signed, err := o.leaf()
			answers <- answer{signed, err}
		}()
		<-s.asked
		o.settings.Signer = nil
		o.step()
		o.until(PhaseSign)
		a := <-answers
		if a.err != nil || a.Epoch != o.opts.Authority.Epoch() {
			t.Fatalf("signed by %+v: %v", a.Epoch, a.err)
		}
		if err := verify(o.opts.Authority.Bundle().Roots, a.Chain, o.clock, x509.ExtKeyUsageClientAuth); err != nil {
			t.Error(err)
		}
		if len(e.withdrawn) != 1 || e.withdrawn[0] != *by(SignsLeaves) {
			t.Errorf("withdrawn: %v", e.withdrawn)
		}
	})
}

func TestWhatSignsAndIsNotRotatedByItselfIsUponRequestAsItEndsWhileASwitchHangs(t *testing.T) {
	for _, of := range []string{"the mesh", "a company"} {
		t.Run(of, func(t *testing.T) {
			o := newOffice(t)
			o.settings.Issuer = Terms{Lifetime: DefaultIssuerLifetime}
			if of == "a company" {
				hangs(t, o, SignsIntermediate, func(c *x509.Certificate) { c.NotAfter = start.Add(DefaultRootLifetime) })
			} else {
				e := refer(t, o, SignsIntermediate)
				e.err = &NotSigned{ReasonPending, "no answer yet"}
			}
			before := o.material()
			o.settings.Request = ask(ScopeIssuer, false)
			o.step()
			o.is("", ReasonPending) // it is for the other, who may answer
			o.pass(DefaultIssuerLifetime * 3 / 4)
			o.is(PhaseSign, ReasonSigning)
			o.until("")
			o.step()
			o.is("", ReasonPending)
			if m := o.material(); !m.notAfter().After(before.notAfter()) || m.record.History[0].Why != WhyRequested {
				t.Errorf("the issuer ends at %s", m.notAfter())
			}
			o.lives()
		})
	}
}
