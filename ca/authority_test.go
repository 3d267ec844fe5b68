package ca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
)

var errAway = errors.New("the store is away")

// memoryStore is a Store that several authorities share.
type memoryStore struct {
	mu       sync.Mutex
	content  *Stored
	revision int
	creates  int
	updates  int
	away     bool
	watchers map[chan struct{}]bool
}

func (s *memoryStore) Load(context.Context) (Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.away:
		return Stored{}, errAway
	case s.content == nil:
		return Stored{}, ErrNotFound
	}
	return *s.content, nil
}

func (s *memoryStore) Create(_ context.Context, c Stored) (Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.away:
		return Stored{}, errAway
	case s.content != nil:
		return Stored{}, ErrExists
	}
	s.creates++
	return s.put(&c), nil
}

func (s *memoryStore) Update(_ context.Context, c Stored) (Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.away:
		return Stored{}, errAway
	case s.content == nil:
		return Stored{}, ErrNotFound
	case s.content.Revision != c.Revision:
		return Stored{}, ErrConflict
	}
	s.updates++
	return s.put(&c), nil
}

// put stores without asking, as an operator might; nil deletes.
func (s *memoryStore) put(c *Stored) Stored {
	s.revision++
	if s.content = c; c != nil {
		c.Revision = strconv.Itoa(s.revision)
	}
	for w := range s.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
	if c == nil {
		return Stored{}
	}
	return *c
}

func (s *memoryStore) overwrite(c *Stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(c)
}

// counts returns how often something was created and updated.
func (s *memoryStore) counts() (creates, updates int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.creates, s.updates
}

// setAway cuts the connection, watches included, or restores it.
func (s *memoryStore) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away = away; !away {
		return
	}
	for w := range s.watchers {
		close(w)
	}
	s.watchers = nil
}

func (s *memoryStore) Watch(ctx context.Context) (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, errAway
	}
	if s.watchers == nil {
		s.watchers = map[chan struct{}]bool{}
	}
	w := make(chan struct{}, 1)
	s.watchers[w] = true
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.watchers[w] {
			delete(s.watchers, w)
			close(w)
		}
	})
	return w, nil
}

// wallClock is a clock that can be set while timers go on.
type wallClock struct{ offset atomic.Int64 }

func (c *wallClock) now() time.Time       { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *wallClock) jump(d time.Duration) { c.offset.Add(int64(d)) }

// openAuthority opens a replica's authority and runs it until the test ends.
func openAuthority(t *testing.T, store Store, options ...func(*AuthorityOptions)) *Authority {
	t.Helper()
	opts := AuthorityOptions{Store: store, Log: testr.New(t), Now: time.Now}
	for _, o := range options {
		o(&opts)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a, err := Open(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

func signWith(t *testing.T, i Issuer) []*x509.Certificate {
	t.Helper()
	key, err := newKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := i.Sign(t.Context(), Request{Kind: Workload, ID: frontend, Key: key, Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return signed.Chain
}

// shortIssuer makes one that lives for 100 hours.
func shortIssuer(o *AuthorityOptions) { o.IssuerLifetime = 100 * time.Hour }

// shortLives has the issuer rotated every 50 hours.
func shortLives() Settings {
	s := defaults()
	s.Issuer = Terms{100 * time.Hour, 0.5}
	return s
}

func TestReplicasThatStartTogetherShareOneAuthority(t *testing.T) {
	store := &memoryStore{}
	authorities := make([]*Authority, 8)
	var wg sync.WaitGroup
	for i := range authorities {
		wg.Go(func() {
			var err error
			if authorities[i], err = Open(t.Context(), AuthorityOptions{Store: store, Log: logr.Discard()}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if creates, _ := store.counts(); creates != 1 {
		t.Fatalf("created %d times", creates)
	}
	for _, a := range authorities[1:] {
		if a.Epoch() != authorities[0].Epoch() || !bytes.Equal(a.Roots(), authorities[0].Roots()) {
			t.Fatal("replicas have different authorities")
		}
	}
}

func TestOpenWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		store.setAway(true)
		time.AfterFunc(20*time.Second, func() { store.setAway(false) })
		a := openAuthority(t, store)
		if err := verify(a.Roots(), signWith(t, a), time.Now(), x509.ExtKeyUsageServerAuth); err != nil {
			t.Error(err)
		}
	})
}

func TestOpenEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		store.setAway(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Open(ctx, AuthorityOptions{Store: store, Log: logr.Discard()}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errAway) {
			t.Errorf("Open says %v", err)
		}
	})
}

func TestIssuerIsRenewedOnceByTheLeaderAndSignsEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		a, b := openAuthority(t, store, shortIssuer), openAuthority(t, store, shortIssuer)
		lead(t, a, shortLives())
		var told atomic.Int32
		b.Notify(func() { told.Add(1) })
		roots, first := a.Roots(), a.Epoch()
		old := signWith(t, a)

		time.Sleep(49 * time.Hour)
		synctest.Wait()
		if _, updates := store.counts(); a.Epoch() != first || updates != 0 {
			t.Fatal("renewed before half of its life")
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		_, updates := store.counts()
		if a.Epoch() == first || a.Epoch() != b.Epoch() || updates != 2 || told.Load() != 1 { // it begins, and ends
			t.Fatalf("first %v, now %v and %v, %d updates, told %d times", first, a.Epoch(), b.Epoch(), updates, told.Load())
		}
		if !bytes.Equal(roots, a.Roots()) || a.Epoch().Root != first.Root {
			t.Error("the root has changed with the issuer")
		}
		for _, chain := range [][]*x509.Certificate{old, signWith(t, a), signWith(t, b)} {
			if err := verify(roots, chain, chain[0].NotBefore, x509.ExtKeyUsageClientAuth); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAuthorityGoesOnWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		registry := prometheus.NewRegistry()
		a := openAuthority(t, store, shortIssuer, func(o *AuthorityOptions) { o.Registerer = registry; o.Log = logr.Discard() })
		lead(t, a, shortLives())
		first := a.Epoch()
		synctest.Wait()
		store.setAway(true)
		time.Sleep(60 * time.Hour) // past the issuer's renewal
		if a.Epoch() != first {
			t.Fatal("signs with an issuer that no other replica knows")
		}
		if err := verify(a.Roots(), signWith(t, a), time.Now(), x509.ExtKeyUsageClientAuth); err != nil {
			t.Error(err)
		}
		if n := metric(t, registry, "tulle_ca_store_errors_total", ""); n == 0 {
			t.Error("failures are not counted")
		}
		if got, want := metric(t, registry, "tulle_ca_issuer_expiry_timestamp_seconds", ""), float64(a.material.Load().issuer().NotAfter.Unix()); got != want {
			t.Errorf("the issuer's end is %v, the metric says %v", want, got)
		}
		store.setAway(false)
		time.Sleep(maxRetry + time.Second)
		synctest.Wait()
		if a.Epoch() == first {
			t.Error("the issuer is not renewed after the store came back")
		}
	})
}

func TestDeletedAuthorityIsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		a, b := openAuthority(t, store), openAuthority(t, store)
		synctest.Wait()
		first := a.Epoch()
		store.overwrite(nil)
		synctest.Wait()
		if stored, err := store.Load(t.Context()); err != nil || !bytes.Equal(stored.Root, a.material.Load().stored.Root) {
			t.Errorf("after the deletion %s is stored, %v", stored, err)
		}
		if creates, _ := store.counts(); a.Epoch() != first || b.Epoch() != first || creates != 2 {
			t.Errorf("%v and %v, want %v; created %d times", a.Epoch(), b.Epoch(), first, creates)
		}
	})
}

