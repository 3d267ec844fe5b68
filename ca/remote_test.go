package ca

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// elsewhere is a Remote: a company that signs what it is sent.
type elsewhere struct {
	*company
	t       *testing.T
	clock   func() time.Time
	asked   []Order
	err     error                              // in place of an answer
	edit    func(*x509.Certificate)            // of what it signs
	answers func(Answer) Answer                // instead
	outlook Outlook                            // of all replicas
	keeps   bool                               // the last answer that was not taken is there to see
	signer  func(Signer) (c *company, ok bool) // nil: company signs for all

	withdrawn []Signer
}

func (e *elsewhere) Sign(_ context.Context, o Order) (Answer, error) {
	e.asked = append(e.asked, o)
	if e.err != nil {
		return Answer{}, e.err
	}
	if err := o.Request.CheckSignature(); err != nil {
		return Answer{}, err
	}
	c := e.company
	if e.signer != nil {
		var ok bool
		if c, ok = e.signer(o.Signer); !ok {
			return Answer{}, &NotSigned{ReasonPending, "it does not answer"}
		}
	}
	template := c.template("signed elsewhere " + o.For)
	template.NotBefore, template.NotAfter = e.clock().Add(-time.Minute), e.clock().Add(o.Lifetime)
	if o.For != "" {
		template.IsCA, template.KeyUsage, template.URIs = false, x509.KeyUsageDigitalSignature, o.Request.URIs
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	if e.edit != nil {
		e.edit(template)
	}
	answer := Answer{Chain: []*x509.Certificate{c.sign(template, c.root, o.Request.PublicKey)}, Roots: []*x509.Certificate{c.root}}
	if e.answers != nil {
		answer = e.answers(answer)
	}
	if err := o.Accept(answer); pending(err) {
		return Answer{}, err
	} else if err != nil {
		if e.keeps {
			e.outlook.NotTaken = []Answer{answer}
		}
		return Answer{}, &NotSigned{ReasonInvalid, err.Error()}
	}
	return answer, nil
}

func (e *elsewhere) Withdraw(s Signer) { e.withdrawn = append(e.withdrawn, s) }

func (e *elsewhere) Look(context.Context, *Signer) (Outlook, error) { return e.outlook, nil }

// by is a signer of the kind.
func by(signs Signs) *Signer {
	return &Signer{Name: "company", Kind: "Issuer", Group: "cert-manager.io", Signs: signs}
}

// refer has the office refer to a company that signs.
func refer(t *testing.T, o *office, signs Signs) *elsewhere {
	t.Helper()
	e := &elsewhere{company: newCompany(t, ecKey(t, elliptic.P256())), t: t, clock: func() time.Time { return o.clock }}
	o.opts.Authority.opts.Remote = e
	o.opts.Namespace, o.opts.ServiceAccount = "tulle-system", "tulled"
	o.settings.Signer = by(signs)
	return e
}

// leaf has the office's authority sign one.
func (o *office) leaf() (Signed, error) {
	o.t.Helper()
	return o.opts.Authority.Sign(o.t.Context(), Request{Kind: Workload, ID: frontend, Key: ecKey(o.t, elliptic.P256()), Lifetime: time.Hour})
}

// What is signed begins with the second in which it is, and that may be the next.
func TestWhatIsSignedInTheNextSecondIsTaken(t *testing.T) {
	for _, signs := range []Signs{SignsIntermediate, SignsLeaves} {
		o := newOffice(t)
		e := refer(t, o, signs)
		e.edit = func(c *x509.Certificate) {
			o.clock = o.clock.Truncate(time.Second).Add(time.Second)
			c.NotBefore = o.clock
		}
		o.step()
		o.is(PhaseDistribute, ReasonDistributing)
	}
}

func TestASignerSignsIntermediatesWhoseKeysItNeverSees(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsIntermediate)
	o.settings.Issuer.Lifetime = 300 * time.Hour
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	if m := o.material(); m.record.Signer != nil || m.rootKey == nil {
		t.Error("it signs before its root was distributed")
	}
	o.until("")
	o.is("", ReasonCurrent)
	o.says("signed by Issuer company (cert-manager.io)")
	m := o.material()
	if !m.anchor.Equal(e.root) || m.rootKey != nil || len(m.roots) != 1 || *m.record.Signer != *by(SignsIntermediate) {
		t.Error("the company's root is not the one")
	}
	h := m.record.History[0]
	if h.Why != WhySwitched || h.From.Signer != nil || h.To.Signer == nil || h.Scope != ScopeRoot {
		t.Errorf("history %+v", h)
	}
	o.pass(210 * time.Hour) // two thirds
	o.is(PhaseSign, ReasonSigning)
	o.settings.Request = ask(ScopeRoot, false)
	o.step()
	o.step()
	o.is("", ReasonRefused)

	o.settings.Signer, o.settings.Request = nil, ""
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	o.until("")
	if m := o.material(); m.rootKey == nil || len(m.roots) != 1 || m.record.Signer != nil || m.roots[0].Equal(e.root) {
		t.Error("it is not the mesh's own again")
	}
}

