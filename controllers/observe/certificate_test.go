package observe

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pemBlock(kind string, bytes []byte, headers ...string) []byte {
	b := &pem.Block{Type: kind, Bytes: bytes}
	for _, h := range headers {
		b.Headers = map[string]string{h: "x"}
	}
	return pem.EncodeToMemory(b)
}

// What Envoy reads is shown to it in one form; what it would refuse is refused in words:
// crypto/tls takes all of these.
func TestCertificatesAreThoseThatEnvoyReads(t *testing.T) {
	signed := func(curve elliptic.Curve, extensions ...pkix.Extension) (certificate, key []byte) {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: extensions}
		if certificate, err = x509.CreateCertificate(rand.Reader, c, c, k.Public(), crypto.Signer(k)); err != nil {
			t.Fatal(err)
		}
		if key, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
			t.Fatal(err)
		}
		return certificate, key
	}
	staple, err := asn1.Marshal([]int{5})
	if err != nil {
		t.Fatal(err)
	}
	leaf, key := signed(elliptic.P256())
	issuer, _ := signed(elliptic.P384())
	short, shortKey := signed(elliptic.P224())
	stapled, stapledKey := signed(elliptic.P256(), pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: staple})
	chain, private := slices.Concat(pemBlock("CERTIFICATE", leaf), pemBlock("CERTIFICATE", issuer)), pemBlock("PRIVATE KEY", key)
	for what, c := range map[string]struct {
		chain, key []byte
		refused    string
	}{
		"a chain":                        {chain, private, ""},
		"text around it":                 {slices.Concat([]byte("leaf\n"), chain, []byte("-----BEGIN")), slices.Concat([]byte("key\n"), private), ""},
		"headers":                        {slices.Concat(pemBlock("CERTIFICATE", leaf, "A"), pemBlock("CERTIFICATE", issuer)), pemBlock("PRIVATE KEY", key, "A"), ""},
		"what is no certificate before":  {slices.Concat(pemBlock("TRUSTED CERTIFICATE", []byte("x")), private, chain), private, ""},
		"a key under another name":       {chain, pemBlock("SOME PRIVATE KEY", key), ""},
		"what is no certificate in it":   {slices.Concat(chain, pemBlock("CERTIFICATE", []byte("x"))), private, "malformed certificate"},
		"a curve that is too short":      {pemBlock("CERTIFICATE", short), pemBlock("PRIVATE KEY", shortKey), "P-224"},
		"an answer of OCSP that is none": {pemBlock("CERTIFICATE", stapled), pemBlock("PRIVATE KEY", stapledKey), "OCSP"},
		"the key of another":             {chain, pemBlock("PRIVATE KEY", stapledKey), "does not match"},
	} {
		got := certificate(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Data: map[string][]byte{corev1.TLSCertKey: c.chain, corev1.TLSPrivateKeyKey: c.key}})
		if c.refused != "" {
			if !strings.Contains(got.Invalid, c.refused) || got.Chain != nil || got.Key != nil {
				t.Errorf("%s: %q, want it refused for %q", what, got.Invalid, c.refused)
			}
			continue
		}
		if got.Invalid != "" || !bytes.Equal(got.Chain, chain) || !bytes.Equal(got.Key, private) {
			t.Errorf("%s: %q\n%s", what, got.Invalid, got.Chain)
		}
	}
}
