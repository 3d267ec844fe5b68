package observe

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// split converts a TrafficSplit.
func split(s *v1alpha1.TrafficSplit) *mesh.Split {
	var bad problems
	out := &mesh.Split{
		Meta:     meta(s.ObjectMeta),
		Service:  s.Spec.Service,
		Backends: backends("spec.backends", s, s.Spec.Backends, &bad),
		Mirrors:  mirrors("spec.mirrors", s.Spec.Mirrors, &bad),
	}
	if s.Spec.Port != 0 {
		out.Port = bad.port("spec.port", s.Spec.Port)
	}
	for i, r := range s.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		rule := mesh.SplitRule{Backends: backends(field+".backends", s, r.Backends, &bad), Mirrors: mirrors(field+".mirrors", r.Mirrors, &bad)}
		for j, m := range r.Matches {
			rule.Matches = append(rule.Matches, requestMatch(fmt.Sprintf("%s.matches[%d]", field, j), m, &bad))
		}
		out.Rules = append(out.Rules, rule)
	}
	if a := s.Spec.SessionAffinity; a != nil {
		var cookie *v1alpha1.HashCookie
		if a.Cookie != nil {
			cookie = &v1alpha1.HashCookie{Name: a.Cookie.Name}
		}
		out.Affinity = bad.hash("spec.sessionAffinity", a.Header, cookie, a.SourceIP)
	}
	out.Invalid = bad.sentence()
	return out
}

func backends(field string, s *v1alpha1.TrafficSplit, in []v1alpha1.SplitBackend, bad *problems) []mesh.SplitBackend {
	var out []mesh.SplitBackend
	var sum int64
	for i, b := range in {
		weight := int32(1)
		if b.Weight != nil {
			weight = *b.Weight
		}
		if weight < 0 {
			bad.add("%s[%d].weight: %d is negative: write 0 to send nothing", field, i, weight)
			weight = 0
		}
		sum += int64(weight)
		to := mesh.SplitBackend{
			Service: mesh.Name{Namespace: cmp.Or(b.Namespace, s.Namespace), Name: cmp.Or(b.Service, s.Spec.Service)},
			Weight:  uint32(weight),
		}
		if len(b.MatchLabels) > 0 {
			at := fmt.Sprintf("%s[%d].matchLabels", field, i)
			to.Labels = bad.labels(at, (&v1alpha1.WorkloadSelector{MatchLabels: b.MatchLabels}).Labels())
		}
		if k := slices.IndexFunc(out, func(o mesh.SplitBackend) bool {
			return o.Service == to.Service && maps.Equal(o.Labels, to.Labels)
		}); k >= 0 {
			out[k].Weight += to.Weight
			continue
		}
		out = append(out, to)
	}
	if sum == 0 {
		bad.add("%s: no backend has a weight above 0: give at least one a weight of 1 or more", field)
	}
	return out
}

func mirrors(field string, in []v1alpha1.Mirror, bad *problems) []mesh.Mirror {
	var out []mesh.Mirror
	for i, m := range in {
		out = append(out, mesh.Mirror{Service: m.Service, Percent: bad.percent(fmt.Sprintf("%s[%d].percent", field, i), m.Percent, 100)})
	}
	return out
}

func requestMatch(field string, m v1alpha1.RequestMatch, bad *problems) mesh.RequestMatch {
	var out mesh.RequestMatch
	if p := m.Path; p != nil {
		out.Path = &mesh.StringMatch{Type: pathMatchType(field+".path", p, bad), Value: p.Value}
	}
	for i, h := range m.Headers {
		out.Headers = append(out.Headers, mesh.HeaderMatch{
			Name:  strings.ToLower(h.Name),
			Type:  valueMatchType(fmt.Sprintf("%s.headers[%d]", field, i), h.Type, h.Value, bad),
			Value: h.Value,
		})
	}
	out.Method = m.Method
	for i, q := range m.QueryParams {
		out.Query = append(out.Query, mesh.HeaderMatch{
			Name: q.Name, Type: valueMatchType(fmt.Sprintf("%s.queryParams[%d]", field, i), q.Type, q.Value, bad), Value: q.Value,
		})
	}
	return out
}

func pathMatchType(field string, p *v1alpha1.PathMatch, bad *problems) mesh.MatchType {
	switch p.Type {
	case v1alpha1.PathMatchExact:
		return mesh.Exact
	case "", v1alpha1.PathMatchPrefix:
		return mesh.Prefix
	case v1alpha1.PathMatchRegularExpression:
		expression(field, p.Value, bad)
		return mesh.Regex
	default:
		bad.add("%s.type: %q is no type: write Exact, PathPrefix or RegularExpression", field, p.Type)
		return mesh.Exact
	}
}

func valueMatchType(field string, t v1alpha1.HeaderMatchType, value string, bad *problems) mesh.MatchType {
	switch t {
	case "", v1alpha1.HeaderMatchExact:
		return mesh.Exact
	case v1alpha1.HeaderMatchRegularExpression:
		expression(field, value, bad)
		return mesh.Regex
	default:
		bad.add("%s.type: %q is no type: write Exact or RegularExpression", field, t)
		return mesh.Exact
	}
}

// expression checks a regular expression, which CEL cannot.
func expression(field, value string, bad *problems) {
	if problem := mesh.ExpressionProblem(value); problem != "" {
		bad.add("%s.value: %q: %s", field, value, problem)
	}
}
