package delta_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tulle-mesh/tulle/xds/translate"
)

// envoy is a proxy as far as delta xDS goes. It does what Envoy is seen to do:
// asks for listeners when it has clusters, for endpoints when it has a cluster
// that needs them, drops what it did not ask for, says nothing to a type that
// it never asked for, and withholds its answer while a cluster warms.
type envoy struct {
	held     [translate.Findings]map[string]string // what it has, by version
	asked    [translate.Findings]map[string]bool   // by name
	seen     [translate.Findings]bool              // it has said something on this stream
	wildcard [translate.Findings]bool              // it subscribes to all
	clusters map[string]bool                       // clusters that it was ever sent
	needs    map[string][]string                   // clusters of held listeners and routes
	used     map[string]string                     // clusters in use, by version
	eds      map[string]string                     // their load assignments, by name
	warming  map[string]bool
	withheld []*discovery.DeltaDiscoveryRequest // cluster answers
	ready    bool

	in  []*discovery.DeltaDiscoveryResponse
	out []*discovery.DeltaDiscoveryRequest

	// For the rule that nothing is sent twice: what came last on this stream
	// or was claimed at its start, and what there is an excuse to send again.
	last    [translate.Findings]map[string]string
	excuses [translate.Findings]map[string]int
	wrong   error
}

func newEnvoy() *envoy {
	e := &envoy{clusters: map[string]bool{}, needs: map[string][]string{}, warming: map[string]bool{}, used: map[string]string{}, eds: map[string]string{}}
	for t := range e.held {
		e.held[t], e.asked[t] = map[string]string{}, map[string]bool{}
	}
	e.wildcard[translate.Cluster] = true
	return e
}

func (e *envoy) fail(format string, args ...any) {
	if e.wrong == nil {
		e.wrong = fmt.Errorf(format, args...)
	}
}

// connect begins a stream: what was under way is lost.
func (e *envoy) connect() {
	e.in, e.out, e.withheld = nil, nil, nil
	e.seen = [translate.Findings]bool{}
	for t := range e.held {
		e.last[t], e.excuses[t] = maps.Clone(e.held[t]), map[string]int{}
	}
	for _, t := range [...]translate.Type{translate.Cluster, translate.Endpoints, translate.Listener, translate.Secret, translate.Scope, translate.Route} {
		if e.wildcard[t] || len(e.asked[t]) > 0 {
			e.first(t)
		}
	}
}

func (e *envoy) first(t translate.Type) {
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: t.URL(), InitialResourceVersions: map[string]string{}}
	names := slices.Sorted(maps.Keys(e.asked[t]))
	if e.wildcard[t] && len(names) > 0 {
		names = append([]string{"*"}, names...)
	}
	r.ResourceNamesSubscribe = names
	for name, version := range e.held[t] {
		if version != "" {
			r.InitialResourceVersions[name] = version
		}
	}
	for _, name := range names {
		if e.held[t][name] == "" {
			e.excuses[t][name]++
		}
	}
	e.seen[t] = true
	e.out = append(e.out, r)
}

func (e *envoy) all(t translate.Type) {
	if !e.wildcard[t] {
		e.wildcard[t] = true
		e.first(t)
	}
}

func (e *envoy) ask(t translate.Type, name string) {
	if e.asked[t][name] {
		return
	}
	e.asked[t][name] = true
	if !e.seen[t] {
		e.first(t)
		return
	}
	e.excuses[t][name]++
	e.out = append(e.out, &discovery.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesSubscribe: []string{name}})
}

func (e *envoy) forget(t translate.Type, name string) {
	if !e.asked[t][name] {
		return
	}
	delete(e.asked[t], name)
	if e.wildcard[t] {
		e.excuses[t][name]++
	} else {
		delete(e.held[t], name)
		delete(e.last[t], name)
	}
	e.out = append(e.out, &discovery.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesUnsubscribe: []string{name}})
}

