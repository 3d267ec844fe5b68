package translate

import (
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Tulle's own namespace may close a port of other namespaces' workloads, and not say where
// their callers get to.
func TestPolicyOfTheWholeMeshClosesAPortAndLeadsNobodyElsewhere(t *testing.T) {
	at := func(namespace, name string, target uint16) *mesh.Policy {
		return &mesh.Policy{
			Meta: mesh.Meta{Name: mesh.Name{Namespace: namespace, Name: name}}, Selector: &mesh.Selector{},
			TLS: &mesh.EndedTLS{Ports: []mesh.PortTLS{{Port: 8443, Target: target, Certificate: mesh.Name{Namespace: namespace, Name: "c"}}}},
		}
	}
	for what, c := range map[string]struct {
		policies []mesh.Entity
		closed   bool
		mesh     string
	}{
		"the namespace's":      {[]mesh.Entity{at("shop", "p", 8080)}, false, "inbound|8443|mesh"},
		"the mesh's":           {[]mesh.Entity{at("tulle-system", "p", 9090)}, true, chainMeshHTTP},
		"both":                 {[]mesh.Entity{at("tulle-system", "p", 9090), at("shop", "p", 8080)}, true, "inbound|8443|mesh"},
		"the port of the call": {[]mesh.Entity{at("shop", "p", 8443)}, false, chainMeshHTTP},
	} {
		v := viewOf(meshConfig(), c.policies...)
		e := endedPorts("shop", map[string]string{"app": "web"}, v)[8443]
		if e.closed != c.closed || e.meshChain() != c.mesh || e.moves() && e.Target != 8080 {
			t.Errorf("%s: closed is %t, and callers get to %s, port %d", what, e.closed, e.meshChain(), e.Target)
		}
	}
}
