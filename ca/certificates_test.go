package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
)

var errRefused = errors.New("the issuer refuses")

// testIssuer signs with what it is given, or fails.
type testIssuer struct {
	clock *wallClock
	mu    sync.Mutex
	m     *material
	err   error
	delay time.Duration
	asked int
	keys  []crypto.Signer
	// generous is how many times longer than asked for its certificates live.
	generous time.Duration
	above    []*x509.Certificate // that it adds to the chain
	notify   []func()
}

func newTestIssuer(t *testing.T) *testIssuer {
	t.Helper()
	i := &testIssuer{clock: &wallClock{}}
	i.replace(t, false)
	return i
}

// replace makes a new issuing certificate, under a new root or the old one.
func (i *testIssuer) replace(t *testing.T, sameRoot bool) {
	t.Helper()
	var m *material
	var err error
	if sameRoot {
		m, err = i.m.renewed(i.clock.now(), rand.Reader, DefaultIssuerLifetime)
	} else {
		m, err = newMaterial(i.clock.now(), rand.Reader, DefaultRootLifetime, DefaultIssuerLifetime)
	}
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	i.m = m
	i.mu.Unlock()
	for _, f := range i.notify {
		f()
	}
}

func (i *testIssuer) fail(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
}

func (i *testIssuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func (i *testIssuer) keysAsked() []crypto.Signer {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.keys)
}

func (i *testIssuer) Sign(ctx context.Context, r Request) (Signed, error) {
	i.mu.Lock()
	i.asked++
	i.keys = append(i.keys, r.Key)
	if i.generous > 0 {
		r.Lifetime *= i.generous
	}
	m, err, delay := i.m, i.err, i.delay
	i.mu.Unlock()
	if !sleep(ctx, delay) {
		return Signed{}, ctx.Err()
	}
	if err != nil {
		return Signed{}, err
	}
	chain, err := m.sign(i.clock.now().Round(0), rand.Reader, r)
	return Signed{append(chain, i.above...), m.epoch}, err
}

func (i *testIssuer) Epoch() Epoch {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.m.epoch
}

func (i *testIssuer) Trusts(root string) bool { return i.Epoch().Root == root }

func (i *testIssuer) Notify(f func()) { i.notify = append(i.notify, f) }

// holder runs Certificates as the builder and a proxy do: it asks again when
// it is told to, and holds what it got last.
type holder struct {
	*Certificates
	issuer *testIssuer

	mu     sync.Mutex
	held   map[string]*Certificate
	renews int
}

func runCertificates(t *testing.T, issuer *testIssuer, options ...func(*Options)) *holder {
	t.Helper()
	h := &holder{issuer: issuer, held: map[string]*Certificate{}}
	opts := Options{
		Issuer: issuer, Lifetime: time.Hour, Log: testr.New(t), Now: issuer.clock.now,
		OnRenew: func(identity string) {
			h.mu.Lock()
			h.renews++
			h.mu.Unlock()
			go h.ask(t, identity)
		},
	}
	for _, o := range options {
		o(&opts)
	}
	var err error
	if h.Certificates, err = NewCertificates(opts); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
	})
	return h
}

func (h *holder) ask(t *testing.T, identity string) {
	cert, err := h.Issue(t.Context(), identity)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[identity] = cert
	if now := h.issuer.clock.now(); !cert.validAt(now) {
		t.Errorf("at %s a certificate from %s to %s was handed out", now, cert.NotBefore, cert.NotAfter)
	}
}

func (h *holder) certificate() *Certificate {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[frontend.String()]
}

// told returns how often somebody was told to ask again.
func (h *holder) told() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.renews
}

