package observe

import (
	"cmp"
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
		switch {
		case (r.Limit == nil) == (r.Global == nil):
			bad.add("%s: a rule has a limit or global: write one of the two", field)
		case r.Limit != nil:
			rateLimitValue(field+".limit", r.Limit, &rule, bad)
		default:
			rule.Global = globalRateLimit(field+".global", r.Global, bad)
			if r.Name == "" {
				bad.add("%s.name: the rate limit service knows a rule by its name: write one", field)
			}
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

func rateLimitValue(field string, in *v1alpha1.RateLimitValue, rule *mesh.RateLimitRule, bad *problems) {
	rule.Requests = bad.atLeastOne(field+".requests", in.Requests)
	rule.Burst = rule.Requests
	if in.Burst != nil {
		rule.Burst = bad.atLeastOne(field+".burst", *in.Burst)
	}
	switch in.Unit {
	case v1alpha1.RateLimitSecond:
		rule.Unit = time.Second
	case v1alpha1.RateLimitMinute:
		rule.Unit = time.Minute
	case v1alpha1.RateLimitHour:
		rule.Unit = time.Hour
	default:
		bad.add("%s.unit: %q is no unit: write Second, Minute or Hour", field, in.Unit)
	}
}

func globalRateLimit(field string, in *v1alpha1.GlobalRateLimit, bad *problems) *mesh.GlobalRateLimit {
	attributes := map[v1alpha1.RateLimitAttribute]mesh.RateLimitAttribute{
		"": mesh.NoAttribute, v1alpha1.RateLimitCaller: mesh.CallerAttribute,
		v1alpha1.RateLimitMethod: mesh.MethodAttribute, v1alpha1.RateLimitPath: mesh.PathAttribute,
	}
	out := &mesh.GlobalRateLimit{}
	for i, d := range in.Descriptors {
		a, known := attributes[d.Attribute]
		if !known {
			bad.add("%s.descriptors[%d].attribute: %q is not known: write Caller, Method or Path", field, i, d.Attribute)
		}
		if d.Key == "" || d.Value == "" && d.Header == "" && d.Attribute == "" {
			bad.add("%s.descriptors[%d]: an entry has a key and one source: write value, header or attribute", field, i)
		}
		out.Entries = append(out.Entries, mesh.RateLimitEntry{Key: d.Key, Value: d.Value, Header: strings.ToLower(d.Header), Attribute: a})
	}
	return out
}

// What holds where the MeshConfig says nothing of it; the API server fills in the same.
const (
	defaultRateLimitPort    = 8081
	defaultRateLimitDomain  = "tulle"
	defaultRateLimitTimeout = 100 * time.Millisecond
)

// rateLimitService converts the MeshConfig's. A mode of a newer version is Closed.
func rateLimitService(in *v1alpha1.RateLimitService) *mesh.RateLimitService {
	if in == nil {
		return nil
	}
	out := &mesh.RateLimitService{
		Service: mesh.Name{Namespace: in.Namespace, Name: in.Name}, Port: uint16(cmp.Or(in.Port, defaultRateLimitPort)), // 1 to 65535, says the API
		Domain: cmp.Or(in.Domain, defaultRateLimitDomain), Timeout: defaultRateLimitTimeout,
		Closed: in.FailureMode != "" && in.FailureMode != v1alpha1.FailureOpen,
	}
	if in.Timeout != nil {
		out.Timeout = in.Timeout.Duration
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
