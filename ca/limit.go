package ca

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How often an identity may have a certificate made, on one replica. The
// shortest-lived ones are renewed every 27 s (half of [MinLifetime], less
// jitter), and all once more when the issuer, the lifetime or a replica is
// another, so that nobody gets near it who does not ask in order to cost
// something. Signing costs some 0.1 ms.
const (
	identityInterval = 10 * time.Second
	identityBurst    = 20
)

// limits has one limit for each identity that was issued something lately.
type limits struct {
	mu       sync.Mutex
	limiters map[subject]*rate.Limiter
}

// allow is an error when the subject had too many certificates.
func (l *limits) allow(s subject, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if limiter := l.limiters[s]; limiter != nil && limiter.TokensAt(now) < 1 {
		return fmt.Errorf("more than %d certificates at once, and one in %s: ask again later", identityBurst, identityInterval)
	}
	return nil
}

// count counts a certificate. One that could not be issued is not counted: the
// issuer may be out of reach for long.
func (l *limits) count(s subject, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.limiters[s]
	if limiter == nil {
		if l.limiters == nil {
			l.limiters = map[subject]*rate.Limiter{}
		}
		limiter = rate.NewLimiter(rate.Every(identityInterval), identityBurst)
		l.limiters[s] = limiter
	}
	limiter.AllowN(now, 1)
}

// forget drops the limits that have recovered, which are as good as new ones.
func (l *limits) forget(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, limiter := range l.limiters {
		if limiter.TokensAt(now) >= identityBurst {
			delete(l.limiters, s)
		}
	}
}
