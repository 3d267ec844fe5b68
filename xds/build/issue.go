package build

import (
	"context"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Certificates are targets like all others but for who makes them: an issuer,
// which may be slow or out of reach, and whose results are never the same
// twice.

// issueRetry is how long a failed issuance waits before it is tried again.
const issueRetry = 2 * time.Second

// certificate reports whether the key is a workload's certificate; Key.For is
// its identity.
func certificate(k Key) bool { return k.Type == translate.Secret && k.Name == translate.SecretWorkload }

type issued struct {
	t   *target
	c   Certificate
	err error
}

// issue asks the issuer, beside everything else.
func (b *Builder) issue(ctx context.Context, t *target) {
	if b.options.Issue == nil {
		return
	}
	if t.issuing {
		t.again = true
		return
	}
	t.issuing = true
	said := t.failure
	go func() {
		c, err := b.options.Issue(ctx, t.key.For)
		if err != nil {
			if err.Error() != said { // an issuer may refuse for hours
				b.options.Log.Error(err, "cannot issue a certificate; trying again", "identity", t.key.For, "every", issueRetry)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(issueRetry):
			}
		}
		b.request(request{op: publish, result: &issued{t, c, err}})
	}()
}

func (b *Builder) finishIssue(w *work, r *issued) {
	t := r.t
	t.issuing = false
	if b.targets[t.key] != t {
		return
	}
	t.failure = ""
	if r.err != nil {
		t.failure = r.err.Error()
	}
	if r.err != nil || t.again {
		t.again = false
		w.dirty[t] = struct{}{}
	}
	if r.err != nil {
		if t.value != nil { // it has ended: who has it goes on with it, who has none waits
			b.uses.Add(1)
			b.stakes.Add(1)
			b.lock.Lock()
			t.value = nil
			b.lock.Unlock()
		}
		return
	}
	if t.value != nil && t.value.Version == r.c.Version {
		return
	}
	v := &Value{
		Version: r.c.Version, Body: marshal(translate.WorkloadSecret(r.c.Chain, r.c.Key)), At: b.snapshot.Load().Revision(),
		Uses: []mesh.Ref{{Kind: mesh.KindIssuer}},
	}
	if t.value == nil {
		b.uses.Add(1)
		b.stakes.Add(1)
	}
	b.lock.Lock()
	t.value = v
	b.lock.Unlock()
	w.announce(t)
}
