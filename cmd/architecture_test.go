package cmd

import (
	"errors"
	"go/build"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tulle-mesh/tulle/"

// edge is an import that is allowed between two packages of this module, or
// between a package and what lies below another one ("ca" stands for "ca/…"
// too), and why.
type edge struct{ from, to, why string }

// edges are all that there are: data goes one way. What is not listed is not
// allowed; what is listed and not used fails too.
var edges = []edge{
	{"xds/translate", "xds/mesh", "resources are made of the model, through its views alone"},
	{"xds/explain", "xds/mesh", "policies mean what the model says"},
	{"xds/explain", "xds/translate", "which modes, routes and endpoints hold is decided in one place"},
	{"xds/build", "xds/mesh", "snapshots and changed facts decide what is built again"},
	{"xds/build", "xds/translate", "a target is built by its translator"},
	{"xds/delta", "xds/build", "what a stream holds are keys and values of the builder"},
	{"xds/delta", "xds/mesh", "what a proxy acknowledged was built for a revision"},
	{"xds/delta", "xds/translate", "the order of types is the order in which they are sent"},
	{"xds/server", "xds/delta", "a connection drives the state of its stream"},
	{"xds/server", "xds/build", "streams subscribe to targets and read their values"},
	{"xds/server", "xds/mesh", "a peer's pod is looked up in the snapshot"},
	{"xds/server", "xds/translate", "the names on the wire are bound to keys"},
	{"xds/server", "ca", "identities are formed and checked in one place"},
	{"controllers/observe", "config/v1alpha1", "mesh objects become entities"},
	{"controllers/observe", "xds/mesh", "informer events become changes"},
	{"controllers/status", "config/v1alpha1", "conditions are written to mesh objects"},
	{"controllers/status", "xds/mesh", "findings are the model's"},
	{"controllers/status", "xds/build", "findings are targets, and status subscribes to them"},
	{"xds/acks", "xds/mesh", "acknowledgements are about objects of the model"},
	{"xds/server", "xds/acks", "streams are counted into a report"},
	{"controllers/replicas", "xds/acks", "reports of all replicas are merged"},
	{"controllers/replicas", "xds/build", "the snapshot tells who the replicas are, and when they are others"},
	{"controllers/replicas", "xds/mesh", "replicas and running pods are the model's"},
	{"xds/server", "xds/preview", "what a change would send is said of the streams"},
	{"controllers/replicas", "xds/preview", "what all replicas would send is merged"},
	{"cmd/tulle", "xds/preview", "the answer is shown"},
	{"cmd/tulle", "xds/explain", "the answer is shown"},
	{"controllers/status", "xds/acks", "a verdict becomes the condition Programmed"},
	{"controllers/status", "xds/translate", "the keys of findings"},
	{"controllers/trust", "xds/mesh", "the trust bundle is part of the model"},
	{"controllers/jwks", "config/v1alpha1", "policies say whose keys are fetched, and the MeshConfig from where"},
	{"controllers/jwks", "xds/mesh", "how keys are read, and where they are kept for the mesh"},
	{"controllers/gateway", "config/v1alpha1", "the name of the controller, and conditions"},
	{"controllers/gateway", "webhook", "a gateway's proxy is the one that is injected"},
	{"controllers/gateway", "xds/build", "findings about Gateways are targets, and their status follows from them"},
	{"controllers/gateway", "xds/mesh", "findings are the model's"},
	{"controllers/gateway", "xds/translate", "the keys of findings"},
	{"webhook", "config/v1alpha1", "mesh objects are validated"},
	{"webhook", "xds/bootstrap", "the sidecar's command line holds its bootstrap"},
	{"webhook", "xds/mesh", "rewritten probes are recorded as the model has them"},
	{"cmd/tulle", "deploy", "install applies the manifests that kustomize would"},
	{"cmd/tulle", "ca", "what is asked of the authority, and what it says"},
	{"cmd/tulle", "webhook", "inject makes of a pod what admission would"},
	{"cmd/tulle-cni/agent", "cmd/tulle-init/redirect", "a pod is repaired with the redirection of its init container"},
	{"cmd/tulle-cni/plugin", "cmd/tulle-init/redirect", "a pod is redirected as its init container would do it"},
}

// composers may import everything: it is what they are for.
var composers = []string{"cmd/tulled"}

// pkg is a package of the module: its folder, and what it imports outside tests.
type pkg struct {
	path    string
	imports []string
}

func TestImportsGoOneWay(t *testing.T) {
	used := map[edge]bool{}
	for _, p := range packages(t) {
		from := p.path
		for _, i := range p.imports {
			to, ours := strings.CutPrefix(i, module)
			if !ours || within(from, root(to)) && root(from) == root(to) || within(from, composers...) {
				continue
			}
			k := slices.IndexFunc(edges, func(e edge) bool { return within(from, e.from) && within(to, e.to) })
			if k < 0 {
				t.Errorf("%s imports %s, which is not in the table of edges: imports go one way, see CONTRIBUTING.md", from, to)
				continue
			}
			used[edges[k]] = true
		}
	}
	for _, e := range edges {
		if !used[e] {
			t.Errorf("no package needs the edge from %s to %s any more: take it out of the table", e.from, e.to)
		}
	}
}

// Each list is a property of the design: the model knows neither Kubernetes nor
// Envoy, a stream's state knows no network, and the API is for everybody.
func TestPackagesStayPure(t *testing.T) {
	never := map[string][]string{
		"xds/mesh":        {"k8s.io/", "sigs.k8s.io/controller-runtime", "github.com/envoyproxy/", "google.golang.org/"},
		"xds/explain":     {"k8s.io/", "sigs.k8s.io/controller-runtime", "github.com/envoyproxy/", "google.golang.org/"},
		"xds/translate":   {"k8s.io/", "sigs.k8s.io/controller-runtime", "google.golang.org/grpc"},
		"xds/build":       {"k8s.io/", "sigs.k8s.io/controller-runtime", "google.golang.org/grpc"},
		"xds/delta":       {"k8s.io/", "sigs.k8s.io/controller-runtime", "google.golang.org/grpc", "sync"},
		"ca":              {"github.com/envoyproxy/", "google.golang.org/"},
		"config/v1alpha1": {"k8s.io/client-go", "github.com/envoyproxy/"},
	}
	for _, p := range packages(t) {
		from := p.path
		for _, i := range p.imports {
			for _, bad := range never[from] {
				if i == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(i, bad) || strings.HasPrefix(i, bad+"/") {
					t.Errorf("%s imports %s, which it must not know", from, i)
				}
			}
		}
	}
}

// root is the package whose folder the package lies in: "ca/secret" is "ca".
func root(p string) string {
	for _, r := range []string{"ca", "webhook", "cmd/tulle", "cmd/tulled", "cmd/tulle-init", "cmd/tulle-cni", "config/apitest"} {
		if within(p, r) {
			return r
		}
	}
	return p
}

func within(p string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return p == f || strings.HasPrefix(p, f+"/") })
}

// packages are those of the module, as their files say: read here and not by a
// command, so that the cache of test results knows which files they were.
func packages(t *testing.T) []pkg {
	t.Helper()
	var all []pkg
	err := filepath.WalkDir("..", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); dir != ".." && (name == "testdata" || name[0] == '.' || name[0] == '_') {
			return fs.SkipDir
		}
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil && dir != ".." {
			return fs.SkipDir // Another module.
		}
		p, err := build.ImportDir(dir, 0)
		if none := (*build.NoGoError)(nil); errors.As(err, &none) {
			return nil
		} else if err != nil {
			return err
		}
		path, err := filepath.Rel("..", dir)
		all = append(all, pkg{path: filepath.ToSlash(path), imports: p.Imports})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found only %d packages", len(all))
	}
	return all
}
