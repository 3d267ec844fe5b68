package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/trust"
	"github.com/tulle-mesh/tulle/xds/bootstrap"
)

// Each connection to this service is one between the sidecars, too: a handshake.
const tcpService = `
apiVersion: v1
kind: Service
metadata: {name: raw, namespace: shop}
spec: {clusterIP: 10.0.0.23, ports: [{name: tcp, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: raw, namespace: shop, labels: {kubernetes.io/service-name: raw}}
addressType: IPv4
ports: [{name: tcp, port: 8080}]
endpoints: [{addresses: [10.244.0.11], conditions: {ready: true}, targetRef: {kind: Pod, namespace: shop, name: reviews-v1}}]
`

const (
	raw       = "http://10.0.0.23/"
	rotating  = "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default, annotations: {mesh.tulle.dev/rotate-ca: %q}}\nspec: {certificates: {lifetime: 1m}}\n"
	handshake = 20 * time.Millisecond // between two of them
)

// startOpening is a mesh of two sidecars that connect to each other by mesh mTLS alone.
func startOpening(t *testing.T) *lab {
	t.Helper()
	envoy := os.Getenv("ENVOY")
	if envoy == "" {
		t.Fatal("ENVOY is not set: it names the Envoy binary that tests start; run `make test`, which fetches it and sets it")
	}
	m := startMesh(t, envoy)
	m.apply(t, tcpService)
	m.apply(t, fmt.Sprintf(strict, "web"))
	m.apply(t, fmt.Sprintf(rotating, ""))
	eventually(t, "a connection between sidecars", func() error { return m.answers(raw, "reviews-v1") })
	eventually(t, "calls in the clear to be refused", func() error {
		resp, err := m.clientIn(m.network.node).Get("http://" + m.reviews.address + ":8080/")
		if err == nil {
			resp.Body.Close()
			return errors.New("one was answered")
		}
		return nil
	})
	return m
}

// The authority's root is rotated, its control plane dies on the way, its issuer
// is rotated, and at last it is replaced by one that an operator brings. Two stock
// Envoys open a connection to each other all the time; none fails.
func TestNoHandshakeFailsWhileTheAuthorityIsRotatedAndReplaced(t *testing.T) {
	m := startOpening(t)
	stop := m.keepOpening(t)
	before := m.authority(t)

	m.ask(t, ca.ScopeRoot)
	m.reach(t, ca.PhaseDistribute)
	m.rootsOf(t, 2)
	m.kubelets(t)
	m.control.end(t, syscall.SIGKILL)
	m.control = startControlPlane(t, m.whole, m.kubeconfig, "tulled-2")
	m.toXDS.redirect(m.control.xds)
	m.rotated(t, 1)
	m.rootsOf(t, 1)
	m.kubelets(t)
	m.reconnect(t)
	after := m.authority(t)
	if after.Issuer.KeyID == before.Issuer.KeyID || after.Roots[0].KeyID == before.Roots[0].KeyID || len(after.Roots) != 1 {
		t.Errorf("from %+v to %+v", before, after)
	}

	m.ask(t, ca.ScopeIssuer)
	if !m.rotated(t, 2) {
		t.Error("the rotation of the issuer did not wait for the proxies")
	}
	if now := m.authority(t); now.Issuer.KeyID == after.Issuer.KeyID || now.Roots[0].KeyID != after.Roots[0].KeyID {
		t.Errorf("from %+v to %+v", after, now)
	}

	issuer := m.bring(t)
	m.ask(t, ca.ScopeIssuer) // so that it is looked at now
	m.reach(t, ca.PhaseDistribute)
	m.kubelets(t)
	m.rotated(t, 3)
	m.kubelets(t)
	m.reconnect(t)
	if now := m.authority(t); now.Issuer.KeyID != issuer || now.RootKey || now.Record.History[0].Why != ca.WhyBrought {
		t.Errorf("the brought issuer %s does not sign: %+v", issuer, now)
	}
	stop()

	// If the brought issuer was seen first, the request came to none that is rotated here.
	m.apply(t, fmt.Sprintf(rotating, ""))
	m.current(t)
	m.audited(t, m.control.log)
}

