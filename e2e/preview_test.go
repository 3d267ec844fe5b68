package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// collected are the API server's warnings.
type collected []string

func (c *collected) HandleWarningHeader(_ int, _, text string) { *c = append(*c, text) }

// What is previewed is what then comes, and nothing comes of a preview.
func TestAPreviewSaysWhatAnObjectWouldChange(t *testing.T) {
	tulle := cli(t)
	s := newSpace(t, "preview", true)
	s.deploy(app{name: "server", replicas: 2}, app{name: "caller"})
	caller := s.in("caller")
	s.callUntil(caller, answered(200), "http", s.url("server")+"/secret")

	file := filepath.Join(t.TempDir(), "object.yaml")
	preview := func(object string, args ...string) (string, int) {
		t.Helper()
		must(t, os.WriteFile(file, []byte(object), 0o600))
		return tulle(append([]string{"preview", "-f", file}, args...)...)
	}
	var answer struct {
		Proxies   int      `json:"proxies"`
		Changed   []string `json:"changed"`
		Workloads []struct {
			Workload string `json:"workload"`
			Proxies  int    `json:"proxies"`
		} `json:"workloads"`
	}

	const spec = "selector: {matchLabels: {app: server}}\nauthorization: {rules: [{action: Deny, to: [{methods: [PUT]}]}]}"
	deny := s.object("MeshPolicy", "deny", spec)
	out, code := preview(deny, "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	must(t, json.Unmarshal([]byte(out), &answer))
	if len(answer.Changed) != 2 || slices.ContainsFunc(answer.Changed, func(pod string) bool { return !strings.HasPrefix(pod, s.name+"/server-") }) {
		t.Errorf("it would change %v, want both servers", answer.Changed)
	}
	if len(answer.Workloads) != 1 || answer.Workloads[0].Workload != s.name+"/deployment/server" || answer.Workloads[0].Proxies != 2 {
		t.Errorf("the workloads are %+v", answer.Workloads)
	}
	if out, code := preview(deny, "--diff"); code != 0 || !strings.Contains(out, "PUT") || !strings.Contains(out, "@@") {
		t.Errorf("exit code %d, the difference is %s", code, out)
	}

	// The API server's dry run says it in short.
	config := rest.CopyConfig(s.c.Config)
	said := &collected{}
	config.WarningHandler = said
	client, err := dynamic.NewForConfig(config)
	must(t, err)
	objects, err := kube.Parse(deny)
	must(t, err)
	gvk := kube.MeshKind("MeshPolicy")
	_, err = client.Resource(gvk.GroupVersion().WithResource("meshpolicies")).Namespace(s.name).
		Create(t.Context(), objects[0], metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	must(t, err)
	if !slices.ContainsFunc(*said, func(w string) bool {
		return strings.HasPrefix(w, "dry run: this would change 2 of ") && strings.Contains(w, s.name+": 2")
	}) {
		t.Errorf("the dry run warns of %q", *said)
	}

	// Nothing came of it.
	must(t, answered(200)(s.call(caller, "http", s.url("server"), "--method", "PUT")))

	// And what was said comes.
	s.apply("MeshPolicy", "deny", spec)
	must(t, answered(403)(s.call(caller, "http", s.url("server"), "--method", "PUT")))
	if out, code := preview(deny, "-o", "json"); code != 0 || !strings.Contains(out, `"changed": []`) {
		t.Errorf("exit code %d: what is there already would change %s", code, out)
	}
	if out, code := preview(deny, "--delete"); code != 0 || !strings.Contains(out, s.name+"/deployment/server") {
		t.Errorf("exit code %d, its deletion would change %s", code, out)
	}

	for what, c := range map[string]struct{ object, words string }{
		"a Service that is not there": {s.object("TrafficSplit", "lost", "service: nobody\nbackends: [{service: nobody, weight: 1}]"), "ServiceNotFound"},
		"what is refused":             {s.object("MeshPolicy", "odd", "authorization: {rules: [{from: [{ipBlocks: [everywhere]}]}]}"), "would be refused"},
	} {
		if out, code := preview(c.object); code != 2 || !strings.Contains(out, c.words) {
			t.Errorf("%s: exit code %d, %s", what, code, out)
		}
	}
}
