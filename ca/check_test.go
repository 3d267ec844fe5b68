package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
)

// company is an authority outside of the mesh that gives it an intermediate.
type company struct {
	t    *testing.T
	key  crypto.Signer
	root *x509.Certificate
	seq  int64
}

func newCompany(t *testing.T, key crypto.Signer, edits ...func(*x509.Certificate)) *company {
	c := &company{t: t, key: key}
	template := c.template("a company's root")
	for _, edit := range edits {
		edit(template)
	}
	c.root = c.sign(template, template, key.Public())
	return c
}

func (c *company) template(name string) *x509.Certificate {
	c.seq++
	return &x509.Certificate{
		SerialNumber: big.NewInt(c.seq), Subject: pkix.Name{CommonName: fmt.Sprint(name, " ", c.seq)},
		NotBefore: start.Add(-time.Hour), NotAfter: start.Add(5000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

func (c *company) sign(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	c.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// gives is an intermediate for the key.
func (c *company) gives(key crypto.Signer, edits ...func(*x509.Certificate)) Brought {
	c.t.Helper()
	template := c.template("the mesh's issuer")
	for _, edit := range edits {
		edit(template)
	}
	cert := c.sign(template, c.root, key.Public())
	text, err := encodeKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	return Brought{Chain: encodeCertificates([]*x509.Certificate{cert}), Key: text, Roots: encodeCertificates([]*x509.Certificate{c.root})}
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var meshUse = usage{"cluster.local", []string{"tulled.tulle-system.svc"}}

func TestAnIntermediateThatIsGoodIsTakenWhateverItsKeyIsWrittenIn(t *testing.T) {
	p256, p384, rsa2048 := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384()), rsaKey(t, 2048)
	sec1, err := x509.MarshalECPrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	withKey := func(b Brought, kind string, der []byte) Brought {
		b.Key = pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		return b
	}
	company := newCompany(t, rsa2048)
	elliptical := newCompany(t, p384)
	for name, b := range map[string]Brought{
		"P-256 under RSA":    company.gives(p256),
		"P-384 in SEC 1":     withKey(company.gives(p384), "EC PRIVATE KEY", sec1),
		"RSA in PKCS#1":      withKey(elliptical.gives(rsa2048), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa2048)),
		"RSA under P-384":    elliptical.gives(rsa2048),
		"with a path length": company.gives(p256, func(c *x509.Certificate) { c.MaxPathLenZero = true }),
		"for these names alone": company.gives(p256, func(c *x509.Certificate) {
			c.PermittedURIDomains, c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"cluster.local"}, []string{"svc"}, true
		}),
	} {
		m, err := b.material(start, rand.Reader, meshUse)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if err := verify(b.Roots, signLeaf(t, m, start, time.Hour), start, use); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestAnIntermediateThatOthersWouldRefuseIsRefusedInWords(t *testing.T) {
	good, other := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	company := newCompany(t, ecKey(t, elliptic.P256()))
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	narrow := newCompany(t, ecKey(t, elliptic.P256()), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	with := func(change func(*Brought)) Brought {
		b := company.gives(good)
		change(&b)
		return b
	}
	for words, b := range map[string]Brought{
		"tls.crt is missing": with(func(b *Brought) { b.Chain = nil }),
		"tls.key is missing": with(func(b *Brought) { b.Key = nil }),
		"ca.crt is missing":  with(func(b *Brought) { b.Roots = nil }),
		"does not belong":    with(func(b *Brought) { b.Key = company.gives(other).Key }),
		"does not lead to a root": with(func(b *Brought) {
			b.Roots = encodeCertificates([]*x509.Certificate{newCompany(t, ecKey(t, elliptic.P256())).root})
		}),
		"RSA key of 1024 bits":      company.gives(rsaKey(t, 1024)),
		"curve P-224":               company.gives(ecKey(t, elliptic.P224())),
		"curve P-521":               company.gives(ecKey(t, elliptic.P521())),
		"key of type ed25519":       company.gives(edwards),
		"may not sign certificates": company.gives(good, func(c *x509.Certificate) { c.IsCA = false }),
		"ended at":                  company.gives(good, func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Minute) }),
		"begins at":                 company.gives(good, func(c *x509.Certificate) { c.NotBefore = start.Add(time.Minute) }),
		"a certificate for spiffe://cluster.local/ns/default/sa/default that it signs": company.gives(good, func(c *x509.Certificate) {
			c.PermittedURIDomains = []string{"example.org"}
		}),
		"the control plane's certificate that it signs": company.gives(good, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} }),
		"key usages":             company.gives(good, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"too many intermediates": narrow.gives(good),
	} {
		_, err := b.material(start, rand.Reader, meshUse)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("want an error that says %q: %v", words, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%v quotes a key", err)
		}
	}
}

func TestWhatIsBroughtReplacesTheOwnAuthorityStepByStep(t *testing.T) {
	o := newOffice(t)
	company := newCompany(t, ecKey(t, elliptic.P384()))
	o.brought.content = Brought{Chain: []byte("junk"), Key: []byte("junk"), Roots: []byte("junk")}
	o.step()
	o.is("", ReasonInvalid)
	o.says("Secret tulle-system/tulle-ca-issuer")

	o.brought.content = company.gives(ecKey(t, elliptic.P256()))
	own := o.material()
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	if o.material().epoch != own.epoch {
		t.Error("it is signed with before everybody trusts it")
	}
	o.until(PhaseSign)
	if m := o.material(); m.rootKey != nil || len(m.stored.RootKey) > 0 {
		t.Error("the own root's key is still there")
	}
	o.until("")
	o.is("", ReasonCurrent)
	if err := verify(o.brought.content.Roots, signLeaf(t, o.material(), o.clock, time.Hour), o.clock, x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}

	// Another one of the same root needs nobody's trust.
	o.brought.content = company.gives(ecKey(t, elliptic.P256()))
	o.step()
	o.is(PhaseSign, ReasonSigning)
	o.step()
	o.is("", ReasonCurrent)
	if h := o.material().record.History; h[0].Scope != ScopeIssuer || h[0].Why != WhyBrought || h[1].Scope != ScopeRoot {
		t.Errorf("history %+v", h)
	}

	// Nobody but who brings rotates it.
	o.settings.Request = ask(ScopeIssuer, false)
	o.step()
	o.is("", ReasonRefused)
	o.settings.Request = ""
	o.pass(4900 * time.Hour)
	o.is("", ReasonEndsSoon)

	// It is taken away: it signs on, and the mesh may begin anew.
	o.clock = start.Add(time.Hour)
	o.brought.content = Brought{}
	o.step()
	o.is("", ReasonCurrent)
	o.settings.Request = ask(ScopeIssuer, false)
	o.step()
	o.is("", ReasonRefused)
	o.settings.Request = ask(ScopeRoot, false)
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	o.until("")
	o.is("", ReasonCurrent)
	if o.material().rootKey == nil {
		t.Error("there is no root of the mesh's own")
	}
}

func TestABroughtSecretThatCannotBeReadChangesNothing(t *testing.T) {
	o := newOffice(t)
	o.brought.err = errors.New("forbidden")
	before := o.material()
	if err := o.Step(t.Context()); err == nil {
		t.Error("no error")
	}
	o.is("", ReasonUnavailable)
	if o.material() != before {
		t.Error("something changed")
	}
}

func TestAnIdentityThatAsksAgainAndAgainIsSlowedAndOthersAreNot(t *testing.T) {
	issuer := newTestIssuer(t)
	c, err := NewCertificates(Options{Issuer: issuer, Log: testr.New(t), Now: issuer.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	greedy, other := frontend.String(), ID{"cluster.local", "shop", "cart"}.String()
	issued := 0
	for range 3 * identityBurst {
		if _, err := c.Issue(t.Context(), greedy); err == nil {
			issued++
		}
		c.Forget(greedy) // as one does that connects anew all the time
	}
	if issued < identityBurst || issued > identityBurst+3 {
		t.Errorf("%d were issued at once", issued)
	}
	if _, err := c.Issue(t.Context(), other); err != nil {
		t.Error(err)
	}
	issuer.clock.jump(2 * identityInterval)
	if _, err := c.Issue(t.Context(), greedy); err != nil {
		t.Error(err)
	}
	issuer.clock.jump(identityBurst * 2 * identityInterval)
	c.limits.forget(c.now())
	if n := len(c.limits.limiters); n != 0 {
		t.Errorf("%d limits are remembered of nobody", n)
	}
}

func TestAnIntermediateThatEndsSoonDoesNotReplaceOneThatLivesLonger(t *testing.T) {
	o := newOffice(t)
	c := newCompany(t, ecKey(t, elliptic.P256()))
	o.brought.content = c.gives(ecKey(t, elliptic.P256()), func(i *x509.Certificate) {
		i.NotBefore, i.NotAfter = start.Add(-24*time.Hour), start.Add(time.Hour)
	})
	o.step()
	o.is("", ReasonInvalid)
	o.says("bring one that lives longer")
}

func TestAnIntermediateThatEndsWhileItsRootIsDistributedNeverSigns(t *testing.T) {
	o := newOffice(t)
	c := newCompany(t, ecKey(t, elliptic.P256()))
	short := func(i *x509.Certificate) {
		i.NotBefore, i.NotAfter = o.clock.Add(-time.Hour), o.clock.Add(30*24*time.Hour)
	}
	o.brought.content = c.gives(ecKey(t, elliptic.P256()), short)
	o.live.frozen = []string{"shop/frozen"}
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	first := o.material().record.Rotation.To
	o.pass(29 * 24 * time.Hour)
	o.is(PhaseDistribute, ReasonWaiting)
	o.pass(24*time.Hour - time.Minute) // is given up
	o.step()
	o.is("", ReasonInvalid)
	o.brought.content = c.gives(ecKey(t, elliptic.P256()), short)
	o.live.frozen = nil
	o.step()
	o.until("")
	if m := o.material(); m.keys() == first || m.keys().Root != first.Root || len(m.roots) != 1 {
		t.Errorf("it signs with %+v of %d roots", m.keys(), len(m.roots))
	}
}

func TestAnIssuerThatIsConstrainedSignsNothingThatOthersWouldRefuse(t *testing.T) {
	o := newOffice(t)
	o.brought.content = newCompany(t, ecKey(t, elliptic.P256())).gives(ecKey(t, elliptic.P256()), func(i *x509.Certificate) {
		i.PermittedURIDomains = []string{"cluster.local"}
	})
	o.step()
	o.until("")
	for domain, signs := range map[string]bool{"cluster.local": true, "another.example": false} {
		r := Request{Kind: Workload, ID: ID{TrustDomain: domain, Namespace: "shop", ServiceAccount: "web"}, Key: ecKey(t, elliptic.P256()), Lifetime: time.Hour}
		if _, err := o.opts.Authority.Sign(t.Context(), r); (err == nil) != signs {
			t.Errorf("of %s it is said: %v", domain, err)
		}
	}
}