func TestWhatSignsGoesOnUntilTheOtherIsProven(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(*elsewhere)
		reason string
		words  string
	}{
		"denied":       {func(e *elsewhere) { e.err = &NotSigned{ReasonDenied, "the request was denied: no"} }, ReasonDenied, "was denied"},
		"pending":      {func(e *elsewhere) { e.err = &NotSigned{ReasonPending, "no answer yet"} }, ReasonPending, "no answer yet"},
		"another key":  {func(e *elsewhere) { e.answers = otherKey(t, e) }, ReasonInvalid, "another key"},
		"no root":      {func(e *elsewhere) { e.answers = func(a Answer) Answer { a.Roots = nil; return a } }, ReasonInvalid, "spec.ca.certManager.roots"},
		"not its root": {func(e *elsewhere) { e.answers = func(a Answer) Answer { a.Roots = a.Chain; return a } }, ReasonInvalid, ""},
		"expired":      {func(e *elsewhere) { e.edit = func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Second) } }, ReasonInvalid, "ended"},
		"too short": {func(e *elsewhere) {
			e.edit = func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(10 * time.Minute) }
		}, ReasonInvalid, "too soon"},
	} {
		for _, signs := range []Signs{SignsIntermediate, SignsLeaves} {
			t.Run(name+" "+string(signs), func(t *testing.T) {
				o := newOffice(t)
				o.step()
				before := o.material()
				e := refer(t, o, signs)
				c.break_(e)
				if name == "too short" && signs == SignsLeaves {
					e.edit = func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(80 * time.Second) }
				}
				o.step()
				o.is("", c.reason)
				o.says(c.words)
				if o.material() != before {
					t.Error("something was changed")
				}
				if c.reason == ReasonPending {
					o.step()
					if len(e.asked) != 2 || e.asked[0].Request != e.asked[1].Request {
						t.Error("it is asked anew and not waited for")
					}
				}
				e.err, e.edit, e.answers = nil, nil, nil
				o.step()
				o.is(PhaseDistribute, ReasonDistributing)
				o.until("")
				o.is("", ReasonCurrent)
			})
		}
	}
}

