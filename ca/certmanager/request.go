package certmanager

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/ca"
)

const (
	// KeySecret holds the key of a root that signs itself, while it is signed.
	KeySecret = "tulle-ca-request"
	// LabelReplica names the replica that waits for a request.
	LabelReplica = "mesh.tulle.dev/replica"
	// AnnotationIdentity is whom a request is for; without it, it is for the mesh's
	// intermediate.
	AnnotationIdentity = "mesh.tulle.dev/identity"

	managedBy      = "app.kubernetes.io/managed-by"
	managedByTulle = "tulle"
)

// What is read, made and deleted. A watch is of one request by its name.
//
// +kubebuilder:rbac:groups=cert-manager.io,namespace=tulle-system,resources=certificaterequests,verbs=create;get;list;watch;delete
// +kubebuilder:rbac:groups=cert-manager.io,namespace=tulle-system,resources=issuers,verbs=get
// +kubebuilder:rbac:groups=cert-manager.io,resources=clusterissuers,verbs=get
// +kubebuilder:rbac:groups="",namespace=tulle-system,resources=secrets,resourceNames=tulle-ca-request,verbs=delete

// selfSigned reports whether an issuer has requests sign themselves. Of external ones
// nothing is known.
func (r *Remote) selfSigned(ctx context.Context, s ca.Signer) (bool, *ca.NotSigned) {
	if s.Group != cmapi.SchemeGroupVersion.Group {
		return false, nil
	}
	r.mu.Lock()
	known, ok := r.issuers[s]
	r.mu.Unlock()
	if now := r.opts.Now(); ok && now.Sub(known.at).Abs() < issuerTime {
		return known.selfSigned, nil
	}
	var object client.Object
	var spec *cmapi.IssuerSpec
	name := types.NamespacedName{Name: s.Name}
	where := "in the cluster"
	if s.Kind == cmapi.ClusterIssuerKind {
		i := &cmapi.ClusterIssuer{}
		object, spec = i, &i.Spec
	} else {
		i := &cmapi.Issuer{}
		object, spec, name.Namespace = i, &i.Spec, r.opts.Namespace
		where = "in the namespace " + r.opts.Namespace
	}
	switch err := r.opts.Client.Get(ctx, name, object); {
	case apierrors.IsNotFound(err):
		return false, &ca.NotSigned{Reason: ca.ReasonUnavailable, Message: fmt.Sprintf(
			"there is no %s %s: create it, or name another in spec.ca.certManager.issuerRef", s, where)}
	case err != nil:
		return false, r.unavailable(ctx, "get "+s.String(), err)
	}
	found := issuer{selfSigned: spec.SelfSigned != nil, at: r.opts.Now()}
	r.mu.Lock()
	r.issuers[s] = found
	r.mu.Unlock()
	return found.selfSigned, nil
}

// unavailable is why cert-manager cannot be asked. Where the time for it is over, that
// is no reason to say that it is away.
func (r *Remote) unavailable(ctx context.Context, doing string, err error) *ca.NotSigned {
	switch {
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err):
		return &ca.NotSigned{Reason: ca.ReasonUnavailable, Message: "cert-manager is not installed: the API server does not know the kinds of cert-manager.io; install it, or remove spec.ca.certManager from the MeshConfig"}
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return &ca.NotSigned{Reason: ca.ReasonPending, Message: doing + ": the API server has not answered yet"}
	}
	return &ca.NotSigned{Reason: ca.ReasonUnavailable, Message: fmt.Sprintf("%s: %v", doing, err)}
}

// nameOf names the request of an order: the same for the same key.
func nameOf(o ca.Order) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%+v\x00%s\x00", o.Signer, o.For)
	sum.Write(o.Request.RawSubjectPublicKeyInfo)
	return "tulle-" + hex.EncodeToString(sum.Sum(nil)[:10])
}

