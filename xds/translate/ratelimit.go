package translate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimit "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localratelimit "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	expr "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// rateLimitStat, or at gateways gatewayLimitStat, is in the label
	// envoy_local_http_ratelimit_prefix of the metrics envoy_http_local_rate_limit_ok,
	// _rate_limited and _enforced.
	rateLimitStat    = "inbound"
	gatewayLimitStat = "gateway"
	// maxCallers is how many callers a rule tells apart, by which what callers can make
	// a proxy remember is bounded. Of more, the one that has not called for longest is
	// forgotten.
	maxCallers = 1000
	// maxExpression is what Envoy's parser of CEL takes (cel-cpp's
	// expression_size_codepoint_limit). One longer rule would have Envoy refuse all
	// that comes with it. No rule within [mesh.MaxRateLimitText] is that long but with a
	// trust domain of hundreds of letters.
	maxExpression = 100_000
	// callerKey names the part of a descriptor that is the caller.
	callerKey = "caller"
	// callerExpression is the identity in the certificate that the peer proved to have.
	callerExpression = "connection.mtls ? connection.uri_san_peer_certificate : '-'"
)

// rateLimits are the rateLimit sections that hold for a workload.
func rateLimits(namespace string, labels map[string]string, v *mesh.View) []*mesh.Policy {
	return mostSpecificLimits(selected(namespace, labels, mesh.SectionRateLimit, v))
}

// mostSpecificLimits are all sections of the most specific level that has any. One that
// cannot be understood is as if absent.
func mostSpecificLimits(levels [][]*mesh.Policy) []*mesh.Policy {
	var out []*mesh.Policy
	for _, level := range levels {
		var sound []*mesh.Policy
		for _, p := range level {
			if p.Invalid == "" {
				sound = append(sound, p)
			}
		}
		if len(sound) > 0 {
			out = sound
		}
	}
	return out
}

// limitsPaths reports whether a rule asks for paths.
func limitsPaths(policies []*mesh.Policy) bool {
	for _, p := range policies {
		for _, r := range p.RateLimit.Rules {
			if slices.ContainsFunc(r.To, func(o mesh.RateLimitOperation) bool { return len(o.Paths) > 0 }) || tellsPath(r.Global) {
				return true
			}
		}
	}
	return false
}

// rateLimit is what Envoy's local rate limit filter enforces; nil is nothing. Each rule
// is a descriptor: an expression says whether a request matches, and its descriptor is
// looked up only if it does. Every descriptor that is found must have a token left.
// https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/local_rate_limit_filter
func rateLimit(policies []*mesh.Policy, domains []string) *localratelimit.LocalRateLimit {
	out := noLimit(rateLimitStat)
	for _, p := range policies {
		addLimits(out, p, domains, "", byCertificate())
	}
	if len(out.Descriptors) == 0 {
		return nil
	}
	return out
}

func noLimit(stat string) *localratelimit.LocalRateLimit {
	return &localratelimit.LocalRateLimit{
		StatPrefix: stat,
		// What no rule matches takes from this, which is never empty.
		TokenBucket:                     tokens(math.MaxUint32, math.MaxUint32, time.Second),
		AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false),
		FilterEnabled:                   always(),
		FilterEnforced:                  always(),
		MaxDynamicDescriptors:           wrapperspb.UInt32(maxCallers),
		EnableRetryAfterHeader:          true,
		RateLimitedAsResourceExhausted:  true,
	}
}

// caller tells callers apart: the key of the entry that the action makes.
type caller struct {
	key    string
	action *route.RateLimit_Action
	// strangers says that they have no identity that a rule could ask for.
	strangers bool
}

func byCertificate() caller {
	return caller{key: callerKey, action: expression(callerKey, callerExpression)}
}

// longest is how long an expression may be that says whether a rule matches: that of a
// global one stands beside others.
func longest(r mesh.RateLimitRule) int {
	if r.Global != nil {
		return maxExpression / 2
	}
	return maxExpression
}

// rateLimitExpression says whether a rule matches where the condition holds, too; ok is
// false where proxies would not take it, of which tooLong tells.
func rateLimitExpression(r mesh.RateLimitRule, namespace string, domains []string, condition string) (match string, ok bool) {
	match = rateLimitMatch(r, namespace, domains)
	if condition != "" {
		match = and(condition, match)
	}
	return match, len(match) <= longest(r)
}

// tooLong finds a rule that does not hold since proxies would not take it.
func tooLong(p *mesh.Policy, v *mesh.View) *fault {
	for i, r := range p.RateLimit.Rules {
		if n := len(rateLimitMatch(r, p.Meta.Namespace, v.Config().TrustDomains())); n > longest(r) {
			return &fault{conditionAccepted, reasonInvalid, fmt.Sprintf(
				"rateLimit.rules[%d] does not hold: it would be %d characters to proxies, which take %d; write fewer entries, or two rules (each of trustDomainAliases makes it longer)", i, n, longest(r))}
		}
	}
	return nil
}

