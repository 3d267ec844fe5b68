package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// metricName is how a metric of ours is written in the code and in documents.
var metricName = regexp.MustCompile(`tulle_[a-z_]+[a-z]`)

// The table of metrics in docs/operations.md has all that the code registers,
// and neither it nor an alert names one that does not exist.
func TestTheOperatorsTableHasEveryMetric(t *testing.T) {
	root := filepath.Join("..", "..")
	out, err := exec.CommandContext(t.Context(), "grep", "-rhoE", "--include=*.go", "--exclude=*_test.go", `"tulle_[a-z_]+"`,
		filepath.Join(root, "xds"), filepath.Join(root, "ca"), filepath.Join(root, "controllers"), filepath.Join(root, "webhook"), ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	registered := names(string(out))
	if len(registered) < 10 {
		t.Fatalf("only %v are registered", registered)
	}
	documented := names(read(t, filepath.Join(root, "docs", "operations.md")))
	for _, m := range registered {
		if !slices.Contains(documented, m) {
			t.Errorf("docs/operations.md does not have %s", m)
		}
	}
	alerts := read(t, filepath.Join(root, "deploy", "addons", "prometheus", "rules.yaml"))
	for _, m := range slices.Concat(documented, names(alerts)) {
		if m = strings.TrimSuffix(m, "_bucket"); !slices.Contains(registered, m) {
			t.Errorf("%s is named, and does not exist", m)
		}
	}
	headings := strings.ToLower(strings.ReplaceAll(read(t, filepath.Join(root, "docs", "operations.md")), " ", "-"))
	for _, runbook := range regexp.MustCompile(`operations\.md#([a-z-]+)`).FindAllStringSubmatch(alerts, -1) {
		if !strings.Contains(headings, "#-"+runbook[1]+"\n") {
			t.Errorf("no heading is %s", runbook[1])
		}
	}
}

func names(text string) []string {
	found := metricName.FindAllString(text, -1)
	slices.Sort(found)
	return slices.Compact(found)
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
