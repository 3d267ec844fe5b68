package delta_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	status "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// fixed is a source of what a test puts into it.
type fixed map[build.Key]*build.Value

func (f fixed) Value(k build.Key) *build.Value { return f[k] }
func (f fixed) Scopes() delta.Collection       { return nil }

// binding has one cluster for all, and routes for a class.
func bindingOf(class string) delta.Binding {
	return delta.Binding{
		Clusters: []string{"c"},
		Bind: func(t translate.Type, name string) (build.Key, bool) {
			k := build.Key{Type: t, Name: name}
			if t == translate.Route {
				k.For = class
			}
			return k, true
		},
	}
}

// exchange sends all there is to send, each acknowledged, and returns the times
// of the changes that it tells of, by type.
func exchange(s *delta.Stream, src fixed) map[translate.Type]time.Time {
	told := map[translate.Type]time.Time{}
	for {
		p, _ := s.Next(src)
		if p == nil {
			return told
		}
		told[p.Type] = p.Since
		s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: p.Type.URL(), ResponseNonce: p.Nonce})
	}
}

func at(t translate.Type, serial int, eds string, since time.Time) *build.Value {
	v := value(t, body{serial: serial, eds: noEDS})
	v.Since, v.EDS = since, eds
	return v
}

// What is sent again for another reason than its own change does not tell of a
// change of long ago.
func TestOnlyAResourcesOwnChangeIsTimed(t *testing.T) {
	long, now := time.Unix(1000, 0), time.Unix(9000, 0)
	cluster, endpoints := build.Key{Type: translate.Cluster, Name: "c"}, build.Key{Type: translate.Endpoints, Name: "c"}
	here, there := build.Key{Type: translate.Route, Name: "r", For: "here"}, build.Key{Type: translate.Route, Name: "r", For: "there"}
	src := fixed{
		cluster: at(translate.Cluster, 1, "c", long), endpoints: at(translate.Endpoints, 1, "", long),
		here: at(translate.Route, 1, "", long), there: at(translate.Route, 2, "", long),
	}
	s := delta.New(bindingOf("here"), delta.Limits{})
	for typ, name := range map[translate.Type]string{translate.Cluster: "*", translate.Endpoints: "c", translate.Route: "r"} {
		s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: typ.URL(), ResourceNamesSubscribe: []string{name}})
	}
	for typ, since := range exchange(s, src) {
		if !since.IsZero() {
			t.Errorf("the first %v tells of a change", typ)
		}
	}

	src[cluster] = at(translate.Cluster, 2, "c", now)
	s.Dirty([]build.Key{cluster})
	told := exchange(s, src)
	if !told[translate.Cluster].Equal(now) {
		t.Errorf("the cluster tells of a change at %v", told[translate.Cluster])
	}
	if since, ok := told[translate.Endpoints]; !ok || !since.IsZero() {
		t.Errorf("the endpoints that go with it (sent: %t) tell of a change at %v", ok, since)
	}

	s.Rebind(bindingOf("there"))
	if since, ok := exchange(s, src)[translate.Route]; !ok || !since.IsZero() {
		t.Errorf("the route of another class (sent: %t) tells of a change at %v", ok, since)
	}
	src[there] = at(translate.Route, 3, "", now)
	s.Dirty([]build.Key{there})
	if since := exchange(s, src)[translate.Route]; !since.Equal(now) {
		t.Errorf("its own change tells of %v", since)
	}
}

// What was built a moment ago, and is yet to be told of, may name other clusters than what
// the stream has looked at.
func TestARouteIsNotSentBeforeClustersThatOnlyItsNewestValueNames(t *testing.T) {
	route := func(serial int, clusters ...string) *build.Value {
		return value(translate.Route, body{serial: serial, clusters: clusters})
	}
	cluster := func(name string) build.Key { return build.Key{Type: translate.Cluster, Name: name} }
	key := build.Key{Type: translate.Route, Name: "r", For: "here"}
	src := fixed{key: route(1, "late"), cluster("c"): at(translate.Cluster, 1, "", time.Time{})}
	s := delta.New(bindingOf("here"), delta.Limits{})
	s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Cluster.URL()})
	s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Route.URL(), ResourceNamesSubscribe: []string{"r"}})
	if _, sent := exchange(s, src)[translate.Route]; sent {
		t.Fatal("the route is sent, and not its cluster")
	}
	src[cluster("late")] = at(translate.Cluster, 1, "", time.Time{})
	src[key] = route(2, "other")
	s.Dirty([]build.Key{cluster("late")})
	if _, sent := exchange(s, src)[translate.Route]; sent {
		t.Error("the newest value of the route is sent, and not its cluster")
	}
	s.Dirty([]build.Key{key})
	exchange(s, src)
	same := *src[key] // found current for a later revision, of which nobody is told
	same.At++
	src[key], src[cluster("other")] = &same, at(translate.Cluster, 1, "", time.Time{})
	s.Dirty([]build.Key{cluster("other")})
	if _, sent := exchange(s, src)[translate.Route]; !sent {
		t.Error("the route is not sent, now that its cluster is")
	}
}

