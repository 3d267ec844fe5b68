package observe

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func rateLimit(l *v1alpha1.RateLimit, bad *problems) *mesh.RateLimit {
	if l == nil {
		return nil
	}
	out := &mesh.RateLimit{}
	for i, r := range l.Rules {
		field := fmt.Sprintf("spec.rateLimit.rules[%d]", i)
		rule := mesh.RateLimitRule{Name: r.Name, PerCaller: r.PerCaller}
		rule.Requests = bad.atLeastOne(field+".limit.requests", r.Limit.Requests)
		rule.Burst = rule.Requests
		if r.Limit.Burst != nil {
			rule.Burst = bad.atLeastOne(field+".limit.burst", *r.Limit.Burst)
		}
		switch r.Limit.Unit {
		case v1alpha1.RateLimitSecond:
			rule.Unit = time.Second
		case v1alpha1.RateLimitMinute:
			rule.Unit = time.Minute
		case v1alpha1.RateLimitHour:
			rule.Unit = time.Hour
		default:
			bad.add("%s.limit.unit: %q is no unit: write Second, Minute or Hour", field, r.Limit.Unit)
		}
		for j, s := range r.From {
			at := fmt.Sprintf("%s.from[%d]", field, j)
			from := source(at, s, bad)
			known := mesh.Source{Identities: from.Identities, Namespaces: from.Namespaces, ServiceAccounts: from.ServiceAccounts}
			if !reflect.DeepEqual(from, known) {
				bad.add("%s: a rate limit tells callers apart by their certificates: write identities, namespaces or serviceAccounts", at)
			}
			rule.From = append(rule.From, known)
		}
		for j, o := range r.To {
			rule.To = append(rule.To, rateLimitOperation(fmt.Sprintf("%s.to[%d]", field, j), o, bad))
		}
		if n := r.TextBytes(); n > mesh.MaxRateLimitText {
			bad.add("%s: it compares with %d bytes of text, and a rule takes %d: write fewer or shorter entries, or two rules", field, n, mesh.MaxRateLimitText)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func rateLimitOperation(field string, o v1alpha1.RateLimitOperation, bad *problems) mesh.RateLimitOperation {
	out := mesh.RateLimitOperation{Methods: o.Methods, Paths: o.Paths}
	for i, p := range o.Ports {
		out.Ports = append(out.Ports, bad.port(fmt.Sprintf("%s.ports[%d]", field, i), p))
	}
	for _, h := range o.Headers {
		out.Headers = append(out.Headers, mesh.HeaderMatch{Name: strings.ToLower(h.Name), Value: h.Value})
	}
	return out
}

// atLeastOne converts a number that has no use for 0.
func (p *problems) atLeastOne(field string, n int32) uint32 {
	if n < 1 {
		p.add("%s: %d is less than 1", field, n)
		return 1
	}
	return uint32(n)
}
