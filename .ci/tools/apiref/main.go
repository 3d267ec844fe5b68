// Apiref writes the API reference, docs/reference/api.md, to its standard
// output. In come the generated CRDs of the folder that is its argument; they
// know of each field what the API server does with it: type, default, bounds,
// and the sentence with which it refuses what is wrong.
package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "apiref:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: apiref FOLDER-OF-CRDS")
	}
	crds, err := readCRDs(args[0])
	if err != nil {
		return err
	}
	buffered := bufio.NewWriter(out)
	(&reference{out: buffered}).write(crds)
	return buffered.Flush()
}

// readCRDs returns the CRDs of a folder, sorted by kind.
func readCRDs(folder string) ([]apiextensionsv1.CustomResourceDefinition, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*_*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no CRDs", folder)
	}
	crds := make([]apiextensionsv1.CustomResourceDefinition, len(files))
	for i, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading a CRD: %w", err)
		}
		if err := yaml.UnmarshalStrict(content, &crds[i]); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
	}
	slices.SortFunc(crds, func(a, b apiextensionsv1.CustomResourceDefinition) int {
		return cmp.Compare(a.Spec.Names.Kind, b.Spec.Names.Kind)
	})
	return crds, nil
}