// A value that went back to what was refused, while another was under way that is
// refused too, is not left with the refusal of the other.
func TestARefusalIsOfTheValueThatThereIs(t *testing.T) {
	route := build.Key{Type: translate.Route, Name: "r", For: "here"}
	one, two := at(translate.Route, 1, "", time.Time{}), at(translate.Route, 2, "", time.Time{})
	src := fixed{route: one}
	s := delta.New(bindingOf("here"), delta.Limits{})
	s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Route.URL(), ResourceNamesSubscribe: []string{"r"}})
	next := func() *delta.Push {
		p, _ := s.Next(src)
		return p
	}
	refuse := func(p *delta.Push) {
		s.Request(&discovery.DeltaDiscoveryRequest{
			TypeUrl: translate.Route.URL(), ResponseNonce: p.Nonce,
			ErrorDetail: &status.Status{Code: 3, Message: p.Resources[0].Version},
		})
	}
	refuse(next())
	src[route] = two
	s.Dirty([]build.Key{route})
	second := next()
	src[route] = one
	s.Dirty([]build.Key{route})
	if p := next(); p != nil {
		t.Fatalf("what was refused was sent again: %v", p.Resources)
	}
	refuse(second)
	if p := next(); p != nil { // it may be sent once more
		refuse(p)
	}
	if p := next(); p != nil {
		t.Errorf("there is no end to what is sent: %v", p.Resources)
	}
	if h, _ := s.Holding(route); h.Rejected == nil || h.Rejected.Version != one.Version || h.Rejected.Message != one.Version {
		t.Errorf("the value is %s, and what is known to be refused %+v", one.Version, h.Rejected)
	}
}

func TestWordsOfARefusalAreKeptShort(t *testing.T) {
	route := build.Key{Type: translate.Route, Name: "r", For: "here"}
	src := fixed{route: at(translate.Route, 1, "", time.Time{})}
	s := delta.New(bindingOf("here"), delta.Limits{})
	s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Route.URL(), ResourceNamesSubscribe: []string{"r"}})
	p, _ := s.Next(src)
	e := s.Request(&discovery.DeltaDiscoveryRequest{
		TypeUrl: translate.Route.URL(), ResponseNonce: p.Nonce,
		ErrorDetail: &status.Status{Code: 3, Message: strings.Repeat("ü", 1<<20)},
	})
	held, ok := s.Holding(route)
	if !ok || held.Rejected == nil {
		t.Fatal("the refusal is not known")
	}
	for _, kept := range []string{held.Rejected.Message, e.Refused.Message} {
		if len(kept) > delta.MaxMessage || len(kept) < delta.MaxMessage/2 || !utf8.ValidString(kept) || !strings.HasSuffix(kept, "…") {
			t.Errorf("%d bytes are kept: %.20q", len(kept), kept)
		}
	}
}

// What a proxy wants and wants no more, again and again, while it takes nothing, is
// not kept.
func TestWhatAProxyDropsIsNotKept(t *testing.T) {
	const times = 50_000
	cluster, route := build.Key{Type: translate.Cluster, Name: "c"}, build.Key{Type: translate.Route, Name: "r"}
	src := fixed{cluster: at(cluster.Type, 1, "", time.Time{}), route: at(route.Type, 1, "", time.Time{})}
	s := delta.New(bindingOf("class"), delta.Limits{})
	s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Cluster.URL()})
	s.Next(src)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range times {
		for _, t := range []translate.Type{translate.Cluster, translate.Route} {
			name := []string{fmt.Sprintf("%s-%d", strings.Repeat("n", 200), i)}
			s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesSubscribe: name})
			s.Request(&discovery.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesUnsubscribe: name})
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("%d names that the proxy has no more take %d KiB", times, grown>>10)
	}
	runtime.KeepAlive(s)
}

// A request may name a million things that the proxy cannot have.
func TestWhatIsIgnoredIsCounted(t *testing.T) {
	s := delta.New(bindingOf("class"), delta.Limits{Names: 3})
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: translate.Route.URL(), ResourceNamesSubscribe: []string{"*", ""}}
	for i := range 1000 {
		r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, fmt.Sprint("r", i), "")
	}
	want := []delta.Ignored{
		{URL: translate.Route.URL(), Name: "*", Reason: delta.NotPermitted, Count: 1002},
		{URL: translate.Route.URL(), Name: "r3", Reason: delta.TooMany, Count: 997},
	}
	if e := s.Request(r); !slices.Equal(e.Ignored, want) {
		t.Errorf("%d parts are ignored, the first %v; want %v", len(e.Ignored), e.Ignored[:min(2, len(e.Ignored))], want)
	}
}
