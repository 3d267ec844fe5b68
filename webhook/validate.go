package webhook

import (
	"fmt"
	"net/netip"
	"regexp/syntax"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

// Validate reports what is wrong with a mesh object that the CRDs' own rules
// cannot see, and warns of what is allowed but hardly meant. An object of
// another kind has nothing wrong with it.
func Validate(object runtime.Object) (warnings []string, problems field.ErrorList) {
	var c checks
	switch o := object.(type) {
	case *v1alpha1.MeshPolicy:
		c.policy(o)
	case *v1alpha1.TrafficSplit:
		c.split(o)
	case *v1alpha1.MeshConfig:
		c.config(o)
	}
	return c.warnings, c.problems
}

// checks collects what is found.
type checks struct {
	warnings []string
	problems field.ErrorList
}

func (c *checks) refuse(at *field.Path, value any, format string, args ...any) {
	c.problems = append(c.problems, field.Invalid(at, value, fmt.Sprintf(format, args...)))
}

func (c *checks) warn(at *field.Path, format string, args ...any) {
	c.warnings = append(c.warnings, fmt.Sprintf("%s: %s", at, fmt.Sprintf(format, args...)))
}

// prefix reads an address range. One with bits beyond its length is taken, as
// Kubernetes takes it, with a warning of what it means.
func (c *checks) prefix(at *field.Path, text, example string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		c.refuse(at, text, "this is not an address range: write a CIDR such as %s", example)
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() {
		c.refuse(at, text, "an IPv4 range in IPv6 form matches no address: write it as IPv4, such as %s", example)
		return netip.Prefix{}, false
	}
	if p != p.Masked() {
		c.warn(at, "%s means %s", text, p.Masked())
	}
	return p.Masked(), true
}

// maxProgram is how many instructions a regular expression may compile to.
// Proxies refuse what has more than 1,000 (xds/bootstrap); the difference is
// for what RE2 counts otherwise than Go does.
const maxProgram = 500

// expression compiles a regular expression as RE2 would: Go's has the same
// syntax (https://github.com/google/re2/wiki/Syntax). A proxy that is sent one
// that does not compile rejects everything that came with it.
func (c *checks) expression(at *field.Path, text string) {
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		c.refuse(at, text, "this is not a regular expression in RE2 syntax: %v", err)
		return
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		c.refuse(at, text, "this regular expression does not compile: %v", err)
		return
	}
	if n := len(program.Inst); n > maxProgram {
		c.refuse(at, text, "this regular expression compiles to %d instructions, and proxies take %d: write a shorter one, with smaller repetitions", n, maxProgram)
	}
}
