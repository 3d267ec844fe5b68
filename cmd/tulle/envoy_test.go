package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// envoyProcess is a real Envoy with the configuration of testdata.
type envoyProcess struct {
	endpoint
	dir string
	key string // the workload's private key, which nobody may see
}

const (
	testIdentity = "spiffe://cluster.local/ns/shop/sa/frontend"
	testCluster  = "svc|shop/reviews|9080"
)

// startEnvoy starts the Envoy that $ENVOY names and waits until it is live.
func startEnvoy(t *testing.T) *envoyProcess {
	t.Helper()
	binary := os.Getenv("ENVOY")
	if binary == "" {
		t.Fatal("ENVOY must name an Envoy binary (1.40 or newer): these tests read the admin answers of a real one")
	}
	e := &envoyProcess{dir: t.TempDir()}
	e.writeCertificates(t)
	for _, name := range []string{"bootstrap", "cds", "eds", "lds", "rds", "srds", "sds", "roots"} {
		e.write(t, name, func(s string) string { return s })
	}
	logs, err := os.Create(filepath.Join(e.dir, "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(e.dir, "admin")
	cmd := exec.Command(binary, "-c", filepath.Join(e.dir, "bootstrap.yaml"), "--admin-address-path", at,
		"--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = logs.Close()
		if t.Failed() {
			said, _ := os.ReadFile(logs.Name())
			t.Logf("Envoy said:\n%s", said)
		}
	})
	await(t, "Envoy to be live", func() bool {
		addr, err := os.ReadFile(at)
		if err != nil || len(addr) == 0 {
			return false
		}
		e.endpoint = &httpEndpoint{base: "http://" + string(addr), client: http.DefaultClient, close: func() error { return nil }}
		_, err = e.Get(t.Context(), "/ready")
		return err == nil
	})
	return e
}

// write puts a file of testdata, changed, where Envoy watches for it.
func (e *envoyProcess) write(t *testing.T, name string, change func(string) string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := json.Marshal(e.key)
	if err != nil {
		t.Fatal(err)
	}
	s := strings.NewReplacer("{{dir}}", e.dir, "{{key}}", string(key)).Replace(change(string(b)))
	e.writeRaw(t, name+".new", s)
	if err := os.Rename(filepath.Join(e.dir, name+".new"), filepath.Join(e.dir, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

func (e *envoyProcess) writeRaw(t *testing.T, name, s string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, name), []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeCertificates makes an authority and a workload's certificate.
func (e *envoyProcess) writeCertificates(t *testing.T) {
	t.Helper()
	now := time.Now()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	id, err := url.Parse(testIdentity)
	if err != nil {
		t.Fatal(err)
	}
	rootKey, key := newKey(), newKey()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(0xaa), Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(240 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(0xbb), URIs: []*url.URL{id}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for name, c := range map[string]struct {
		template *x509.Certificate
		public   *ecdsa.PublicKey
	}{"ca.crt": {root, &rootKey.PublicKey}, "workload.crt": {leaf, &key.PublicKey}} {
		der, err := x509.CreateCertificate(rand.Reader, c.template, root, c.public, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		e.writeRaw(t, name, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	e.key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// wait waits until the condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited too long for %s", what)
		case <-tick.C:
		}
	}
}
