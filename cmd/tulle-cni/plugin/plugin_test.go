package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

// result is that of a plugin before, with what no version of CNI knows.
const result = `{"cniVersion": "1.0.0", "interfaces": [{"name":"eth0","sandbox":"/run/netns/x"}], "ips": [{"address":"10.244.0.5/32"}], "later": {"a": 1}}`

// stdin is what a runtime hands to the plugin.
func stdin(annotations map[string]string) string {
	text, _ := json.Marshal(annotations) // strings
	return `{"cniVersion": "1.0.0", "name": "pods", "type": "tulle-cni", "prevResult": ` + result +
		`, "runtimeConfig": {"io.kubernetes.cri.pod-annotations": ` + string(text) + `, "dns": {"Servers": ["10.96.0.10", "fd00::a"]}}}`
}

func meshed() map[string]string {
	return map[string]string{Annotation: "--service=10.96.0.0/16 --pod=10.244.0.0/16", "other": "x"}
}

func TestAMeshedPodIsRedirectedAndTheResultPassedOn(t *testing.T) {
	pod := newNamespace(t)
	out, err := run(t, "ADD", pod, stdin(meshed()))
	if err != nil || out != result {
		t.Errorf("ADD: %v\n%s, want\n%s", err, out, result)
	}
	applied(t, pod, true)
	for _, command := range []string{"ADD", "CHECK"} { // again
		if out, err := run(t, command, pod, stdin(meshed())); err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
	if out, err := run(t, "DEL", pod, stdin(meshed())); err != nil || out != "" {
		t.Errorf("DEL: %v: %s", err, out)
	}
}

func TestAPodThatIsNotMeshedIsLeftAlone(t *testing.T) {
	pod := newNamespace(t)
	withoutCapabilities := `{"cniVersion": "0.3.1", "name": "pods", "type": "tulle-cni", "prevResult": ` + result + `}`
	for _, in := range []string{stdin(nil), stdin(map[string]string{"other": "x"}), withoutCapabilities} {
		for _, command := range []string{"ADD", "CHECK"} {
			if strings.Contains(in, "0.3.1") && command == "CHECK" {
				continue // since 0.4.0
			}
			if out, err := run(t, command, pod, in); err != nil {
				t.Errorf("%s %s: %v: %s", command, in, err, out)
			}
		}
	}
	applied(t, pod, false)
}

func TestAPodWhoseRulesAreGoneFailsTheCheck(t *testing.T) {
	pod := newNamespace(t)
	out, err := run(t, "CHECK", pod, stdin(meshed()))
	if err == nil || !strings.Contains(out, "not redirected to its sidecar") {
		t.Errorf("CHECK: %v: %s", err, out)
	}
}

func TestWhatCannotBeRedirectedIsRefused(t *testing.T) {
	pod := newNamespace(t)
	for in, want := range map[string]string{
		stdin(map[string]string{Annotation: "--service=10.96.0.0"}):                                           "is not an address range",
		stdin(map[string]string{Annotation: ""}):                                                              "is empty",
		stdin(map[string]string{Annotation: "--pod=10.244.0.0/16"}):                                           "no service range",
		`{"cniVersion": "1.0.0", "name": "pods", "type": "tulle-cni"}`:                                        "has to stand after a plugin",
		`{"cniVersion": "1.0.0", "name": "pods", "type": "tulle-cni", "runtimeConfig": "x"}`:                  "reading the network configuration",
		strings.Replace(stdin(meshed()), `"cniVersion": "1.0.0", "name"`, `"cniVersion": "0.2.0", "name"`, 1): "incompatible CNI versions",
	} {
		out, err := run(t, "ADD", pod, in)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("ADD %s: %v: %s; want %q", in, err, out, want)
		}
	}
	if out, err := run(t, "ADD", filepath.Join(t.TempDir(), "gone"), stdin(meshed())); err == nil {
		t.Errorf("a network namespace that is not there: %s", out)
	}
	applied(t, pod, false)
}

func TestTheAnnotationReadsNoFileOfTheNode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Configuration("--service=10.96.0.0/16 --resolv-conf="+file, []string{"10.96.0.10", "nonsense", "fe80::1%eth0"})
	if want := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fe80::1")}; err != nil || !slices.Equal(c.Resolvers, want) {
		t.Errorf("resolvers %v, %v; want %v", c.Resolvers, err, want)
	}
}

// TestMain is the plugin itself where a test runs it as a runtime would.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		Main("test")
		return
	}
	os.Exit(m.Run())
}

// run runs the plugin as a container runtime does.
func run(t *testing.T, command, netns, stdin string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "/proc/self/exe")
	c.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=c", "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u",
	}
	c.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, os.Stderr
	err := c.Run()
	return out.String(), err
}

func applied(t *testing.T, netns string, want bool) {
	t.Helper()
	err := ns.WithNetNSPath(netns, func(ns.NetNS) error { return redirect.Applied() })
	if (err == nil) != want {
		t.Errorf("redirected: %v, want %v", err, want)
	}
}

// newNamespace makes a network namespace. It needs root.
func newNamespace(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	name := fmt.Sprintf("tulle-plugin-%d", os.Getpid())
	ip := func(verb string) {
		if out, err := exec.Command("ip", "netns", verb, name).CombinedOutput(); err != nil {
			t.Fatalf("ip netns %s: %v\n%s", verb, err, out)
		}
	}
	ip("add")
	t.Cleanup(func() { ip("del") })
	return "/run/netns/" + name
}