// itself has the one who asks sign his own certificate.
func itself(t *testing.T, e *elsewhere) func(Answer) Answer {
	return func(a Answer) Answer {
		t.Helper()
		key := e.asked[len(e.asked)-1].Key
		c, err := create(rand.Reader, a.Chain[0], a.Chain[0], key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return Answer{Chain: []*x509.Certificate{c}, Roots: []*x509.Certificate{c}}
	}
}

func TestAnIntermediateThatSignsItselfIsTheRootAndAnotherAtEachRenewal(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsIntermediate)
	e.answers = itself(t, e)
	o.settings.Issuer.Lifetime = 300 * time.Hour
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	o.until("")
	o.is("", ReasonCurrent)
	first := o.material()
	if len(first.roots) != 1 || !first.roots[0].Equal(first.issuer()) {
		t.Fatalf("%d roots", len(first.roots))
	}
	if err := verify(o.opts.Authority.Bundle().Roots, signLeaf(t, first, o.clock, time.Hour), o.clock, x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	o.pass(210 * time.Hour)
	o.is(PhaseDistribute, ReasonDistributing)
	if len(o.material().roots) != 2 {
		t.Error("the new root is not trusted beside the old one")
	}
	o.until("")
	if m := o.material(); len(m.roots) != 1 || m.roots[0].Equal(first.roots[0]) || m.record.History[0].Why != WhyDue {
		t.Errorf("it ends with %d roots", len(m.roots))
	}
}

func otherKey(t *testing.T, e *elsewhere) func(Answer) Answer {
	return func(a Answer) Answer {
		t.Helper()
		a.Chain = []*x509.Certificate{e.sign(a.Chain[0], e.root, ecKey(t, elliptic.P256()).Public())}
		return a
	}
}

func TestTheOwnIssuerIsRotatedInTimeWhileAnotherDoesNotAnswer(t *testing.T) {
	o := newOffice(t)
	o.step()
	e := refer(t, o, SignsIntermediate)
	e.err = &NotSigned{ReasonPending, "no answer yet"}
	before := o.material()
	o.pass(DefaultIssuerLifetime * 3 / 4)
	o.is(PhaseSign, ReasonSigning)
	o.until("")
	o.step()
	o.is("", ReasonPending)
	if m := o.material(); m.epoch.Issuer == before.epoch.Issuer || m.epoch.Root != before.epoch.Root {
		t.Error("the issuer was not rotated under its root")
	}
}

func TestLeavesAreSignedElsewhereAndServersAreNot(t *testing.T) {
	o := newOffice(t)
	o.step()
	e := refer(t, o, SignsLeaves)
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	m := o.material()
	if n := len(m.roots); n != 2 || len(m.servers) != 1 || string(o.opts.Authority.Roots()) == string(o.opts.Authority.Bundle().Roots) {
		t.Fatalf("%d roots, %d of servers", n, len(m.servers))
	}
	o.until("")
	o.is("", ReasonCurrent)
	o.says("signs the certificates of workloads")
	if m = o.material(); len(m.roots) != 1 || len(m.servers) != 1 || len(m.stored.IssuerKey)+len(m.stored.RootKey)+len(m.stored.NextServers) > 0 {
		t.Errorf("it is left with %d roots, or with keys", len(m.roots))
	}
	signed, err := o.leaf()
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(o.opts.Authority.Bundle().Roots, signed.Chain, o.clock, x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	if signed.Epoch.Issuer != o.opts.Authority.Epoch().Issuer || !o.opts.Authority.Trusts(signed.Epoch.Root) || signed.Chain[0].URIs[0].String() != frontend.String() {
		t.Errorf("signed of %+v", signed.Epoch)
	}
	asked := len(e.asked)
	server, err := o.opts.Authority.Sign(t.Context(), Request{Kind: Serving, DNSNames: []string{"tulled"}, Key: ecKey(t, elliptic.P256()), Lifetime: time.Hour})
	if err != nil || len(e.asked) != asked {
		t.Fatalf("servers wait for somebody else: %v", err)
	}
	if err := verify(o.opts.Authority.Roots(), server.Chain, o.clock, x509.ExtKeyUsageServerAuth); err != nil {
		t.Errorf("the volume does not have the servers' root: %v", err)
	}
	if verify(o.opts.Authority.Bundle().Roots, server.Chain, o.clock, x509.ExtKeyUsageServerAuth) == nil {
		t.Error("workloads take what the servers' key signs")
	}
}

func TestALeafThatIsNotExactlyWhatWasAskedForIsNotHandedOut(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsLeaves)
	o.step()
	o.until("")
	for words, edit := range map[string]func(*x509.Certificate){
		"not for " + frontend.String() + " alone": func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/a/sa/b"}}
		},
		"to add none":                   func(c *x509.Certificate) { c.DNSNames = []string{"more.example"} },
		"add none":                      func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(1, 2, 3, 4)} },
		"that of an authority":          func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign },
		"the usage \"digital signature": func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment },
		"\"client auth\"":               func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"begins at":                     func(c *x509.Certificate) { c.NotBefore = o.clock.Add(time.Minute) },
		"ended at":                      func(c *x509.Certificate) { c.NotAfter = o.clock.Add(-time.Second) },
		"too soon":                      func(c *x509.Certificate) { c.NotAfter = o.clock.Add(leafMargin / 2) },
	} {
		e.edit = edit
		if _, err := o.leaf(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
	e.edit, e.answers = nil, otherKey(t, e)
	if _, err := o.leaf(); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Error(err)
	}
}

