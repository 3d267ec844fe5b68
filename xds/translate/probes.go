package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheck "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	upstreams "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// probeHeader names the address that a probe's cluster goes to.
const probeHeader = "x-envoy-original-dst-host"

// notFollowed is where a probe that is answered by a redirect leads: no host has
// that name (RFC 2606), and nobody looks it up.
const notFollowed = "http://redirect-not-followed.invalid/"

const (
	// checkInterval is how old the answer to a TCP or gRPC probe can be.
	checkInterval = time.Second
	// checkTimeout is the kubelet's own, for probes that name none.
	checkTimeout = time.Second
)

// probesListener answers the application's own probes, which kubelets send
// without a certificate, by asking the application: so they stay truthful while
// mTLS is strict. Only the probes' own paths are answered.
//
// An HTTP probe is asked of the application as it comes. For a TCP or gRPC one
// the webhook has the kubelet ask by HTTP too; what it hears is the outcome of
// Envoy's last health check of a cluster that has the pod's own address alone.
func probesListener(profile string, v *mesh.View) Result {
	var (
		routes   []*route.Route
		routes6  []*route.Route
		checks   []*hcm.HttpFilter
		clusters []string
	)
	if p, ok := v.Profile(profile); ok {
		for _, probe := range p.Probes {
			if probe.Kind == mesh.ProbeHTTP {
				routes = append(routes, probeRoute(probe, "%s"))
				routes6 = append(routes6, probeRoute(probe, "[%s]"))
				continue
			}
			checks = append(checks, probeFilter(probe))
			clusters = append(clusters, PrefixProbe+probe.Path)
		}
	}
	l := checkingListener(ListenerProbes, PortProbes, v.Config(), checks, routes...)
	if len(routes6) > 0 && hasIPv6(v.Config()) {
		// Envoy tells an IPv6 address without its port without brackets, but takes
		// one with a port only in them.
		c := checkingChain(ListenerProbes, checks, routes6...)
		c.Name = "ipv6"
		c.FilterChainMatch = &listener.FilterChainMatch{PrefixRanges: []*core.CidrRange{{AddressPrefix: "::", PrefixLen: wrapperspb.UInt32(0)}}}
		l.FilterChains = append(l.FilterChains, c)
	}
	return Result{Message: l, Clusters: clusters}
}

// probeFilter answers 200 when the probe's cluster is healthy, else 503: also
// while the cluster is empty, or was not checked yet.
func probeFilter(p mesh.Probe) *hcm.HttpFilter {
	return typedFilter("tulle."+PrefixProbe+p.Path, &healthcheck.HealthCheck{
		PassThroughMode: wrapperspb.Bool(false),
		Headers:         []*route.HeaderMatcher{headerIs(":path", p.Path), headerIs(":method", "GET")},
		ClusterMinHealthyPercentages: map[string]*typev3.Percent{
			PrefixProbe + p.Path: {Value: 100},
		},
	})
}

// checkCluster is the application at the pod's address, where kubelets ask: not
// the loopback, which an application that listens on its pod's address alone
// does not hear, and where one that listens there alone does not serve. So it
// differs from pod to pod, and k.For is the pod. It carries no traffic.
func checkCluster(k Key, path string, v *mesh.View) *cluster.Cluster {
	c := emptyCluster(k.Name)
	pod, ok := objectName(k.For)
	if !ok {
		return c
	}
	w, ok := v.Workload(pod)
	if !ok || len(w.Addresses) == 0 {
		return c // the address comes after the pod
	}
	i := slices.IndexFunc(w.Probes, func(p mesh.Probe) bool { return p.Path == path && p.Kind != mesh.ProbeHTTP })
	if i < 0 {
		return c
	}
	p := w.Probes[i]
	at := netip.AddrPortFrom(w.Addresses[0], p.Port) // of two families, the one that the kubelet asks
	check := healthCheck(p, at)
	c.LoadAssignment = assignment(k.Name, lbEndpoint(at, false))
	c.ConnectTimeout = check.Timeout
	c.HealthChecks = []*core.HealthCheck{check}
	if p.Kind == mesh.ProbeGRPC {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: typed(&upstreams.HttpProtocolOptions{
			UpstreamProtocolOptions: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_{
				ExplicitHttpConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
						Http2ProtocolOptions: &core.Http2ProtocolOptions{},
					},
				},
			},
		})}
	}
	return c
}

// healthCheck asks as a kubelet does: over a connection of its own each time,
// with the probe's time-out. How often it must fail is for the kubelet to count.
func healthCheck(p mesh.Probe, at netip.AddrPort) *core.HealthCheck {
	timeout := time.Duration(p.Timeout) * time.Second
	if timeout == 0 {
		timeout = checkTimeout
	}
	h := &core.HealthCheck{
		Timeout:            seconds(timeout),
		Interval:           seconds(checkInterval),
		NoTrafficInterval:  seconds(checkInterval), // a minute by default, and there is no traffic
		HealthyThreshold:   wrapperspb.UInt32(1),
		UnhealthyThreshold: wrapperspb.UInt32(1),
		ReuseConnection:    wrapperspb.Bool(false),
	}
	if p.Kind == mesh.ProbeGRPC {
		h.HealthChecker = &core.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &core.HealthCheck_GrpcHealthCheck{
			ServiceName: p.Service, Authority: at.String(),
		}}
	} else {
		h.HealthChecker = &core.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &core.HealthCheck_TcpHealthCheck{}}
	}
	return h
}

// probeRoute asks the application at the address that the kubelet asked; host
// is the form in which a port can follow it.
func probeRoute(p mesh.Probe, host string) *route.Route {
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
			Header:       &core.HeaderValue{Key: probeHeader, Value: fmt.Sprintf(host, "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%") + ":" + strconv.Itoa(int(p.Port))},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
		// A kubelet follows a redirect to the host that it asked, where the path
		// that it leads to is not a probe's; one to another host it takes as it is,
		// for a success with a warning.
		ResponseHeadersToAdd: []*core.HeaderValueOption{{
			Header:       &core.HeaderValue{Key: "location", Value: notFollowed},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS,
		}},
	}
}

// onlyGET is what kubelets ask with. Nothing else is answered: who calls is not
// asked here, so that other methods would pass the workload's policies by.
func onlyGET(m *route.RouteMatch) *route.RouteMatch {
	m.Headers = append(m.Headers, headerIs(":method", "GET"))
	return m
}

func headerIs(name, value string) *route.HeaderMatcher {
	return &route.HeaderMatcher{Name: name, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: exact(value)}}
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
