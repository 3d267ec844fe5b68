package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func routeFor(k Key, v *mesh.View) Result {
	if k.Name == RouteInbound || strings.HasPrefix(k.Name, prefixInbound) {
		return inboundRoutes(k.Name, k.For, v)
	}
	if strings.HasPrefix(k.Name, PrefixGateway) {
		return gatewayRoutes(k.Name, k.For, v)
	}
	switch k.Name {
	case RouteEgress:
		return Result{Message: egressRoutes(k.For, v)}
	case RouteEgressAt:
		return Result{Message: egressRoutesAt(k.For, v)}
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
	t := trafficFor(namespace, svc.Name, port.Port, v)
	o := outbound{client: namespace, view: v, scheme: "http", port: port.Port, service: svc.Name, traffic: t}
	for _, r := range rulesFor(svc, port, namespace, v) {
		o.add(r)
	}
	c := routesOf(name, o.routes...)
	c.VirtualHosts[0].Name = fmt.Sprintf("%s:%d", svc.Name, port.Port)
	c.VirtualHosts[0].RequestHeadersToRemove = []string{dstHeader}
	c.VirtualHosts[0].ResponseHeadersToRemove = []string{unreachedHeader}
	c.VirtualHosts[0].TypedPerFilterConfig = t.faults()
	slices.Sort(o.clusters)
	return Result{Message: c, Clusters: slices.Compact(o.clusters)}
}

// rule says what becomes of requests that match, whichever kind of object says so.
type rule struct {
	name     string
	of       mesh.Ref        // the object that says it
	source   *mesh.RouteRule // where that is a route
	match    mesh.RequestMatch
	request  headerChanges // and response: of all backends
	response headerChanges
	redirect *mesh.Redirect
	rewrite  *mesh.Rewrite
	backends []share
	mirrors  []mirror
	cors     *mesh.CORS
	affinity *mesh.Hash // nil: each request is shared out anew
	// timeout, tryTimeout and retries are nil where policies say.
	timeout, tryTimeout *time.Duration
	retries             *mesh.Retries
	policies            []*mesh.Traffic // about the route whose rule it is
}

// endpointsOf are a service's endpoints by one of its ports, those of pods with some
// labels or all; the zero value stands for a backend that does not exist.
type endpointsOf struct {
	service mesh.Name
	port    uint16
	labels  string // as in a cluster's name
	// external says that it is an external service's port, and labels which host (outID).
	external bool
}

func (e endpointsOf) missing() bool { return e == endpointsOf{} }

// share is a backend, and how much of the requests it takes.
type share struct {
	to                endpointsOf
	weight            uint32
	request, response headerChanges
}

// changes reports whether the backend has changes of its own.
func (s share) changes() bool { return s.request.some() || s.response.some() }

// mirror gets copies of numerator/denominator of the requests.
type mirror struct {
	to                     endpointsOf
	numerator, denominator uint32
}

// rulesFor are the rules for the clients of a namespace, in the order in which they
// are tried: those of routes, else those of a split, else the service's own endpoints.
func rulesFor(svc *mesh.Service, port mesh.ServicePort, client string, v *mesh.View) []rule {
	if routes := routesFor(svc, port, client, v); len(routes) > 0 {
		return routeRules(svc.Name, routes, v)
	}
	if s := splitFor(svc, port, v); s != nil {
		return splitRules(s, port.Port)
	}
	return []rule{{name: svc.Name.String(), of: mesh.Ref{Kind: mesh.KindService, Name: svc.Name}, backends: []share{{to: endpointsOf{service: svc.Name, port: port.Port}, weight: 1}}}}
}

// outbound collects the routes of what was called at a port.
type outbound struct {
	client   string    // namespace
	account  mesh.Name // a gateway's own
	gateway  *mesh.Gateway
	view     *mesh.View
	scheme   string // http or https
	port     uint16
	service  mesh.Name // that was called; none at a gateway
	traffic  traffic   // what policies say of calls to it
	routes   []*route.Route
	clusters []string
}

func (o *outbound) atGateway() bool { return o.service == (mesh.Name{}) }

func (o *outbound) add(r rule) {
	if asking, ok := r.preflight(); ok {
		o.add(asking)
	}
	for _, out := range o.routesFor(r) {
		// What Envoy would refuse, it would refuse all of.
		if out.Validate() != nil {
			out = &route.Route{Name: r.name, Match: out.Match, Action: r.failing()}
			if out.Validate() != nil {
				continue
			}
		}
		o.routes = append(o.routes, out)
	}
}

const methodOptions = "OPTIONS"

// preflight is the rule for what browsers ask before a request of its method, which is no
// request of that method (https://fetch.spec.whatwg.org/#cors-preflight-request).
func (r rule) preflight() (rule, bool) {
	if r.cors == nil || r.match.Method == "" || r.match.Method == methodOptions {
		return rule{}, false
	}
	asked := mesh.HeaderMatch{Type: mesh.Exact, Name: "access-control-request-method", Value: r.match.Method}
	r.match.Headers = append(slices.Clone(r.match.Headers), asked)
	r.match.Method = methodOptions
	return r, true
}

// failing answers what goes to no backend: 500, and of a GRPCRoute 503, which calls end
// with UNAVAILABLE for. The Gateway API has it so.
func (r rule) failing() *route.Route_DirectResponse {
	if r.match.GRPC != nil {
		return answer(503)
	}
	return answer(500)
}

func answer(status uint32) *route.Route_DirectResponse {
	return &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: status}}
}

