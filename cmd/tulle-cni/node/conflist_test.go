package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListsAreChainedToAndComeBackToTheByte goes over testdata/*.conflist, as
// network plugins write them. What comes out is the file's golden.
func TestListsAreChainedToAndComeBackToTheByte(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conflist")
	if err != nil || len(files) == 0 {
		t.Fatalf("no lists in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			before := read(t, file)
			added, err := with([]byte(before))
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".conflist") + ".golden"
			if *update {
				if err := os.WriteFile(golden, added, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := read(t, golden); string(added) != want {
				t.Errorf("with the plugin it is\n%s\nwant\n%s", added, want)
			}
			again, err := with(added)
			if err != nil || string(again) != string(added) {
				t.Errorf("adding it again: %v\n%s", err, again)
			}
			removed, err := without(added)
			if err != nil || string(removed) != before {
				t.Errorf("without the plugin it is (%v)\n%s\nwant\n%s", err, removed, before)
			}
			untouched, err := without([]byte(before))
			if err != nil || string(untouched) != before {
				t.Errorf("removing what is not there: %v\n%s", err, untouched)
			}
		})
	}
}

func TestAnEntryOfAnotherVersionIsBroughtUpToDateWhereItStands(t *testing.T) {
	got, err := with([]byte(`{"plugins": [{"type":"ptp"}, {"type":"tulle-cni","old":true}, {"type":"last"}]}`))
	want := `{"plugins": [{"type":"ptp"}, ` + entry + `, {"type":"last"}]}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s, want\n%s", err, got, want)
	}
}

func TestWhatSomebodyElseWroteAroundTheEntryStays(t *testing.T) {
	for in, want := range map[string]string{
		`{"plugins":[{"type":"ptp"},{"type":"tulle-cni"},{"type":"other"}]}`:                        `{"plugins":[{"type":"ptp"},{"type":"other"}]}`,
		`{"plugins":[{"type":"tulle-cni"}, {"type":"ptp"}]}`:                                        `{"plugins":[{"type":"ptp"}]}`,
		`{"plugins":[ {"type":"tulle-cni"} ]}`:                                                      `{"plugins":[  ]}`,
		"{\"plugins\":[\n  {\"type\":\"ptp\"},\n  {\n    \"type\": \"tulle-cni\"\n  }\n]}\n":        "{\"plugins\":[\n  {\"type\":\"ptp\"}\n]}\n",
		`{"plugins":[{"type":"ptp"},{"type":"tulle-cni"},{"type":"tulle-cni"}],"name":"tulle-cni"}`: `{"plugins":[{"type":"ptp"}],"name":"tulle-cni"}`,
	} {
		got, err := without([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s becomes (%v)\n%s, want\n%s", in, err, got, want)
		}
	}
}

func TestWhatIsNoListIsLeftAlone(t *testing.T) {
	for in, want := range map[string]string{
		``:                                   "not JSON",
		`{"plugins": [{"type":"ptp"}`:        "not JSON",
		`[]`:                                 "not a JSON object",
		`{"type":"ptp"}`:                     "no list of plugins",
		`{"plugins":{}}`:                     "are no list",
		`{"plugins":[]}`:                     "no plugin to be chained to",
		`{"plugins":[1]}`:                    "plugin 0",
		`{"plugins":[{"type":"tulle-cni"}]}`: "stands first",
		`{"plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}`: "plugins twice",
	} {
		if _, err := with([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %v, want one that says %q", in, err, want)
		}
	}
}
