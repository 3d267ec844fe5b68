package mesh

import (
	"fmt"
	"regexp"
	"strings"
)

// IsPathTemplate reports whether a path of an [Operation] is a template.
func IsPathTemplate(path string) bool {
	return strings.Contains(path, "{") || strings.Contains(path, "**")
}

// maxOperators bounds the segments of a template that are not text. A "*" is four
// instructions of RE2 for two bytes, and proxies take 1,000 in an expression: one that
// has more would have them refuse all of the workload's rules.
const maxOperators = 64

var templateName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,15}$`)

// PathTemplate makes a regular expression, over the whole of a path, of a template
// with Envoy's operators: a segment "*", "{name}" or "{name=*}" is any one segment
// that is not empty, and "**" or "{name=**}", at the end alone, any number of them.
// problem says what is wrong with the template, and what to write instead.
// https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/path/match/uri_template/v3/uri_template_match.proto
//
// Envoy's own matcher takes only characters of RFC 3986 in a segment, though it
// passes on paths with others: a rule of Deny would not hold for /users/"1/orders.
func PathTemplate(path string) (expression, problem string) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return "", "a template begins with '/': write /users/{id}/orders"
	}
	if !printable(path) {
		return "", "a path has printable characters of ASCII alone: write others in their escaped form, such as %C3%A4"
	}
	var out strings.Builder
	names := map[string]bool{}
	operators := 0
	segments := strings.Split(rest, "/")
	for i, s := range segments {
		out.WriteByte('/')
		operator := s
		if inner, ok := strings.CutPrefix(s, "{"); ok && strings.HasSuffix(inner, "}") {
			name, pattern, written := strings.Cut(strings.TrimSuffix(inner, "}"), "=")
			switch {
			case !templateName.MatchString(name):
				return "", fmt.Sprintf("%q cannot name a segment: begin with a letter, and write at most 16 letters, digits and '_'", name)
			case names[name]:
				return "", fmt.Sprintf("two segments are named %q: give each a name of its own", name)
			case written && pattern != "*" && pattern != "**":
				return "", fmt.Sprintf("the segment %s is none: write {%s}, or {%s=**} for any number of segments at the end", s, name, name)
			}
			names[name] = true
			operator = "*"
			if written {
				operator = pattern
			}
		}
		if operator == "*" || operator == "**" {
			operators++
		}
		switch {
		case operators > maxOperators:
			return "", fmt.Sprintf("a template has at most %d segments that are '*' or have a name: end it in '/**'", maxOperators)
		case operator == "**" && i == len(segments)-1:
			out.WriteString(".*")
		case operator == "**":
			return "", "'**' is any number of segments, and nothing may follow it: write {name} or '*' for one segment"
		case operator == "*":
			out.WriteString("[^/]+")
		case strings.ContainsAny(s, "{}*"):
			return "", fmt.Sprintf("the segment %q of a template is not whole: '{', '}' and '*' stand for a whole segment, as in /users/{id}/orders", s)
		default:
			out.WriteString(regexp.QuoteMeta(s))
		}
	}
	return "(?s)" + out.String(), ""
}

// printable reports whether the text is of printable ASCII: proxies count what they
// compare with in bytes, and take so many.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// ValueProblem says why no rule can be about the value of a header.
func ValueProblem(value string) string {
	switch {
	case !printable(value):
		return "the value of a header has printable characters of ASCII alone here"
	case value != strings.TrimSpace(value):
		return "no header's value begins or ends with a blank: leave it out"
	case strings.Contains(value, ","):
		return "what stands between commas is a value of its own: write each by itself"
	}
	return ""
}

// HostProblem says why no request is for a host.
func HostProblem(host string) string {
	if !printable(host) {
		return "a host has printable characters of ASCII alone: write its name as DNS has it, such as xn--bcher-kva.example"
	}
	return ""
}

// maxHeaderParts bounds the names under which a header could be passed by, of which
// there are two for each '-'.
const maxHeaderParts = 6

var headerName = regexp.MustCompile(`^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$`)

// HeaderProblem says why no rule can be about the header with the name.
func HeaderProblem(name string) string {
	switch lower := strings.ToLower(name); {
	case lower == "host":
		return "a rule about the host is written in to: write hosts"
	case lower == "cookie":
		return "a cookie is a part of its header, which a rule cannot tell from the others: have the application check it"
	case strings.HasPrefix(lower, "x-tulle-"):
		return "headers that begin with x-tulle- are the mesh's own, and no caller's: write another"
	case !headerName.MatchString(name):
		return "the name of a header has letters, digits and single '-' here: write x-role"
	case strings.Count(name, "-") >= maxHeaderParts:
		return fmt.Sprintf("the name of a header has at most %d '-' here: write a shorter one", maxHeaderParts-1)
	}
	return ""
}
