package ca

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// leafMargin is how long a leaf has to live at least when it comes.
const leafMargin = MinLifetime / 2

// errUntrusted says that a leaf leads to none of the roots that are trusted.
var errUntrusted = errors.New("leads to none of the roots that the mesh trusts")

// delegate has a workload's certificate signed by whoever signs leaves. Nothing is
// handed out that a peer would refuse, or that is good for more than was asked for. Nobody
// is waited for any more when other is closed.
func (a *Authority) delegate(ctx context.Context, m *material, other <-chan struct{}, r Request) (Signed, error) {
	signer := *m.record.Signer
	if a.opts.Remote == nil {
		return Signed{}, &NotSigned{ReasonUnavailable, fmt.Sprintf("nobody asks %s here", signer)}
	}
	request, err := leafRequest(a, r)
	if err != nil {
		return Signed{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // somebody else signs: an answer that comes yet is nothing
		select {
		case <-ctx.Done():
		case <-other:
			cancel()
		}
	}()
	out := Signed{}
	_, err = a.opts.Remote.Sign(ctx, Order{
		Signer: signer, For: r.ID.String(), Request: request, Key: r.Key, Lifetime: r.Lifetime,
		Accept: func(answer Answer) error {
			root, err := a.material.Load().takesNow(a.now(), r, answer.Chain) // there may be more roots since
			if err != nil {
				return err
			}
			out = Signed{presented(answer.Chain), Epoch{m.epoch.Issuer, fingerprint(root.Raw)}}
			return nil
		},
	})
	if err != nil {
		return Signed{}, err
	}
	return out, nil
}

func leafRequest(a *Authority, r Request) (*x509.CertificateRequest, error) {
	if err := r.ID.Validate(); err != nil {
		return nil, err
	}
	return newRequest(a, r.Key, &x509.CertificateRequest{URIs: []*url.URL{r.ID.URL()}})
}

func newRequest(a *Authority, key crypto.Signer, template *x509.CertificateRequest) (*x509.CertificateRequest, error) {
	der, err := x509.CreateCertificateRequest(a.opts.Rand, template, key)
	if err != nil {
		return nil, fmt.Errorf("request a certificate: %w", err)
	}
	return x509.ParseCertificateRequest(der)
}

// soonTime is how far the clock of who signs may be ahead: what begins by then is waited
// for.
const soonTime = time.Minute

// beginsAt is why a certificate is not taken yet.
func beginsAt(what string, c *x509.Certificate, now time.Time) error {
	text := fmt.Sprintf("%s begins at %s only", what, c.NotBefore.Format(time.RFC3339))
	if c.NotBefore.Sub(now) <= soonTime {
		return &NotSigned{ReasonPending, text + ": the clock of who signed it is ahead"}
	}
	return errors.New(text)
}

// presented is the chain without a root at its end, which some signers add.
func presented(chain []*x509.Certificate) []*x509.Certificate {
	for len(chain) > 1 && selfSigned(chain[len(chain)-1]) {
		chain = chain[:len(chain)-1]
	}
	return chain
}

func selfSigned(c *x509.Certificate) bool { return c.CheckSignatureFrom(c) == nil }

// takesNow is takes, but for leaves of roots that are being distributed: not all trust
// those yet. They are waited for as long as the leaf before lives for long enough, and
// not to its end, for the sake of proxies that acknowledge nothing.
func (m *material) takesNow(now time.Time, r Request, chain []*x509.Certificate) (*x509.Certificate, error) {
	rotation := m.record.Rotation
	if rotation == nil || rotation.Phase != PhaseDistribute || now.Sub(rotation.Since) >= r.Lifetime/4 {
		return m.takes(now, r, chain)
	}
	before := &material{roots: m.roots[:len(m.roots)-rotation.AddedRoots]}
	root, err := before.takes(now, r, chain)
	if errors.Is(err, errUntrusted) && m.leads(now, chain) {
		err = &NotSigned{ReasonPending, "the certificate leads to a root that not all proxies trust yet"}
	}
	return root, err
}

// takes checks a leaf that somebody else has signed, as strictly as this
// authority's own are made, and returns the root that it leads to.
func (m *material) takes(now time.Time, r Request, chain []*x509.Certificate) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate in the answer")
	}
	leaf := chain[0]
	switch {
	case !belongs(r.Key, leaf):
		return nil, errors.New("the certificate is for another key than the one that was sent")
	case leaf.IsCA:
		return nil, errors.New("the certificate is that of an authority, and not of a workload")
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != r.ID.String() ||
		len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		return nil, fmt.Errorf("the certificate is not for %s alone: the issuer has to sign URI names as they are asked for, and to add none", r.ID)
	case leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return nil, errors.New("the certificate may not be used for signatures: the issuer has to allow the usage \"digital signature\"")
	case now.Before(leaf.NotBefore):
		return nil, beginsAt("the certificate", leaf, now)
	case !now.Before(leaf.NotAfter):
		return nil, fmt.Errorf("the certificate ended at %s", leaf.NotAfter.Format(time.RFC3339))
	case leaf.NotAfter.Sub(now) < leafMargin:
		return nil, fmt.Errorf("the certificate ends in %s, which is too soon: %s was asked for", leaf.NotAfter.Sub(now).Round(time.Second), r.Lifetime)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range m.roots {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	var root *x509.Certificate
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		found, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
		var unknown x509.UnknownAuthorityError
		switch {
		case errors.As(err, &unknown):
			return nil, fmt.Errorf("the certificate %w", errUntrusted)
		case err != nil:
			return nil, fmt.Errorf("the certificate would not be taken by others (see name constraints and the usages \"server auth\" and \"client auth\"): %w", err)
		}
		path := slices.MaxFunc(found, func(a, b []*x509.Certificate) int {
			return cmp.Or(endOf(a).Compare(endOf(b)), a[len(a)-1].NotAfter.Compare(b[len(b)-1].NotAfter))
		})
		for _, c := range path[1:] {
			if end := c.NotAfter.Sub(now); end < leafMargin {
				return nil, fmt.Errorf("%q, above the certificate, ends in %s: replace what the issuer signs with", c.Subject, end.Round(time.Second))
			}
		}
		root = path[len(path)-1]
	}
	return root, nil
}

