package observe

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Whatever an object of the mesh, a pod or a Service says, also past admission, which may
// be of another version: it is converted, the same each time; what is in force has ranges
// that are ranges, and no expression that proxies would refuse.
func FuzzMeshObjects(f *testing.F) {
	convert := []func([]byte) any{
		converted(policy), converted(split), converted(external), changed(&corev1.Pod{}), changed(&corev1.Service{}), changed(&discoveryv1.EndpointSlice{}), converted(nodeRanges),
	}
	files, err := filepath.Glob("../../deploy/samples/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for document := range strings.SplitSeq(string(content), "\n---\n") {
			raw, err := yaml.YAMLToJSON([]byte(document))
			if err != nil {
				f.Fatal(err)
			}
			var o struct{ Kind string }
			if err := json.Unmarshal(raw, &o); err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(max(0, slices.Index([]string{"MeshPolicy", "TrafficSplit", "ExternalService"}, o.Kind))), raw)
		}
	}
	f.Add(uint8(3), []byte(`{"metadata":{"labels":{"mesh.tulle.dev/proxy":"sidecar"},"annotations":{"mesh.tulle.dev/status":"{\"probes\":[{\"Path\":\"/x\",\"Port\":1}],\"direct\":[0,65535]}"}},"spec":{"containers":[{"ports":[{"containerPort":-1}]}]},"status":{"podIPs":[{"ip":"x"},{"ip":"::ffff:1.2.3.4"}]}}`))
	f.Add(uint8(4), []byte(`{"spec":{"clusterIP":"None","clusterIPs":["x"],"ports":[{"name":"http-a","port":70000,"targetPort":"a","appProtocol":"kubernetes.io/ws"}]}}`))
	f.Add(uint8(5), []byte(`{"addressType":"FQDN","ports":[{}],"endpoints":[{"addresses":["1.2.3.4","x"],"conditions":{},"zone":"z"}]}`))
	f.Add(uint8(6), []byte(`{"spec":{"podCIDRs":["10.0.0.0/33","::/0"]}}`))
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		switch p := steadily(t, convert[int(kind)%len(convert)], raw).(type) {
		case *mesh.Policy:
			if p.Invalid != "" || p.Authorization == nil {
				return
			}
			for _, r := range p.Authorization.Rules {
				for _, s := range r.From {
					for _, b := range slices.Concat(s.IPBlocks, s.NotIPBlocks, s.RemoteIPBlocks, s.NotRemoteIPBlocks) {
						if !b.IsValid() {
							t.Errorf("a policy that is in force has the range %v", b)
						}
					}
				}
			}
		case *mesh.Split:
			if p.Invalid != "" {
				return
			}
			for _, r := range p.Rules {
				expressionsHold(t, r.Matches)
			}
		}
	})
}

// changed reads JSON of the object's kind, and makes of it what an event of it makes.
func changed(kind client.Object) func([]byte) any {
	return func(raw []byte) any {
		o := kind.DeepCopyObject().(client.Object)
		if json.Unmarshal(raw, o) != nil {
			return nil
		}
		c, _ := change(o)
		return c
	}
}
