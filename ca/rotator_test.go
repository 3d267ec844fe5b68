package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
)

// everyone is a Live in which all proxies follow at once, or those that are named
// never do.
type everyone struct{ frozen []string }

func (e *everyone) Trust(int64) Progress { return e.progress() }

func (e *everyone) Issuer(int64) Progress { return e.progress() }

func (e *everyone) progress() Progress {
	n := len(e.frozen)
	return Progress{Done: n == 0, Concerned: 3, Have: 3 - n, Waiting: e.frozen}
}

// brought is a Source.
type brought struct {
	content Brought
	err     error
}

func (b *brought) Brought(context.Context) (Brought, error) { return b.content, b.err }

func (b *brought) String() string { return "Secret tulle-system/tulle-ca-issuer" }

func defaults() Settings {
	return Settings{
		TrustDomain: "cluster.local",
		Issuer:      Terms{DefaultIssuerLifetime, DefaultBefore}, Root: Terms{DefaultRootLifetime, DefaultBefore},
	}
}

// office is a Rotator by hand, with all that it depends on.
type office struct {
	*Rotator
	t        *testing.T
	store    *memoryStore
	clock    time.Time
	settings Settings
	live     everyone
	brought  brought
	behind   []string
	told     int
}

func newOffice(t *testing.T, stored ...Stored) *office {
	t.Helper()
	o := &office{t: t, store: &memoryStore{}, clock: start, settings: defaults()}
	for i := range stored {
		o.store.overwrite(&stored[i])
	}
	a, err := Open(t.Context(), AuthorityOptions{Store: o.store, Log: testr.New(t), Now: func() time.Time { return o.clock }})
	if err != nil {
		t.Fatal(err)
	}
	o.Rotator = NewRotator(RotatorOptions{
		Authority: a, Settings: func() Settings { return o.settings }, Brought: &o.brought, Live: &o.live,
		Spread: func(context.Context) ([]string, error) { return o.behind, nil }, ServingNames: []string{"tulled.tulle-system.svc"},
		Changed: func() { o.told++ }, Log: testr.New(t),
	})
	o.tell(func() { o.leading = true })
	return o
}

// step is one; its error fails the test.
func (o *office) step() {
	o.t.Helper()
	if err := o.Step(o.t.Context()); err != nil {
		o.t.Fatal(err)
	}
}

func (o *office) pass(d time.Duration) {
	o.t.Helper()
	o.clock = o.clock.Add(d)
	o.step()
}

// until goes on until the rotation is in the phase; empty: until it is over.
func (o *office) until(phase Phase) {
	o.t.Helper()
	for range 100 {
		now := Phase("")
		if r := o.material().record.Rotation; r != nil {
			now = r.Phase
		}
		if now == phase {
			return
		}
		o.pass(10 * time.Second)
	}
	_, message, _ := o.Verdict()
	o.t.Fatalf("the phase %q does not come: %s", phase, message)
}

// is fails the test unless the rotation is in the phase; empty: there is none.
func (o *office) is(phase Phase, reason string) {
	o.t.Helper()
	now := Phase("")
	if r := o.material().record.Rotation; r != nil {
		now = r.Phase
	}
	said, message, _ := o.Verdict()
	if now != phase || said != reason {
		o.t.Fatalf("in the phase %q: %s: %s; want %q: %s", now, said, message, phase, reason)
	}
}

func (o *office) material() *material { return o.opts.Authority.material.Load() }

func (o *office) says(words string) {
	o.t.Helper()
	if _, message, _ := o.Verdict(); !strings.Contains(message, words) {
		o.t.Errorf("it says %q, and not %q", message, words)
	}
}

func ask(scope Scope, force bool) string { return Ask{Scope: scope, At: start, Forced: force}.String() }

