package certmanager

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	certutil "k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/ca"
)

const (
	// maxWaiting is how many requests for leaves a replica waits for at a time; the
	// others take their turn.
	maxWaiting = 64
	// turn is how long one of them is waited for at a time. It is there all the
	// while, and may be answered between two turns.
	turn = 20 * time.Second
	// How many requests a replica makes. An issuer of cert-manager's own signs some
	// ten in a second.
	requestsPerSecond = 10
	requestsAtOnce    = 20
	// The pauses before something that was refused is asked for anew.
	minPause = 5 * time.Second
	maxPause = 5 * time.Minute
	// kept is how long a request that was refused stays, for people to read.
	kept = 10 * time.Minute
	// abandoned is after how long a request is deleted that nobody asks for any more;
	// abandonedKey the same of one whose key is in a Secret.
	abandoned    = 3 * time.Minute
	abandonedKey = 30 * time.Second
	// issuerTime is how long it is remembered what an issuer is.
	issuerTime = 30 * time.Second
)

// Options are what a Remote needs.
type Options struct {
	// Client asks the API server, and no cache. Its scheme has [AddToScheme].
	Client    client.WithWatch
	Namespace string // of the control plane
	Replica   string // this one's pod
	// Alive reports whether a replica's pod is there; nil: all are.
	Alive func(pod string) bool
	Log   logr.Logger
	// Registerer takes the metrics; nil: none are kept.
	Registerer prometheus.Registerer
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
}

// AddToScheme adds the kinds of cert-manager that are asked for.
var AddToScheme = cmapi.AddToScheme

// Remote is a [ca.Remote].
type Remote struct {
	opts    Options
	turns   *semaphore.Weighted
	rate    *rate.Limiter
	metrics *metrics

	mu       sync.Mutex
	asked    map[string]*asked // by name of the request
	troubles map[subject]*trouble
	issuers  map[ca.Signer]issuer
	swept    bool // requests of an earlier process in this pod are gone

	wake chan struct{} // requests were withdrawn
}

var _ ca.Remote = (*Remote)(nil)

// subject is what is signed for: an identity, or the mesh's intermediate under the
// empty one.
type subject struct {
	signer   ca.Signer
	identity string
}

// asked is a request that has no answer yet.
type asked struct {
	signer      ca.Signer
	since, last time.Time // last: when somebody asked for it
	key         bool      // its key is in the Secret
	waiting     int       // for an answer, now
	withdrawn   bool
}

// trouble is a subject that was refused.
type trouble struct {
	err     *ca.NotSigned
	until   time.Time
	pause   time.Duration
	request string // name of the one that was refused; empty: there is none
}

// issuer is what is known of one.
type issuer struct {
	selfSigned bool
	at         time.Time
}

// New returns a Remote. [Remote.Run] is to be running.
func New(o Options) (*Remote, error) {
	if o.Alive == nil {
		o.Alive = func(string) bool { return true }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Remote{
		opts: o, turns: semaphore.NewWeighted(maxWaiting), rate: rate.NewLimiter(requestsPerSecond, requestsAtOnce),
		asked: map[string]*asked{}, troubles: map[subject]*trouble{}, issuers: map[ca.Signer]issuer{},
		wake: make(chan struct{}, 1),
	}
	var err error
	r.metrics, err = newMetrics(o.Registerer, r.oldest)
	return r, err
}

// Run deletes requests that nobody waits for any more, until the context ends.
func (r *Remote) Run(ctx context.Context) error {
	ticker := time.NewTicker(abandonedKey / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-r.wake:
		}
		r.prune(ctx)
	}
}

// Withdraw has requests to the signer deleted that have no answer. See [ca.Remote].
func (r *Remote) Withdraw(s ca.Signer) {
	r.mu.Lock()
	for _, a := range r.asked {
		a.withdrawn = a.withdrawn || a.signer == s
	}
	r.mu.Unlock()
	r.poke()
}

func (r *Remote) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Sign has a request signed. See [ca.Remote].
func (r *Remote) Sign(ctx context.Context, o ca.Order) (ca.Answer, error) {
	s := subject{o.Signer, o.For}
	if err := r.paused(s); err != nil {
		return ca.Answer{}, err
	}
	began := r.opts.Now()
	answer, name, failed := r.sign(ctx, o)
	r.metrics.outcome(failed, r.opts.Now().Sub(began))
	switch {
	case failed == nil:
		r.succeeded(ctx, s, name)
		return answer, nil
	case failed.Reason == ca.ReasonPending:
		return ca.Answer{}, failed
	}
	r.refused(ctx, s, failed, name)
	return ca.Answer{}, failed
}