func TestUnusableAuthorityIsRefusedAndNotOverwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		a := openAuthority(t, store, shortIssuer, func(o *AuthorityOptions) { o.Log = logr.Discard() })
		lead(t, a, shortLives())
		synctest.Wait()
		first, good := a.Epoch(), a.material.Load().stored
		bad := good
		bad.Issuer = []byte("junk")
		store.overwrite(&bad)
		time.Sleep(60 * time.Hour)
		if stored, err := store.Load(t.Context()); err != nil || string(stored.Issuer) != "junk" {
			t.Errorf("%q was overwritten: %v", stored.Issuer, err)
		}
		if a.Epoch() != first {
			t.Error("the authority has not gone on with what it had")
		}
		store.overwrite(&good) // repaired
		time.Sleep(maxRetry + time.Second)
		synctest.Wait()
		if a.Epoch() == first {
			t.Error("the issuer is not renewed after the repair")
		}
	})
}

func TestReplacedRootIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		a := openAuthority(t, store)
		synctest.Wait()
		told := false
		a.Notify(func() { told = true })
		other, err := newMaterial(time.Now(), rand.Reader, time.Hour, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		store.overwrite(&other.stored)
		synctest.Wait()
		if !told || !bytes.Equal(a.Roots(), other.bundle) {
			t.Errorf("told: %t", told)
		}
	})
}

func TestIssuerThatEndedWhileNobodyRanIsRenewedAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		m, err := newMaterial(time.Now(), rand.Reader, DefaultRootLifetime, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		store.overwrite(&m.stored)
		time.Sleep(2 * time.Hour)
		a := openAuthority(t, store)
		lead(t, a, defaults())
		synctest.Wait()
		if err := verify(a.Roots(), signWith(t, a), time.Now(), x509.ExtKeyUsageClientAuth); err != nil {
			t.Error(err)
		}
	})
}

func TestIssuerIsNotRenewedInVainWhenItsRootEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		a := openAuthority(t, store, shortIssuer, func(o *AuthorityOptions) { o.RootLifetime = 120 * time.Hour })
		settings := shortLives()
		settings.Root.Before = 0
		lead(t, a, settings)
		time.Sleep(119 * time.Hour)
		synctest.Wait()
		if n := len(a.material.Load().record.History); n != 1 {
			t.Errorf("renewed %d times, want once: the second already ends with the root", n)
		}
	})
}

func TestClockJumpRenewsTheIssuerAtTheNextTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, clock := &memoryStore{}, &wallClock{}
		a := openAuthority(t, store, func(o *AuthorityOptions) { o.Now = clock.now })
		lead(t, a, defaults())
		synctest.Wait()
		first := a.Epoch()
		clock.jump(250 * 24 * time.Hour)
		time.Sleep(maxTick + time.Second)
		synctest.Wait()
		if a.Epoch() == first {
			t.Error("not renewed")
		}
	})
}

// metric reads one metric; kind may be empty. It is -1 where there is none.
func metric(t *testing.T, g prometheus.Gatherer, name, kind string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (kind == "" || m.GetLabel()[0].GetValue() == kind) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}
