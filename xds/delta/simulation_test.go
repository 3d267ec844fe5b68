package delta_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "replay the one simulated history with this seed")
	histories = flag.Int("histories", 1500, "how many histories to simulate")
)

// proxy is one simulated proxy with its end of the stream.
type proxy struct {
	*envoy
	id      int
	stream  *delta.Stream
	profile string
	toward  []*discovery.DeltaDiscoveryRequest // on the wire, to the server
	back    []*discovery.DeltaDiscoveryResponse
	owed    map[build.Key]bool // keys that the stream has subscribed to
}

// world is a source and proxies that are connected to it by slow wires.
type world struct {
	rng     *rand.Rand
	source  *source
	proxies []*proxy
	limits  delta.Limits
	trace   []string
}

func (w *world) note(format string, args ...any) {
	if *seedFlag == 0 {
		return // only a replay is read
	}
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (p *proxy) binding() delta.Binding {
	profile := p.profile
	return delta.Binding{
		Bind: func(t translate.Type, name string) (build.Key, bool) {
			k := build.Key{Type: t, Name: name}
			switch {
			case t == translate.Secret:
				return k, name == "workload" || name == "roots"
			case t == translate.Listener:
				if name == "in" {
					k.For = profile
				}
				return k, name == "in" || name == "out" || name == "ready"
			case t == translate.Route, translate.AssignedTo(name) != name:
				k.For = profile
			}
			return k, true
		},
		Listeners:   []string{"in", "out"},
		Ready:       "ready",
		Needs:       []translate.Type{translate.Secret, translate.Scope},
		Clusters:    []string{"inbound", "passthrough"},
		Ahead:       []string{"svc|0"},
		EagerScopes: []string{"10.0.0.1:80"},
	}
}

func (w *world) connect(p *proxy) {
	if p.stream != nil {
		p.check()
		w.unsubscribe(p, p.stream.Close())
		if len(p.owed) > 0 {
			p.fail("a closed stream still subscribes to %v", p.owed)
		}
	}
	p.toward, p.back = nil, nil
	w.note("%d: connects, warming %v", p.id, p.warming)
	p.stream = delta.New(p.binding(), w.limits)
	p.envoy.connect()
}

// check is what must hold of a stream at any time.
func (p *proxy) check() {
	for h := range p.stream.Holdings() {
		if !p.owed[h.Key] {
			p.fail("the stream holds %v without subscribing to it", h.Key)
		}
	}
}

func (w *world) carryOut(p *proxy, e delta.Effects) {
	w.unsubscribe(p, e.Unsubscribe)
	var now []build.Key
	for _, k := range e.Subscribe {
		if p.owed[k] {
			p.fail("%v was subscribed to twice", k)
		}
		p.owed[k] = true
		w.source.wanted[k] = true
		if w.source.built[k] != nil {
			now = append(now, k)
		}
	}
	p.stream.Dirty(now)
}

func (w *world) unsubscribe(p *proxy, keys []build.Key) {
	for _, k := range keys {
		if !p.owed[k] {
			p.fail("%v was unsubscribed from without a subscription", k)
		}
		delete(p.owed, k)
	}
}

func (w *world) changed(keys []build.Key) {
	for _, k := range keys {
		w.note("change %v to %v", k, w.source.current[k])
	}
	for _, p := range w.proxies {
		var mine []build.Key
		for _, k := range keys {
			if p.owed[k] {
				mine = append(mine, k)
			}
		}
		p.stream.Dirty(mine)
	}
}

// serve lets the server take one request or send one response.
func (w *world) serve(p *proxy) bool {
	if len(p.toward) > 0 && w.rng.IntN(3) > 0 {
		r := p.toward[0]
		p.toward = p.toward[1:]
		w.note("%d: request %v", p.id, r)
		w.carryOut(p, p.stream.Request(r))
		return true
	}
	waits := p.stream.Waits()
	push, effects := p.stream.Next(w.source)
	if push != nil && !waits && push.Type != translate.Scope {
		p.fail("%v is sent, of which nothing was to be seen", push.Type)
	}
	w.carryOut(p, effects)
	if push == nil {
		return len(p.toward) > 0 || len(effects.Subscribe) > 0
	}
	response := message(push)
	if n := proto.Size(response); n > w.limits.Bytes+200 && len(response.Resources) > 1 {
		p.fail("a response of %d bytes and %d resources", n, len(response.Resources))
	}
	w.note("%d: response %s %s %v gone %v", p.id, response.Nonce, response.TypeUrl, names(response), response.RemovedResources)
	p.back = append(p.back, response)
	return true
}

// message is what a push is on the wire.
func message(p *delta.Push) *discovery.DeltaDiscoveryResponse {
	m := &discovery.DeltaDiscoveryResponse{TypeUrl: p.Type.URL(), Nonce: p.Nonce, RemovedResources: p.Removed}
	for _, r := range p.Resources {
		m.Resources = append(m.Resources, &discovery.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
	}
	return m
}

func names(r *discovery.DeltaDiscoveryResponse) (out []string) {
	for _, res := range r.Resources {
		out = append(out, res.Name+"@"+res.Version)
	}
	return out
}

// carry moves one message along a wire.
func (w *world) carry(p *proxy) bool {
	moved := false
	if len(p.out) > 0 {
		p.toward = append(p.toward, p.out[0])
		p.out = p.out[1:]
		moved = true
	}
	if len(p.back) > 0 {
		p.in = append(p.in, p.back[0])
		p.back = p.back[1:]
		moved = true
	}
	return moved
}

// step is one random event.
func (w *world) step() {
	p := w.proxies[w.rng.IntN(len(w.proxies))]
	switch n := w.rng.IntN(40); {
	case n < 10:
		w.serve(p)
	case n < 20:
		w.carry(p)
	case n < 27:
		p.receive()
	case n < 31:
		w.changed(w.source.mutate())
	case n < 34:
		w.changed(w.source.build(false))
	case n < 36:
		p.ask(translate.Route, fmt.Sprintf("10.0.0.%d:80", w.rng.IntN(12)))
	case n < 37:
		p.ask(translate.Cluster, fmt.Sprintf("tcp|%d", w.rng.IntN(4)))
	case n < 38:
		if w.rng.IntN(2) == 0 {
			p.forget(translate.Route, fmt.Sprintf("10.0.0.%d:80", w.rng.IntN(12)))
		} else {
			p.forget(translate.Cluster, fmt.Sprintf("tcp|%d", w.rng.IntN(4)))
		}
	case n < 39:
		p.profile = fmt.Sprint("p", w.rng.IntN(2))
		w.note("%d: rebind to %s", p.id, p.profile)
		w.carryOut(p, p.stream.Rebind(p.binding()))
	default:
		if w.rng.IntN(2) == 0 {
			w.note("%d: reconnect", p.id)
			w.connect(p)
		}
	}
}

// settle runs until nothing moves.
func (w *world) settle() error {
	for range 100_000 {
		moved := false
		built := w.source.build(true)
		w.changed(built)
		for _, p := range w.proxies {
			moved = w.serve(p) || moved
			moved = w.carry(p) || moved
			moved = p.receive() || moved
		}
		if !moved && len(built) == 0 && !w.remind() {
			return nil
		}
	}
	return fmt.Errorf("no end to what is sent")
}

// remind is what the server does for proxies that are slow to answer.
func (w *world) remind() bool {
	reminded := false
	for _, p := range w.proxies {
		if p.stream.Unanswered(translate.Cluster) > 0 {
			w.note("%d: remind", p.id)
			p.stream.Remind()
			for name := range p.asked[translate.Endpoints] {
				p.excuses[translate.Endpoints][name]++
			}
			reminded = true
		}
	}
	return reminded
}

// verify compares a proxy with the source when all is quiet.
func (w *world) verify(p *proxy) {
	if !p.ready && !w.blocked(p) {
		p.fail("the proxy was never told that it is ready")
	}
	for h := range p.stream.Holdings() {
		v := w.source.Value(h.Key)
		held := p.held[h.Key.Type][h.Key.Name]
		if h.Key.Type == translate.Endpoints {
			held, _, _ = strings.Cut(held, "@")
		}
		switch {
		case h.Key.Name == "ready" && !p.ready:
		case h.Key.Type == translate.Endpoints && !p.asked[translate.Endpoints][h.Key.Name]:
			// the cluster was refused, so that nobody asks for its endpoints
		case read(v.Body).bad:
			if held != v.Version && (h.Rejected == nil || h.Rejected.Version != v.Version) {
				p.fail("%v is refused, which the stream does not know: %+v", h.Key, h)
			}
		case held != v.Version:
			p.fail("%v is %q at the proxy and %q at the source", h.Key, held, v.Version)
		case h.Acknowledged != v.Version || h.Pending() || h.Rejected != nil:
			p.fail("%v was taken, which the stream does not know: %+v", h.Key, h)
		}
	}
	for t, names := range p.asked {
		for name := range names {
			k, _ := p.binding().Bind(translate.Type(t), name)
			if !p.owed[k] {
				p.fail("%v was asked for and is not subscribed to", k)
			}
		}
	}
	for _, name := range []translate.Type{translate.Cluster, translate.Listener} {
		for held := range p.held[name] {
			k, _ := p.binding().Bind(name, held)
			if !p.owed[k] {
				p.fail("the proxy holds %v, which nobody keeps current", k)
			}
		}
	}
	w.verifyScopes(p)
}

func (w *world) verifyScopes(p *proxy) {
	if !p.wildcard[translate.Scope] {
		return
	}
	rejected := p.stream.Scopes().Rejected
	for name, v := range w.source.scopes.All() {
		held := strings.TrimSuffix(p.held[translate.Scope][name], "~")
		if held == v.Version {
			continue
		}
		if strings.HasSuffix(v.Version, "true") && strings.TrimSuffix(rejected[name].Version, "~") == v.Version {
			continue
		}
		p.fail("scope %s is %q at the proxy and %q at the source", name, held, v.Version)
	}
	for name := range p.held[translate.Scope] {
		if w.source.scopes.Get(name) == nil {
			p.fail("scope %s is gone, and the proxy still has it", name)
		}
	}
	if !p.stream.Scopes().Settled {
		p.fail("scopes are not settled")
	}
}

// blocked reports whether the ready listener must be withheld, or is itself
// refused.
func (w *world) blocked(p *proxy) bool {
	for h := range p.stream.Holdings() {
		if h.Key.Type == translate.Listener && h.Rejected != nil {
			return true
		}
	}
	return false
}

func simulate(seed uint64) (trace []string, err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{rng: rng, source: newSource(rng)}
	w.limits = delta.Limits{Bytes: 40 + rng.IntN(600), Unacknowledged: 1 + rng.IntN(4)}
	for id := range 1 + rng.IntN(3) {
		p := &proxy{id: id, envoy: newEnvoy(), profile: "p0", owed: map[build.Key]bool{}}
		w.proxies = append(w.proxies, p)
		w.connect(p)
	}
	for range 20 + rng.IntN(400) {
		w.step()
	}
	for range 3 {
		if err := w.settle(); err != nil {
			return w.trace, err
		}
		for _, p := range w.proxies {
			p.check()
			w.verify(p)
			if p.wrong != nil {
				return w.trace, p.wrong
			}
			w.connect(p) // and nothing that it has may come again
		}
	}
	return nil, nil
}

// Proxies that are slow, that refuse, that come and go, end up with what the
// source has, are never given a route before its clusters, and are not sent
// what they have.
func TestSimulatedProxiesConverge(t *testing.T) {
	if *seedFlag != 0 {
		if trace, err := simulate(*seedFlag); err != nil {
			t.Fatalf("%s\nseed %d: %v", strings.Join(trace, "\n"), *seedFlag, err)
		}
		return
	}
	n := *histories
	if testing.Short() {
		n /= 10
	}
	start := rand.Uint64N(1 << 40)
	for seed := start; seed < start+uint64(n); seed++ {
		if _, err := simulate(seed + 1); err != nil {
			t.Fatalf("seed %d: %v\nreplay with: go test ./xds/delta -run %s -seed %d", seed+1, err, t.Name(), seed+1)
		}
	}
}
