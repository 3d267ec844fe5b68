package delta_test

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// body is what a made-up resource says, written into its Any as text.
type body struct {
	serial   int
	bad      bool   // proxies refuse it
	eds      string // name of a cluster's load assignment; noEDS: none
	clusters []string
}

const noEDS = "-"

func (b body) String() string {
	return fmt.Sprintf("%d %t %s %s", b.serial, b.bad, b.eds, strings.Join(b.clusters, ","))
}

func read(a *anypb.Any) body {
	var b body
	var clusters string
	// An empty list leaves the last verb without input: that is no error here.
	_, _ = fmt.Sscanf(string(a.GetValue()), "%d %t %s %s", &b.serial, &b.bad, &b.eds, &clusters)
	if clusters != "" {
		b.clusters = strings.Split(clusters, ",")
	}
	return b
}

func value(t translate.Type, b body) *build.Value {
	return &build.Value{
		Version:  "v" + strings.ReplaceAll(b.String(), " ", "-"),
		Body:     &anypb.Any{TypeUrl: t.URL(), Value: []byte(b.String())},
		Clusters: b.clusters,
		EDS:      strings.TrimPrefix(b.eds, noEDS),
	}
}

// badScope is the route of a scope that proxies refuse.
const badScope = "bad"

func scopeValue(serial int, bad bool) *build.Value {
	sc := &route.ScopedRouteConfiguration{OnDemand: true, Name: fmt.Sprint(serial)}
	if bad {
		sc.RouteConfigurationName = badScope
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(sc)
	if err != nil {
		panic(err)
	}
	return &build.Value{
		Version: fmt.Sprintf("s%d-%t", serial, bad),
		Body:    &anypb.Any{TypeUrl: translate.Scope.URL(), Value: b},
	}
}

// source is a builder that builds late, and remembers little of what changed
// in its set of scopes.
type source struct {
	rng     *rand.Rand
	current map[build.Key]body // what a build gives
	built   map[build.Key]*build.Value
	wanted  map[build.Key]bool
	scopes  *collection
}

func newSource(rng *rand.Rand) *source {
	return &source{
		rng: rng, current: map[build.Key]body{}, built: map[build.Key]*build.Value{},
		wanted: map[build.Key]bool{}, scopes: &collection{all: map[string]*build.Value{}},
	}
}

func (s *source) Value(k build.Key) *build.Value { return s.built[k] }
func (s *source) Scopes() delta.Collection       { return s.scopes }

func (s *source) content(k build.Key) body {
	b, ok := s.current[k]
	if !ok {
		b = s.fresh(k, 0)
		s.current[k] = b
	}
	return b
}

func (s *source) fresh(k build.Key, serial int) body {
	b := body{serial: serial, eds: noEDS}
	if k.Type == translate.Cluster && strings.HasPrefix(k.Name, "svc|") {
		b.eds = k.Name
		if s.rng.IntN(3) == 0 {
			b.eds = "near|zone|ns|" + k.Name
		}
	}
	if k.Type == translate.Route || k.Type == translate.Listener {
		for range s.rng.IntN(3) {
			b.clusters = append(b.clusters, fmt.Sprintf("svc|%d", s.rng.IntN(6)))
		}
		slices.Sort(b.clusters)
		b.clusters = slices.Compact(b.clusters)
	}
	return b
}

// mutate changes one of the wanted keys, mostly to something good.
func (s *source) mutate() (changed []build.Key) {
	keys := s.sorted(s.wanted)
	if len(keys) == 0 {
		return nil
	}
	k := keys[s.rng.IntN(len(keys))]
	if k.Type == translate.Scope {
		s.mutateScopes()
		return []build.Key{delta.AllScopes}
	}
	b := s.fresh(k, s.rng.IntN(4)) // sometimes what it was a while ago
	b.bad = s.rng.IntN(8) == 0
	s.current[k] = b
	if s.built[k] == nil {
		return nil
	}
	s.built[k] = value(k.Type, b)
	return []build.Key{k}
}

func (s *source) sorted(m map[build.Key]bool) []build.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b build.Key) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), strings.Compare(a.Name, b.Name), strings.Compare(a.For, b.For))
	})
}

func (s *source) mutateScopes() {
	next := maps.Clone(s.scopes.all)
	name := fmt.Sprintf("10.0.0.%d:80", s.rng.IntN(12))
	if next[name] != nil && s.rng.IntN(2) == 0 {
		delete(next, name)
	} else {
		next[name] = scopeValue(s.rng.IntN(3), s.rng.IntN(10) == 0)
	}
	log := append(slices.Clone(s.scopes.log), name)
	s.scopes = &collection{revision: s.scopes.revision + 1, all: next, log: log}
}

// build gives some of the wanted keys a value.
func (s *source) build(all bool) (changed []build.Key) {
	unbuilt := map[build.Key]bool{}
	for k := range s.wanted {
		if k.Type != translate.Scope && s.built[k] == nil {
			unbuilt[k] = true
		}
	}
	for _, k := range s.sorted(unbuilt) {
		if all || s.rng.IntN(2) == 0 {
			s.built[k] = value(k.Type, s.content(k))
			changed = append(changed, k)
		}
	}
	return changed
}

type collection struct {
	revision uint64
	all      map[string]*build.Value
	log      []string // the name that revision i+1 changed
}

func (c *collection) At() uint64                   { return c.revision }
func (c *collection) Len() int                     { return len(c.all) }
func (c *collection) Get(name string) *build.Value { return c.all[name] }
func (c *collection) All() iter.Seq2[string, *build.Value] {
	return func(yield func(string, *build.Value) bool) {
		for _, name := range slices.Sorted(maps.Keys(c.all)) {
			if !yield(name, c.all[name]) {
				return
			}
		}
	}
}

func (c *collection) Since(revision uint64) ([]string, bool) {
	const remembered = 4
	if c.revision-revision > remembered {
		return nil, false
	}
	return append(slices.Clone(c.log[revision:]), c.log[revision:]...), true
}
