package trust

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/ca/secret"
	"github.com/tulle-mesh/tulle/xds/bootstrap"
)

const patience = 30 * time.Second

// volume lays files out as the kubelet does, and changes them all at once as it
// does: the folder's "..data" is a link that is replaced by a rename.
type volume struct {
	t       *testing.T
	path    string
	version int
}

func newVolume(t *testing.T, path string, files map[string]string) *volume {
	v := &volume{t: t, path: path}
	v.write(files)
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func (v *volume) write(files map[string]string) {
	v.t.Helper()
	v.version++
	content := fmt.Sprintf("..%d", v.version)
	if err := os.MkdirAll(filepath.Join(v.path, content), 0o700); err != nil {
		v.t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(v.path, content, name), []byte(text), 0o600); err != nil {
			v.t.Fatal(err)
		}
	}
	link := filepath.Join(v.path, "..data_tmp")
	if err := os.Symlink(content, link); err != nil {
		v.t.Fatal(err)
	}
	if err := os.Rename(link, filepath.Join(v.path, "..data")); err != nil {
		v.t.Fatal(err)
	}
}

// dataUnder is the ConfigMap's content for a proxy whose volumes are elsewhere.
func dataUnder(dir string, roots []byte) map[string]string {
	data := Data(roots)
	for name, text := range data {
		data[name] = strings.ReplaceAll(text, "/var/run/tulle", dir)
	}
	return data
}

// tokens is an xDS server that sends the credential of each stream to a channel
// and ends the stream when it is read.
type tokens struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	seen chan string
}

func (s *tokens) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	select {
	case s.seen <- strings.Join(md.Get("authorization"), ","):
	case <-stream.Context().Done():
	}
	return nil
}

// await waits for a stream with the wanted token.
func (s *tokens) await(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case got := <-s.seen:
			if got == "Bearer "+want {
				return
			}
		case <-timeout:
			t.Fatalf("no stream came with the token %q", want)
		}
	}
}

// servingTLS is the configuration of a control plane's server, and its roots.
func servingTLS(t *testing.T) (*tls.Config, []byte) {
	t.Helper()
	store := secret.New(fake.NewClientBuilder().Build(), types.NamespacedName{Namespace: "tulle-system", Name: "tulle-ca"})
	authority, err := ca.Open(t.Context(), ca.AuthorityOptions{Store: store, Log: logr.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := ca.NewCertificates(ca.Options{
		Issuer: authority, ServingNames: ca.ServingNames("tulled", "tulle-system"), Log: logr.Discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return certificates.ServingTLS(), authority.Roots()
}

// A real Envoy, started with nothing but its bootstrap and these files, trusts
// what the certificate authority's servers present, and follows new roots and
// tokens as the kubelet lays them down.
func TestEnvoyReadsTheFilesAndFollowsThem(t *testing.T) {
	server, roots := servingTLS(t)
	_, otherRoots := servingTLS(t)
	dir := t.TempDir()
	// One that trusts somebody else at first.
	trust := newVolume(t, filepath.Join(dir, "trust"), dataUnder(dir, otherRoots))
	token := newVolume(t, filepath.Join(dir, "token"), map[string]string{"token": "first"})

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{}, 1)
	server.MinVersion = tls.VersionTLS13
	xds := &tokens{seen: make(chan string)}
	s := grpc.NewServer(grpc.Creds(refusals{credentials.NewTLS(server), refused}))
	discovery.RegisterAggregatedDiscoveryServiceServer(s, xds)
	go func() { _ = s.Serve(listener) }()
	t.Cleanup(s.Stop)
	startEnvoy(t, dir, uint16(listener.Addr().(*net.TCPAddr).Port))

	select {
	case <-refused:
	case got := <-xds.seen:
		t.Fatalf("a server under other roots was sent %q", got)
	case <-time.After(patience):
		t.Fatal("Envoy did not connect")
	}
	trust.write(dataUnder(dir, roots))
	xds.await(t, "first")
	token.write(map[string]string{"token": "second"})
	xds.await(t, "second")
	trust.write(dataUnder(dir, append(append([]byte{}, otherRoots...), roots...)))
	xds.await(t, "second")
}

// refusals are credentials that tell when a client has refused the server.
type refusals struct {
	credentials.TransportCredentials
	refused chan<- struct{}
}

func (r refusals) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := r.TransportCredentials.ServerHandshake(c)
	if err != nil && strings.Contains(err.Error(), "remote error: tls") { // the client's alert
		select {
		case r.refused <- struct{}{}:
		default:
		}
	}
	return conn, info, err
}

func startEnvoy(t *testing.T, dir string, port uint16) {
	t.Helper()
	binary := os.Getenv("ENVOY")
	if binary == "" {
		t.Fatal("ENVOY is not set: it names the Envoy binary that tests start (make test sets it)")
	}
	o := bootstrap.Defaults()
	o.NodeID, o.NodeCluster = "web-0.shop", "web.shop"
	o.Address, o.Port, o.AdminPort = "127.0.0.1", port, 0
	o.RootsPath = filepath.Join(dir, "trust", RootsSDS)
	o.TokenPath = filepath.Join(dir, "trust", TokenSDS)
	b, err := bootstrap.New(o)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := bootstrap.JSON(b)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.Command(binary, "--config-yaml", string(raw), "--disable-hot-restart", "--concurrency", "1", "-l", "warn")
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it must not outlive a killed test
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Envoy said:\n%s", said.String())
		}
	})
}

func TestFilesNameWhereTheSidecarHasThem(t *testing.T) {
	data := Data([]byte("roots"))
	if data[RootsPEM] != "roots" || len(data) != 3 {
		t.Errorf("data %v", data)
	}
	for file, want := range map[string]string{
		RootsSDS: "/var/run/tulle/trust/ca.crt", TokenSDS: "/var/run/tulle/token/token",
	} {
		if !strings.Contains(data[file], "filename: "+want+"\n") {
			t.Errorf("%s names another file than %s:\n%s", file, want, data[file])
		}
	}
	if o := bootstrap.Defaults(); o.RootsPath != filepath.Join(TrustPath, RootsSDS) || o.TokenPath != filepath.Join(TrustPath, TokenSDS) {
		t.Errorf("the bootstrap reads %s and %s", o.RootsPath, o.TokenPath)
	}
}
