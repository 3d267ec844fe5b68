package plugin

import (
	"bytes"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
)

// Whatever a runtime hands over of a pod that is not in the mesh: the result of the plugin
// before is passed on as it came, or nothing is.
func FuzzResults(f *testing.F) {
	f.Add([]byte(stdin(nil)))
	f.Add([]byte(`{"prevResult":null}`))
	f.Add([]byte(`{"prevResult":{},"runtimeConfig":null}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		conf, err := read(in)
		if err != nil {
			return
		}
		if _, ok := conf.RuntimeConfig.Annotations[Annotation]; ok {
			return // redirects in a network namespace
		}
		var out bytes.Buffer
		if err := add(&skel.CmdArgs{StdinData: in}, &out); err != nil {
			if out.Len() > 0 {
				t.Errorf("%q: %v, and %q", in, err, out.Bytes())
			}
			return
		}
		if out.Len() == 0 || !bytes.Contains(in, out.Bytes()) {
			t.Errorf("%q is passed on of %q", out.Bytes(), in)
		}
	})
}
