package node

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// Whatever another network plugin has written: where ours is added it stands in the list
// once, it is what was there otherwise, and taking it out leaves what was there.
func FuzzConfigurations(f *testing.F) {
	for _, text := range []string{
		`{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap"}]}`, `{"plugins":[]}`, `{"plugins":[{"type":"tulle-cni"}]}`,
		"{\n  \"plugins\": [\n    {\"type\": \"ptp\", \"plugins\": [1]}\n  ]\n}\n", `{"plugins":[{"type":"a"},{"type":"tulle-cni","x":1},{"type":"b"}]}`, `[]`, `{"plugins":[null]}`, `{"Plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		given := bytes.Clone(content)
		ours := func(text []byte) int {
			list, err := elements(text)
			if err != nil {
				t.Fatalf("%q cannot be read: %v", text, err)
			}
			n := 0
			for _, e := range list {
				if e.ours {
					n++
				}
			}
			return n
		}
		added, err := with(content)
		if err != nil {
			return
		}
		if !json.Valid(added) || ours(added) < 1 {
			t.Fatalf("%q becomes %q", content, added)
		}
		if again, err := with(added); err != nil || !bytes.Equal(again, added) {
			t.Errorf("adding it again makes %q of %q (%v)", again, added, err)
		}
		out, err := without(added)
		if err != nil || !json.Valid(out) || ours(out) != 0 {
			t.Errorf("taking it out makes %q of %q (%v)", out, added, err)
		}
		if ours(content) == 0 && (!bytes.Equal(out, content) || strings.Count(string(added), entry) < 1) {
			t.Errorf("%q was %q before", out, content)
		}
		if !bytes.Equal(given, content) {
			t.Error("what was given is changed")
		}
	})
}
