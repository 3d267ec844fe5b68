package ca

import (
	"bytes"
	"crypto/elliptic"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnAuthorityThatIsRolledBackIsPutForthAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		other := openAuthority(t, o.store)
		seen := []Stored{o.material().stored} // etcd is restored from a backup of any time
		e := refer(t, o, SignsLeaves)
		e.company = newCompany(t, ecKey(t, elliptic.P256()))
		for i := range 200 {
			if i == 100 {
				o.settings.Signer = nil
			}
			o.pass(10 * time.Second)
			if last := seen[len(seen)-1]; last.Revision != o.material().stored.Revision {
				seen = append(seen, o.material().stored)
			}
		}
		synctest.Wait()
		m, sequence := o.material(), o.opts.Authority.Bundle().Sequence
		if sequence < 6 || len(seen) < 8 {
			t.Fatalf("%d changes, %d things stored", sequence, len(seen))
		}
		for i := range seen {
			old := seen[i]
			o.store.overwrite(&old)
			synctest.Wait()
			if err := o.opts.Authority.refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			for _, a := range []*Authority{o.opts.Authority, other} {
				if got := a.material.Load(); got.epoch != m.epoch || !bytes.Equal(got.volumes, m.volumes) || got.record.Sequence != sequence {
					t.Fatalf("of %d: sequence %d, %d roots", i, got.record.Sequence, len(got.roots))
				}
			}
			if now, err := o.store.Load(t.Context()); err != nil || !bytes.Equal(now.Root, m.stored.Root) {
				t.Errorf("of %d something else is stored: %v", i, err)
			}
		}
		o.step()
		o.until("")
		o.is("", ReasonCurrent)
		o.lives()
	})
}

func TestThatWhatIsStoredCannotBeUsedIsSaid(t *testing.T) {
	o := newOffice(t)
	o.step()
	good := o.material().stored
	bad := good
	bad.IssuerKey = testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime).stored.IssuerKey
	o.store.overwrite(&bad)
	if err := o.opts.Authority.refresh(t.Context()); err == nil {
		t.Error("taken")
	}
	o.step()
	o.is("", ReasonInvalid)
	o.says("does not belong to the issuer's certificate")
	o.lives()
	o.store.overwrite(&good)
	if err := o.opts.Authority.refresh(t.Context()); err != nil {
		t.Error(err)
	}
	o.step()
	o.is("", ReasonCurrent)
}

func TestThatTheStoreCannotBeWrittenIsSaid(t *testing.T) {
	o := newOffice(t)
	o.settings.Request = ask(ScopeRoot, false)
	o.store.setAway(true)
	for _, reason := range []string{ReasonCurrent, ReasonUnavailable} { // it may be for a moment
		if o.Step(t.Context()) == nil {
			t.Error("no error")
		}
		o.is("", reason)
		o.clock = o.clock.Add(troubleTime)
	}
	o.says(errAway.Error())
	o.store.setAway(false)
	o.step()
	o.is(PhaseDistribute, ReasonDistributing)
}

// What signs would not be renewed before the rotation has ended.
func TestARotationWhoseGoalSomebodyHasSpoiledIsGivenUp(t *testing.T) {
	for name, spoil := range map[string]func(*Stored){
		"another key":    func(s *Stored) { s.NextIssuerKey = s.IssuerKey },
		"half a write":   func(s *Stored) { s.NextIssuer = s.NextIssuer[:len(s.NextIssuer)/2] },
		"nothing":        func(s *Stored) { *s = s.drop() },
		"another's root": func(s *Stored) { s.NextRoot = testMaterial(t, DefaultRootLifetime, DefaultIssuerLifetime).stored.Root },
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.settings.Request = ask(ScopeRoot, false)
			o.step()
			o.is(PhaseDistribute, ReasonDistributing)
			spoilt := o.material().stored
			spoil(&spoilt)
			o.store.overwrite(&spoilt)
			if err := o.opts.Authority.refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			o.until("")
			o.step()
			o.is("", ReasonCurrent)
			o.lives()
			if !o.material().record.History[0].GivenUp {
				t.Error("it is not said")
			}
		})
	}
}

func TestARecordThatDoesNotFitTheRootsIsRefused(t *testing.T) {
	o := newOffice(t)
	o.settings.Request = ask(ScopeRoot, false)
	o.step()
	for _, n := range []int{-1, 2, 3} {
		record := o.material().record
		rotation := *record.Rotation
		rotation.AddedRoots, record.Rotation = n, &rotation
		stored := o.material().stored
		var err error
		if stored.Record, err = json.Marshal(record); err != nil {
			t.Fatal(err)
		}
		if _, err := parseMaterial(stored); err == nil {
			t.Errorf("%d of 2 roots are new", n)
		}
	}
}