func TestAnIssuerThatIsAskedForSignsAtOnceUnderTheSameRoot(t *testing.T) {
	o := newOffice(t)
	o.step()
	o.is("", ReasonCurrent)
	before := o.material()
	o.live.frozen = []string{"shop/a"}
	o.settings.Request = ask(ScopeIssuer, false)
	o.step()
	o.is(PhaseSign, ReasonSigning)
	m := o.material()
	if m.epoch.Issuer == before.epoch.Issuer || string(m.bundle) != string(before.bundle) {
		t.Error("no new issuer, or another root")
	}
	if len(m.stored.NextIssuerKey)+len(m.stored.NextRootKey) > 0 {
		t.Error("keys are kept twice")
	}
	if err := verify(before.bundle, signLeaf(t, m, o.clock, time.Hour), o.clock, x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	o.pass(time.Second)
	o.is(PhaseSign, ReasonSigning)
	o.says("2 of 3 proxies present a certificate of the new issuer; waiting for shop/a")
	o.live.frozen = nil
	o.pass(time.Second)
	o.is("", ReasonCurrent)
	h := o.material().record.History
	if len(h) != 1 || h[0].Scope != ScopeIssuer || h[0].Why != WhyRequested || h[0].From.Root != h[0].To.Root || h[0].From.Issuer == h[0].To.Issuer {
		t.Errorf("history %+v", h)
	}
	o.pass(time.Hour) // the request was carried out, and is not again
	o.is("", ReasonCurrent)
}

func TestARootIsDistributedThenSignedWithThenAlone(t *testing.T) {
	o := newOffice(t)
	o.step()
	old := o.material()
	o.settings.Request = ask(ScopeRoot, false)
	o.behind = []string{"namespace shop"}
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	m := o.material()
	if m.epoch != old.epoch || len(m.roots) != 2 {
		t.Errorf("%d roots, issuer changed: %t", len(m.roots), m.epoch != old.epoch)
	}
	o.pass(time.Second)
	o.is(PhaseDistribute, ReasonDistributing)
	o.says("for 1m30s more, for connections that were begun before")
	o.pass(DefaultSpreadTime - 2*time.Second)
	o.says("namespace shop")
	o.behind = nil
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	o.says("for 1s more, for kubelets")
	o.pass(time.Second)
	o.is(PhaseSign, ReasonSigning)
	if m = o.material(); m.epoch.Root == old.epoch.Root || len(m.roots) != 2 || string(m.stored.RootKey) == string(old.stored.RootKey) {
		t.Error("it is not signed under the new root, or the old root's key is still there")
	}
	if err := verify(o.material().bundle, signLeaf(t, old, o.clock, time.Hour), o.clock, x509.ExtKeyUsageClientAuth); err != nil {
		t.Errorf("certificates of before: %v", err)
	}
	o.pass(time.Second)
	o.is(PhaseSign, ReasonSigning)
	o.pass(maxSettleTime)
	o.is(PhaseRetire, ReasonRetiring)
	if m = o.material(); len(m.roots) != 1 || m.epoch.Root == old.epoch.Root {
		t.Error("the old root is not retired")
	}
	o.pass(time.Second)
	o.is("", ReasonCurrent)
	if m = o.material(); len(m.stored.NextRoot) > 0 || len(m.record.History) != 1 || m.record.History[0].Scope != ScopeRoot {
		t.Errorf("it is left %+v", m.record)
	}
	if o.told == 0 {
		t.Error("nobody was told")
	}
}

func TestAProxyThatNeverAcknowledgesHoldsTheRotationUntilItIsCutOffByName(t *testing.T) {
	o := newOffice(t)
	o.live.frozen = []string{"shop/frozen"}
	o.settings.Request = ask(ScopeRoot, false)
	o.step()
	for range 100 {
		o.pass(time.Hour)
	}
	o.is(PhaseDistribute, ReasonWaiting)
	o.says("waiting for shop/frozen")
	o.says("--root --force=" + ForceWord)
	if len(o.material().roots) != 2 {
		t.Error("a root was retired")
	}
	o.settings.Request = Ask{Scope: ScopeRoot, At: o.clock, Forced: true}.String()
	o.step() // takes the force
	o.step()
	o.is(PhaseSign, ReasonSigning)
	o.pass(time.Second) // who may still acknowledge has a moment
	o.is(PhaseSign, ReasonSigning)
	o.pass(forcedTime)
	o.is(PhaseRetire, ReasonRetiring)
	o.pass(forcedTime)
	o.is("", ReasonCurrent)
	if h := o.material().record.History[0]; !h.Forced || len(h.CutOff) != 1 || h.CutOff[0] != "shop/frozen" {
		t.Errorf("history %+v", h)
	}
}

func TestEachIsRotatedAtTwoThirdsOfItsLife(t *testing.T) {
	o := newOffice(t)
	o.step()
	first := o.material()
	for o.clock.Before(start.Add(DefaultRootLifetime / 2)) {
		o.pass(24 * time.Hour)
		m := o.material()
		life := m.issuer().NotAfter.Sub(m.issuer().NotBefore)
		if left := m.issuer().NotAfter.Sub(o.clock); left < life/3-48*time.Hour {
			t.Fatalf("an issuer with %s of %s left", left, life)
		}
	}
	if m := o.material(); m.epoch.Root != first.epoch.Root || len(m.record.History) < 6 {
		t.Errorf("after half of the root's life there were %d rotations", len(m.record.History))
	}
	for o.clock.Before(start.Add(DefaultRootLifetime*2/3 + 240*time.Hour)) {
		o.pass(24 * time.Hour)
	}
	if m := o.material(); m.epoch.Root == first.epoch.Root || m.record.History[0].Scope != ScopeRoot || m.record.History[0].Why != WhyDue {
		t.Errorf("history %+v", m.record.History)
	}
}

func TestAManualAuthorityIsNotRotatedAndSaysThatItEnds(t *testing.T) {
	o := newOffice(t)
	o.settings.Issuer.Before, o.settings.Root.Before = 0, 0
	o.pass(DefaultIssuerLifetime / 2)
	o.is("", ReasonCurrent)
	o.pass(DefaultIssuerLifetime / 2 * 9 / 10)
	o.is("", ReasonEndsSoon)
	o.settings.Request = ask(ScopeIssuer, false)
	o.step()
	o.is(PhaseSign, ReasonSigning)
}

func TestAnAskThatCannotBeReadIsRefusedInWords(t *testing.T) {
	o := newOffice(t)
	for _, request := range []string{"everything", "root", "root/now", "root/2026-03-01T12:00:00Z/please"} {
		o.settings.Request = request
		o.step()
		o.is("", ReasonRefused)
	}
	if got, err := ParseAsk(ask(ScopeRoot, true)); err != nil || got != (Ask{ScopeRoot, start, true}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAnotherRequestWaitsForTheRotationThatIsUnderWay(t *testing.T) {
	o := newOffice(t)
	o.settings.Request = ask(ScopeRoot, false)
	o.step()
	o.settings.Request = Ask{Scope: ScopeIssuer, At: start.Add(time.Second)}.String()
	o.pass(time.Second)
	o.is(PhaseDistribute, ReasonDistributing)
	o.says("of the issuer, was asked for and follows")
	o.until("")
	o.step()
	o.until("")
	if h := o.material().record.History; len(h) != 2 || h[0].Scope != ScopeIssuer {
		t.Errorf("history %+v", h)
	}
}

func TestAClockThatWasSetBackOrForthDoesNotHoldARotation(t *testing.T) {
	o := newOffice(t)
	o.settings.Request = ask(ScopeRoot, false)
	o.clock = start.Add(48 * time.Hour) // ahead
	o.step()
	o.clock = start
	o.step() // notices
	o.pass(DefaultSpreadTime - time.Second)
	o.is(PhaseDistribute, ReasonDistributing)
	o.until(PhaseSign)
	// What the clock that was ahead made is not in force yet, and is made again.
	o.settings.Request = ""
	for range 20 {
		o.pass(time.Minute)
	}
	if m := o.material(); m.record.Rotation != nil || o.clock.Before(m.issuer().NotBefore) || o.clock.Before(m.anchor.NotBefore) {
		t.Errorf("at %s: issuer from %s, root from %s, %+v", o.clock, m.issuer().NotBefore, m.anchor.NotBefore, m.record.Rotation)
	}
}

func TestARootWithoutAnIntermediateSignsOnAndIsMigratedByTheFirstRotation(t *testing.T) {
	full := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime).stored
	o := newOffice(t, Stored{Root: full.Root, RootKey: full.RootKey})
	o.step()
	o.is("", ReasonCurrent)
	chain := signLeaf(t, o.material(), o.clock, time.Hour)
	if len(chain) != 1 {
		t.Fatalf("a chain of %d", len(chain))
	}
	if err := verify(full.Root, chain, o.clock, x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	o.settings.Request = ask(ScopeIssuer, false)
	o.step()
	o.step()
	o.is("", ReasonCurrent)
	chain = signLeaf(t, o.material(), o.clock, time.Hour)
	if err := verify(full.Root, chain, o.clock, x509.ExtKeyUsageClientAuth); err != nil || len(chain) != 2 {
		t.Errorf("a chain of %d, %v", len(chain), err)
	}
}

func TestWhatEarlierVersionsStoredIsUsedAsItIs(t *testing.T) {
	full := testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime).stored
	o := newOffice(t, Stored{Root: full.Root, RootKey: full.RootKey, Issuer: full.Issuer, IssuerKey: full.IssuerKey})
	o.step()
	o.is("", ReasonCurrent)
	if _, updates := o.store.counts(); updates != 0 {
		t.Error("it was rewritten")
	}
}

// lead has the authority rotated as by a leader whose proxies all follow.
func lead(t *testing.T, a *Authority, settings Settings) {
	t.Helper()
	r := NewRotator(RotatorOptions{Authority: a, Settings: func() Settings { return settings }, Live: &everyone{}, Log: logr.Discard()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestANewLeaderGoesOnWhereTheOldOneWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		a, b := openAuthority(t, store), openAuthority(t, store)
		settings := defaults()
		settings.Request = Ask{Scope: ScopeRoot, At: time.Now()}.String()
		ctx, cancel := context.WithCancel(t.Context())
		first := NewRotator(RotatorOptions{Authority: a, Settings: func() Settings { return settings }, Live: &everyone{}, Log: logr.Discard()})
		go func() { _ = first.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		synctest.Wait()
		if r := b.material.Load().record.Rotation; r == nil || r.Phase != PhaseDistribute || b.Epoch() != a.Epoch() {
			t.Fatalf("the other replica sees %+v", r)
		}
		if _, _, ok := first.Verdict(); ok {
			t.Error("who does not lead speaks")
		}
		lead(t, b, settings)
		time.Sleep(8 * time.Minute)
		synctest.Wait()
		if h := a.material.Load().record.History; len(h) != 1 || a.Epoch() != b.Epoch() || len(a.material.Load().roots) != 1 {
			t.Errorf("history %+v", h)
		}
	})
}

func TestAStoreThatIsAwayIsAnErrorAndNothingElse(t *testing.T) {
	o := newOffice(t)
	o.settings.Request = ask(ScopeRoot, false)
	before := o.opts.Authority.Epoch()
	o.store.setAway(true)
	if err := o.Step(t.Context()); !errors.Is(err, errAway) {
		t.Errorf("%v", err)
	}
	if o.opts.Authority.Epoch() != before || o.material().record.Rotation != nil {
		t.Error("something is rotated that no other replica knows")
	}
	o.store.setAway(false)
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
}

func TestNothingThatIsRefusedKeepsTheIssuerFromBeingRotatedInTime(t *testing.T) {
	for name, hinder := range map[string]func(*office){
		"a request that cannot be read":      func(o *office) { o.settings.Request = "everything" },
		"an intermediate that is not usable": func(o *office) { o.brought.content = Brought{Chain: []byte("none")} },
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			hinder(o)
			for o.clock.Before(start.Add(2 * DefaultIssuerLifetime)) {
				o.pass(24 * time.Hour)
				if end := o.material().notAfter(); !o.clock.Before(end) {
					t.Fatalf("the issuer ended at %s", end)
				}
			}
			o.until("")
			if reason, message, _ := o.Verdict(); reason != ReasonRefused && reason != ReasonInvalid {
				t.Errorf("it says %s: %s", reason, message)
			}
		})
	}
}

func TestARequestThatIsPutBackIsNotDoneAgain(t *testing.T) {
	o := newOffice(t)
	first := ask(ScopeRoot, true)
	o.settings.Request = first
	o.step()
	o.until("")
	o.settings.Request = Ask{Scope: ScopeIssuer, At: o.clock}.String()
	o.step()
	o.until("")
	o.settings.Request = first
	o.pass(time.Minute)
	o.is("", ReasonRefused)
	o.says("not later than the last request")
	o.settings.Request = Ask{Scope: ScopeIssuer, At: o.clock.Add(24 * time.Hour)}.String()
	o.pass(time.Minute)
	o.is("", ReasonRefused)
	o.settings.Request = Ask{Scope: ScopeIssuer, At: o.clock}.String()
	o.step()
	o.is(PhaseSign, ReasonSigning)
}

func TestANamespaceThatCannotBeWrittenToIsSaidToHoldTheRotation(t *testing.T) {
	o := newOffice(t)
	o.behind = []string{"namespace theirs"}
	o.settings.Request = ask(ScopeRoot, false)
	o.step()
	o.pass(DefaultSpreadTime)
	o.pass(stalledTime)
	o.is(PhaseDistribute, ReasonWaiting)
	o.says("namespace theirs")
}

func TestANewLeaderOfAForcedRotationCutsNobodyOffBeforeItKnowsOfThem(t *testing.T) {
	o := newOffice(t)
	o.settings.Request = ask(ScopeRoot, true)
	o.step()
	o.clock = o.clock.Add(DefaultSpreadTime)
	o.began, o.live.frozen = o.clock, []string{"shop/unknown-yet"}
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
	o.pass(forcedTime)
	o.is(PhaseSign, ReasonSigning)
}

// One pod that never acknowledges does not have all others cut off.
func TestARotationThatIsHeldGoesOnBeforeWhatSignsEnds(t *testing.T) {
	o := newOffice(t)
	o.live.frozen, o.behind = []string{"shop/frozen"}, []string{"namespace theirs"}
	o.settings.Request = ask(ScopeRoot, false)
	for o.clock.Before(start.Add(3 * DefaultIssuerLifetime)) {
		o.pass(5 * time.Minute)
		if end := o.material().notAfter(); end.Sub(o.clock) < 15*time.Minute {
			t.Fatalf("at %s what signs ends at %s: %+v", o.clock, end, o.material().record.Rotation)
		}
	}
	history := o.material().record.History
	if len(history) == 0 || history[0].Forced || len(history[0].CutOff) != 1 {
		t.Errorf("history %+v", history)
	}
}
