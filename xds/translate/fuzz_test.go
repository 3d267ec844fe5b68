package translate

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
)

// whole compiles an expression as Envoy takes it: for all of a text. Bounds of RE2 are
// looked at elsewhere.
func whole(t *testing.T, expression string) *regexp.Regexp {
	t.Helper()
	out, err := regexp.Compile("^(?:" + expression + ")$")
	if err != nil {
		t.Fatalf("%q: %v", expression, err)
	}
	return out
}

// Whatever text an object has for a host or a header's value: it is quoted in what proxies
// match by, so that it means itself and a "*" at one of its ends anything.
func FuzzTexts(f *testing.F) {
	for _, text := range []string{"shop.example", "*.example", "shop.*", "*", "", "a.b:80", "(", `\`, "[a]", "a|b", "\x00", "\xff", "é.example", "a\nb", `"`, "A*b", "\\Q"} {
		f.Add(text)
	}
	env, err := cel.NewEnv()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) || len(text) > 512 {
			return // no object of an API server has it
		}
		host := whole(t, hostPattern(text))
		plain := strings.Trim(text, "*.")
		if !strings.Contains(text, "*") && plain != "" {
			for _, same := range []string{text, strings.TrimSuffix(text, "."), strings.TrimSuffix(text, ".") + ":8080"} {
				if !host.MatchString(same) {
					t.Errorf("%q does not match %q: %s", text, same, host)
				}
			}
			for _, other := range []string{"x" + text, strings.TrimSuffix(text, ".") + "x", ""} {
				if host.MatchString(other) {
					t.Errorf("%q matches %q: %s", text, other, host)
				}
			}
		}
		if exact := !strings.HasPrefix(text, "*") && !strings.HasSuffix(text, "*"); exact {
			value := whole(t, someValue("x-header", []string{text, "other"}).GetOrRules().GetRules()[0].GetHeader().GetStringMatch().GetSafeRegex().GetRegex())
			for _, same := range []string{text, "a, " + text, text + "\t,b"} {
				if !value.MatchString(same) {
					t.Errorf("%q does not match %q: %s", text, same, value)
				}
			}
			if other := "x" + text + "x"; value.MatchString(other) && !strings.ContainsAny(text, ", \t") && text != "" {
				t.Errorf("%q matches %q: %s", text, other, value)
			}
		}
		// What is written into an expression in CEL is one text, and that one.
		ast, issues := env.Compile(quoted(text))
		if issues.Err() != nil {
			t.Fatalf("%q: %v", text, issues.Err())
		}
		program, err := env.Program(ast)
		if err != nil {
			t.Fatal(err)
		}
		if is, _, err := program.Eval(map[string]any{}); err != nil || is.Value() != text {
			t.Errorf("%q is %v in CEL (%v)", text, is, err)
		}
	})
}

// Of X-Forwarded-For, whatever clients write into it, a client is told of exactly where
// there are as many entries as trusted proxies and the first of those is an address.
func FuzzForwardedFor(f *testing.F) {
	for _, text := range []string{"192.0.2.7", "192.0.2.7, 10.0.0.1", "unknown", "", ",", "1.2.3.4,", "256.1.1.1", "2001:db8::1", "::ffff:1.2.3.4", "1.2.3.4:80", "[::1]:80", "01.2.3.4", " 1.2.3.4 ,x", "fe80::1%eth0"} {
		for hops := range uint8(3) {
			f.Add(text, hops)
		}
	}
	ipv4 := regexp.MustCompile(`^[0-9.]+$`)
	f.Fuzz(func(t *testing.T, text string, more uint8) {
		if strings.ContainsAny(text, "\r\n\x00") || !utf8.ValidString(text) {
			return // no header has it
		}
		hops := uint32(more)%mostHops + 1
		told := whole(t, toldOfClient(hops).GetHeader().GetStringMatch().GetSafeRegex().GetRegex()).MatchString(text)
		entries := strings.Split(text, ",")
		if len(entries) < int(hops) {
			if told {
				t.Errorf("%q has %d entries, of %d", text, len(entries), hops)
			}
			return
		}
		entry := strings.Trim(entries[len(entries)-int(hops)], " \t")
		is := parsedAddress(entry)
		if is && !told || told && !is && (ipv4.MatchString(entry) || strings.Count(entry, ":") < 2) {
			t.Errorf("%q, of %d hops: told %t, and %q is an address: %t", text, hops, told, entry, is)
		}
	})
}

const mostHops = 16 // the most of config/v1alpha1

func parsedAddress(text string) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && a.Zone() == ""
}
