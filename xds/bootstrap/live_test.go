package bootstrap_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/tulle-mesh/tulle/xds/bootstrap"
)

// patience is how long a test waits for what Envoy does in milliseconds.
const patience = 20 * time.Second

// hello is what a stream began with.
type hello struct {
	authorization string
	node          string
	end           chan<- struct{} // closed: the server ends the stream
}

// controlPlane is an xDS server that says hello on a channel and nothing else.
type controlPlane struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	hellos chan hello
}

func (c *controlPlane) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	first, err := s.Recv()
	if err != nil {
		return err
	}
	end := make(chan struct{})
	select {
	case c.hellos <- hello{strings.Join(md.Get("authorization"), ","), first.GetNode().GetId(), end}:
	case <-s.Context().Done():
		return nil
	}
	select {
	case <-end:
	case <-s.Context().Done():
	}
	return nil
}

func TestAStreamBringsTheTokenAsItIsNow(t *testing.T) {
	root, leaf := issue(t, "tulled.tulle-system.svc")
	server, port := serve(t, leaf)
	trust := writeTrust(t, t.TempDir(), root, "first")
	startEnvoy(t, trust, port)

	h := server.next(t)
	if h.authorization != "Bearer first" {
		t.Errorf("authorization is %q, want %q", h.authorization, "Bearer first")
	}
	if h.node != "web-0.shop" {
		t.Errorf("node is %q, want web-0.shop", h.node)
	}

	// The kubelet renews a token by a rename; the stream that Envoy opens
	// after it has seen that brings the new one.
	replace(t, filepath.Join(trust, "token"), "second")
	deadline := time.Now().Add(patience)
	for h.authorization != "Bearer second" {
		if time.Now().After(deadline) {
			t.Fatalf("authorization is still %q", h.authorization)
		}
		close(h.end)
		h = server.next(t)
	}
}

func TestAControlPlaneOfAnotherNameIsRefused(t *testing.T) {
	root, leaf := issue(t, "tulled.elsewhere.svc")
	server, port := serve(t, leaf)
	admin := startEnvoy(t, writeTrust(t, t.TempDir(), root, "secret"), port)
	admin.waitFor(t, "/stats?filter=cluster.tulled.ssl.fail_verify_san", func(body string) bool {
		return !strings.Contains(body, ": 0\n") && strings.Contains(body, "fail_verify_san")
	})
	select {
	case h := <-server.hellos:
		t.Errorf("a stream was opened with %q", h.authorization)
	default:
	}
}

func TestRootsAreReadAgainWhenTheyChange(t *testing.T) {
	root, leaf := issue(t, "tulled.tulle-system.svc")
	other, _ := issue(t, "tulled.tulle-system.svc")
	server, port := serve(t, leaf)
	trust := writeTrust(t, t.TempDir(), other, "token")
	admin := startEnvoy(t, trust, port)
	admin.waitFor(t, "/stats?filter=cluster.tulled.ssl.fail_verify_error", func(body string) bool {
		return !strings.Contains(body, ": 0\n") && strings.Contains(body, "fail_verify_error")
	})
	replace(t, filepath.Join(trust, "ca.crt"), string(root))
	server.next(t)
}

func TestTheAdminInterfaceReadsAndSetsLogLevels(t *testing.T) {
	root, leaf := issue(t, "tulled.tulle-system.svc")
	server, port := serve(t, leaf)
	admin := startEnvoy(t, writeTrust(t, t.TempDir(), root, "token"), port)
	server.next(t)
	for _, path := range []string{"/stats?format=json&usedonly", "/stats/prometheus", "/config_dump?include_eds", "/clusters?format=json", "/certs", "/server_info"} {
		if status, _ := admin.get(t, http.MethodGet, path); status != http.StatusOK {
			t.Errorf("GET %s: status %d, want 200", path, status)
		}
	}
	if status, _ := admin.get(t, http.MethodPost, "/logging?level=warning"); status != http.StatusOK {
		t.Errorf("setting the log level: status %d, want 200", status)
	}
	for _, path := range []string{"/quitquitquit", "/healthcheck/fail", "/drain_listeners", "/runtime_modify?a=b", "/cpuprofiler?enable=y", "/reset_counters"} {
		if status, _ := admin.get(t, http.MethodPost, path); status != http.StatusForbidden {
			t.Errorf("POST %s: status %d, want 403", path, status)
		}
	}
}

