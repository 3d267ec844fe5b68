package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
)

// The lifetimes that a certificate may be asked to have.
const (
	DefaultLifetime = 24 * time.Hour
	MinLifetime     = time.Minute
	MaxLifetime     = 720 * time.Hour
)

const (
	// jitter spreads renewals around half of a certificate's life.
	jitter = 0.1
	// maxSpread is over how long renewals are spread when the issuer or the
	// lifetime changes, which concerns all certificates at once.
	maxSpread = time.Minute
	// issueTimeout bounds one request to the issuer.
	issueTimeout = time.Minute
)

// Certificate is what a proxy or a server presents. It is immutable and shared.
type Certificate struct {
	// Identity is the SPIFFE ID; empty for a serving certificate.
	Identity string
	// Chain is the leaf and the intermediates, in PEM; Key is the leaf's, in
	// PEM (PKCS#8).
	Chain, Key []byte
	// Version is the same for two certificates that have the same issuer, end
	// and identity, whichever replica made them, and tells the issuer: see
	// [SignedBy].
	Version             string
	NotBefore, NotAfter time.Time
	// RenewAt is when a successor is to be asked for.
	RenewAt time.Time

	// life is from when it was issued to its end; NotBefore is somewhat earlier.
	life time.Duration
	tls  *tls.Certificate
	// serial is its serial number, issuer the id of the key that signed it, both
	// in hexadecimal.
	serial, issuer string
}

// String keeps the key out of logs and messages.
func (c *Certificate) String() string {
	return fmt.Sprintf("certificate %s of %q until %s", c.Version, c.Identity, c.NotAfter.Format(time.RFC3339))
}

// GoString is String.
func (c *Certificate) GoString() string { return c.String() }

// MarshalLog is what logr prints.
func (c *Certificate) MarshalLog() any { return c.String() }

// validAt reports whether verifiers take it. A clock that was set back may put
// the time before its beginning.
func (c *Certificate) validAt(now time.Time) bool {
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
}

// Options are what Certificates need.
type Options struct {
	Issuer Issuer
	// Lifetime of certificates; 0: DefaultLifetime.
	Lifetime time.Duration
	// ServingNames are the DNS names of the control plane's own certificate.
	ServingNames []string
	// OnRenew is told an identity whose certificate is to be asked for again
	// with Issue: it is time to renew it, or it could not be issued before. It
	// is told again at each tick until that has succeeded or the identity is
	// forgotten. It must not block; nil: nobody is told.
	OnRenew func(identity string)
	// Pods names pods that ask for the identity's certificate, for the log; nil:
	// nobody does.
	Pods func(identity string) []string
	Log  logr.Logger
	// Registerer takes the metrics; nil: none are kept.
	Registerer prometheus.Registerer
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
	// Rand is safe for concurrent use; nil: crypto/rand.
	Rand io.Reader
}

// Certificates keeps one certificate, with a key of its own, for each identity
// in use. Its methods may be called from any goroutine.
type Certificates struct {
	opts    Options
	metrics *metrics
	limits  limits
	wake    chan struct{}

	mu       sync.Mutex
	lifetime time.Duration
	entries  map[subject]*entry
}

// subject is who a certificate is for: an identity, or the one serving
// certificate under the empty name.
type subject struct {
	kind     Kind
	identity string
}

// entry is guarded by Certificates.mu.
type entry struct {
	cert    *Certificate // nil: none was issued yet
	basis   basis        // of cert
	renewAt time.Time    // RenewAt of cert, or sooner when its basis has gone
	flight  *flight      // nil: none is being issued
	// key is that of a request that may be answered yet; nil: there is none.
	key crypto.Signer
}

// basis is what a certificate was made on; when it changes, so does the
// certificate.
type basis struct {
	epoch    Epoch
	lifetime time.Duration
}

// flight is one request to the issuer, for all who wait for it. The result is
// read after done is closed.
type flight struct {
	done chan struct{}
	cert *Certificate
	err  error
}