// sign is Sign without its book-keeping. It returns the name of the request, if there
// is one.
func (r *Remote) sign(ctx context.Context, o ca.Order) (ca.Answer, string, *ca.NotSigned) {
	selfSigned, failed := r.selfSigned(ctx, o.Signer)
	if failed != nil {
		return ca.Answer{}, "", failed
	}
	if o.For != "" {
		if selfSigned {
			return ca.Answer{}, "", &ca.NotSigned{Reason: ca.ReasonRefused, Message: fmt.Sprintf(
				"%s is of the type SelfSigned, under which each certificate is a root of its own, so that nobody could trust them all: write signs: Intermediate, or name another issuer", o.Signer)}
		}
		r.sweep(ctx)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, turn)
		defer cancel()
		if err := r.turns.Acquire(ctx, 1); err != nil {
			return ca.Answer{}, "", &ca.NotSigned{Reason: ca.ReasonPending, Message: fmt.Sprintf("%d other requests wait for %s", maxWaiting, o.Signer)}
		}
		defer r.turns.Release(1)
	}
	cr, failed := r.answered(ctx, o, selfSigned)
	if failed != nil {
		name := ""
		if cr != nil {
			name = cr.Name
		}
		return ca.Answer{}, name, failed
	}
	answer, err := read(cr)
	if err == nil {
		err = o.Accept(answer)
	}
	if errors.As(err, &failed) {
		return ca.Answer{}, cr.Name, failed
	}
	if err != nil {
		return ca.Answer{}, cr.Name, &ca.NotSigned{Reason: ca.ReasonInvalid, Message: fmt.Sprintf(
			"what %s answered to CertificateRequest %s/%s is not taken: %v", o.Signer, cr.Namespace, cr.Name, err)}
	}
	return answer, cr.Name, nil
}

// read parses what was answered.
func read(cr *cmapi.CertificateRequest) (ca.Answer, error) {
	var answer ca.Answer
	var err error
	if answer.Chain, err = certutil.ParseCertsPEM(cr.Status.Certificate); err != nil {
		return answer, fmt.Errorf("its certificate cannot be read: %w", err)
	}
	if len(cr.Status.CA) > 0 {
		if answer.Roots, err = certutil.ParseCertsPEM(cr.Status.CA); err != nil {
			return answer, fmt.Errorf("its root cannot be read: %w", err)
		}
	}
	return answer, nil
}

// paused is what was said before, while it is not asked for anew.
func (r *Remote) paused(s subject) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.troubles[s]
	if t == nil {
		return nil
	}
	if left := t.until.Sub(r.opts.Now()); left <= 0 || left > t.pause { // the clock was set back
		return nil
	}
	return t.err
}

// refused has a subject wait before it is asked for anew. Its request stays for a
// while in place of the one before.
func (r *Remote) refused(ctx context.Context, s subject, failed *ca.NotSigned, name string) {
	away := failed.Reason == ca.ReasonUnavailable // it may be back at any time, and what was made is still there
	r.mu.Lock()
	t := &trouble{err: failed, pause: minPause}
	old := r.troubles[s]
	if old != nil && !away {
		t.pause = min(2*old.pause, maxPause)
	}
	if t.request = name; old != nil && away {
		t.request = old.request
	}
	t.until = r.opts.Now().Add(t.pause)
	r.troubles[s] = t
	key := false
	if !away {
		key = r.asked[name] != nil && r.asked[name].key
		delete(r.asked, name)
	}
	r.mu.Unlock()
	r.opts.Log.Info("a certificate is not signed", "for", s.identity, "signer", s.signer.String(), "reason", failed.Reason, "message", failed.Message)
	if key {
		_ = r.deleteKey(ctx) // it is logged, and tried again
	}
	if old != nil && old.request != "" && old.request != t.request {
		r.delete(ctx, old.request)
	}
}

// succeeded forgets the subject, and deletes its requests.
func (r *Remote) succeeded(ctx context.Context, s subject, name string) {
	r.mu.Lock()
	names := []string{name}
	if t := r.troubles[s]; t != nil {
		names = append(names, t.request)
		delete(r.troubles, s)
	}
	key := r.asked[name] != nil && r.asked[name].key
	delete(r.asked, name)
	r.mu.Unlock()
	if key {
		_ = r.deleteKey(ctx) // it is logged, and tried again
	}
	for _, name := range names {
		if name != "" {
			r.delete(ctx, name)
		}
	}
}

func encodeRequest(o ca.Order) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: o.Request.Raw})
}
