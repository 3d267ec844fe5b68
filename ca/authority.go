package ca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// DefaultRootLifetime is ten years, leap days left out.
	DefaultRootLifetime = 10 * 365 * 24 * time.Hour
	// DefaultIssuerLifetime is a year.
	DefaultIssuerLifetime = 365 * 24 * time.Hour

	// The pauses between attempts to reach the store.
	minRetry = time.Second
	maxRetry = 30 * time.Second
	// maxTick is the longest time between two looks at the clock.
	maxTick = 30 * time.Second
)

// AuthorityOptions are what an Authority needs.
type AuthorityOptions struct {
	Store Store
	Log   logr.Logger
	// Registerer takes the metrics; nil: none are kept.
	Registerer prometheus.Registerer
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
	// Rand is safe for concurrent use; nil: crypto/rand.
	Rand io.Reader
	// RootLifetime and IssuerLifetime are of what is newly made; 0: the
	// defaults.
	RootLifetime, IssuerLifetime time.Duration
	// Remote asks whoever signs leaves in the authority's place; nil: nobody can.
	Remote Remote
}

// Authority is the mesh's issuer: a root and an issuing intermediate, or the name of
// whoever signs leaves, shared by all replicas through a Store and kept in memory, so
// that issuing goes on while the store is away.
type Authority struct {
	opts     AuthorityOptions
	material atomic.Pointer[material]
	failures prometheus.Counter
	unusable atomic.Pointer[string] // what is wrong with what is stored; nil: nothing

	mu        sync.Mutex
	listeners []func()
	// other is closed when something else signs.
	other chan struct{}
}

var _ Issuer = (*Authority)(nil)

// Open loads the authority from the store, or creates it there if none has yet.
// It tries until it succeeds, for a control plane can do nothing without, and
// ends with an error only with the context or for metrics that cannot be
// registered.
func Open(ctx context.Context, opts AuthorityOptions) (*Authority, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Rand == nil {
		opts.Rand = rand.Reader
	}
	if opts.RootLifetime == 0 {
		opts.RootLifetime = DefaultRootLifetime
	}
	if opts.IssuerLifetime == 0 {
		opts.IssuerLifetime = DefaultIssuerLifetime
	}
	a := &Authority{opts: opts, other: make(chan struct{})}
	for pause := minRetry; ; pause = min(2*pause, maxRetry) {
		err := a.refresh(ctx)
		if err == nil {
			break
		}
		opts.Log.Error(err, "the certificate authority is not available, trying again", "after", pause)
		if !sleep(ctx, pause) {
			return nil, fmt.Errorf("open the certificate authority: %w", errors.Join(ctx.Err(), err))
		}
	}
	if err := a.register(opts.Registerer); err != nil {
		return nil, err
	}
	return a, nil
}

// Sign signs a certificate with the issuing intermediate, or has it signed by
// whoever signs leaves; none that its name constraints would have others refuse:
// the mesh's trust domain may be another since the issuer was brought. What one signer
// has not answered when another takes its place, that one is asked for.
func (a *Authority) Sign(ctx context.Context, r Request) (Signed, error) {
	for {
		a.mu.Lock()
		other := a.other // before the material, whose end it tells
		a.mu.Unlock()
		m := a.material.Load()
		signed, err := a.signBy(ctx, m, other, r)
		if err == nil || ctx.Err() != nil || a.Epoch() == m.epoch {
			return signed, err
		}
	}
}

func (a *Authority) signBy(ctx context.Context, m *material, other <-chan struct{}, r Request) (Signed, error) {
	now := a.now()
	switch {
	case m.server != nil && r.Kind == Workload:
		return a.delegate(ctx, m, other, r)
	case m.server != nil:
		chain, err := m.server.sign(now, a.opts.Rand, r)
		return Signed{chain, Epoch{m.epoch.Issuer, m.server.epoch.Root}}, err
	}
	chain, err := m.sign(now, a.opts.Rand, r)
	if err != nil || !m.constrained() {
		return Signed{chain, m.epoch}, err
	}
	if err := m.verify(now, chain[0], x509.ExtKeyUsageAny); err != nil {
		return Signed{}, fmt.Errorf("others would not take the certificate: %w", err)
	}
	return Signed{chain, m.epoch}, nil
}

// Epoch identifies the issuing intermediate and its root.
func (a *Authority) Epoch() Epoch { return a.material.Load().epoch }

// Trusts reports whether the root is one of those that everybody is to trust.
func (a *Authority) Trusts(root string) bool {
	_, ok := a.material.Load().trusted[root]
	return ok
}

// Bundle is what everybody is to trust, and whose certificates they are to have,
// as of one moment.
type Bundle struct {
	Roots []byte // in PEM; not to be modified
	// Issuer is that of the [Epoch], see [SignedBy].
	Issuer string
	// Sequence is that of the [Record].
	Sequence int64
}

// Bundle is the present one.
func (a *Authority) Bundle() Bundle {
	m := a.material.Load()
	return Bundle{Roots: m.bundle, Issuer: m.epoch.Issuer, Sequence: m.record.Sequence}
}

// Roots are the root certificates that the control plane's servers are verified by,
// in PEM: those of the [Bundle], or where leaves are signed by somebody else those
// of the servers; both while a rotation leads from the one to the other. They must not
// be modified.
func (a *Authority) Roots() []byte { return a.material.Load().volumes }

