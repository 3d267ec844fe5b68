package acks

import (
	"encoding/json"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Whatever another replica, of another version, reports: what is made of it counts no pod
// in two ways that exclude each other because of it, names few examples, and never takes
// what one replica has not heard of for what all have.
func FuzzReports(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"version":"1","objects":[{"kind":1,"name":"a","generation":2,"concerned":2,"programmed":1,"waiting":["a/b"]}],"connected":["u1"]}`,
		`{"objects":[{"kind":1,"name":"a"}],"absent":[{"uid":"u2","pod":"a/c","programmed":[0,7,-1],"waiting":[0],"rejected":[9223372036854775807],"refusal":{"pod":"a/c"}}]}`,
		`{"objects":[{"kind":255,"waiting":["z","y","x","w"]},{"kind":255,"waiting":["a"]}]}`,
	} {
		f.Add(text, `{"objects":[{"kind":1,"name":"a","generation":1}]}`)
	}
	running := map[string]mesh.Name{"u1": {Namespace: "a", Name: "b"}, "u2": {Namespace: "a", Name: "c"}, "u3": {Namespace: "a", Name: "d"}}
	stray := mesh.Ref{Kind: mesh.KindPolicy, Name: mesh.Name{Namespace: "a", Name: "stray"}}
	f.Fuzz(func(t *testing.T, one, other string) {
		reports := map[string]*Report{}
		for replica, text := range map[string]string{"one": one, "other": other} {
			var r Report
			if json.Unmarshal([]byte(text), &r) == nil {
				reports[replica] = &r
			}
		}
		known := map[mesh.Ref]int{}
		for _, r := range reports {
			seen := map[mesh.Ref]bool{}
			for _, o := range r.Objects {
				seen[o.Ref()] = true
			}
			for ref := range seen {
				known[ref]++
			}
		}
		for ref, v := range Merge(reports, []string{"third"}, running, func(mesh.Name) []mesh.Ref { return []mesh.Ref{stray} }) {
			if len(v.Waiting) > Examples {
				t.Errorf("%v names %d pods", ref, len(v.Waiting))
			}
			if v.Complete() {
				t.Errorf("%v is complete, and a replica is missing", ref)
			}
			if known[ref] < len(reports) && v.Generation != 0 {
				t.Errorf("%v is built for generation %d, and a replica does not know it", ref, v.Generation)
			}
		}
	})
}