func (o *outbound) routesFor(r rule) []*route.Route {
	if slices.ContainsFunc(r.backends, share.changes) {
		// A backend's changes come after its rule's. Envoy has it the other way round.
		r.backends = slices.Clone(r.backends)
		for i, b := range r.backends {
			r.backends[i].request, r.backends[i].response = r.request.then(b.request), r.response.then(b.response)
		}
		r.request, r.response = headerChanges{}, headerChanges{}
	}
	out := &route.Route{
		Name: r.name, Match: requestMatch(r.match),
		RequestHeadersToAdd: r.request.add, RequestHeadersToRemove: r.request.remove,
		ResponseHeadersToAdd: r.response.add, ResponseHeadersToRemove: r.response.remove,
		TypedPerFilterConfig: crossOrigin(r.cors),
	}
	called := o.called(r)
	if faults := called.faults(); faults != nil && called.fault != o.traffic.fault { // which is of the virtual host
		maps.Copy(faults, out.TypedPerFilterConfig)
		out.TypedPerFilterConfig = faults
	}
	if r.redirect != nil {
		out.Action = &route.Route_Redirect{Redirect: redirect(r.redirect, r.match.Path, o.scheme, o.port)}
		return []*route.Route{out}
	}
	var broken, sum uint64
	for _, b := range r.backends {
		sum += uint64(b.weight)
		if b.to.missing() {
			broken += uint64(b.weight)
		}
	}
	if broken == sum { // or nothing is there at all
		out.Action = r.failing()
		return []*route.Route{out}
	}
	if broken == 0 {
		out.Action = &route.Route_Route{Route: o.action(r, called)}
		return []*route.Route{out}
	}
	// The share of what does not exist fails, and the others' does not grow.
	some := &route.Route{Name: r.name + "#broken", Match: requestMatch(r.match), Action: r.failing()}
	some.Match.RuntimeFraction = &core.RuntimeFractionalPercent{DefaultValue: fraction(broken, sum)}
	r.backends = independent(r.backends)
	out.Action = &route.Route_Route{Route: o.action(r, called)}
	return []*route.Route{some, out}
}

// independent has the choice between backends not depend on whether a request was one of
// a fraction in millionths. Envoy takes both from one random number, which is so where
// the weights' sum has no divisor in common with a million. That costs a weight less
// than a thousandth of the sum.
func independent(backends []share) []share {
	out := slices.DeleteFunc(slices.Clone(backends), func(b share) bool { return b.weight == 0 || b.to.missing() })
	const finer = 100 // a sum is 16,000,000 at most
	var sum uint32
	most := 0
	for i := range out {
		out[i].weight *= finer
		sum += out[i].weight
		if out[i].weight > out[most].weight {
			most = i
		}
	}
	out[most].weight++ // and a multiple of 100, and one, is a multiple of neither 2 nor 5
	return out
}

// fraction is a part of a whole, in millionths.
func fraction(part, whole uint64) *typev3.FractionalPercent {
	const million = 1_000_000
	return &typev3.FractionalPercent{Numerator: uint32(part * million / whole), Denominator: typev3.FractionalPercent_MILLION}
}