// wanted is the request of an order.
func (r *Remote) wanted(o ca.Order, selfSigned bool) *cmapi.CertificateRequest {
	cr := &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.opts.Namespace, Name: nameOf(o),
			Labels: map[string]string{managedBy: managedByTulle, LabelReplica: r.opts.Replica},
		},
		Spec: cmapi.CertificateRequestSpec{
			IssuerRef: cmmeta.IssuerReference{Name: o.Signer.Name, Kind: o.Signer.Kind, Group: o.Signer.Group},
			Duration:  &metav1.Duration{Duration: o.Lifetime},
			Request:   encodeRequest(o),
			IsCA:      o.For == "",
			Usages:    []cmapi.KeyUsage{cmapi.UsageDigitalSignature, cmapi.UsageServerAuth, cmapi.UsageClientAuth},
		},
	}
	if o.For == "" {
		cr.Spec.Usages = []cmapi.KeyUsage{cmapi.UsageCertSign, cmapi.UsageCRLSign}
	} else {
		cr.Annotations = map[string]string{AnnotationIdentity: o.For}
	}
	if selfSigned {
		cr.Annotations = map[string]string{cmapi.CertificateRequestPrivateKeyAnnotationKey: KeySecret}
	}
	return cr
}

// answered waits until there is an answer to an order. It returns the request with
// the failure, too, where there is one.
func (r *Remote) answered(ctx context.Context, o ca.Order, selfSigned bool) (*cmapi.CertificateRequest, *ca.NotSigned) {
	wanted := r.wanted(o, selfSigned)
	r.mu.Lock()
	a := r.asked[wanted.Name]
	known := a != nil
	if a == nil {
		a = &asked{signer: o.Signer, since: r.opts.Now()}
		r.asked[wanted.Name] = a
	}
	a.last, a.key, a.withdrawn = r.opts.Now(), selfSigned, false
	a.waiting++
	since := a.since
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if a.waiting--; a.withdrawn {
			r.poke()
		}
	}()
	if selfSigned {
		if failed := r.putKey(ctx, o, known); failed != nil {
			return nil, failed
		}
	}
	waits := fmt.Sprintf("CertificateRequest %s/%s", wanted.Namespace, wanted.Name)
	for {
		cr, failed := r.ensure(ctx, wanted)
		if failed != nil {
			return nil, failed
		}
		for cr != nil {
			done, failed, says := verdict(cr)
			if done {
				return cr, failed
			}
			waits = fmt.Sprintf("CertificateRequest %s/%s waits for %s since %s: %s", cr.Namespace, cr.Name, o.Signer, since.UTC().Format(time.RFC3339), says)
			if cr, failed = r.next(ctx, cr); failed != nil {
				return nil, failed
			}
		}
		select { // it was deleted, or cannot be followed
		case <-ctx.Done():
			return wanted, &ca.NotSigned{Reason: ca.ReasonPending, Message: waits}
		case <-time.After(time.Second):
		}
	}
}

// ensure reads the request, or makes it. One that is there from an earlier turn is for
// the same key, and not the same to the byte: its signature is random. What is answered
// is checked, whatever was asked.
func (r *Remote) ensure(ctx context.Context, wanted *cmapi.CertificateRequest) (*cmapi.CertificateRequest, *ca.NotSigned) {
	name := client.ObjectKeyFromObject(wanted)
	cr := &cmapi.CertificateRequest{}
	err := r.opts.Client.Get(ctx, name, cr)
	if apierrors.IsNotFound(err) {
		if failed := r.rate.Wait(ctx); failed != nil {
			return nil, &ca.NotSigned{Reason: ca.ReasonPending, Message: "other requests are made before"}
		}
		cr = wanted.DeepCopy()
		if err = r.opts.Client.Create(ctx, cr); err == nil {
			r.opts.Log.Info("asked for a certificate", "request", wanted.Name, "signer", wanted.Spec.IssuerRef, "for", wanted.Annotations[AnnotationIdentity])
		}
		if apierrors.IsAlreadyExists(err) {
			err = r.opts.Client.Get(ctx, name, cr)
		}
	}
	if err != nil {
		return nil, r.unavailable(ctx, "make CertificateRequest "+name.String(), err)
	}
	return cr, nil
}

// next waits for the request to change; nil: it was deleted, or the watch has ended,
// or the context.
func (r *Remote) next(ctx context.Context, cr *cmapi.CertificateRequest) (*cmapi.CertificateRequest, *ca.NotSigned) {
	events, err := r.opts.Client.Watch(ctx, &cmapi.CertificateRequestList{}, client.InNamespace(cr.Namespace),
		client.MatchingFields{metav1.ObjectNameField: cr.Name}, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: cr.ResourceVersion}})
	if ctx.Err() != nil {
		return nil, nil
	}
	if err != nil {
		return nil, r.unavailable(ctx, "watch CertificateRequest "+cr.Name, err)
	}
	defer events.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case e, ok := <-events.ResultChan():
			if !ok || e.Type == watch.Error || e.Type == watch.Deleted {
				return nil, nil
			}
			if now, ok := e.Object.(*cmapi.CertificateRequest); ok && now.ResourceVersion != cr.ResourceVersion {
				return now, nil
			}
		}
	}
}