func TestALeafOfAnAuthorityThatIsAboutToEndIsNotHandedOut(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsLeaves)
	e.company = newCompany(t, ecKey(t, elliptic.P256()), func(c *x509.Certificate) { c.NotAfter = start.Add(time.Hour) })
	o.step()
	o.until("")
	o.clock = e.root.NotAfter.Add(-leafMargin / 2)
	if _, err := o.leaf(); err == nil || !strings.Contains(err.Error(), "\"CN=a company's root 1\", above the certificate, ends in") {
		t.Error(err)
	}
}

func TestASignerWhoseRootWasReplacedIsFollowedInSteps(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsLeaves)
	o.step()
	o.until("")
	first := o.material()
	e.company = newCompany(t, ecKey(t, elliptic.P256()))
	if _, err := o.leaf(); err == nil || !strings.Contains(err.Error(), errUntrusted.Error()) {
		t.Fatalf("a leaf of an unknown root: %v", err)
	}
	e.outlook = Outlook{NotTaken: []Answer{{Chain: []*x509.Certificate{e.sign(e.template("leaf"), e.root, ecKey(t, elliptic.P256()).Public())}}}}
	o.pass(compareInterval)
	o.is(PhaseDistribute, ReasonDistributing)
	e.outlook = Outlook{}
	if _, err := o.leaf(); !pending(err) {
		t.Errorf("a leaf of a root that not all trust yet: %v", err)
	}
	o.until(PhaseSign)
	if _, err := o.leaf(); err != nil {
		t.Errorf("the new root is trusted, and a leaf of it is not taken: %v", err)
	}
	o.until("")
	o.is("", ReasonCurrent)
	m := o.material()
	if len(m.roots) != 1 || !m.anchor.Equal(e.root) || m.epoch.Issuer == first.epoch.Issuer || m.record.History[0].Why != WhyReplaced {
		t.Errorf("it ends with %d roots: %+v", len(m.roots), m.record.History[0])
	}
}

func TestAReferenceThatIsChangedInTheMiddleIsFollowed(t *testing.T) {
	for _, phase := range []Phase{PhaseDistribute, PhaseSign} {
		for _, signs := range []Signs{SignsIntermediate, SignsLeaves} {
			t.Run(string(phase)+" "+string(signs), func(t *testing.T) {
				o := newOffice(t)
				o.step()
				first := o.material()
				refer(t, o, signs)
				o.step()
				o.until(phase)
				o.settings.Signer = nil
				o.step()
				if phase == PhaseDistribute { // nothing was signed: all is as before
					o.is(PhaseRetire, ReasonRetiring)
					o.until("")
					if m := o.material(); m.epoch != first.epoch || string(m.volumes) != string(first.volumes) || !m.record.History[0].GivenUp {
						t.Errorf("it is left with %d roots", len(m.roots))
					}
					o.pass(time.Second)
					o.is("", ReasonCurrent)
					return
				}
				if m := o.material(); len(m.roots) != 2 || m.record.Rotation != nil || !m.record.History[0].GivenUp {
					t.Fatal("what may still be presented is trusted no longer")
				}
				o.step()
				o.is(PhaseDistribute, ReasonDistributing)
				o.until("")
				if m := o.material(); len(m.roots) != 1 || m.rootKey == nil || len(m.servers) != 0 || m.record.Signer != nil {
					t.Errorf("it is left with %d roots", len(m.roots))
				}
			})
		}
	}
}

