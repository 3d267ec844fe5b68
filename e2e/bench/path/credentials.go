package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"time"
)

// credentials are a certificate of a key as Tulle's have, and the root that it and
// its peer's are verified by.
type credentials struct{ chain, key, root string }

// newCredentials makes those of a client and a server, for a day.
func newCredentials() (map[string]*credentials, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	all := map[string]*credentials{}
	for i, name := range []string{"client", "server"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + i)), NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
			URIs:        []*url.URL{identity(name)},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey)
		if err != nil {
			return nil, err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		all[name] = &credentials{chain: text("CERTIFICATE", der), key: text("PRIVATE KEY", keyDER), root: text("CERTIFICATE", rootDER)}
	}
	return all, nil
}

func identity(name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "bench.local", Path: "/ns/bench/sa/" + name}
}

func text(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// context is Envoy's of a connection with the peer of that name.
func (c *credentials) context(peer string) object {
	return object{
		"tls_params": object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
		"tls_certificates": []object{{
			"certificate_chain": object{"inline_string": c.chain}, "private_key": object{"inline_string": c.key},
		}},
		"validation_context": object{
			"trusted_ca":                    object{"inline_string": c.root},
			"match_typed_subject_alt_names": []object{{"san_type": "URI", "matcher": object{"exact": identity(peer).String()}}},
		},
	}
}
