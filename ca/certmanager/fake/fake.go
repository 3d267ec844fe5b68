// Package fake stands in for cert-manager's controllers in tests: it approves
// CertificateRequests and signs them, or does what it must not.
//
// In: requests on an API server that has cert-manager's CRDs. Out: their status.
// Next: ca/certmanager reads it.
package fake

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/keyutil"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Behaviour is what becomes of requests.
type Behaviour int

// Sign is what an honest issuer does.
const (
	Sign Behaviour = iota
	Hold           // it does not answer
	Deny
	Fail
	AnotherKey
	AnotherName
	Garbage // no certificate in the answer
	Short   // it lives for 10 s
)

// CA is a root that issuers sign with.
type CA struct {
	Root *x509.Certificate
	key  crypto.Signer
}

// NewCA makes one.
func NewCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SerialNumber: serial(), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(50000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := create(template, template, key.Public(), key)
	return &CA{root, key}, err
}

// PEM is its root.
func (c *CA) PEM() []byte { return encode(c.Root) }

// Controllers are those of cert-manager.
type Controllers struct {
	Client client.Client

	mu       sync.Mutex
	behaves  Behaviour
	ca       *CA
	nameRoot bool
	signed   int
}

// New returns controllers that sign with the CA for every issuer that does not sign
// itself.
func New(c client.Client, ca *CA) *Controllers {
	return &Controllers{Client: c, ca: ca, nameRoot: true}
}

// Behave has it do something else from now on.
func (c *Controllers) Behave(b Behaviour) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.behaves = b
}

// Replace has it sign with another CA, and name that in its answers or not.
func (c *Controllers) Replace(ca *CA, named bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ca, c.nameRoot = ca, named
}

// Signed counts the requests that were signed.
func (c *Controllers) Signed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.signed
}

// Run answers requests until the context ends. An error is tried again.
func (c *Controllers) Run(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var list cmapi.CertificateRequestList
		if err := c.Client.List(ctx, &list); err != nil {
			continue
		}
		for i := range list.Items {
			c.answer(ctx, &list.Items[i])
		}
	}
}

func (c *Controllers) answer(ctx context.Context, cr *cmapi.CertificateRequest) {
	if slices.ContainsFunc(cr.Status.Conditions, func(c cmapi.CertificateRequestCondition) bool {
		return c.Type == cmapi.CertificateRequestConditionReady && c.Reason != cmapi.CertificateRequestReasonPending || c.Type == cmapi.CertificateRequestConditionDenied
	}) {
		return
	}
	c.mu.Lock()
	behaves, ca, named := c.behaves, c.ca, c.nameRoot
	c.mu.Unlock()
	set := func(of cmapi.CertificateRequestConditionType, status cmmeta.ConditionStatus, reason, message string) {
		now := metav1.Now()
		cr.Status.Conditions = append(cr.Status.Conditions, cmapi.CertificateRequestCondition{Type: of, Status: status, Reason: reason, Message: message, LastTransitionTime: &now})
		if reason == cmapi.CertificateRequestReasonFailed || reason == cmapi.CertificateRequestReasonDenied {
			cr.Status.FailureTime = &now
		}
	}
	cr.Status.Conditions = nil
	switch behaves {
	case Hold:
		return
	case Deny:
		set(cmapi.CertificateRequestConditionDenied, cmmeta.ConditionTrue, "policy.example", "no policy allows it")
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonDenied, "The CertificateRequest was denied by an approval controller")
	case Fail:
		set(cmapi.CertificateRequestConditionApproved, cmmeta.ConditionTrue, "cert-manager.io", "approved")
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonFailed, "the signer is broken")
	default:
		set(cmapi.CertificateRequestConditionApproved, cmmeta.ConditionTrue, "cert-manager.io", "approved")
		cert, root, err := c.sign(ctx, cr, ca, behaves)
		if err != nil {
			set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonPending, err.Error())
			break
		}
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionTrue, cmapi.CertificateRequestReasonIssued, "signed")
		if cr.Status.Certificate = encode(cert); named {
			cr.Status.CA = encode(root)
		}
		if behaves == Garbage {
			cr.Status.Certificate = []byte("-----BEGIN CERTIFICATE-----\nnothing\n")
		}
	}
	if c.Client.Status().Update(ctx, cr) == nil && len(cr.Status.Certificate) > 0 {
		c.mu.Lock()
		c.signed++
		c.mu.Unlock()
	}
}

func (c *Controllers) sign(ctx context.Context, cr *cmapi.CertificateRequest, ca *CA, behaves Behaviour) (cert, root *x509.Certificate, err error) {
	block, _ := pem.Decode(cr.Spec.Request)
	if block == nil {
		return nil, nil, fmt.Errorf("no request in PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: request.Subject, URIs: request.URIs, DNSNames: request.DNSNames,
		NotBefore: time.Now(), NotAfter: time.Now().Add(cr.Spec.Duration.Duration), BasicConstraintsValid: true, IsCA: cr.Spec.IsCA,
	}
	for _, u := range cr.Spec.Usages {
		switch u {
		case cmapi.UsageCertSign:
			template.KeyUsage |= x509.KeyUsageCertSign
		case cmapi.UsageCRLSign:
			template.KeyUsage |= x509.KeyUsageCRLSign
		case cmapi.UsageDigitalSignature:
			template.KeyUsage |= x509.KeyUsageDigitalSignature
		case cmapi.UsageServerAuth:
			template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		case cmapi.UsageClientAuth:
			template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		default:
			return nil, nil, fmt.Errorf("the usage %q", u)
		}
	}
	var public crypto.PublicKey = request.PublicKey
	switch behaves {
	case AnotherKey:
		public = ca.Root.PublicKey
	case AnotherName:
		template.DNSNames = append(template.DNSNames, "added.example")
	case Short:
		template.NotAfter = time.Now().Add(10 * time.Second)
	case Sign, Hold, Deny, Fail, Garbage: // it is as it was asked for
	}
	var issuer cmapi.Issuer
	if err := c.Client.Get(ctx, types.NamespacedName{Namespace: cr.Namespace, Name: cr.Spec.IssuerRef.Name}, &issuer); err == nil && issuer.Spec.SelfSigned != nil {
		key, err := c.key(ctx, cr)
		if err != nil {
			return nil, nil, err
		}
		cert, err = create(template, template, key.Public(), key)
		return cert, cert, err
	}
	cert, err = create(template, ca.Root, public, ca.key)
	return cert, ca.Root, err
}

// key is that of a request that signs itself.
func (c *Controllers) key(ctx context.Context, cr *cmapi.CertificateRequest) (crypto.Signer, error) {
	var secret corev1.Secret
	name := types.NamespacedName{Namespace: cr.Namespace, Name: cr.Annotations[cmapi.CertificateRequestPrivateKeyAnnotationKey]}
	if err := c.Client.Get(ctx, name, &secret); err != nil {
		return nil, err
	}
	key, err := keyutil.ParsePrivateKeyPEM(secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T", key)
	}
	return signer, nil
}

func serial() *big.Int { return big.NewInt(time.Now().UnixNano()) }

func create(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
