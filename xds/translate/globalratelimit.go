package translate

import (
	"fmt"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitservice "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// ruleKey names the entry of a descriptor that names the rule.
const ruleKey = "rule"

// askingService adds, behind the limits that a proxy counts itself, the filter that asks
// the mesh's rate limit service, if there is one. It is in no request's chain but where
// routes enable it. The service is of the filter, and so of the listener: routes cannot
// name it.
// https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/rate_limit_filter
func askingService(fs []*hcm.HttpFilter, c *mesh.Config) []*hcm.HttpFilter {
	s := c.RateLimitService
	if s == nil {
		return fs
	}
	behind := slices.IndexFunc(fs, func(f *hcm.HttpFilter) bool { return f.Name == rateLimitName }) + 1
	return slices.Insert(fs, behind, disabled(typedFilter(globalLimitName, &ratelimitfilter.RateLimit{
		Domain: s.Domain, Timeout: durationpb.New(s.Timeout), FailureModeDeny: s.Closed,
		StatusOnError:                  &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		RateLimitedAsResourceExhausted: true,
		EnableXRatelimitHeaders:        ratelimitfilter.RateLimit_DRAFT_VERSION_03,
		RateLimitService: &ratelimitservice.RateLimitServiceConfig{
			TransportApiVersion: core.ApiVersion_V3,
			GrpcService: &core.GrpcService{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{
				ClusterName: rateLimitCluster(s),
				Authority:   s.Service.Name + "." + s.Service.Namespace + ".svc", // a cluster's name is no host
			}}},
		},
	})))
}

// rateLimitCluster is as any caller's of the Service, in HTTP/2.
func rateLimitCluster(s *mesh.RateLimitService) string {
	return endpointsOf{service: s.Service, port: s.Port}.name(prefixEdgeH2)
}

// askedClusters are those of services that the policies have be asked.
func askedClusters(limits []*mesh.Policy, c *mesh.Config) []string {
	if c.RateLimitService == nil || !slices.ContainsFunc(limits, hasGlobal) {
		return nil
	}
	return []string{rateLimitCluster(c.RateLimitService)}
}

func hasGlobal(p *mesh.Policy) bool {
	return p.RateLimit != nil && slices.ContainsFunc(p.RateLimit.Rules, func(r mesh.RateLimitRule) bool { return r.Global != nil })
}

// tellsPath reports whether the service is told paths.
func tellsPath(g *mesh.GlobalRateLimit) bool {
	return g != nil && slices.ContainsFunc(g.Entries, func(e mesh.RateLimitEntry) bool { return e.Attribute == mesh.PathAttribute })
}

// globalLimits collects what the service is asked: a descriptor for each rule that a
// request matches.
type globalLimits struct {
	edge bool // callers are outside of the mesh, and have no identity that a rule could ask for
	out  []*route.RateLimit
}

// add adds a policy's global rules, for the requests of which the condition holds, too
// (empty: of all).
func (g *globalLimits) add(p *mesh.Policy, domains []string, condition string) {
	for _, r := range p.RateLimit.Rules {
		if r.Global == nil || g.edge && len(r.From) > 0 {
			continue
		}
		match, ok := rateLimitExpression(r, p.Meta.Namespace, domains, condition)
		if !ok {
			continue
		}
		// A request has no header without a name: one that does not match has the
		// expression end in an error, and so no descriptor.
		rule := fmt.Sprintf(`(%s) ? %s : request.headers[""]`, match, quoted(p.Meta.Name.String()+"/"+r.Name))
		actions := []*route.RateLimit_Action{expression(ruleKey, rule)}
		for _, e := range r.Global.Entries {
			actions = append(actions, g.entry(e))
		}
		g.out = append(g.out, &route.RateLimit{Actions: actions})
	}
}

func (g *globalLimits) entry(e mesh.RateLimitEntry) *route.RateLimit_Action {
	header := func(name string) *route.RateLimit_Action {
		return &route.RateLimit_Action{ActionSpecifier: &route.RateLimit_Action_RequestHeaders_{
			RequestHeaders: &route.RateLimit_Action_RequestHeaders{HeaderName: name, DescriptorKey: e.Key},
		}}
	}
	switch {
	case e.Header != "":
		return header(e.Header)
	case e.Attribute == mesh.MethodAttribute:
		return header(":method")
	case e.Attribute == mesh.PathAttribute:
		return expression(e.Key, "request.url_path")
	case e.Attribute == mesh.CallerAttribute && g.edge:
		return &route.RateLimit_Action{ActionSpecifier: &route.RateLimit_Action_RemoteAddress_{RemoteAddress: &route.RateLimit_Action_RemoteAddress{}}}
	case e.Attribute == mesh.CallerAttribute:
		return expression(e.Key, callerExpression)
	default:
		return &route.RateLimit_Action{ActionSpecifier: &route.RateLimit_Action_GenericKey_{
			GenericKey: &route.RateLimit_Action_GenericKey{DescriptorKey: e.Key, DescriptorValue: e.Value},
		}}
	}
}

// config enables the filter; nil: nothing is asked.
func (g *globalLimits) config() *anypb.Any {
	if len(g.out) == 0 {
		return nil
	}
	return typed(&ratelimitfilter.RateLimitPerRoute{RateLimits: g.out})
}

// globalFault looks for what keeps a policy's global rules from being counted.
func globalFault(p *mesh.Policy, v *mesh.View) *fault {
	if !hasGlobal(p) {
		return nil
	}
	s := v.Config().RateLimitService
	if s == nil {
		return &fault{conditionResolvedRefs, reasonServiceNotFound, "the mesh has no rate limit service, and rules with global do not hold: name one in the MeshConfig's rateLimitService"}
	}
	svc, ok := v.Service(s.Service)
	if !ok {
		return &fault{conditionResolvedRefs, reasonServiceNotFound, fmt.Sprintf("there is no Service %s, the mesh's rate limit service; create it, or correct the MeshConfig's rateLimitService", s.Service)}
	}
	if _, ok := svc.Port(s.Port); !ok {
		return &fault{conditionResolvedRefs, reasonPortNotFound, fmt.Sprintf("Service %s, the mesh's rate limit service, has no port %d; correct the MeshConfig's rateLimitService", s.Service, s.Port)}
	}
	return nil
}