// keepOpening opens connections until it is stopped; then it compares with what
// Envoys have counted.
func (m *lab) keepOpening(t *testing.T) (stop func()) {
	t.Helper()
	start := time.Now()
	shaken := m.stat(t, m.reviews, ".ssl.handshake")
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		calls  int
		failed error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		for ctx.Err() == nil {
			err := m.answers(raw, "reviews-v1")
			if r.calls++; err != nil {
				r.failed = errors.Join(r.failed, fmt.Errorf("after %v: %w", time.Since(start).Round(time.Millisecond), err))
			}
			time.Sleep(handshake)
		}
		done <- r
	}()
	return func() {
		t.Helper()
		cancel()
		r := <-done
		if r.failed != nil {
			t.Errorf("of %d connections some failed: %v", r.calls, r.failed)
		}
		shaken = m.stat(t, m.reviews, ".ssl.handshake") - shaken
		t.Logf("%d connections in %v, %v handshakes at the server's sidecar", r.calls, time.Since(start).Round(time.Second), shaken)
		if shaken < float64(r.calls) || r.calls < 200 {
			t.Errorf("%d connections were %v handshakes", r.calls, shaken)
		}
		for _, p := range []*pod{m.web, m.reviews} {
			for _, name := range []string{".ssl.connection_error", ".ssl.fail_verify_error", ".ssl.fail_verify_san", ".ssl.fail_verify_no_cert"} {
				if n := m.stat(t, p, name); n != 0 {
					t.Errorf("%s counts %v of %s", p.name, n, name)
				}
			}
		}
	}
}

// stat adds up what the pod's Envoy counts of its listeners and its clusters under names
// that end so; of handshakes, not those with the control plane.
func (m *lab) stat(t *testing.T, p *pod, suffix string) float64 {
	t.Helper()
	resp, err := m.clientIn(p.network).Get("http://127.0.0.1:15000/stats?filter=" + suffix[1:])
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	total := 0.0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		handshakes := strings.HasSuffix(name, ".ssl.handshake")
		if !strings.HasSuffix(name, suffix) || handshakes && strings.HasPrefix(name, "cluster."+bootstrap.ControlPlane+".") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		if n != 0 && !handshakes {
			t.Logf("%s: %s is %v", p.name, name, n)
		}
		total += n
	}
	return total
}

// ask asks for a rotation as the CLI does.
func (m *lab) ask(t *testing.T, scope ca.Scope) {
	t.Helper()
	m.apply(t, fmt.Sprintf(rotating, ca.Ask{Scope: scope, At: time.Now()}))
}

