package node

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

const (
	calico  = "{\"name\":\"k8s\",\n \"plugins\":[\n  {\"type\":\"calico\"}\n ]}\n"
	flannel = `{"name":"cbr0","plugins":[{"type":"flannel"}]}`
)

func TestInstallAndRemovalLeaveTheNodeAsItWas(t *testing.T) {
	n := newNode(t, map[string]string{"10-calico.conflist": calico, "87-podman.conflist": flannel, "README": "x"})
	before := snapshot(t, n)
	changed, err := n.Install()
	if err != nil || len(changed) != 2 {
		t.Fatalf("%v, %v; want the program and the list changed", changed, err)
	}
	if err := n.Installed(); err != nil {
		t.Error(err)
	}
	installed := snapshot(t, n)
	if got, want := installed["conf/10-calico.conflist"], "-rw-r----- "+strings.Replace(calico, "}\n ]", "}, "+entry+"\n ]", 1); got != want {
		t.Errorf("the list is\n%s\nwant\n%s", got, want)
	}
	if installed["bin/tulle-cni"] != "-rwxr-xr-x the program" {
		t.Errorf("the program is %q", installed["bin/tulle-cni"])
	}
	if changed, err := n.Install(); err != nil || len(changed) > 0 {
		t.Errorf("installing again: %v, %v; want no change", changed, err)
	}
	if _, err := n.Remove(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t, n)); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
	if changed, err := n.Remove(); err != nil || len(changed) > 0 {
		t.Errorf("removing again: %v, %v; want no change", changed, err)
	}
	if err := n.Installed(); err == nil {
		t.Error("it says that it is installed")
	}
}

func TestThePluginFollowsTheFirstList(t *testing.T) {
	n := newNode(t, map[string]string{"20-flannel.conflist": flannel})
	install(t, n)
	write(t, filepath.Join(n.Configurations, "10-calico.conflist"), calico)
	if err := n.Installed(); err == nil || !strings.Contains(err.Error(), "10-calico.conflist does not list") {
		t.Errorf("the error is %v", err)
	}
	install(t, n)
	files := snapshot(t, n)
	if !strings.Contains(files["conf/10-calico.conflist"], "tulle-cni") || !strings.HasSuffix(files["conf/20-flannel.conflist"], flannel) {
		t.Errorf("the lists are %v", files)
	}
}

func TestAListThatCannotBeChainedToIsAnErrorAndStays(t *testing.T) {
	for content, want := range map[string]string{
		`{"type":"bridge"}`: "no list of plugins",
		`{"plugins": [`:     "not JSON",
	} {
		n := newNode(t, map[string]string{"10-net.conf": content})
		if _, err := n.Install(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "10-net.conf") {
			t.Errorf("the error is %v, want one that names the file and says %q", err, want)
		}
		if got := snapshot(t, n)["conf/10-net.conf"]; !strings.HasSuffix(got, content) {
			t.Errorf("it was changed: %s", got)
		}
	}
}

func TestALinkIsNotReplaced(t *testing.T) {
	n := newNode(t, map[string]string{"real": calico})
	if err := os.Symlink("real", filepath.Join(n.Configurations, "10-calico.conflist")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Install(); err == nil || !strings.Contains(err.Error(), "is a link") {
		t.Errorf("the error is %v", err)
	}
}

// A list that names a program which is not there keeps every pod from starting.
func TestTheProgramStaysWhileAListNamesIt(t *testing.T) {
	n := newNode(t, map[string]string{"10-calico.conflist": calico})
	install(t, n)
	broken := `{"plugins": [{"type":"calico"}, {"type":"tulle-cni"}`
	write(t, filepath.Join(n.Configurations, "10-calico.conflist"), broken)
	if _, err := n.Remove(); err == nil || !strings.Contains(err.Error(), "the program stays") {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Stat(n.program()); err != nil {
		t.Error(err)
	}
}

func TestANewVersionReplacesTheProgram(t *testing.T) {
	n := newNode(t, map[string]string{"10-calico.conflist": calico})
	install(t, n)
	write(t, n.Program, "THE PROGRAM")
	next := &Node{Configurations: n.Configurations, Plugins: n.Plugins, Program: n.Program}
	install(t, next)
	if got := snapshot(t, next)["bin/tulle-cni"]; got != "-rwxr-xr-x THE PROGRAM" {
		t.Errorf("the program is %q", got)
	}
}

func TestWhatIsTakenAwayIsPutBack(t *testing.T) {
	n := newNode(t, map[string]string{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); n.Keep(ctx, logr.Discard()) }()
	list := filepath.Join(n.Configurations, "10-calico.conflist")
	write(t, list, calico) // the network plugin comes later than we do
	eventually(t, n.clone())
	write(t, list, calico) // and writes its list anew
	eventually(t, n.clone())
	if err := os.Remove(n.program()); err != nil {
		t.Fatal(err)
	}
	eventually(t, n.clone())
	cancel()
	<-done
}

func (n *Node) clone() *Node {
	return &Node{Configurations: n.Configurations, Plugins: n.Plugins, Program: n.Program}
}

func eventually(t *testing.T, n *Node) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); n.Installed() != nil; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(n.Installed())
		}
	}
}

func newNode(t *testing.T, configurations map[string]string) *Node {
	t.Helper()
	dir := t.TempDir()
	n := &Node{Configurations: filepath.Join(dir, "conf"), Plugins: filepath.Join(dir, "bin"), Program: filepath.Join(dir, "program")}
	for _, d := range []string{n.Configurations, n.Plugins} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, n.Program, "the program")
	write(t, filepath.Join(n.Plugins, "ptp"), "somebody else's")
	for name, content := range configurations {
		write(t, filepath.Join(n.Configurations, name), content)
	}
	return n
}

func install(t *testing.T, n *Node) {
	t.Helper()
	if _, err := n.Install(); err != nil {
		t.Fatal(err)
	}
}

// snapshot is mode and content of each file in the node's folders.
func snapshot(t *testing.T, n *Node) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, dir := range []string{n.Configurations, n.Plugins} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			files[filepath.Base(dir)+"/"+e.Name()] = info.Mode().String() + " " + read(t, filepath.Join(dir, e.Name()))
		}
	}
	return files
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