// endOf is when the first of them ends.
func endOf(path []*x509.Certificate) time.Time {
	end := path[0].NotAfter
	for _, c := range path {
		end = earlier(end, c.NotAfter)
	}
	return end
}

// leads reports whether the chain leads to a root that is trusted.
func (m *material) leads(now time.Time, chain []*x509.Certificate) bool {
	return len(chain) == 0 || slices.ContainsFunc(m.roots, func(root *x509.Certificate) bool {
		one := &material{roots: []*x509.Certificate{root}, chain: chain[1:]}
		return one.verify(now, chain[0], x509.ExtKeyUsageAny) == nil
	})
}

// rootsOf are the roots of an answer: those that the operator names, or those that
// the signer does.
func rootsOf(named []byte, answer Answer) ([]*x509.Certificate, error) {
	roots := answer.Roots
	if len(named) > 0 {
		var err error
		if roots, err = parseCertificates(named); err != nil {
			return nil, fmt.Errorf("spec.ca.certManager.roots: %w", err)
		}
	}
	if len(roots) == 0 {
		return nil, errors.New("the answer does not say which root it leads to: write the root's certificate to spec.ca.certManager.roots")
	}
	for _, c := range roots {
		if err := checkKey(c.PublicKey); err != nil {
			return nil, fmt.Errorf("root %q has %w", c.Subject, err)
		}
		if !c.IsCA || !selfSigned(c) {
			return nil, fmt.Errorf("what is named as root, %q, is none: write the root's certificate to spec.ca.certManager.roots", c.Subject)
		}
	}
	return union(nil, roots), nil
}
