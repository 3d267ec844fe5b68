package preview

import (
	"slices"
	"strings"
	"testing"
)

func TestWhoMayWriteInOneNamespaceIsToldNothingOfOthersButNumbers(t *testing.T) {
	no := []Condition{{Type: "Accepted", Reason: "Invalid", Message: "for reasons"}}
	a := Answer{
		Proxies: 9, Changed: []string{"shop/a", "secret/b", "secret/c"}, Unknown: []string{"secret/d"},
		Missing: map[string]string{"tulled-1": "dial 192.0.2.1"},
		Objects: []Object{{Kind: "MeshPolicy", Namespace: "secret", Name: "p", Conditions: no}, {Kind: "MeshPolicy", Namespace: "shop", Name: "q", Conditions: no}},
	}
	said := a.Sentences("shop")
	want := []string{
		"this would change 3 of 9 proxies (shop: 1, in other namespaces: 2)",
		"MeshPolicy shop/q would have Accepted=False (Invalid): for reasons",
		"not known is what the proxies hold of 1 pods; 1 replicas did not answer",
	}
	if !slices.Equal(said, want) {
		t.Errorf("it says %q", said)
	}
	all := strings.Join(a.Sentences(""), "\n")
	for _, name := range []string{"secret: 2", "secret/p", "secret/d", "192.0.2.1"} {
		if !strings.Contains(all, name) {
			t.Errorf("to who may see all it does not tell %s: %s", name, all)
		}
	}
}
