package webhook_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/webhook"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

func settings() webhook.Settings {
	return webhook.Settings{
		Version:    "v0.1.0",
		InitImage:  "localhost/tulle-init:dev",
		ProxyImage: "localhost/envoy:1.40.0",
		Services:   []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/112")},
		Pods:       []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")},
	}
}

// TestGoldens injects testdata/<case>/pod.yaml, in the namespace of
// namespace.yaml where there is one, else in one that is in the mesh. What
// comes out is injected.yaml, warnings first; or refused.txt.
func TestGoldens(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/pod.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for _, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			pod := read[corev1.Pod](t, file)
			namespace := namespaceOf(t, dir)
			pristine := pod.DeepCopy()
			out, warnings, err := webhook.Inject(&pod, namespace.Labels, settings())
			if diff := cmp.Diff(pristine, &pod); diff != "" {
				t.Errorf("Inject changed the pod it was given:\n%s", diff)
			}
			if err != nil {
				compare(t, filepath.Join(dir, "refused.txt"), err.Error()+"\n")
				return
			}
			compare(t, filepath.Join(dir, "injected.yaml"), written(t, out, warnings))
			if config := bootstrapOf(out); config != "" {
				validateBootstrap(t, config)
			}
		})
	}
}

func TestInjectingAgainChangesNothing(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/injected.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for _, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			once := read[corev1.Pod](t, file)
			twice, _, err := webhook.Inject(&once, namespaceOf(t, dir).Labels, settings())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&once, twice); diff != "" {
				t.Errorf("-once +twice:\n%s", diff)
			}
		})
	}
}

func TestInjectingAgainFollowsNewSettings(t *testing.T) {
	once := read[corev1.Pod](t, "testdata/probes/injected.yaml")
	s := settings()
	s.Version = "v0.2.0"
	s.ProxyImage = "localhost/envoy:1.41.0"
	s.Concurrency = 7
	twice, _, err := webhook.Inject(&once, map[string]string{webhook.LabelInject: "enabled"}, s)
	if err != nil {
		t.Fatal(err)
	}
	proxy := twice.Spec.InitContainers[1]
	if proxy.Image != s.ProxyImage || !slices.Contains(proxy.Args, "7") {
		t.Errorf("the sidecar is %s %v", proxy.Image, proxy.Args[:4])
	}
	before, after := once.Annotations[webhook.AnnotationStatus], twice.Annotations[webhook.AnnotationStatus]
	if want := strings.Replace(before, "v0.1.0", "v0.2.0", 1); after != want {
		t.Errorf("the status is\n%s, want\n%s", after, want)
	}
}