// Notify has f called after each change of the issuer, of the roots, or of the
// record's sequence.
func (a *Authority) Notify(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = append(a.listeners, f)
}

// Run follows the store. It ends with the context. Who changes what is stored is
// a [Rotator], on one replica.
func (a *Authority) Run(ctx context.Context) error {
	pause := minRetry
	for {
		watched, err := a.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if watched {
			pause = minRetry
		}
		if err != nil {
			a.failures.Inc()
			a.opts.Log.Error(err, "the certificate authority's store cannot be followed, going on with what is known", "after", pause)
		}
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, maxRetry)
	}
}

// follow installs what changes in the store until the watch ends. It tells
// whether there was one.
func (a *Authority) follow(ctx context.Context) (watched bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := a.opts.Store.Watch(ctx)
	if err != nil {
		return false, fmt.Errorf("watch: %w", err)
	}
	// What changed before the watch began.
	if err := a.refresh(ctx); err != nil {
		return false, err
	}
	for {
		select {
		case <-ctx.Done():
			return true, nil
		case _, ok := <-changes:
			if !ok {
				return true, nil
			}
			if err := a.refresh(ctx); err != nil {
				return true, err
			}
		}
	}
}

// refresh installs what is stored. Where nothing is, or what was before, it stores
// what is in memory: somebody has deleted it, or restored a backup, and proxies trust
// the roots that they have; or something new if nothing is in memory either.
func (a *Authority) refresh(ctx context.Context) error {
	for {
		stored, err := a.restored(ctx)
		switch {
		case err == nil:
			return a.install(stored)
		case ctx.Err() == nil && (errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound)):
			// Another replica was first.
		default:
			return fmt.Errorf("load the authority: %w", err)
		}
	}
}

// restored is what is stored, once it is what ought to be.
func (a *Authority) restored(ctx context.Context) (Stored, error) {
	stored, err := a.opts.Store.Load(ctx)
	m := a.material.Load()
	switch {
	case errors.Is(err, ErrNotFound):
		if m == nil {
			if m, err = newMaterial(a.now(), a.opts.Rand, a.opts.RootLifetime, a.opts.IssuerLifetime); err != nil {
				return Stored{}, err
			}
		}
		if stored, err = a.opts.Store.Create(ctx, m.stored); err == nil {
			a.opts.Log.Info("stored the certificate authority", "rootExpires", m.signer.NotAfter)
		}
	case err == nil && m != nil && m.supersedes(stored):
		again := m.stored
		again.Revision = stored.Revision
		if stored, err = a.opts.Store.Update(ctx, again); err == nil {
			a.opts.Log.Info("what was stored of the certificate authority was of before its last rotation, and is replaced by what proxies have", "sequence", m.record.Sequence)
		}
	}
	return stored, err
}

// install makes the stored material the one to sign with. What cannot be used
// is refused, and the authority goes on with what it had.
func (a *Authority) install(stored Stored) error {
	m, err := parseMaterial(stored)
	if err != nil {
		err = fmt.Errorf("the stored authority (revision %s) cannot be used, and is not overwritten; repair or delete it: %w", stored.Revision, err)
		text := err.Error()
		a.unusable.Store(&text)
		return err
	}
	a.unusable.Store(nil)
	old := a.material.Swap(m)
	if old == nil || old.epoch == m.epoch && old.record.Sequence == m.record.Sequence && bytes.Equal(old.volumes, m.volumes) {
		return nil
	}
	if !bytes.Equal(old.volumes, m.volumes) {
		a.opts.Log.Info("the roots of trust have changed", "roots", len(m.roots))
	}
	if old.epoch != m.epoch {
		a.opts.Log.Info("signing with another issuer", "of", m.record.Signer.named(), "issuer", m.keys().Issuer, "expires", m.issuer().NotAfter)
	}
	a.mu.Lock()
	listeners := a.listeners
	if old.epoch != m.epoch {
		close(a.other)
		a.other = make(chan struct{})
	}
	a.mu.Unlock()
	if a.opts.Remote != nil && old.record.Delegation != nil && (m.record.Delegation == nil || !sameSigner(old.record.Signer, m.record.Signer)) {
		a.opts.Remote.Withdraw(*old.record.Signer)
	}
	for _, f := range listeners {
		f()
	}
	return nil
}

// write stores what is to come after the present material, and installs it. Where
// another replica was first, that is what is installed.
func (a *Authority) write(ctx context.Context, next Stored) error {
	if _, err := parseMaterial(next); err != nil {
		return fmt.Errorf("nothing is stored that could not be used: %w", err)
	}
	stored, err := a.opts.Store.Update(ctx, next)
	switch {
	case errors.Is(err, ErrConflict), errors.Is(err, ErrNotFound):
		return a.refresh(ctx)
	case err != nil:
		return fmt.Errorf("store the authority: %w", err)
	}
	return a.install(stored)
}

// now is the wall clock without its monotonic reading, which would hide that
// the wall clock was set or stood still.
func (a *Authority) now() time.Time { return a.opts.Now().Round(0) }

// tickFor is how often to look at the clock for what lives so long.
func tickFor(lifetime time.Duration) time.Duration {
	return max(min(lifetime/20, maxTick), time.Second)
}

// sleep waits, and reports whether the context is still going on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
