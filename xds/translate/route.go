package translate

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previouspriorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func routeFor(k Key, v *mesh.View) Result {
	if k.Name == RouteInbound {
		return Result{Message: inboundRoutes(k.For, v), Clusters: []string{ClusterInbound}}
	}
	return outboundRoutes(k.Name, k.For, v)
}

// outboundRoutes are the routes to a service at one of its addresses and
// ports, as the namespace's clients take them.
func outboundRoutes(name, namespace string, v *mesh.View) Result {
	vip, err := netip.ParseAddrPort(name)
	if err != nil {
		return Result{Message: routesOf(name)}
	}
	svc, port, ok := v.ServiceAt(vip)
	if !ok {
		return Result{Message: routesOf(name)}
	}
	o := outbound{client: namespace, view: v, service: svc.Name, port: port.Port, traffic: trafficFor(namespace, svc.Name, port.Port, v)}
	split := splitFor(svc, port, v)
	if split != nil {
		for i, r := range split.Rules {
			for j, m := range r.Matches {
				o.add(fmt.Sprintf("%s#%d.%d", split.Meta.Name, i, j), requestMatch(m), r.Backends, r.Mirrors)
			}
		}
		o.add(split.Meta.Name.String(), prefixMatch("/"), split.Backends, split.Mirrors)
	} else {
		o.add(svc.Name.String(), prefixMatch("/"), []mesh.Backend{{Service: svc.Name.Name, Weight: 1}}, nil)
	}
	c := routesOf(name, o.routes...)
	c.VirtualHosts[0].Name = fmt.Sprintf("%s:%d", svc.Name, port.Port)
	c.VirtualHosts[0].RequestHeadersToRemove = []string{dstHeader}
	c.VirtualHosts[0].ResponseHeadersToRemove = []string{unreachedHeader}
	slices.Sort(o.clusters)
	return Result{Message: c, Clusters: slices.Compact(o.clusters)}
}

// outbound collects the routes to one service's port.
type outbound struct {
	client   string // namespace
	view     *mesh.View
	service  mesh.Name
	port     uint16
	traffic  traffic
	routes   []*route.Route
	clusters []string
}

func (o *outbound) add(name string, m *route.RouteMatch, backends []mesh.Backend, mirrors []mesh.Mirror) {
	a := &route.RouteAction{
		Timeout:     durationpb.New(o.traffic.timeout),
		IdleTimeout: durationpb.New(o.traffic.idle), // 0 lifts the bound on the wait for this very route
		RetryPolicy: retryPolicy(o.traffic.retries, o.traffic.locality.Prefer),
	}
	var weighted []*route.WeightedCluster_ClusterWeight
	for _, b := range backends {
		if b.Weight == 0 {
			continue
		}
		backend := mesh.Name{Namespace: o.service.Namespace, Name: b.Service}
		// Whose pod is chosen by a hash says by which.
		t := o.traffic
		if backend != o.service {
			t = trafficFor(o.client, backend, o.port, o.view)
		}
		a.HashPolicy = append(a.HashPolicy, t.hash()...)
		c := ClusterName(backend, o.port)
		o.clusters = append(o.clusters, c)
		weighted = append(weighted, &route.WeightedCluster_ClusterWeight{Name: c, Weight: wrapperspb.UInt32(b.Weight)})
	}
	for _, mirror := range mirrors {
		c := ClusterName(mesh.Name{Namespace: o.service.Namespace, Name: mirror.Service}, o.port)
		o.clusters = append(o.clusters, c)
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &route.RouteAction_RequestMirrorPolicy{
			Cluster: c, DisableShadowHostSuffixAppend: true,
			RuntimeFraction: &core.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{
				Numerator: mirror.Percent, Denominator: typev3.FractionalPercent_HUNDRED,
			}},
		})
	}
	switch len(weighted) {
	case 0:
		a.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: ClusterBlackhole}
	case 1:
		a.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: weighted[0].Name}
	default:
		a.ClusterSpecifier = &route.RouteAction_WeightedClusters{WeightedClusters: &route.WeightedCluster{Clusters: weighted}}
	}
	o.routes = append(o.routes, &route.Route{Name: name, Match: m, Action: &route.Route_Route{Route: a}})
}

