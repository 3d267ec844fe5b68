package certmanager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/ca"
)

const (
	// orphaned is how old a request is at least that is deleted because its replica is
	// not there: of one that has just begun not everybody knows.
	orphaned = time.Minute
	// takenTime is how long a replica may take to take an answer.
	takenTime = 15 * time.Second
)

// list returns requests of the replica; of all where it is empty.
func (r *Remote) list(ctx context.Context, replica string) ([]cmapi.CertificateRequest, error) {
	selector := labels.SelectorFromSet(labels.Set{managedBy: managedByTulle})
	op, values := selection.Exists, []string(nil)
	if replica != "" {
		op, values = selection.Equals, []string{replica}
	}
	ours, err := labels.NewRequirement(LabelReplica, op, values)
	if err != nil {
		return nil, fmt.Errorf("select CertificateRequests: %w", err)
	}
	var list cmapi.CertificateRequestList
	if err := r.opts.Client.List(ctx, &list, client.InNamespace(r.opts.Namespace), client.MatchingLabelsSelector{Selector: selector.Add(*ours)}); err != nil {
		return nil, err
	}
	return list.Items, nil
}

// Look tells how all requests fare, and deletes those that nobody waits for. See
// [ca.Remote].
func (r *Remote) Look(ctx context.Context, leaves *ca.Signer) (ca.Outlook, error) {
	r.clearKey(ctx)
	if leaves != nil {
		if failed := r.try(ctx, *leaves); failed != nil {
			return ca.Outlook{}, failed
		}
	}
	items, err := r.list(ctx, "")
	if err != nil {
		return ca.Outlook{}, r.unavailable(ctx, "list CertificateRequests", err)
	}
	var out ca.Outlook
	var newest time.Time
	now := r.opts.Now()
	for i := range items {
		cr := &items[i]
		done, failed, _ := verdict(cr)
		ended := endOf(cr)
		identity := cr.Annotations[AnnotationIdentity]
		switch {
		case done && now.Sub(ended) > kept,
			!done && now.Sub(cr.CreationTimestamp.Time) > orphaned && !r.opts.Alive(cr.Labels[LabelReplica]):
			r.delete(ctx, cr.Name)
			continue
		case identity == "": // the mesh's intermediate: who asks for it says how that fares
			continue
		case !done:
			if out.Waiting++; out.Since.IsZero() || cr.CreationTimestamp.Time.Before(out.Since) {
				out.Since, out.For = cr.CreationTimestamp.Time, identity
			}
			continue
		case failed == nil:
			answer, err := read(cr)
			if err == nil {
				out.NotTaken = append(out.NotTaken, answer)
			}
			if now.Sub(ended) < takenTime {
				continue
			}
			failed = &ca.NotSigned{Reason: ca.ReasonInvalid, Message: fmt.Sprintf("what was answered to CertificateRequest %s/%s is not taken: the log of pod %s says why",
				cr.Namespace, cr.Name, cr.Labels[LabelReplica])}
		}
		if ended.After(newest) {
			newest = ended
			out.Refused = ca.Problem{Reason: failed.Reason, Message: fmt.Sprintf("%s has no certificate: %s", identity, failed.Message)}
		}
	}
	return out, nil
}

// try makes a request that is not kept: whether cert-manager's webhook takes it.
func (r *Remote) try(ctx context.Context, s ca.Signer) *ca.NotSigned {
	if _, failed := r.selfSigned(ctx, s); failed != nil {
		return failed
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return &ca.NotSigned{Reason: ca.ReasonUnavailable, Message: "make a key: " + err.Error()}
	}
	o := ca.Order{Signer: s, For: "spiffe://nobody", Lifetime: time.Hour}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err == nil {
		o.Request, err = x509.ParseCertificateRequest(der)
	}
	if err == nil {
		err = r.opts.Client.Create(ctx, r.wanted(o, false), client.DryRunAll)
	}
	if err != nil {
		return r.unavailable(ctx, "make CertificateRequests to "+s.String(), err)
	}
	return nil
}

// endOf is when a request came to its end; of one that has none, when it was made.
func endOf(cr *cmapi.CertificateRequest) time.Time {
	if cr.Status.FailureTime != nil {
		return cr.Status.FailureTime.Time
	}
	for _, of := range []cmapi.CertificateRequestConditionType{cmapi.CertificateRequestConditionReady, cmapi.CertificateRequestConditionDenied} {
		if c := condition(cr, of); c != nil && c.LastTransitionTime != nil {
			return c.LastTransitionTime.Time
		}
	}
	return cr.CreationTimestamp.Time
}

// sweep deletes, once, requests of an earlier process in the same pod, whose keys are
// gone.
func (r *Remote) sweep(ctx context.Context) {
	r.mu.Lock()
	swept := r.swept
	r.swept = true
	r.mu.Unlock()
	if swept {
		return
	}
	items, err := r.list(ctx, r.opts.Replica)
	if err != nil {
		r.mu.Lock()
		r.swept = meta.IsNoMatchError(err)
		r.mu.Unlock()
		return
	}
	for i := range items {
		r.mu.Lock()
		known := r.asked[items[i].Name] != nil
		r.mu.Unlock()
		if !known {
			r.delete(ctx, items[i].Name)
		}
	}
}

// prune deletes what this replica has asked for and nobody waits for any more.
func (r *Remote) prune(ctx context.Context) {
	now := r.opts.Now()
	var names []string
	key := false
	r.mu.Lock()
	for s, t := range r.troubles {
		if now.Sub(t.until) > kept {
			delete(r.troubles, s)
		}
	}
	for name, a := range r.asked {
		most := abandoned
		if a.key {
			most = abandonedKey
		}
		// One that is just being made could be deleted before it is.
		if gone := a.withdrawn && a.waiting == 0; !gone && now.Sub(a.last).Abs() < most {
			continue
		}
		key = key || a.key
		delete(r.asked, name)
		names = append(names, name)
	}
	r.mu.Unlock()
	if key {
		r.clearKey(ctx)
	}
	for _, name := range names {
		r.delete(ctx, name)
	}
}

// clearKey deletes the Secret with a root's key unless it is needed.
func (r *Remote) clearKey(ctx context.Context) {
	r.mu.Lock()
	for _, a := range r.asked {
		if a.key {
			r.mu.Unlock()
			return
		}
	}
	r.mu.Unlock()
	_ = r.deleteKey(ctx) // it is logged, and tried again
}

// oldest is how long the first of this replica's requests has been waiting.
func (r *Remote) oldest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var age time.Duration
	for _, a := range r.asked {
		age = max(age, r.opts.Now().Sub(a.since))
	}
	return age
}
