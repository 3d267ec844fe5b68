package preview

import (
	"encoding/json"
	"slices"
	"testing"
)

// Whatever other replicas say: each resource is there once, with its pods in order, and
// in whatever order they say it.
func FuzzParts(f *testing.F) {
	f.Add(`{"known":["shop/a"],"resources":[{"type":"Route","name":"r","nowVersion":"1","thenVersion":"2","pods":["shop/a","bank/secret"]}],"objects":[{"kind":"MeshPolicy","namespace":"shop","name":"p","conditions":[{"type":"Accepted","message":"m"}]}]}`, `{"known":[],"resources":[{"type":"Route","name":"r","nowVersion":"1","thenVersion":"2","pods":["shop/b"]}]}`)
	f.Add(`{}`, `{"resources":[{},{}],"objects":[{},{}]}`)
	f.Fuzz(func(t *testing.T, one, other string) {
		var parts []Part
		for _, text := range []string{one, other} {
			var p Part
			if json.Unmarshal([]byte(text), &p) == nil {
				parts = append(parts, p)
			}
		}
		a := Merge(parts, nil, map[string]struct{}{"shop/a": {}, "shop/z": {}})
		if !slices.IsSorted(a.Changed) || len(slices.Compact(slices.Clone(a.Changed))) != len(a.Changed) {
			t.Errorf("changed are %q", a.Changed)
		}
		seen := map[[4]string]bool{}
		for _, r := range a.Resources {
			k := [4]string{r.Type, r.Name, r.NowVersion, r.ThenVersion}
			if seen[k] || !slices.IsSorted(r.Pods) {
				t.Errorf("%v is there twice, or its pods are %q", k, r.Pods)
			}
			seen[k] = true
		}
		turned := slices.Clone(parts)
		slices.Reverse(turned)
		if b := Merge(turned, nil, map[string]struct{}{"shop/a": {}, "shop/z": {}}); len(b.Resources) != len(a.Resources) || !slices.Equal(a.Changed, b.Changed) {
			t.Errorf("the order of replicas makes %+v of %+v", b, a)
		}
		for _, sentence := range a.Sentences("shop") {
			if sentence == "" {
				t.Error("a sentence is empty")
			}
		}
	})
}
