package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/webhook"
)

func injectSettings() webhook.Settings {
	return webhook.Settings{
		Version: "v1", ProxyImage: "envoy:1", InitImage: "init:1", Resources: webhook.DefaultResources(),
		Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
	}
}

const manifests = `# a comment
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: b}
---
---
apiVersion: example.com/v1
kind: Unknown
metadata: {name: other}
spec: {template: {}}
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web, namespace: shop}
  spec:
    selector: {matchLabels: {app: web}}
    template:
      metadata: {labels: {app: web}}
      spec: {containers: [{name: app, image: "app:1"}]}
- apiVersion: batch/v1
  kind: CronJob
  metadata: {name: nightly}
  spec:
    schedule: "@daily"
    jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: app, image: "app:1"}]}}}}
`

func TestManifestsAreInjectedAndAllElsePassesThrough(t *testing.T) {
	var out, warnings bytes.Buffer
	if err := injectAll(strings.NewReader(manifests), &out, &warnings, injectSettings()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "name: tulle-proxy"); n != 2 {
		t.Errorf("%d pods were injected:\n%s", n, out.String())
	}
	for _, want := range []string{"kind: ConfigMap", "kind: Unknown", "kind: CronJob", "name: web"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is missing", want)
		}
	}
	var again bytes.Buffer
	if err := injectAll(bytes.NewReader(out.Bytes()), &again, &warnings, injectSettings()); err != nil || again.String() != out.String() {
		t.Errorf("injected again it is another (%v)", err)
	}
}

func TestAPodThatCannotBeInTheMeshIsAnErrorThatNamesIt(t *testing.T) {
	const bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: same}\nspec: {containers: [{name: app, image: a, ports: [{containerPort: 15001}]}]}\n"
	err := injectAll(strings.NewReader(bad), &bytes.Buffer{}, &bytes.Buffer{}, injectSettings())
	if err == nil || !strings.Contains(err.Error(), "Pod same cannot be in the mesh") {
		t.Errorf("the error is %v", err)
	}
}

func TestADiffTellsWhatEnvoyLacks(t *testing.T) {
	sent := &stream{
		Held: []resource{
			{Type: "Cluster", Name: "same", Version: "1"},
			{Type: "Cluster", Name: "old", Version: "2"},
			{Type: "Listener", Name: "missing", Version: "1"},
			{Type: "Route", Name: "bad", Version: "1"},
		},
		Rejected: []resource{{Type: "Route", Name: "bad", Version: "2", Error: "no"}},
		Scopes:   []string{"10.96.0.1:80"},
	}
	has := map[string]map[string]string{
		"Cluster": {"same": "1", "old": "1", "extra": "1"}, "Route": {"bad": "1"}, "Scope": {"10.96.0.1:80": ""}, "Endpoints": {"static": ""},
	}
	var got []string
	v := compare("shop/web", sent, has)
	for _, d := range v.Differences {
		got = append(got, d.Type+" "+d.Name+" "+d.State)
	}
	want := "Cluster extra extra;Cluster old other version;Listener missing missing;Route bad rejected"
	if strings.Join(got, ";") != want || v.Same["Cluster"] != 1 || v.Same["Scope"] != 1 {
		t.Errorf("got %v, %v", got, v.Same)
	}
}

func TestLogLevelsAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"debug": "level=debug", "rbac=debug,http=trace": "paths=rbac%3Adebug%2Chttp%3Atrace", "loud": "", "rbac=loud": "", "=debug": "",
	} {
		if got, err := logQuery(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q becomes %q, %v", text, got, err)
		}
	}
}
