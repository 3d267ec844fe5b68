package ca

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Run sees to it that certificates are renewed, until the context ends. It
// looks at the wall clock at least twenty times in a certificate's life and
// every 30 s, rather than setting one timer for each: a clock that jumps would
// make that ring too late.
func (c *Certificates) Run(ctx context.Context) error {
	ticker := time.NewTicker(c.interval())
	defer ticker.Stop()
	for {
		c.tick(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-c.wake:
			ticker.Reset(c.interval()) // the lifetime may be another
		}
	}
}

func (c *Certificates) interval() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return tickFor(c.lifetime)
}

// tick has every certificate renewed whose time has come.
func (c *Certificates) tick(ctx context.Context) {
	now := c.now()
	c.limits.forget(now)
	due, overdue := c.collect(now)
	if overdue > 0 {
		// Half of the time between renewal and end is gone.
		c.opts.Log.Info("certificates are not being issued", "count", overdue, "of", len(due))
	}
	for _, s := range due {
		if s.kind == Workload {
			c.opts.OnRenew(s.identity)
			continue
		}
		// Nobody asks for a serving certificate before a client connects, which
		// must not have to wait.
		go func() {
			if _, err := c.get(ctx, s); err != nil && ctx.Err() == nil {
				c.opts.Log.Error(err, "no serving certificate")
			}
		}()
	}
}

// collect returns the subjects that are due, sorted, and how many of them ought
// to have been issued long before.
func (c *Certificates) collect(now time.Time) (due []subject, overdue int) {
	epoch := c.opts.Issuer.Epoch()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.opts.ServingNames) > 0 && c.entries[subject{kind: Serving}] == nil {
		c.entries[subject{kind: Serving}] = &entry{}
	}
	for s, e := range c.entries {
		switch {
		case e.flight != nil:
			continue
		case e.cert == nil: // it failed, or it is the serving one for the first time
			due = append(due, s)
			if s.kind == Workload {
				overdue++
			}
			continue
		case e.basis.epoch.Issuer != epoch.Issuer || e.basis.lifetime != c.lifetime:
			e.renewAt = earlier(e.renewAt, now.Add(c.spread(s, e.basis, c.lifetime)))
			e.basis.epoch.Issuer, e.basis.lifetime = epoch.Issuer, c.lifetime // it has its turn
		}
		if c.due(e, now) {
			due = append(due, s)
			if left := e.cert.NotAfter.Sub(now); left < e.cert.NotAfter.Sub(e.cert.RenewAt)/2 {
				overdue++
			}
		}
	}
	slices.SortFunc(due, func(a, b subject) int { return strings.Compare(a.identity, b.identity) })
	return due, overdue
}

// spread is how long a certificate whose basis has gone may wait: not at all
// when it is no longer trusted, or the control plane's own, of which there is one;
// else for a random time, so that a change of issuer does not have all proxies
// change their certificate in one moment.
func (c *Certificates) spread(s subject, old basis, lifetime time.Duration) time.Duration {
	if s.kind == Serving || !c.opts.Issuer.Trusts(old.epoch.Root) {
		return 0
	}
	random, err := fraction(c.opts.Rand)
	if err != nil {
		return 0
	}
	return time.Duration(random * float64(min(old.lifetime/10, lifetime/10, maxSpread)))
}
