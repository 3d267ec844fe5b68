package webhook

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Validate reports what is wrong with a mesh object that the CRDs' own rules
// cannot see, and warns of what is allowed but hardly meant. An object of
// another kind has nothing wrong with it. The namespace is Tulle's own.
func Validate(object runtime.Object, namespace string) (warnings []string, problems field.ErrorList) {
	c := checks{root: namespace}
	switch o := object.(type) {
	case *v1alpha1.MeshPolicy:
		c.policy(o)
	case *v1alpha1.TrafficSplit:
		c.split(o)
	case *v1alpha1.ExternalService:
		c.external(o)
	case *v1alpha1.MeshConfig:
		c.config(o)
	}
	return c.warnings, c.problems
}

// checks collects what is found.
type checks struct {
	root     string // Tulle's own namespace
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

// expression refuses a regular expression that proxies would.
func (c *checks) expression(at *field.Path, text string) {
	if problem := mesh.ExpressionProblem(text); problem != "" {
		c.refuse(at, text, "%s", problem)
	}
}