// receive takes in the next response.
func (e *envoy) receive() bool {
	if len(e.in) == 0 {
		return false
	}
	r := e.in[0]
	e.in = e.in[1:]
	t, _ := translate.TypeOf(r.TypeUrl)
	if !e.seen[t] {
		e.fail("%s sent before it was asked for: Envoy would not answer", t.URL())
		return true
	}
	distinct := map[string]bool{}
	for _, name := range append(names(r), r.RemovedResources...) {
		name, _, _ = strings.Cut(name, "@")
		if distinct[name] {
			e.fail("%s %s is in a response twice", t.URL(), name)
		}
		distinct[name] = true
	}
	bad := ""
	for _, res := range r.Resources {
		e.check(t, res)
		if poisoned(t, res) {
			bad = res.Name
		}
	}
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	if bad != "" {
		ack.ErrorDetail = &status.Status{Code: 3, Message: "does not like " + bad}
		for _, res := range r.Resources {
			e.excuses[t][res.Name]++
			switch {
			case t == translate.Endpoints:
				delete(e.warming, res.Name) // Envoy goes on without
			case t == translate.Cluster && !poisoned(t, res):
				e.replace(res) // but it does not say that it has it
			}
		}
	} else {
		for _, res := range r.Resources {
			e.apply(t, res)
		}
		for _, name := range r.RemovedResources {
			delete(e.held[t], name)
			delete(e.last[t], name)
			delete(e.needs, t.URL()+name)
			if t == translate.Cluster {
				delete(e.used, name)
			}
		}
	}
	e.afterwards(t)
	if t == translate.Cluster {
		e.withheld = append(e.withheld, ack)
	} else {
		e.out = append(e.out, ack)
	}
	if len(e.warming) == 0 {
		e.out = append(e.out, e.withheld...)
		e.withheld = nil
	}
	return true
}

func poisoned(t translate.Type, r *discovery.Resource) bool {
	if t != translate.Scope {
		return read(r.Resource).bad
	}
	var sc route.ScopedRouteConfiguration
	if err := proto.Unmarshal(r.Resource.Value, &sc); err != nil {
		panic(err)
	}
	return sc.RouteConfigurationName == badScope
}

// check holds a resource against the promises.
func (e *envoy) check(t translate.Type, r *discovery.Resource) {
	if e.last[t][r.Name] == r.Version {
		if e.excuses[t][r.Name] == 0 {
			e.fail("%s %s was sent again in version %s", t.URL(), r.Name, r.Version)
		} else {
			e.excuses[t][r.Name]--
		}
	}
	e.last[t][r.Name] = r.Version
	switch t {
	case translate.Cluster:
		e.clusters[r.Name] = true
		e.excuses[translate.Endpoints][read(r.Resource).eds]++
	case translate.Route, translate.Listener:
		for _, c := range read(r.Resource).clusters {
			if !e.clusters[c] {
				e.fail("%s %s needs cluster %s, which was not sent", t.URL(), r.Name, c)
			}
		}
		if t == translate.Listener && r.Name == "ready" {
			e.checkReady()
		}
	}
}

// checkReady: ready may come only when all that was asked for was answered.
func (e *envoy) checkReady() {
	e.ready = true
	for _, name := range []string{"in", "out"} {
		if e.held[translate.Listener][name] == "" {
			e.fail("ready came before listener %s was taken", name)
		}
	}
	for _, name := range []string{"workload", "roots"} {
		if e.last[translate.Secret][name] == "" {
			e.fail("ready came before secret %s", name)
		}
	}
}

func (e *envoy) apply(t translate.Type, r *discovery.Resource) {
	switch t {
	case translate.Endpoints:
		delete(e.warming, r.Name)
		if !e.asked[t][r.Name] {
			return // what was not asked for is dropped
		}
	case translate.Cluster:
		e.replace(r)
	case translate.Route, translate.Secret:
		if !e.asked[t][r.Name] {
			return // it was unsubscribed meanwhile
		}
	}
	if t == translate.Route || t == translate.Listener {
		e.needs[t.URL()+r.Name] = read(r.Resource).clusters
	}
	e.held[t][r.Name] = r.Version
}

// replace puts a cluster into use that differs from the one before. It warms
// until it gets a load assignment, for which only a new one asks.
func (e *envoy) replace(r *discovery.Resource) {
	if b := read(r.Resource); b.eds != noEDS && e.used[r.Name] != r.Version {
		if old := e.eds[r.Name]; old != b.eds {
			delete(e.warming, old)
			e.forget(translate.Endpoints, old)
			e.eds[r.Name] = b.eds
		}
		e.warming[b.eds] = true
		e.ask(translate.Endpoints, b.eds)
	}
	e.used[r.Name] = r.Version
}

// afterwards is what a proxy asks for when it has got as far.
func (e *envoy) afterwards(t translate.Type) {
	switch t {
	case translate.Cluster:
		e.all(translate.Listener)
	case translate.Listener:
		e.all(translate.Scope)
		e.ask(translate.Route, "inbound")
		e.ask(translate.Secret, "workload")
		e.ask(translate.Secret, "roots")
	case translate.Scope: // eager ones ask for their routes
		for _, name := range slices.Sorted(maps.Keys(e.held[t])) {
			if strings.HasSuffix(e.held[t][name], "~") {
				e.ask(translate.Route, name)
			}
		}
	}
}