func mustIssue(t *testing.T, c *Certificates, id ID) *Certificate {
	t.Helper()
	cert, err := c.Issue(t.Context(), id.String())
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestIssuedCertificateIsUsableAndCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer)
		cert := mustIssue(t, h.Certificates, frontend)
		pair, err := tls.X509KeyPair(cert.Chain, cert.Key)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := parseCertificates(cert.Chain)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(issuer.m.bundle, chain, time.Now(), x509.ExtKeyUsageClientAuth); err != nil {
			t.Error(err)
		}
		if len(pair.Certificate) != 2 || chain[0].URIs[0].String() != frontend.String() || cert.Identity != frontend.String() {
			t.Errorf("%d certificates for %v", len(pair.Certificate), chain[0].URIs)
		}
		if again := mustIssue(t, h.Certificates, frontend); again != cert || issuer.count() != 1 {
			t.Errorf("a second call asked the issuer again: %d requests", issuer.count())
		}
		back := mustIssue(t, h.Certificates, ID{"cluster.local", "shop", "backend"})
		if bytes.Equal(back.Key, cert.Key) || back.Version == cert.Version {
			t.Error("two identities share a key or a version")
		}
	})
}

func TestReplicasHaveKeysOfTheirOwnButAgreeOnVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		a := mustIssue(t, runCertificates(t, issuer).Certificates, frontend)
		b := mustIssue(t, runCertificates(t, issuer).Certificates, frontend)
		if bytes.Equal(a.Key, b.Key) {
			t.Error("one key for two replicas")
		}
		if a.Version != b.Version {
			t.Errorf("versions %s and %s of certificates that end together", a.Version, b.Version)
		}
		time.Sleep(2 * time.Second)
		if c := mustIssue(t, runCertificates(t, issuer).Certificates, frontend); c.Version == a.Version {
			t.Error("one version for two ends")
		}
	})
}

func TestConcurrentCallsShareOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		issuer.delay = time.Second
		h := runCertificates(t, issuer)
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := h.Issue(impatient, frontend.String()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller that gave up got %v", err)
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := h.Issue(t.Context(), frontend.String()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if issuer.count() != 1 {
			t.Errorf("%d requests", issuer.count())
		}
	})
}

func TestNotAnIdentityIsNeverAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer)
		if cert, err := h.Issue(t.Context(), "spiffe://cluster.local/elsewhere"); err == nil || issuer.count() > 0 {
			t.Errorf("%v, %d requests", cert, issuer.count())
		}
	})
}

// A proxy that takes what it is given holds a valid certificate at all times.
func TestRenewalAtHalfLifeWithJitterForEveryLifetime(t *testing.T) {
	for _, lifetime := range []time.Duration{time.Minute, 10 * time.Minute, 24 * time.Hour} {
		t.Run(lifetime.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := runCertificates(t, newTestIssuer(t), func(o *Options) { o.Lifetime = lifetime })
				h.ask(t, frontend.String())
				fractions := map[float64]bool{}
				last, begun := h.certificate(), time.Now()
				for range 20 * 200 {
					time.Sleep(lifetime / 200)
					synctest.Wait()
					cert := h.certificate()
					if !cert.validAt(time.Now()) {
						t.Fatalf("holds %s at %s", cert, time.Now())
					}
					if cert == last {
						continue
					}
					if bytes.Equal(cert.Key, last.Key) {
						t.Error("the key was not renewed")
					}
					f := float64(time.Since(begun)) / float64(lifetime)
					if f < 0.44 || f > 0.62 { // 0.45 to 0.55, and a tick of a twentieth
						t.Errorf("renewed after %.2f of its life", f)
					}
					fractions[f] = true
					last, begun = cert, time.Now()
				}
				if len(fractions) < 2 {
					t.Errorf("renewed without jitter: %v", fractions)
				}
			})
		})
	}
}