func (o *outbound) action(r rule, called traffic) *route.RouteAction {
	retries := called.retries
	if r.retries != nil {
		retries = *r.retries
		retries.PerTryTimeout = called.retries.PerTryTimeout
	}
	if r.tryTimeout != nil {
		retries.PerTryTimeout = *r.tryTimeout
	}
	a := &route.RouteAction{
		Timeout:     durationpb.New(called.timeout),
		IdleTimeout: called.idleBound(),
	}
	if r.timeout != nil {
		a.Timeout = durationpb.New(*r.timeout)
	}
	if o.atGateway() && called.idle == nil {
		a.IdleTimeout = nil // a gateway's own bound holds (gatewayManager)
		if a.Timeout.AsDuration() > gatewayIdleTimeout {
			a.IdleTimeout = a.Timeout // so long the answer may take
		}
	}
	rewrite(a, r.rewrite, r.match.Path)
	if r.affinity != nil { // and nothing else decides
		a.HashPolicy = []*route.RouteAction_HashPolicy{hashPolicy(*r.affinity)}
	}
	near := mesh.SameNode // as all backends are preferred to be
	var weighted []*route.WeightedCluster_ClusterWeight
	for _, b := range r.backends {
		if b.weight == 0 || b.to.missing() {
			continue
		}
		// Whose pod is chosen by a hash says by which.
		t := called
		if b.to.service != o.service || b.to.port != o.port {
			t = o.trafficTo(b.to)
		}
		if r.affinity == nil {
			a.HashPolicy = append(a.HashPolicy, t.hash()...)
		}
		near = min(near, t.locality.Prefer)
		weighted = append(weighted, &route.WeightedCluster_ClusterWeight{
			Name: o.cluster(b.to, r.match.GRPC != nil), Weight: wrapperspb.UInt32(b.weight),
			RequestHeadersToAdd: b.request.add, RequestHeadersToRemove: b.request.remove,
			ResponseHeadersToAdd: b.response.add, ResponseHeadersToRemove: b.response.remove,
		})
	}
	a.RetryPolicy = retryPolicy(retries, near)
	for _, m := range r.mirrors {
		if m.to.missing() {
			continue
		}
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &route.RouteAction_RequestMirrorPolicy{
			Cluster: o.cluster(m.to, r.match.GRPC != nil), DisableShadowHostSuffixAppend: true,
			RuntimeFraction: &core.RuntimeFractionalPercent{DefaultValue: mirrored(m)},
		})
	}
	if len(weighted) == 1 && !changes(weighted[0]) {
		a.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: weighted[0].Name}
	} else {
		w := &route.WeightedCluster{Clusters: weighted}
		if r.affinity != nil {
			w.RandomValueSpecifier = &route.WeightedCluster_UseHashPolicy{UseHashPolicy: wrapperspb.Bool(true)}
		}
		a.ClusterSpecifier = &route.RouteAction_WeightedClusters{WeightedClusters: w}
	}
	return a
}

// called is what policies say of requests that the rule is about: of those to the
// service that was called, or at a gateway to the first backend that gets any, and of
// those of the route whose rule it is.
func (o *outbound) called(r rule) traffic {
	out := o.traffic
	if o.atGateway() {
		out = o.first(r)
	}
	for _, p := range r.policies {
		out.take(p)
	}
	return out
}

func (o *outbound) first(r rule) traffic {
	for _, b := range r.backends {
		if b.weight > 0 && !b.to.missing() {
			return o.trafficTo(b.to)
		}
	}
	return traffic{retries: defaultRetries}
}

func changes(w *route.WeightedCluster_ClusterWeight) bool {
	return len(w.RequestHeadersToAdd)+len(w.RequestHeadersToRemove)+len(w.ResponseHeadersToAdd)+len(w.ResponseHeadersToRemove) > 0
}

func mirrored(m mirror) *typev3.FractionalPercent {
	if m.denominator == 100 {
		return &typev3.FractionalPercent{Numerator: m.numerator, Denominator: typev3.FractionalPercent_HUNDRED}
	}
	return fraction(uint64(m.numerator), uint64(m.denominator))
}

// cluster is the name of the cluster of the endpoints, of which it takes note. A sidecar
// leaves HTTP's version as its application chose it. A gateway's clients know nothing of
// the application: it is spoken to as its port says, and for GRPCRoutes in HTTP/2.
func (o *outbound) cluster(to endpointsOf, grpc bool) string {
	if to.external {
		return o.clusterOut(to)
	}
	prefix := prefixService
	if o.atGateway() {
		prefix = prefixEdge
		if svc, ok := o.view.Service(to.service); ok {
			if p, _ := svc.Port(to.port); grpc || p.Protocol == mesh.HTTP2 || p.Protocol == mesh.GRPC {
				prefix = prefixEdgeH2
			}
		}
	}
	c := o.own(to.name(prefix), to)
	o.clusters = append(o.clusters, c)
	return c
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