func TestInjectingAgainFollowsTheSleepThatIsWantedNow(t *testing.T) {
	once := read[corev1.Pod](t, "testdata/prestop/injected.yaml")
	once.Annotations[webhook.AnnotationPreStopSleep] = "3"
	own := once.Spec.Containers[1].Lifecycle.DeepCopy()
	inject := func(pod *corev1.Pod) *corev1.Pod {
		out, _, err := webhook.Inject(pod, map[string]string{webhook.LabelInject: "enabled"}, settings())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	twice := inject(&once)
	if got := twice.Spec.Containers[0].Lifecycle.PreStop.Sleep.Seconds; got != 3 {
		t.Errorf("it sleeps for %d s, want 3", got)
	}
	if diff := cmp.Diff(own, twice.Spec.Containers[1].Lifecycle); diff != "" {
		t.Errorf("a container's own preStop was changed:\n%s", diff)
	}
	twice.Annotations[webhook.AnnotationPreStopSleep] = "0"
	twice.Spec.Containers[2].Lifecycle.PreStop.Sleep.Seconds = 2 // by the pod's author, since
	thrice := inject(twice)
	if got := thrice.Spec.Containers[0].Lifecycle; got != nil {
		t.Errorf("the sleep is turned off, and there is %v", got)
	}
	if got := thrice.Spec.Containers[2].Lifecycle; got.PreStop == nil || got.PostStart == nil {
		t.Errorf("what is the author's own was taken away: %v", got)
	}
}

func TestWithoutAServiceRangeNothingIsInjected(t *testing.T) {
	s := settings()
	s.Services = nil
	pod := read[corev1.Pod](t, "testdata/plain/pod.yaml")
	_, _, err := webhook.Inject(&pod, map[string]string{webhook.LabelInject: "enabled"}, s)
	if err == nil || !strings.Contains(err.Error(), "spec.clusterRanges.services of the MeshConfig default") {
		t.Errorf("the error is %v", err)
	}
}

func TestThePluginIsAskedForWhereTheMeshSaysSo(t *testing.T) {
	s := settings()
	s.Redirection = webhook.RedirectionCNI
	once := read[corev1.Pod](t, "testdata/plain/injected.yaml")
	labels := map[string]string{webhook.LabelInject: "enabled"}
	twice, _, err := webhook.Inject(&once, labels, s)
	if err != nil {
		t.Fatal(err)
	}
	check := twice.Spec.InitContainers[0]
	if check.Args[0] != "check" || len(check.SecurityContext.Capabilities.Add) > 0 || !*check.SecurityContext.RunAsNonRoot {
		t.Errorf("the init container is %v with %+v", check.Args, check.SecurityContext)
	}
	if got, want := twice.Annotations[webhook.AnnotationRedirect], strings.Join(once.Spec.InitContainers[0].Args, " "); got != want {
		t.Errorf("the plugin is told %q, tulle-init %q", got, want)
	}
	labels[webhook.LabelRedirection] = "init"
	thrice, _, err := webhook.Inject(twice, labels, s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&once, thrice); diff != "" {
		t.Errorf("-before +after asking for the plugin and back:\n%s", diff)
	}
}

func TestWorkersFollowTheCPULimitUnlessToldOtherwise(t *testing.T) {
	for _, c := range []struct {
		limit, annotation string
		setting           int32
		want              string
	}{
		{want: "2"},
		{limit: "200m", want: "1"},
		{limit: "3", want: "3"},
		{limit: "2500m", want: "3"},
		{limit: "3", setting: 5, want: "5"},
		{limit: "3", setting: 5, annotation: "8", want: "8"},
	} {
		pod := read[corev1.Pod](t, "testdata/plain/pod.yaml")
		pod.Annotations = map[string]string{}
		if c.limit != "" {
			pod.Annotations[webhook.AnnotationProxyCPULimit] = c.limit
		}
		if c.annotation != "" {
			pod.Annotations[webhook.AnnotationProxyConcurrency] = c.annotation
		}
		s := settings()
		s.Concurrency = c.setting
		out, _, err := webhook.Inject(&pod, map[string]string{webhook.LabelInject: "enabled"}, s)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got := argument(out.Spec.InitContainers[1], "--concurrency"); got != c.want {
			t.Errorf("%+v: %s workers", c, got)
		}
	}
}

// namespaceOf is the namespace of a case.
func namespaceOf(t *testing.T, dir string) corev1.Namespace {
	t.Helper()
	file := filepath.Join(dir, "namespace.yaml")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		var n corev1.Namespace
		n.Labels = map[string]string{webhook.LabelInject: "enabled"}
		return n
	}
	return read[corev1.Namespace](t, file)
}

// read reads an object; a field that does not exist is an error.
func read[T any](t *testing.T, file string) T {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var object T
	if err := yaml.UnmarshalStrict(raw, &object); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return object
}

// written is a pod as a golden, with the warnings as comments.
func written(t *testing.T, pod *corev1.Pod, warnings []string) string {
	t.Helper()
	raw, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, w := range warnings {
		fmt.Fprintf(&out, "# warning: %s\n", w)
	}
	out.Write(raw)
	return out.String()
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-golden +got; -update rewrites it):\n%s", file, diff)
	}
}

func argument(c corev1.Container, flag string) string {
	if i := slices.Index(c.Args, flag); i >= 0 && i+1 < len(c.Args) {
		return c.Args[i+1]
	}
	return ""
}

func bootstrapOf(pod *corev1.Pod) string {
	for _, c := range pod.Spec.InitContainers {
		if c.Name == webhook.ContainerProxy {
			return argument(c, "--config-yaml")
		}
	}
	return ""
}

// validateBootstrap has Envoy read a bootstrap as it would at its start. Envoy
// insists that the folders exist, so one of the test's takes the pod's place.
func validateBootstrap(t *testing.T, config string) {
	t.Helper()
	binary := os.Getenv("ENVOY")
	if binary == "" {
		t.Fatal("ENVOY is not set: it names the Envoy binary that tests start (make test sets it)")
	}
	trust := t.TempDir()
	for _, name := range []string{"roots.yaml", "token.yaml"} {
		if err := os.WriteFile(filepath.Join(trust, name), []byte("resources: []\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config = strings.ReplaceAll(config, "/var/run/tulle/trust", trust)
	out, err := exec.Command(binary, "--mode", "validate", "--config-yaml", config).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("OK")) {
		t.Fatalf("Envoy refuses the bootstrap: %v\n%s", err, out)
	}
}