func TestFailingIssuerKeepsTheOldCertificateButNeverAnExpiredOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, registry := newTestIssuer(t), prometheus.NewRegistry()
		h := runCertificates(t, issuer, func(o *Options) { o.Registerer = registry })
		first := mustIssue(t, h.Certificates, frontend)
		issuer.fail(errRefused)
		time.Sleep(55 * time.Minute)
		if cert, err := h.Issue(t.Context(), frontend.String()); err != nil || cert != first {
			t.Errorf("while the old one is valid: %v, %v", cert, err)
		}
		time.Sleep(6 * time.Minute)
		if cert, err := h.Issue(t.Context(), frontend.String()); !errors.Is(err, errRefused) {
			t.Errorf("after its end: %v, %v", cert, err)
		}
		if n := metric(t, registry, "tulle_certificate_issue_errors_total", "workload"); n < 2 {
			t.Errorf("%v errors counted", n)
		}
		issuer.fail(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if cert := h.certificate(); !cert.validAt(time.Now()) {
			t.Errorf("after the issuer came back: %v", cert)
		}
	})
}

func TestAnAnswerThatMayComeYetIsAskedForWithTheSameKeyWhileTheOldOneIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer)
		first := mustIssue(t, h.Certificates, frontend)
		issuer.fail(&NotSigned{ReasonPending, "not yet"})
		time.Sleep(40 * time.Minute)
		asked := issuer.keysAsked()
		if cert := h.certificate(); cert != first || len(asked) < 5 {
			t.Fatalf("after %d requests it holds %v", len(asked), cert)
		}
		for _, key := range asked[2:] {
			if key != asked[1] {
				t.Fatal("a request that may be answered yet is made anew")
			}
		}
		issuer.fail(errRefused) // for good: the next one is another
		time.Sleep(2 * time.Minute)
		issuer.fail(nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		asked = issuer.keysAsked()
		if cert := h.certificate(); cert == first || asked[len(asked)-1] == asked[1] {
			t.Error("it is not renewed, or by the key of what was refused")
		}
	})
}

func TestACertificateThatLivesLongerThanWasAskedForIsRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		issuer.generous = 100
		h := runCertificates(t, issuer)
		first := mustIssue(t, h.Certificates, frontend)
		if left := time.Until(first.RenewAt); left > 40*time.Minute {
			t.Errorf("it is renewed in %s, and an hour was asked for", left)
		}
	})
}

func TestACertificateIsRenewedBeforeThoseAboveItEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		c := newCompany(t, ecKey(t, elliptic.P256()), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(20 * time.Minute) })
		issuer.above = []*x509.Certificate{c.root}
		h := runCertificates(t, issuer)
		first := mustIssue(t, h.Certificates, frontend)
		if !first.NotAfter.Equal(c.root.NotAfter) || time.Until(first.RenewAt) > 15*time.Minute {
			t.Errorf("it is renewed in %s, and its chain ends in 20 minutes", time.Until(first.RenewAt))
		}
		issuer.fail(errRefused)
		time.Sleep(25 * time.Minute)
		if cert, err := h.Issue(t.Context(), frontend.String()); err == nil {
			t.Errorf("it is handed out though its chain has ended: %v", cert)
		}
	})
}

func TestIdentityThatCouldNotBeIssuedIsToldWhenItMayWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		issuer.fail(errRefused)
		h := runCertificates(t, issuer)
		if _, err := h.Issue(t.Context(), frontend.String()); !errors.Is(err, errRefused) {
			t.Fatalf("the issuer's error is %v", err)
		}
		issuer.fail(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if h.certificate() == nil {
			t.Error("nobody was told to ask again")
		}
	})
}

