package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// cli builds the command tulle, and returns how to run it: what it wrote to
// standard output, and its exit code.
func cli(t *testing.T) func(args ...string) (string, int) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "tulle")
	build := exec.CommandContext(t.Context(), "go", "build", "-C", "..", "-o", program, "./cmd/tulle")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building tulle: %v: %s", err, out)
	}
	return func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, args...) // when a test cleans up, too
		var out, words bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &words
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return out.String(), 0
		case errors.As(err, &exit):
			t.Logf("tulle %v: %s", args, words.String())
			return out.String(), exit.ExitCode()
		}
		t.Fatal(err)
		return "", 0
	}
}

func TestTheCommandLineFindsAndRestartsWhatPredatesTheMesh(t *testing.T) {
	tulle := cli(t)
	s := newSpace(t, "cli", false)
	s.deploy(app{name: "early"})
	patch := []byte(`{"metadata":{"labels":{"mesh.tulle.dev/inject":"enabled"}}}`)
	_, err := s.c.Client.CoreV1().Namespaces().Patch(t.Context(), s.name, types.MergePatchType, patch, metav1.PatchOptions{})
	must(t, err)

	out, _ := tulle("check")
	if !strings.Contains(out, s.name+"/deployment/early") || !strings.Contains(out, "a pod was injected as it should be") {
		t.Errorf("check says:\n%s", out)
	}
	if out, code := tulle("restart", "-n", s.name); code != 0 || !strings.Contains(out, "early") {
		t.Errorf("restart ends with %d:\n%s", code, out)
	}
	eventually(t, time.Minute, "the restarted pod", func(ctx context.Context) error {
		if p := s.running("early"); len(p.Spec.InitContainers) == 0 {
			return fmt.Errorf("%s has no proxy", p.Name)
		}
		return nil
	})
	must(t, s.c.Deployed(t.Context(), s.name, rollout))
	if out, code := tulle("restart", "-n", s.name); code != 0 || !strings.Contains(out, "nothing to restart") {
		t.Errorf("restart again ends with %d:\n%s", code, out)
	}
	pod := s.running("early")
	eventually(t, 20*time.Second, "a proxy that has what was sent", func(context.Context) error {
		if out, code := tulle("proxy", s.name+"/"+pod.Name, "diff"); code != 0 {
			return fmt.Errorf("it differs: %s", out)
		}
		return nil
	})
	if out, code := tulle("proxy", "log", s.name+"/"+pod.Name, "rbac=debug"); code != 0 || !strings.Contains(out, "debug") {
		t.Errorf("proxy log ends with %d:\n%s", code, out)
	}

	// By hand, in a namespace that the webhook leaves alone.
	plain := newSpace(t, "cli-hand", false)
	deployment := app{name: "hand"}.deployment()
	deployment.APIVersion, deployment.Kind, deployment.Namespace = "apps/v1", "Deployment", plain.name
	deployment.Spec.Template.Spec.ServiceAccountName = "default"
	text, err := yaml.Marshal(deployment)
	must(t, err)
	file := filepath.Join(t.TempDir(), "app.yaml")
	must(t, os.WriteFile(file, text, 0o600))
	injected, code := tulle("inject", "-f", file)
	if code != 0 {
		t.Fatalf("inject ends with %d", code)
	}
	must(t, plain.c.Apply(t.Context(), injected))
	must(t, plain.c.Deployed(t.Context(), plain.name, rollout))
	// A replica that has more than its share may have it connect to another just then.
	eventually(t, 20*time.Second, "a status without a complaint", func(context.Context) error {
		if out, code := tulle("status", "-n", plain.name); code != 0 || !strings.Contains(out, "hand") {
			return fmt.Errorf("it ends with %d:\n%s", code, out)
		}
		return nil
	})
}

// confidential is what no bug report may have: private keys and tokens.
var confidential = regexp.MustCompile(`PRIVATE KEY-----|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.`)

func TestABugReportHasEverythingButSecrets(t *testing.T) {
	tulle := cli(t)
	s := newSpace(t, "bug", true)
	s.deploy(app{name: "server"})
	file := filepath.Join(t.TempDir(), "report.tar.gz")
	if _, code := tulle("bug-report", "-n", s.name, "deploy/server", "-f", file); code != 0 {
		t.Fatalf("bug-report ends with %d", code)
	}
	f, err := os.Open(file)
	must(t, err)
	defer func() { _ = f.Close() }()
	zip, err := gzip.NewReader(f)
	must(t, err)
	names := ""
	for files := tar.NewReader(zip); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		content, err := io.ReadAll(files)
		must(t, err)
		names += header.Name + "\n"
		if found := confidential.Find(content); found != nil {
			t.Errorf("%s has a secret: %.20s…", header.Name, found)
		}
	}
	for _, want := range []string{"check.yaml", "status.yaml", "metrics.txt", "log.txt", "config.json", "proxies/" + s.name + "/" + s.running("server").Name} {
		if !strings.Contains(names, want) {
			t.Errorf("it has no %s, but\n%s", want, names)
		}
	}
}