func TestRequestsThatWaitOrAreRefusedAreSaid(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsLeaves)
	o.step()
	o.until("")
	o.is("", ReasonCurrent)
	e.outlook = Outlook{Waiting: 3, Since: o.clock, For: "spiffe://cluster.local/ns/shop/sa/web"}
	o.pass(lookInterval)
	o.is("", ReasonCurrent)
	o.pass(troubleTime)
	o.is("", ReasonPending)
	o.says("3 certificates are asked for and not signed yet, the first, for spiffe://cluster.local/ns/shop/sa/web")
	e.outlook = Outlook{Refused: Problem{ReasonDenied, "CertificateRequest a was denied"}}
	o.pass(lookInterval)
	o.is("", ReasonDenied)
	e.outlook = Outlook{}
	o.pass(lookInterval)
	o.is("", ReasonCurrent)
}

func TestARequestThatIsRefusedKeepsNothingFromBeingRotatedInTime(t *testing.T) {
	o := newOffice(t)
	refer(t, o, SignsIntermediate)
	o.settings.Issuer.Lifetime = 300 * time.Hour
	o.step()
	o.until("")
	o.settings.Request = ask(ScopeRoot, false)
	o.step()
	o.is("", ReasonRefused)
	o.pass(210 * time.Hour)
	o.is(PhaseSign, ReasonSigning)
	o.until("")
	o.step()
	o.is("", ReasonRefused)
}

func TestAnIntermediateIsReplacedBeforeWhatIsAboveItEnds(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsIntermediate)
	e.company = newCompany(t, ecKey(t, elliptic.P256()), func(c *x509.Certificate) { c.NotAfter = start.Add(100 * time.Hour) })
	o.settings.Issuer.Lifetime = 300 * time.Hour // the signer gives it, though it ends before
	o.step()
	o.until("")
	first := e.root
	e.company = newCompany(t, ecKey(t, elliptic.P256()))
	o.pass(70 * time.Hour)
	o.is(PhaseDistribute, ReasonDistributing)
	o.until("")
	if m := o.material(); len(m.roots) != 1 || m.roots[0].Equal(first) {
		t.Error("the root that ends is trusted, or no other is")
	}
}

func TestNothingIsLeftOfASignerThatWasGivenUpWhenTheOneBeforeItIsNamedAgain(t *testing.T) {
	for _, signs := range []Signs{SignsIntermediate, SignsLeaves} {
		t.Run(string(signs), func(t *testing.T) {
			o := newOffice(t)
			o.step()
			e := refer(t, o, signs)
			o.step()
			o.until(PhaseSign)
			another := *by(signs)
			another.Name = "another"
			o.settings.Signer = &another
			e.err = &NotSigned{ReasonPending, "no answer yet"}
			o.step()
			o.step()
			o.is("", ReasonPending)
			e.err = nil
			o.settings.Signer = by(signs)
			for range 3 {
				o.step()
			}
			o.until("")
			o.step()
			o.is("", ReasonCurrent)
			if m := o.material(); len(m.roots) != 1 || !m.roots[0].Equal(e.root) || len(m.servers) > 1 {
				t.Errorf("%d roots are trusted, and %d of servers", len(m.roots), len(m.servers))
			}
			before := o.material()
			o.pass(time.Hour)
			if o.material() != before {
				t.Error("it is rotated again")
			}
		})
	}
}