// NewCertificates returns an empty cache over the issuer. Run must be running
// for renewals.
func NewCertificates(opts Options) (*Certificates, error) {
	if opts.Issuer == nil {
		return nil, errors.New("certificates: no issuer")
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Rand == nil {
		opts.Rand = rand.Reader
	}
	if opts.Pods == nil {
		opts.Pods = func(string) []string { return nil }
	}
	if opts.OnRenew == nil {
		opts.OnRenew = func(string) {}
	}
	c := &Certificates{
		opts: opts, wake: make(chan struct{}, 1),
		entries: map[subject]*entry{}, lifetime: clampLifetime(opts.Lifetime),
	}
	var err error
	if c.metrics, err = newMetrics(opts.Registerer, c.outlook); err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	opts.Issuer.Notify(c.poke)
	return c, nil
}

func clampLifetime(d time.Duration) time.Duration {
	if d == 0 {
		d = DefaultLifetime
	}
	return min(max(d, MinLifetime), MaxLifetime)
}

// SetLifetime changes how long certificates live; those that were issued for
// another time are replaced soon. It is held between MinLifetime and
// MaxLifetime; 0 is DefaultLifetime.
func (c *Certificates) SetLifetime(d time.Duration) {
	d = clampLifetime(d)
	c.mu.Lock()
	changed := c.lifetime != d
	c.lifetime = d
	c.mu.Unlock()
	if changed {
		c.opts.Log.Info("certificates have another lifetime", "lifetime", d)
		c.poke()
	}
}

// Issue returns the certificate of a SPIFFE ID, and makes one if there is none
// or the one there is ought to be renewed. Concurrent calls for one identity
// share one request to the issuer. When renewing fails, the old certificate is
// returned for as long as it is valid; an expired one never is. The identity is
// in use from now on, until Forget.
func (c *Certificates) Issue(ctx context.Context, identity string) (*Certificate, error) {
	if _, err := ParseID(identity); err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	return c.get(ctx, subject{Workload, identity})
}

// Forget drops the certificate of an identity that nobody uses any more.
func (c *Certificates) Forget(identity string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, subject{Workload, identity})
}

// get returns the subject's certificate, from the issuer if need be.
func (c *Certificates) get(ctx context.Context, s subject) (*Certificate, error) {
	now := c.now()
	c.mu.Lock()
	e := c.entries[s]
	if e == nil {
		e = &entry{}
		c.entries[s] = e
	}
	if e.cert != nil && !c.due(e, now) {
		defer c.mu.Unlock()
		return e.cert, nil
	}
	f := e.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		e.flight = f
		// Not the caller's context: others may wait for the same.
		go c.fly(context.WithoutCancel(ctx), s, e, f, c.lifetime, e.key)
	}
	old := e.cert
	c.mu.Unlock()

	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("issue a certificate for %s: %w", s, ctx.Err())
	}
	if f.err == nil {
		return f.cert, nil
	}
	if old != nil && old.validAt(c.now()) {
		return old, nil
	}
	return nil, fmt.Errorf("issue a certificate for %s: %w", s, f.err)
}

// due reports whether the certificate is to be replaced before it is used
// again. A certificate of another issuer waits for its turn (see tick), one
// whose root is trusted no longer does not. The caller holds the lock.
func (c *Certificates) due(e *entry, now time.Time) bool {
	return !now.Before(e.renewAt) || now.Before(e.cert.NotBefore) || !c.opts.Issuer.Trusts(e.basis.epoch.Root)
}

// fly asks the issuer, and keeps the answer if the subject is still in use.
func (c *Certificates) fly(ctx context.Context, s subject, e *entry, f *flight, lifetime time.Duration, key crypto.Signer) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	var epoch Epoch
	if f.err = c.limits.allow(s, c.now()); f.err != nil {
		c.metrics.limited.Inc()
	} else if key, f.err = c.keyOf(key); f.err == nil {
		f.cert, epoch, f.err = c.make(ctx, s, lifetime, key)
	}
	if f.err != nil {
		c.metrics.failed(s.kind)
		c.opts.Log.V(1).Info("a certificate is not issued", "subject", s.String(), "error", f.err.Error())
	} else {
		c.issued(s, f.cert)
	}
	c.mu.Lock()
	e.flight, e.key = nil, nil
	if f.err == nil {
		e.cert, e.basis, e.renewAt = f.cert, basis{epoch, lifetime}, f.cert.RenewAt
	} else if pending(f.err) {
		e.key = key
	}
	c.mu.Unlock()
	close(f.done)
}

// pending reports whether what was asked for may come yet.
func pending(err error) bool {
	var n *NotSigned
	return errors.As(err, &n) && (n.Reason == ReasonPending || n.Reason == ReasonUnavailable)
}

// keyOf is the key, or a new one where there is none.
func (c *Certificates) keyOf(key crypto.Signer) (crypto.Signer, error) {
	if key != nil {
		return key, nil
	}
	return newKey(c.opts.Rand)
}