func TestClockJumps(t *testing.T) {
	for _, c := range []struct {
		name    string
		jump    time.Duration
		renewed bool
	}{
		{"past the end", 3 * time.Hour, true},
		{"past the renewal", 40 * time.Minute, true},
		{"a little", 10 * time.Minute, false},
		{"back a little", -10 * time.Minute, false},
		{"back before the beginning", -3 * time.Hour, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				issuer := newTestIssuer(t)
				h := runCertificates(t, issuer)
				h.ask(t, frontend.String())
				first := h.certificate()
				issuer.clock.jump(c.jump)
				// Whoever asks gets a valid one at once.
				if cert := mustIssue(t, h.Certificates, frontend); !cert.validAt(issuer.clock.now()) || (cert != first) != c.renewed {
					t.Errorf("renewed: %t, %s", cert != first, cert)
				}
				// Whoever does not is told at the next tick.
				issuer.clock.jump(c.jump)
				time.Sleep(maxTick + time.Second)
				synctest.Wait()
				cert := h.certificate()
				if !cert.validAt(issuer.clock.now()) || c.renewed && cert == first {
					t.Errorf("held after a tick: %s", cert)
				}
				asked := issuer.count()
				mustIssue(t, h.Certificates, frontend)
				if issuer.count() != asked {
					t.Error("a certificate made after the jump is not kept")
				}
			})
		})
	}
}

func TestChangedLifetimeReplacesCertificatesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := runCertificates(t, newTestIssuer(t), func(o *Options) { o.Lifetime = 24 * time.Hour })
		h.ask(t, frontend.String())
		h.SetLifetime(time.Minute)
		time.Sleep(10 * time.Second) // a tenth of a minute, and a tick of 3 s
		synctest.Wait()
		if left := time.Until(h.certificate().NotAfter); left > time.Minute {
			t.Errorf("the certificate still lives for %s", left)
		}
		first := h.certificate()
		h.SetLifetime(time.Second) // held at a minute, so that nothing changes
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if h.certificate() != first {
			t.Error("renewed though the lifetime is the same")
		}
	})
}

func TestNewIssuerReplacesCertificatesWithinAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer, func(o *Options) { o.Lifetime = 24 * time.Hour })
		h.ask(t, frontend.String())
		first := h.certificate()
		issuer.replace(t, true)
		time.Sleep(maxSpread + maxTick)
		synctest.Wait()
		if cert := h.certificate(); cert == first || cert.Version == first.Version {
			t.Error("not replaced")
		}
		told := h.told()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := h.told(); n != told {
			t.Errorf("replaced %d more times", n-told)
		}
	})
}

func TestNewRootReplacesCertificatesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer)
		h.ask(t, frontend.String())
		synctest.Wait()
		issuer.replace(t, false)
		synctest.Wait()
		chain, err := parseCertificates(h.certificate().Chain)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(issuer.m.bundle, chain, time.Now(), x509.ExtKeyUsageClientAuth); err != nil {
			t.Error(err)
		}
	})
}

func TestForgottenIdentityIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, registry := newTestIssuer(t), prometheus.NewRegistry()
		h := runCertificates(t, issuer, func(o *Options) { o.Registerer = registry })
		first := mustIssue(t, h.Certificates, frontend)
		const name = "tulle_certificate_soonest_expiry_timestamp_seconds"
		if got := metric(t, registry, name, "workload"); got != float64(first.NotAfter.Unix()) {
			t.Errorf("soonest expiry %v, want %v", got, first.NotAfter.Unix())
		}
		h.Forget(frontend.String())
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if h.told() > 0 || metric(t, registry, name, "workload") != -1 {
			t.Errorf("renewed %d times", h.told())
		}
		if cert := mustIssue(t, h.Certificates, frontend); !cert.validAt(time.Now()) {
			t.Errorf("asked for again: %s", cert)
		}
		if n := metric(t, registry, "tulle_certificates_issued_total", "workload"); n != 2 {
			t.Errorf("%v issued", n)
		}
	})
}

func TestForgettingWhileItIsIssuedLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		issuer.delay = time.Second
		h := runCertificates(t, issuer)
		go h.ask(t, frontend.String())
		synctest.Wait()
		h.Forget(frontend.String())
		time.Sleep(3 * time.Hour)
		if _, any := h.outlook(Workload); any || h.told() > 0 {
			t.Errorf("something is left, renewed %d times", h.told())
		}
	})
}