func retryPolicy(r mesh.Retries, prefer mesh.Near) *route.RetryPolicy {
	if r.Attempts == 0 {
		return nil
	}
	p := &route.RetryPolicy{
		RetryOn:    strings.Join(r.On, ","),
		NumRetries: wrapperspb.UInt32(r.Attempts),
		// Another host than the one that failed, if there is another.
		RetryHostPredicate: []*route.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: typed(&previoushosts.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: 5,
	}
	if !slices.ContainsFunc(r.On, func(c string) bool { return !slices.Contains(defaultRetries.On, c) }) {
		// No server has seen it: after two attempts the last resort (endpoints), or,
		// where what is near is preferred, after one what is farther.
		update := int32(2)
		if prefer != mesh.Anywhere {
			update = 1
		}
		p.RetryPriority = &route.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &route.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: typed(&previouspriorities.PreviousPrioritiesConfig{UpdateFrequency: update}),
			},
		}
	}
	if slices.Contains(r.On, connectFailure) {
		// A connection to the application that its sidecar did not get.
		p.RetryOn += ",retriable-headers"
		p.RetriableHeaders = []*route.HeaderMatcher{{
			Name: unreachedHeader, HeaderMatchSpecifier: &route.HeaderMatcher_PresentMatch{PresentMatch: true},
		}}
	}
	if r.PerTryTimeout > 0 {
		p.PerTryTimeout = durationpb.New(r.PerTryTimeout)
	}
	base := min(cmp.Or(r.Base, defaultBackOff), maxBackOff)
	p.RetryBackOff = &route.RetryPolicy_RetryBackOff{
		BaseInterval: durationpb.New(base), MaxInterval: durationpb.New(max(cmp.Or(r.Max, backOffGrowth*base), base)),
	}
	return p
}

func requestMatch(m mesh.RequestMatch) *route.RouteMatch {
	out := prefixMatch("/")
	if m.Path != nil {
		switch m.Path.Type {
		case mesh.Exact:
			out = pathMatch(m.Path.Value)
		case mesh.Prefix:
			if p := strings.TrimRight(m.Path.Value, "/"); p != "" {
				out = &route.RouteMatch{PathSpecifier: &route.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: p}}
			}
		case mesh.Regex:
			out = &route.RouteMatch{PathSpecifier: &route.RouteMatch_SafeRegex{SafeRegex: regex(m.Path.Value).GetSafeRegex()}}
		}
	}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, &route.HeaderMatcher{
			Name: h.Name, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: valueMatch(h)},
		})
	}
	if m.Method != "" {
		out.Headers = append(out.Headers, headerIs(":method", m.Method))
	}
	for _, q := range m.Query {
		out.QueryParameters = append(out.QueryParameters, &route.QueryParameterMatcher{
			Name: q.Name, QueryParameterMatchSpecifier: &route.QueryParameterMatcher_StringMatch{StringMatch: valueMatch(q)},
		})
	}
	return out
}

// valueMatch compares the value of a header or of a parameter.
func valueMatch(m mesh.HeaderMatch) *matcher.StringMatcher {
	if m.Type == mesh.Regex {
		return regex(m.Value)
	}
	return exact(m.Value)
}

// splitFor is the split that holds for a service's port: the oldest that is
// sound. One that is not leaves traffic as though it were absent.
func splitFor(svc *mesh.Service, port mesh.ServicePort, v *mesh.View) *mesh.Split {
	for _, s := range v.Splits(svc.Name) {
		if (s.Port == 0 || s.Port == port.Port) && splitFault(s, port.Port, v) == nil {
			return s
		}
	}
	return nil
}

// fault is why a split does not hold.
type fault struct{ condition, reason, message string }

// splitFault looks for what keeps a split from holding on the port.
func splitFault(s *mesh.Split, port uint16, v *mesh.View) *fault {
	if s.Invalid != "" {
		return &fault{conditionAccepted, reasonInvalid, s.Invalid}
	}
	lists := [][]mesh.Backend{s.Backends}
	mirrors := slices.Clone(s.Mirrors)
	for _, r := range s.Rules {
		lists = append(lists, r.Backends)
		mirrors = append(mirrors, r.Mirrors...)
	}
	for _, m := range mirrors {
		if f := splitTarget(s, m.Service, port, v); f != nil {
			return f
		}
	}
	for _, bs := range lists {
		var sum uint64
		for _, b := range bs {
			sum += uint64(b.Weight)
			if f := splitTarget(s, b.Service, port, v); f != nil {
				return f
			}
		}
		if sum == 0 || sum > math.MaxUint32 {
			return &fault{conditionAccepted, reasonInvalid, "the weights of each list of backends must add up to more than 0, and to less than 2^32"}
		}
	}
	return nil
}

// splitTarget looks for what keeps a service from being sent what is split.
func splitTarget(s *mesh.Split, name string, port uint16, v *mesh.View) *fault {
	n := mesh.Name{Namespace: s.Meta.Namespace, Name: name}
	svc, ok := v.Service(n)
	if !ok {
		return &fault{conditionResolvedRefs, reasonServiceNotFound, fmt.Sprintf("there is no Service %s; create it, or take it out of the split", n)}
	}
	if _, ok := svc.Port(port); !ok {
		return &fault{conditionResolvedRefs, reasonPortNotFound, fmt.Sprintf("Service %s has no port %d, which is the port of %s/%s; give it that port", n, port, s.Meta.Namespace, s.Service)}
	}
	return nil
}