// issued leaves a trace of the certificate: who may say to be whom, by whose
// word, and who asked.
func (c *Certificates) issued(s subject, cert *Certificate) {
	c.limits.count(s, c.now())
	c.metrics.issued(s.kind, cert.issuer)
	about := []any{
		"identity", s.String(), "serial", cert.serial, "notBefore", cert.NotBefore.UTC(), "notAfter", cert.NotAfter.UTC(), "issuer", cert.issuer,
	}
	if s.kind == Workload {
		about = append(about, "pods", c.opts.Pods(s.identity))
	}
	c.opts.Log.Info("issued a certificate", about...)
}

// make has the issuer sign for the key.
func (c *Certificates) make(ctx context.Context, s subject, lifetime time.Duration, key crypto.Signer) (*Certificate, Epoch, error) {
	request := Request{Kind: s.kind, Key: key, Lifetime: lifetime}
	var err error
	if s.kind == Serving {
		request.DNSNames = c.opts.ServingNames
	} else if request.ID, err = ParseID(s.identity); err != nil {
		return nil, Epoch{}, err
	}
	signed, err := c.opts.Issuer.Sign(ctx, request)
	if err != nil {
		return nil, Epoch{}, err
	}
	cert, err := c.certificate(s, signed, lifetime, key)
	return cert, signed.Epoch, err
}

// certificate is what is presented of what was signed. It ends with the first of its
// chain, and is renewed after half of the lifetime at the latest, whatever the issuer
// gave it.
func (c *Certificates) certificate(s subject, signed Signed, lifetime time.Duration, key crypto.Signer) (*Certificate, error) {
	chain, now := signed.Chain, c.now()
	leaf := chain[0]
	end := endOf(chain)
	if !now.Before(end) {
		return nil, fmt.Errorf("the issuer's answer ended at %s", end.Format(time.RFC3339))
	}
	random, err := fraction(c.opts.Rand)
	if err != nil {
		return nil, err
	}
	half := min(end.Sub(now), lifetime) / 2
	cert := &Certificate{
		Identity: s.identity, Chain: encodeCertificates(chain),
		Version:   version(signed, s),
		NotBefore: leaf.NotBefore, NotAfter: end, life: end.Sub(now),
		serial: leaf.SerialNumber.Text(16), issuer: hex.EncodeToString(leaf.AuthorityKeyId),
		RenewAt: now.Add(time.Duration(float64(half) * (1 - jitter + 2*jitter*random))),
	}
	if cert.Key, err = encodeKey(key); err != nil {
		return nil, err
	}
	if s.kind == Serving {
		cert.tls = &tls.Certificate{PrivateKey: key, Leaf: leaf}
		for _, x := range chain {
			cert.tls.Certificate = append(cert.tls.Certificate, x.Raw)
		}
	}
	return cert, nil
}

// version names a certificate by its issuer, its end and its subject.
func version(signed Signed, s subject) string {
	text := strconv.AppendInt(nil, signed.Chain[0].NotAfter.Unix(), 10)
	return signed.Epoch.Issuer + versionSeparator + fingerprint(append(text, " "+s.String()...))
}

const versionSeparator = "."

// SignedBy reports whether the version is that of a certificate of the issuer,
// an [Epoch]'s.
func SignedBy(version, issuer string) bool {
	return strings.HasPrefix(version, issuer+versionSeparator)
}

// String names the subject in messages.
func (s subject) String() string {
	if s.kind == Serving {
		return "the control plane's servers"
	}
	return s.identity
}

func (c *Certificates) now() time.Time { return c.opts.Now().Round(0) }

// poke has Run look at all certificates now.
func (c *Certificates) poke() {
	select {
	case c.wake <- struct{}{}:
	default: // it is going to
	}
}

// outlook is how long the certificates of a kind still last.
type outlook struct {
	soonest time.Time // when the first of them ends
	// least is the smallest part of its life that any of them has left: 1 when
	// it is new, about 0.5 when it is renewed, 0 when it has ended.
	least float64
}

// outlook tells it of the certificates in use, and whether there is any.
func (c *Certificates) outlook(kind Kind) (outlook, bool) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	o := outlook{least: 1}
	for s, e := range c.entries {
		if s.kind != kind || e.cert == nil {
			continue
		}
		if o.soonest.IsZero() || e.cert.NotAfter.Before(o.soonest) {
			o.soonest = e.cert.NotAfter
		}
		left := e.cert.NotAfter.Sub(now).Seconds() / e.cert.life.Seconds()
		o.least = min(o.least, max(left, 0))
	}
	return o, !o.soonest.IsZero()
}
