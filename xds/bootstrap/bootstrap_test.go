package bootstrap_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/xds/bootstrap"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// envoyBinary returns the Envoy that tests start. There is no skipping: a
// bootstrap that no Envoy has read is not tested.
func envoyBinary(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("ENVOY")
	if binary == "" {
		t.Fatal("ENVOY is not set: it names the Envoy binary that tests start (make test sets it)")
	}
	return binary
}

func sidecar() bootstrap.Options {
	o := bootstrap.Defaults()
	o.NodeID = "web-0.shop"
	o.NodeCluster = "web.shop"
	return o
}

func loopback() bootstrap.Options {
	o := sidecar()
	o.AdminPort = 0
	o.Address = "127.0.0.1"
	o.Port = 41234
	return o
}

func TestGoldensAreWhatNewReturnsAndEnvoyAcceptsThem(t *testing.T) {
	cases := map[string]bootstrap.Options{
		"sidecar":  sidecar(),
		"loopback": loopback(),
	}
	for name, options := range cases {
		t.Run(name, func(t *testing.T) {
			b, err := bootstrap.New(options)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := bootstrap.JSON(b)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", name+".yaml"), raw)
			validate(t, raw)
		})
	}
}

func TestJSONIsOneLineAndStable(t *testing.T) {
	b, err := bootstrap.New(sidecar())
	if err != nil {
		t.Fatal(err)
	}
	first, err := bootstrap.JSON(b)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(first, "\n") {
		t.Errorf("the JSON has more than one line: %s", first)
	}
	if !json.Valid(first) {
		t.Errorf("not JSON: %s", first)
	}
	for range 20 {
		again, err := bootstrap.JSON(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, again) {
			t.Fatalf("two writings of one bootstrap differ:\n%s\n%s", first, again)
		}
	}
}

func TestNewNamesEveryOptionThatCannotWork(t *testing.T) {
	_, err := bootstrap.New(bootstrap.Options{RootsPath: "roots.yaml", TokenPath: "/token.yaml"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"NodeID", "NodeCluster", "Address", "ServerName", "Port is 0", "MaxConnections", `RootsPath "roots.yaml" is not absolute`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "TokenPath") {
		t.Errorf("the error blames a good TokenPath: %v", err)
	}
}

// compare holds JSON against a golden kept as YAML, which people can read.
func compare(t *testing.T, file string, raw []byte) {
	t.Helper()
	got, err := yaml.JSONToYAML(raw)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-golden +got; -update rewrites it):\n%s", file, diff)
	}
}

// validate has Envoy read a bootstrap as it would at its start. Envoy insists
// that the files exist, so a folder of the test's takes the place of the pod's.
func validate(t *testing.T, raw []byte) {
	t.Helper()
	pod := filepath.Dir(bootstrap.Defaults().RootsPath)
	root, _ := issue(t, "unused")
	trust := writeTrust(t, t.TempDir(), root, "token")
	raw = bytes.ReplaceAll(raw, []byte(pod), []byte(trust))
	out, err := exec.Command(envoyBinary(t), "--mode", "validate", "--config-yaml", string(raw)).CombinedOutput()
	if err != nil {
		t.Fatalf("Envoy refuses the bootstrap: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "[warning]") || strings.Contains(line, "eprecated") {
			t.Errorf("Envoy warns: %s", line)
		}
	}
}
