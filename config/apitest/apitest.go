package apitest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// BinariesVariable names the environment variable that says in which folder
// kube-apiserver and etcd are.
const BinariesVariable = "TULLE_KUBE_BIN"

// startTimeout is how long etcd and kube-apiserver may each take, on a machine
// that is busy with other packages' tests.
const startTimeout = 2 * time.Minute

// Start runs etcd and kube-apiserver until the test ends, installs the CRDs of
// deploy/crds, and returns an administrator's configuration. It takes some
// seconds, so let one test of a package start it and have subtests share it,
// each in a namespace of its own. Neither kubelet nor controllers run: pods stay
// Pending, and a namespace that is deleted never goes.
//
// The test fails where TULLE_KUBE_BIN is not set, since a skipped test is one
// that nobody notices: make test sets it.
func Start(t testing.TB) *rest.Config {
	t.Helper()
	return StartWith(t, func(*envtest.Environment) {})
}

// StartWith is Start, for a test that needs other arguments of the API server,
// or users: configure may change the environment before it starts.
func StartWith(t testing.TB, configure func(*envtest.Environment)) *rest.Config {
	t.Helper()
	binaries, err := binariesFolder()
	if err != nil {
		t.Fatal(err)
	}
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	env := &envtest.Environment{
		BinaryAssetsDirectory:    binaries,
		CRDDirectoryPaths:        []string{filepath.Join(root, "deploy", "crds")},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: startTimeout,
		ControlPlaneStopTimeout:  startTimeout,
	}
	configure(env)
	config, err := env.Start()
	// Also where Start failed: etcd may run already.
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stopping the API server: %v", err)
		}
	})
	if err != nil {
		t.Fatalf("starting the API server from %s: %v", binaries, err)
	}
	return config
}

// Root returns the folder of this repository: the nearest one, upwards from the
// working directory, that has deploy/crds.
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("looking for the repository: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(filepath.Join(dir, "deploy", "crds")); err == nil && info.IsDir() {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no folder from %s upwards has deploy/crds: run the test inside the repository", start)
		}
	}
}

// binariesFolder returns the absolute folder of kube-apiserver and etcd, or an
// error that says how to come by them.
func binariesFolder() (string, error) {
	folder := os.Getenv(BinariesVariable)
	if folder == "" {
		return "", errors.New(BinariesVariable + " is not set: it names the folder of kube-apiserver and etcd; run `make test`, which builds them and sets it")
	}
	folder, err := filepath.Abs(folder)
	if err != nil {
		return "", fmt.Errorf("%s=%s: %w", BinariesVariable, folder, err)
	}
	for _, binary := range []string{"kube-apiserver", "etcd"} {
		if _, err := os.Stat(filepath.Join(folder, binary)); err != nil {
			return "", fmt.Errorf("%s=%s has no %s: run `make test`, which builds it: %w", BinariesVariable, folder, binary, err)
		}
	}
	return folder, nil
}

// GatewayCRDs returns the folder of the CRDs of the Gateway API, which are in its Go
// module: what users install of it, they take from there.
func GatewayCRDs() (string, error) {
	return inModule("sigs.k8s.io/gateway-api", "config", "crd", "standard")
}

// CertManagerCRDs returns the folder of cert-manager's, which are in its Go module,
// too.
func CertManagerCRDs() (string, error) {
	return inModule("github.com/cert-manager/cert-manager", "deploy", "crds")
}

func inModule(module string, folder ...string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("looking for the module %s: %w", module, err)
	}
	return filepath.Join(append([]string{strings.TrimSpace(string(out))}, folder...)...), nil
}
