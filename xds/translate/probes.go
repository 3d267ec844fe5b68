package translate

import (
	"fmt"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// probeHeader names the address that a probe's cluster goes to.
const probeHeader = "x-envoy-original-dst-host"

// probesListener answers the application's own HTTP probes, which kubelets
// send without a certificate, by asking the application: so they stay truthful
// while mTLS is strict. Only the probes' own paths are answered.
func probesListener(profile string, v *mesh.View) *listener.Listener {
	var routes []*route.Route
	if p, ok := v.Profile(profile); ok {
		for _, probe := range p.Probes {
			routes = append(routes, probeRoute(probe))
		}
	}
	return directListener(ListenerProbes, PortProbes, v.Config(), routes...)
}

func probeRoute(p mesh.Probe) *route.Route {
	to := ClusterProbes
	if p.HTTPS {
		to = ClusterProbesTLS
	}
	return &route.Route{
		Name:  p.Path,
		Match: onlyGET(pathMatch(p.Path)),
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: to},
			Timeout:          durationpb.New(0), // the kubelet has its own
			RegexRewrite: &matcher.RegexMatchAndSubstitute{
				Pattern:      &matcher.RegexMatcher{Regex: "^.*$"},
				Substitution: substitution(p.Target),
			},
		}},
		RequestHeadersToAdd: []*core.HeaderValueOption{{
			Header:       &core.HeaderValue{Key: probeHeader, Value: fmt.Sprintf("%%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%%:%d", p.Port)},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}
}

// onlyGET is what kubelets ask with. Nothing else is answered: who calls is not
// asked here, so that other methods would pass the workload's policies by.
func onlyGET(m *route.RouteMatch) *route.RouteMatch {
	m.Headers = append(m.Headers, &route.HeaderMatcher{
		Name: ":method", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: exact("GET")},
	})
	return m
}

// substitution is text that stands for itself in a rewrite, where a backslash
// would refer to a group.
func substitution(s string) string {
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] == '\\' {
			out = append(out, '\\')
		}
		out = append(out, s[i])
	}
	return string(out)
}