// next returns what the next stream began with.
func (c *controlPlane) next(t *testing.T) hello {
	t.Helper()
	select {
	case h := <-c.hellos:
		return h
	case <-time.After(patience):
		t.Fatal("Envoy opened no stream")
		return hello{}
	}
}

// serve starts a control plane on a loopback port.
func serve(t *testing.T, leaf tls.Certificate) (*controlPlane, uint16) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &controlPlane{hellos: make(chan hello)}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{leaf},
		MinVersion:   tls.VersionTLS13,
	})))
	discovery.RegisterAggregatedDiscoveryServiceServer(s, c)
	done := make(chan error, 1)
	go func() { done <- s.Serve(listener) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("serving xDS: %v", err)
		}
	})
	return c, uint16(listener.Addr().(*net.TCPAddr).Port)
}

// admin is the address of an Envoy's admin interface.
type admin string

// startEnvoy starts an Envoy against a control plane on loopback, and ends it
// with the test.
func startEnvoy(t *testing.T, trust string, port uint16) admin {
	t.Helper()
	o := loopback()
	o.Port = port
	o.RootsPath = filepath.Join(trust, "roots.yaml")
	o.TokenPath = filepath.Join(trust, "token.yaml")
	b, err := bootstrap.New(o)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := bootstrap.JSON(b)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	address := filepath.Join(dir, "admin")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoyBinary(t), "--config-yaml", string(raw), "--admin-address-path", address,
		"--disable-hot-restart", "--concurrency", "1", "-l", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	// An Envoy must not outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("Envoy said:\n%s", said)
		}
	})
	var where string
	poll(t, "Envoy to say where its admin interface is", func() bool {
		said, err := os.ReadFile(address)
		where = strings.TrimSpace(string(said))
		return err == nil && where != ""
	})
	return admin(where)
}

func (a admin) get(t *testing.T, method, path string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+string(a)+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func (a admin) waitFor(t *testing.T, path string, satisfied func(body string) bool) {
	t.Helper()
	poll(t, path+" to say what the test expects", func() bool {
		_, body := a.get(t, http.MethodGet, path)
		return satisfied(body)
	})
}

// poll asks every 20 ms until the condition holds.
func poll(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// writeTrust lays out what a pod's volumes hold, and returns the folder.
func writeTrust(t *testing.T, dir string, root []byte, token string) string {
	t.Helper()
	// The folder that Envoy watches belongs to the validation context in one
	// kind of secret and to the data source in the other.
	const form = "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n"
	roots := fmt.Sprintf(form+"  name: roots\n  validation_context: {trusted_ca: {filename: %[1]s/ca.crt}, watched_directory: {path: %[1]s}}\n", dir)
	generic := fmt.Sprintf(form+"  name: token\n  generic_secret: {secret: {filename: %[1]s/token, watched_directory: {path: %[1]s}}}\n", dir)
	for name, content := range map[string]string{
		"ca.crt": string(root), "token": token, "roots.yaml": roots, "token.yaml": generic,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// replace changes a file as Kubernetes does: by a rename.
func replace(t *testing.T, file, content string) {
	t.Helper()
	fresh := file + ".new"
	if err := os.WriteFile(fresh, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, file); err != nil {
		t.Fatal(err)
	}
}

// issue makes a root and a server certificate for a DNS name under it.
func issue(t *testing.T, name string) (rootPEM []byte, leaf tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "root"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2),
		DNSNames:     []string{name},
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, leafKey.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}),
		tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}
}
