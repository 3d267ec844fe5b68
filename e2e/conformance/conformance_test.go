package conformance

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

var experimental = flag.Bool("experimental", false, "take the CRDs of the Gateway API's experimental channel, and add what Tulle does of it to the features")

// ofExperimental are the features that need fields which the standard channel lacks.
var ofExperimental = map[string][]features.FeatureName{
	"gateway.yaml": {features.SupportHTTPRouteRetry, features.SupportHTTPRouteRetryBackendTimeout, features.SupportHTTPRouteRetryConnectionError},
}

func TestConformance(t *testing.T) {
	kube.Quiet()
	if f := flag.Lookup("conformance-options-file"); f.Value.String() == "" {
		must(t, f.Value.Set("mesh.yaml"))
	}
	c, err := kube.Connect(t.Context())
	must(t, err)
	options := conformance.DefaultOptions(t)
	if *experimental {
		options.SupportedFeatures = append(options.SupportedFeatures, ofExperimental[flag.Lookup("conformance-options-file").Value.String()]...)
		options.ReportOutputPath = "" // the report is of the standard channel
	}
	must(t, prepare(t.Context(), c, options))
	t.Cleanup(func() { must(t, c.Delete(context.WithoutCancel(t.Context()), smallProxies)) })

	verdicts := &verdicts{}
	options.Hook = verdicts.add
	s, err := suite.NewConformanceTestSuite(options)
	must(t, err)
	s.Setup(t, tests.ConformanceTests)
	// The suite gives out no report before what it registers to be cleaned up
	// in Run has been, which is before this.
	t.Cleanup(func() {
		fmt.Print(verdicts)
		if options.ReportOutputPath != "" && options.RunTest == "" {
			must(t, report(c, s, verdicts, options.ReportOutputPath))
		}
	})
	must(t, s.Run(t, tests.ConformanceTests))
}

// smallProxies lets a node of two CPUs hold the pods of all Gateways that the suite has at
// the same time.
const smallProxies = `
apiVersion: mesh.tulle.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {proxy: {resources: {requests: {cpu: 10m, memory: 64Mi}}}}
`

// prepare puts the Gateway API and Tulle into the cluster.
func prepare(ctx context.Context, c *kube.Cluster, options suite.ConformanceOptions) error {
	api, err := moduleDir("sigs.k8s.io/gateway-api")
	if err != nil {
		return err
	}
	crds := filepath.Join(api, "config", "crd") // the standard channel alone
	if *experimental {
		crds = filepath.Join(crds, "experimental")
	}
	if err := c.ApplyKustomization(ctx, crds); err != nil {
		return err
	}
	if err := c.Install(ctx, "../../deploy/overlays/default"); err != nil {
		return err
	}
	if slices.ContainsFunc(options.ConformanceProfiles, ofGateways) {
		if err := c.ApplyKustomization(ctx, "../../deploy/gateways"); err != nil {
			return err
		}
	}
	if err := c.Apply(ctx, smallProxies); err != nil {
		return err
	}
	return leftoversGone(ctx, c)
}

func ofGateways(p suite.ConformanceProfileName) bool { return strings.HasPrefix(string(p), "GATEWAY-") }

// moduleDir is where the module cache has a module that go.mod requires.
func moduleDir(module string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("looking for module %s: %w", module, err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		return "", fmt.Errorf("module %s is not in the module cache; run: go -C e2e mod download", module)
	}
	return dir, nil
}

// leftoversGone waits for the end of namespaces that an earlier run deleted:
// the suite would apply its pods to them.
func leftoversGone(ctx context.Context, c *kube.Cluster) error {
	list, err := c.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: "gateway-conformance"})
	if err != nil {
		return err
	}
	for _, n := range list.Items {
		if n.DeletionTimestamp == nil {
			continue
		}
		if err := c.NamespaceGone(ctx, n.Name, 2*time.Minute); err != nil {
			return err
		}
	}
	return nil
}

// verdicts are the names of tests by how they ended. The suite's report counts
// only tests of which a profile has every feature; these are all.
type verdicts struct {
	passed, failed []string
	skipped        int
}

func (v *verdicts) add(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
	switch {
	case t.Failed():
		v.failed = append(v.failed, test.ShortName)
	case t.Skipped():
		v.skipped++
	default:
		v.passed = append(v.passed, test.ShortName)
	}
}

func (v *verdicts) String() string {
	var b strings.Builder
	write := func(what string, names []string) {
		fmt.Fprintf(&b, "%d %s\n", len(names), what)
		for _, name := range slices.Sorted(slices.Values(names)) {
			fmt.Fprintf(&b, "  %s\n", name)
		}
	}
	write("passed", v.passed)
	write("failed", v.failed)
	fmt.Fprintf(&b, "%d not run\n", v.skipped)
	return b.String()
}

// report writes the suite's report, with notes in comments above it: its format
// has no place for them.
func report(c *kube.Cluster, s *suite.ConformanceTestSuite, v *verdicts, path string) error {
	r, err := s.Report()
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(r)
	if err != nil {
		return err
	}
	kubernetes, err := c.Client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	stoodFor := "No image was stood for.\n"
	if os.Getenv("TULLE_NODE") != "" {
		stoodFor = "The cluster is the one of e2e/cluster, which cannot pull images. The image echo-basic was compiled\n" +
			"from the suite's source. The image echo-advanced, server and client of the mesh tests, was stood\n" +
			"for by e2e/images/echo-advanced, of the same command line and output.\n"
	}
	notes := "Written by \"make conformance\"; see e2e/conformance. Kubernetes " + kubernetes.GitVersion + ".\n" + stoodFor +
		"\nAll tests, also those that count for no profile below; not run are those of features that are not claimed:\n" + v.String()
	var b strings.Builder
	for line := range strings.Lines(notes) {
		b.WriteString(strings.TrimRight("# "+line, " \n") + "\n")
	}
	b.Write(text)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