// verdict is whether a request has come to an end, how if not well, and what it says
// while it has not.
func verdict(cr *cmapi.CertificateRequest) (done bool, failed *ca.NotSigned, says string) {
	says = "nobody has approved it yet"
	about := fmt.Sprintf("CertificateRequest %s/%s to %s %s", cr.Namespace, cr.Name, cr.Spec.IssuerRef.Kind, cr.Spec.IssuerRef.Name)
	refuse := func(reason, how string, c *cmapi.CertificateRequestCondition) (bool, *ca.NotSigned, string) {
		return true, &ca.NotSigned{Reason: reason, Message: fmt.Sprintf("%s %s: %s", about, how, c.Message)}, ""
	}
	ready := condition(cr, cmapi.CertificateRequestConditionReady)
	if c := condition(cr, cmapi.CertificateRequestConditionDenied); c != nil && c.Status == cmmeta.ConditionTrue {
		return refuse(ca.ReasonDenied, "was denied", c)
	}
	if c := condition(cr, cmapi.CertificateRequestConditionInvalidRequest); c != nil && c.Status == cmmeta.ConditionTrue {
		return refuse(ca.ReasonFailed, "is one that the issuer does not sign", c)
	}
	if c := condition(cr, cmapi.CertificateRequestConditionApproved); c != nil && c.Status == cmmeta.ConditionTrue {
		says = "it is approved, and the issuer has not signed it yet"
	}
	switch {
	case ready == nil:
	case ready.Reason == cmapi.CertificateRequestReasonDenied:
		return refuse(ca.ReasonDenied, "was denied", ready)
	case ready.Reason == cmapi.CertificateRequestReasonFailed:
		return refuse(ca.ReasonFailed, "has failed", ready)
	case ready.Status == cmmeta.ConditionTrue && len(cr.Status.Certificate) > 0:
		return true, nil, ""
	case ready.Message != "":
		says = ready.Message
	}
	return false, nil, says
}

func condition(cr *cmapi.CertificateRequest, of cmapi.CertificateRequestConditionType) *cmapi.CertificateRequestCondition {
	for i := range cr.Status.Conditions {
		if cr.Status.Conditions[i].Type == of {
			return &cr.Status.Conditions[i]
		}
	}
	return nil
}

// putKey puts the key of a root that signs itself where cert-manager reads it.
func (r *Remote) putKey(ctx context.Context, o ca.Order, known bool) *ca.NotSigned {
	der, err := x509.MarshalPKCS8PrivateKey(o.Key)
	if err != nil {
		return &ca.NotSigned{Reason: ca.ReasonFailed, Message: "the key of a root cannot be encoded"}
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.opts.Namespace, Name: KeySecret,
			// cert-manager keeps what has its label, and asks for the rest.
			Labels: map[string]string{managedBy: managedByTulle, cmapi.PartOfCertManagerControllerLabelKey: "true"},
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})},
	}
	err = r.opts.Client.Create(ctx, secret.DeepCopy())
	if apierrors.IsAlreadyExists(err) && !known { // a predecessor's, who was killed
		if err = r.deleteKey(ctx); err == nil {
			err = r.opts.Client.Create(ctx, secret)
		}
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return r.unavailable(ctx, "make Secret "+KeySecret, err)
	}
	return nil
}

// deleteKey deletes the Secret, whatever becomes of who wants it.
func (r *Remote) deleteKey(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := r.opts.Client.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: r.opts.Namespace, Name: KeySecret}})
	if err = client.IgnoreNotFound(err); err != nil {
		r.opts.Log.Error(err, "the Secret with a root's key cannot be deleted; trying again", "secret", KeySecret)
	}
	return err
}

func (r *Remote) delete(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := r.opts.Client.Delete(ctx, &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: r.opts.Namespace, Name: name}})
	if client.IgnoreNotFound(err) != nil {
		r.opts.Log.V(1).Info("a request cannot be deleted; the leader will", "request", name, "error", err.Error())
	}
}