// authority is what the control plane says of it.
func (m *lab) authority(t *testing.T) ca.State {
	t.Helper()
	resp, err := asking.Get("http://" + m.control.debug + "/debug/ca")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s ca.State
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// patiently is eventually for longer: certificates take their turn.
func patiently(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (m *lab) reach(t *testing.T, phase ca.Phase) {
	t.Helper()
	patiently(t, "the phase "+string(phase), func() error {
		s := m.authority(t)
		if r := s.Record.Rotation; r == nil || r.Phase != phase {
			return fmt.Errorf("%s %s (%+v)", s.Reason, s.Message, r)
		}
		return nil
	})
}

// rotated waits until so many rotations are over. It returns whether the last of
// them was seen to wait for the proxies.
func (m *lab) rotated(t *testing.T, times int) (waited bool) {
	t.Helper()
	patiently(t, fmt.Sprintf("rotation %d to end", times), func() error {
		s := m.authority(t)
		waited = waited || strings.Contains(s.Message, "of 2 proxies present a certificate of the new issuer")
		if n := len(s.Record.History); n < times {
			return fmt.Errorf("%d are over; %s: %s", n, s.Reason, s.Message)
		}
		return nil
	})
	return waited
}

// rootsOf waits until both Envoys trust so many roots of the mesh.
func (m *lab) rootsOf(t *testing.T, count int) {
	t.Helper()
	for _, p := range []*pod{m.web, m.reviews} {
		eventually(t, fmt.Sprintf("%s to trust %d roots", p.name, count), func() error {
			resp, err := m.clientIn(p.network).Get("http://127.0.0.1:15000/certs")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var admin struct {
				Certificates []struct {
					Authorities []json.RawMessage `json:"ca_cert"`
					Chain       []json.RawMessage `json:"cert_chain"`
				}
			}
			if err := json.NewDecoder(resp.Body).Decode(&admin); err != nil {
				return err
			}
			for _, c := range admin.Certificates {
				if len(c.Chain) > 0 && len(c.Authorities) > 0 && len(c.Authorities) != count {
					return fmt.Errorf("a context has %d", len(c.Authorities))
				}
			}
			return nil
		})
	}
}

// kubelets bring the ConfigMap to the pods.
func (m *lab) kubelets(t *testing.T) {
	t.Helper()
	var present string
	eventually(t, "the ConfigMap to have the present roots", func() error {
		var c corev1.ConfigMap
		if err := m.client.Get(t.Context(), types.NamespacedName{Namespace: shop, Name: trust.ConfigMapName}, &c); err != nil {
			return err
		}
		present = c.Data[trust.RootsPEM]
		s := m.authority(t)
		want := len(s.Roots) + len(s.Servers)
		leaves := s.Record.Delegation != nil
		if r := s.Record.Rotation; r != nil {
			leaves = r.From.Issuer == "" && r.To.Issuer == ""
		}
		if leaves { // what the issuer signs for others is not the control plane
			want = len(s.Servers)
		}
		if n := strings.Count(present, "BEGIN CERTIFICATE"); n != want {
			return fmt.Errorf("it has %d roots, not %d", n, want)
		}
		return nil
	})
	for _, p := range []*pod{m.web, m.reviews} {
		if err := os.WriteFile(p.roots+".new", []byte(present), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(p.roots+".new", p.roots); err != nil {
			t.Fatal(err)
		}
	}
}

// reconnect has the proxies verify the control plane anew.
func (m *lab) reconnect(t *testing.T) {
	t.Helper()
	m.toXDS.setDown(true)
	m.toXDS.setDown(false)
	eventually(t, "the proxies to come back", func() error { return m.control.settled(2) })
}

// bring makes a company's root (RSA) and an intermediate for the mesh (P-384) that
// may sign for the mesh's names and no others. It returns its key's id.
func (m *lab) bring(t *testing.T) string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rootKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(err)
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	sign := func(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
		must(err)
		c, err := x509.ParseCertificate(der)
		must(err)
		return c
	}
	root := sign(template("a company's root", 1), template("a company's root", 1), rootKey.Public(), rootKey)
	intermediate := template("the mesh", 2)
	intermediate.MaxPathLenZero = true
	intermediate.PermittedDNSDomainsCritical = true
	intermediate.PermittedURIDomains = []string{"cluster.local"}
	issuer := sign(intermediate, root, key.Public(), rootKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	must(m.client.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: meshNamespace, Name: broughtSecret}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey: block("CERTIFICATE", issuer.Raw), corev1.TLSPrivateKeyKey: block("PRIVATE KEY", der), "ca.crt": block("CERTIFICATE", root.Raw),
		},
	}))
	return ca.KeyID(issuer)
}

// current waits until the MeshConfig says that nothing is to be rotated.
func (m *lab) current(t *testing.T) {
	t.Helper()
	m.says(t, ca.ReasonCurrent, "")
}

// says waits until the MeshConfig says so of the authority.
func (m *lab) says(t *testing.T, reason, words string) {
	t.Helper()
	config := &unstructured.Unstructured{}
	config.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("MeshConfig"))
	eventually(t, "the MeshConfig to say that the authority is "+reason, func() error {
		if err := m.client.Get(t.Context(), types.NamespacedName{Name: v1alpha1.MeshConfigName}, config); err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(config.Object, "status", "conditions")
		for _, c := range conditions {
			is := c.(map[string]any)
			if is["type"] == v1alpha1.ConditionAuthorityCurrent && is["reason"] == reason && (is["status"] == "True") == (reason == ca.ReasonCurrent) &&
				strings.Contains(is["message"].(string), words) {
				return nil
			}
		}
		return fmt.Errorf("its conditions are %v", conditions)
	})
}

// audited looks for the trace of web's certificate, and for no key.
func (m *lab) audited(t *testing.T, log string) {
	t.Helper()
	content := read(t, log)
	if strings.Contains(content, "PRIVATE KEY") {
		t.Error("a key is in the log")
	}
	for line := range strings.Lines(content) {
		var entry struct {
			Msg, Identity, Serial, Issuer, NotAfter string
			Pods                                    []string
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "issued a certificate" && entry.Identity == "spiffe://cluster.local/ns/shop/sa/web" {
			if entry.Serial == "" || entry.Issuer == "" || len(entry.Pods) != 1 || entry.Pods[0] != "shop/web" {
				t.Errorf("the trace of a certificate is %s", line)
			}
			return
		}
	}
	t.Error("no trace of web's certificate is in the log")
}
