package ca

import (
	"crypto/rand"
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
)

// ahead is what a clock made that was so far ahead.
func ahead(t *testing.T, by time.Duration) Stored {
	t.Helper()
	m, err := newMaterial(start.Add(by), rand.Reader, DefaultRootLifetime, DefaultIssuerLifetime)
	if err != nil {
		t.Fatal(err)
	}
	return m.stored
}

// Proxies acknowledge nothing then: none takes the control plane's certificate.
func TestARootThatHasNotBegunIsReplacedWithoutThoseThatCannotTakeIt(t *testing.T) {
	o := newOffice(t, ahead(t, 48*time.Hour))
	o.live.frozen = []string{"shop/a", "shop/b", "shop/c"}
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	o.until(PhaseSign)
	o.lives()
}

func TestThatAManualRootHasNotBegunIsSaid(t *testing.T) {
	o := newOffice(t, ahead(t, 48*time.Hour))
	o.settings.Root.Before, o.settings.Issuer.Before = 0, 0
	o.step()
	o.is("", ReasonInvalid)
	o.says("begins at 2026-03-03")
	o.pass(48 * time.Hour)
	o.is("", ReasonCurrent)
}

func TestAForcedRotationGoesOnAfterTheClockWasSetBackByDays(t *testing.T) {
	o := newOffice(t)
	o.clock = start.Add(72 * time.Hour)
	o.began = o.clock
	o.clock = start.Add(time.Hour)
	o.live.frozen = []string{"shop/a"}
	o.settings.Request = ask(ScopeRoot, true)
	o.step()
	o.until("")
}

// An issuer's clock may be ahead of this one by some seconds, always.
func TestWhatBeginsInAMomentIsTakenThen(t *testing.T) {
	for _, signs := range []Signs{SignsIntermediate, SignsLeaves} {
		t.Run(string(signs), func(t *testing.T) {
			o := newOffice(t)
			e := refer(t, o, signs)
			var first time.Time
			e.edit = func(c *x509.Certificate) {
				if first.IsZero() {
					first = o.clock.Add(20 * time.Second)
				}
				c.NotBefore = first // it is answered once
			}
			o.step()
			o.is("", ReasonPending)
			o.says("the clock of who signed it is ahead")
			o.pass(19 * time.Second)
			o.is("", ReasonPending)
			o.pass(time.Second)
			o.is(PhaseDistribute, ReasonDistributing)
			if e.asked[0].Request != e.asked[2].Request {
				t.Error("it is asked for anew each time")
			}
			if signs != SignsLeaves {
				return
			}
			e.edit = nil
			o.until("")
			e.edit = func(c *x509.Certificate) { c.NotBefore = o.clock.Add(20 * time.Second) }
			if _, err := o.leaf(); !pending(err) {
				t.Errorf("a leaf: %v", err)
			}
			e.edit = func(c *x509.Certificate) { c.NotBefore = o.clock.Add(2 * time.Hour) }
			if _, err := o.leaf(); err == nil || pending(err) {
				t.Errorf("a leaf that begins in hours: %v", err)
			}
		})
	}
}

// A clock that jumps, and a node that was suspended, which is a jump forward to it.
func TestNothingThatHasEndedIsUsedAndNoStormIsIssuedAfterTheClockJumps(t *testing.T) {
	for _, signs := range []Signs{"", SignsIntermediate, SignsLeaves} {
		t.Run("signs "+string(signs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOffice(t)
				jumps := []time.Duration{13 * time.Hour, 30 * 24 * time.Hour, -72 * time.Hour, 5 * time.Hour, -5 * time.Hour}
				if signs == "" {
					jumps = append(jumps, -60*24*time.Hour, 60*24*time.Hour) // to before the root began
				} else {
					e := refer(t, o, signs)
					e.edit = func(c *x509.Certificate) { c.NotBefore = o.clock } // not backdated
				}
				o.step()
				o.until("")
				id, due := frontend.String(), false
				c, err := NewCertificates(Options{
					Issuer: o.opts.Authority, ServingNames: []string{"tulled"}, Log: logr.Discard(),
					Now: func() time.Time { return o.clock }, OnRenew: func(string) { due = true },
				})
				if err != nil {
					t.Fatal(err)
				}
				mustIssue(t, c, frontend)
				for _, jump := range append([]time.Duration{0}, jumps...) {
					o.clock = o.clock.Add(jump)
					serials := map[string]bool{}
					for range 30 {
						o.pass(30 * time.Second)
						due = false
						c.tick(t.Context())
						synctest.Wait()
						if due {
							_, _ = c.Issue(t.Context(), id)
						}
						for _, e := range c.entries {
							if e.cert != nil {
								serials[e.cert.serial] = true
							}
						}
					}
					for s, e := range c.entries {
						roots := o.opts.Authority.Bundle().Roots
						if s.kind == Serving {
							roots = o.opts.Authority.Roots()
						}
						chain, err := parseCertificates(e.cert.Chain)
						if err != nil {
							t.Fatal(err)
						}
						if err := verify(roots, chain, o.clock, x509.ExtKeyUsageServerAuth); err != nil {
							t.Errorf("after %s the certificate of %s is refused: %v", jump, s, err)
						}
					}
					if m := o.material(); o.clock.Before(m.notBefore()) {
						t.Errorf("after %s what signs begins at %s", jump, m.notBefore())
					}
					if n := len(serials); n > 8 { // one by the jump and one by another issuer, of two subjects
						t.Errorf("after %s there were %d certificates of two subjects", jump, n)
					}
				}
			})
		})
	}
}
