package explain

import (
	"fmt"
	"regexp"
	"strings"
)

// escapes are those that could be read as something that rules and routes look at.
var escapes = map[string]string{"%2f": "a slash", "%5c": "a backslash, which is a slash to some"}

// rejected is why a path is refused before anything is made of it. Some says that rules are
// about paths, rate limits' too.
func (k *facts) rejected(some bool) string {
	path, _, _ := strings.Cut(k.http.Path, "?")
	if strings.Contains(k.http.Path, "#") {
		return "a path with a fragment (#) is refused"
	}
	if !some {
		return ""
	}
	for escape, what := range escapes {
		if strings.Contains(strings.ToLower(path), escape) {
			return fmt.Sprintf("rules are about paths, and %s in one could be read as %s", escape, what)
		}
	}
	if strings.Contains(path, "%00") {
		return "rules are about paths, and %00 in one could be read as the end of it"
	}
	return ""
}

// normalize makes of a request's path what rules are asked about. What could be read two
// ways still is refused where rules of authorization are about paths.
func (k *facts) normalize(decide bool) string {
	path, query, hasQuery := strings.Cut(k.http.Path, "?")
	k.http.Path = normalized(path)
	if decide && dotted.MatchString(k.http.Path) {
		return "rules are about paths, and a segment ..; is .. to some"
	}
	if decide && k.http.Path == "//" {
		return "rules are about paths, and slashes alone are / to some"
	}
	if hasQuery {
		k.http.Path += "?" + query
	}
	return ""
}

// dotted are paths that still have a segment of dots, with parameters.
var dotted = regexp.MustCompile(`/\.\.?;`)

// normalized is the path as RFC 3986, section 6.2.2, has it: characters that need no
// escape have none, some others have one, and no segment is a dot or two, with
// parameters (;x) or without. Besides, backslashes are slashes, as browsers have it
// (https://url.spec.whatwg.org/#path-state), and slashes in a row are one.
func normalized(path string) string {
	segments := strings.Split(strings.ReplaceAll(path, `\`, "/"), "/")[1:]
	out := []string{""}
	for i, s := range segments {
		plain := unescaped(s)
		dots := plain
		if before, _, ok := strings.Cut(s, ";"); ok {
			dots = before // not unescaped: of those with an escape Envoy makes ..;
		}
		switch {
		case dots == "..":
			out = out[:max(1, len(out)-1)]
		case dots != ".":
			out = append(out, plain)
			continue
		}
		if i == len(segments)-1 {
			out = append(out, "")
		}
	}
	joined := strings.Join(out, "/")
	if len(joined) > 1 && strings.Trim(joined, "/") == "" {
		return "//" // as Envoy has it
	}
	for strings.Contains(joined, "//") {
		joined = strings.ReplaceAll(joined, "//", "/")
	}
	return joined
}

// unescaped is a segment without the escapes that mean nothing, and with those that are
// needed.
func unescaped(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '%' && i+2 < len(s) && unhex(s[i+1]) >= 0 && unhex(s[i+2]) >= 0:
			if plain := byte(unhex(s[i+1])<<4 | unhex(s[i+2])); unreserved(plain) {
				out.WriteByte(plain)
			} else {
				out.WriteString(s[i : i+3])
			}
			i += 2
		case strings.IndexByte("\"<>^`{}|", c) >= 0:
			fmt.Fprintf(&out, "%%%02X", c)
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// unreserved reports whether an escape of the character means nothing (RFC 3986,
// section 2.3).
func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// unhex is the value of a hexadecimal digit; -1 for what is none.
func unhex(c byte) int { return strings.IndexByte("0123456789abcdef", c|0x20) }