// addLimits adds a policy's rules, for the requests of which the condition holds, too
// (empty: of all).
func addLimits(to *localratelimit.LocalRateLimit, p *mesh.Policy, domains []string, condition string, each caller) {
	for i, r := range p.RateLimit.Rules {
		if r.Global != nil || each.strangers && len(r.From) > 0 {
			continue
		}
		match, ok := rateLimitExpression(r, p.Meta.Namespace, domains, condition)
		if !ok {
			continue
		}
		key := fmt.Sprintf("%s#%d", p.Meta.Name, i)
		if r.Name != "" {
			key += "." + r.Name
		}
		entries := []*ratelimit.RateLimitDescriptor_Entry{{Key: key, Value: "true"}}
		actions := []*route.RateLimit_Action{expression(key, match)}
		if r.PerCaller {
			entries = append(entries, &ratelimit.RateLimitDescriptor_Entry{Key: each.key}) // any: a bucket for each value
			actions = append(actions, each.action)
		}
		to.Descriptors = append(to.Descriptors, &ratelimit.LocalRateLimitDescriptor{
			Entries: entries, TokenBucket: tokens(r.Burst, r.Requests, r.Unit),
		})
		// The headers are for answers to requests that a rule is about.
		to.RateLimits = append(to.RateLimits, &route.RateLimit{Actions: actions, XRatelimitOption: route.RateLimit_DRAFT_VERSION_03})
	}
}

func tokens(most, fill uint32, every time.Duration) *typev3.TokenBucket {
	return &typev3.TokenBucket{MaxTokens: most, TokensPerFill: wrapperspb.UInt32(fill), FillInterval: durationpb.New(every)}
}

func always() *core.RuntimeFractionalPercent {
	return &core.RuntimeFractionalPercent{DefaultValue: percentOf(100)}
}

// expression makes the value of a descriptor's entry by an expression in CEL over
// Envoy's attributes. One that ends in an error, as one about a header that is not
// there, makes no descriptor.
// https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes
func expression(key, text string) *route.RateLimit_Action {
	return &route.RateLimit_Action{ActionSpecifier: &route.RateLimit_Action_Extension{
		Extension: &core.TypedExtensionConfig{Name: "envoy.rate_limit_descriptors.expr", TypedConfig: typed(&expr.Descriptor{
			DescriptorKey: key, ExprSpecifier: &expr.Descriptor_Text{Text: text},
		})},
	}}
}

// rateLimitMatch says whether a request is one that the rule is about.
func rateLimitMatch(r mesh.RateLimitRule, namespace string, domains []string) string {
	var from, to []string
	for _, s := range r.From {
		from = append(from, callerMatch(s, namespace, domains))
	}
	for _, op := range r.To {
		to = append(to, operationMatch(op))
	}
	return and(or(from), or(to))
}

// callerMatch is about the identity in the certificate that the peer proved to have.
func callerMatch(s mesh.Source, namespace string, domains []string) string {
	const san = "connection.uri_san_peer_certificate"
	is := func(ids ...string) []string {
		var out []string
		for _, id := range ids {
			for _, spelled := range spellings(id, domains) {
				if p, ok := strings.CutSuffix(spelled, "*"); ok {
					out = append(out, fmt.Sprintf("%s.startsWith(%s)", san, quoted(p)))
				} else {
					out = append(out, fmt.Sprintf("%s == %s", san, quoted(spelled)))
				}
			}
		}
		return out
	}
	namespaces := each(s.Namespaces, func(ns string) string { return "spiffe://" + domains[0] + "/ns/" + ns + "/*" })
	accounts := each(s.ServiceAccounts, func(sa mesh.Name) string {
		return Identity(domains[0], cmp.Or(sa.Namespace, namespace), sa.Name)
	})
	return and("connection.mtls", or(is(s.Identities...)), or(is(namespaces...)), or(is(accounts...)))
}

func operationMatch(op mesh.RateLimitOperation) string {
	var ports, methods, paths []string
	for _, p := range op.Ports {
		ports = append(ports, fmt.Sprintf("destination.port == %d", p))
	}
	for _, m := range op.Methods {
		methods = append(methods, "request.method == "+quoted(m))
	}
	for _, p := range op.Paths {
		switch {
		case p == "*":
			paths = append(paths, "true")
		case strings.HasSuffix(p, "*"):
			paths = append(paths, fmt.Sprintf("request.url_path.startsWith(%s)", quoted(strings.TrimSuffix(p, "*"))))
		case strings.HasPrefix(p, "*"):
			paths = append(paths, fmt.Sprintf("request.url_path.endsWith(%s)", quoted(strings.TrimPrefix(p, "*"))))
		default:
			paths = append(paths, "request.url_path == "+quoted(p))
		}
	}
	all := []string{or(ports), or(methods), or(paths)}
	for _, h := range op.Headers {
		is := fmt.Sprintf("%s in request.headers", quoted(h.Name))
		if h.Value != "" {
			is += fmt.Sprintf(" && request.headers[%s] == %s", quoted(h.Name), quoted(h.Value))
		}
		all = append(all, is)
	}
	return and(all...)
}

// or is empty where there is nothing to choose from.
func or(terms []string) string {
	if len(terms) < 2 {
		return strings.Join(terms, "")
	}
	return "(" + strings.Join(terms, " || ") + ")"
}

// and leaves out what is empty; nothing at all is true.
func and(terms ...string) string {
	var said []string
	for _, t := range terms {
		if t != "" {
			said = append(said, t)
		}
	}
	return cmp.Or(strings.Join(said, " && "), "true")
}

// quoted is a string literal of CEL, which has all of Go's escapes.
func quoted(s string) string { return strconv.QuoteToASCII(s) }
