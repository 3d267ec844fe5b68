package webhook

import (
	"cmp"
	"maps"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

func (c *checks) split(s *v1alpha1.TrafficSplit) {
	spec := field.NewPath("spec")
	c.serviceName(spec.Child("service"), s.Spec.Service)
	c.backends(spec.Child("backends"), s, s.Spec.Backends)
	c.mirrors(spec.Child("mirrors"), s.Spec.Mirrors)
	for i, rule := range s.Spec.Rules {
		at := spec.Child("rules").Index(i)
		c.backends(at.Child("backends"), s, rule.Backends)
		c.mirrors(at.Child("mirrors"), rule.Mirrors)
		for j, m := range rule.Matches {
			c.match(at.Child("matches").Index(j), m)
		}
	}
}

func (c *checks) backends(at *field.Path, s *v1alpha1.TrafficSplit, backends []v1alpha1.SplitBackend) {
	for i, b := range backends {
		at := at.Index(i)
		if b.Service != "" {
			c.serviceName(at.Child("service"), b.Service)
		}
		c.labels(at.Child("matchLabels"), b.MatchLabels)
		for _, before := range backends[:i] {
			same := cmp.Or(b.Service, s.Spec.Service) == cmp.Or(before.Service, s.Spec.Service) &&
				cmp.Or(b.Namespace, s.Namespace) == cmp.Or(before.Namespace, s.Namespace)
			if same && maps.Equal(b.MatchLabels, before.MatchLabels) {
				c.refuse(at, b.Service, "the list has this backend twice: add up the weights, and name it once")
			}
		}
	}
}

func (c *checks) mirrors(at *field.Path, mirrors []v1alpha1.Mirror) {
	for i, m := range mirrors {
		c.serviceName(at.Index(i).Child("service"), m.Service)
	}
}

func (c *checks) match(at *field.Path, m v1alpha1.RequestMatch) {
	if p := m.Path; p != nil && p.Type == v1alpha1.PathMatchRegularExpression {
		c.expression(at.Child("path", "value"), p.Value)
	}
	c.headers(at.Child("headers"), m.Headers, "the match")
	for i, q := range m.QueryParams {
		if q.Type == v1alpha1.HeaderMatchRegularExpression {
			c.expression(at.Child("queryParams").Index(i).Child("value"), q.Value)
		}
	}
}

// headers checks the headers that a part of an object, whose name is what, asks for.
func (c *checks) headers(at *field.Path, headers []v1alpha1.HeaderMatch, what string) {
	seen := make(map[string]bool, len(headers))
	for i, h := range headers {
		at := at.Index(i)
		// The CRD tells names apart by case, HTTP does not (RFC 9110, section
		// 5.1).
		if name := strings.ToLower(h.Name); seen[name] {
			c.refuse(at.Child("name"), h.Name, "%s names this header twice, and names of headers are the same in any case: write one regular expression, or a match of its own for each value", what)
		} else {
			seen[name] = true
		}
		if h.Type == v1alpha1.HeaderMatchRegularExpression {
			c.expression(at.Child("value"), h.Value)
		}
	}
}