func TestLeavesDoNotEndForTheSakeOfThoseThatDoNotTakeTheirRoot(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsLeaves)
	o.step()
	o.until("")
	e.company = newCompany(t, ecKey(t, elliptic.P256()))
	e.outlook = Outlook{NotTaken: []Answer{{Chain: []*x509.Certificate{e.sign(e.template("leaf"), e.root, ecKey(t, elliptic.P256()).Public())}}}}
	o.live.frozen = []string{"shop/a"}
	o.pass(compareInterval)
	for waited := time.Duration(0); waited < time.Hour/4; waited += time.Minute { // the leaf lives for an hour
		o.is(PhaseDistribute, ReasonDistributing)
		if _, err := o.leaf(); !pending(err) {
			t.Fatalf("after %s: %v", waited, err)
		}
		o.clock = o.clock.Add(time.Minute)
	}
	if _, err := o.leaf(); err != nil {
		t.Error(err)
	}
}

func TestARootThatIsSignedAnewForTheSameKeyIsFollowedBeforeTheOldOneEnds(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsLeaves)
	name := func(c *x509.Certificate) { c.Subject.CommonName = "one name" }
	key := ecKey(t, elliptic.P256())
	e.company = newCompany(t, key, name, func(c *x509.Certificate) { c.NotAfter = start.Add(90 * time.Hour) })
	o.step()
	o.until("")
	old := o.material()
	asked := len(e.asked)
	o.pass(70 * time.Hour)
	o.is("", ReasonCurrent)
	o.pass(8 * time.Hour)
	o.is("", ReasonEndsSoon)
	for range 5 {
		o.pass(idleTick)
		o.is("", ReasonEndsSoon)
	}
	if n := len(e.asked) - asked; n == 0 || n > 6 {
		t.Errorf("it was asked %d times", n)
	}
	e.company = newCompany(t, key, name)
	if signed, err := o.leaf(); err != nil || signed.Epoch.Root != fingerprint(old.anchor.Raw) {
		t.Fatal("a leaf does not lead to the old root, too")
	}
	o.pass(time.Hour)
	o.is(PhaseDistribute, ReasonDistributing)
	o.until("")
	o.step()
	o.is("", ReasonCurrent)
	if m := o.material(); len(m.roots) != 1 || !m.anchor.Equal(e.root) {
		t.Errorf("%d roots", len(m.roots))
	}
}

func TestThatWhatSignsEndsIsSaidWhileTheSignerDoesNotAnswer(t *testing.T) {
	o := newOffice(t)
	e := refer(t, o, SignsIntermediate)
	o.settings.Issuer.Lifetime = 300 * time.Hour
	o.step()
	o.until("")
	e.err = &NotSigned{ReasonPending, "no answer yet"}
	o.pass(220 * time.Hour)
	o.is("", ReasonPending)
	if _, message, _ := o.Verdict(); strings.Contains(message, "ends at") {
		t.Error("too soon: ", message)
	}
	o.pass(40 * time.Hour)
	o.is("", ReasonPending)
	o.says("no answer yet; what signs now ends at 2026-03-")
}

func TestOfSeveralRootsThatAreNamedTheOneThatEndsIsLeftForTheOneThatSigns(t *testing.T) {
	for name, key := range map[string]bool{"of another key": false, "of the same key": true} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			e := refer(t, o, SignsLeaves)
			named := func(c *x509.Certificate) { c.Subject.CommonName = "one name" }
			e.company = newCompany(t, ecKey(t, elliptic.P256()), named, func(c *x509.Certificate) { c.NotAfter = start.Add(90 * time.Hour) })
			later := newCompany(t, ecKey(t, elliptic.P256()), named)
			if key {
				later = newCompany(t, e.key, named)
			}
			o.settings.Roots = encodeCertificates([]*x509.Certificate{e.root, later.root})
			o.settings.Signer.Roots = RootsID(o.settings.Roots)
			o.step()
			o.until("")
			e.company = later
			if _, err := o.leaf(); err != nil {
				t.Fatal(err)
			}
			o.pass(70 * time.Hour)
			o.until("")
			o.pass(10 * time.Hour)
			o.is("", ReasonCurrent)
			if m := o.material(); !m.anchor.Equal(later.root) {
				t.Error("it goes by the root that ends")
			}
		})
	}
}
