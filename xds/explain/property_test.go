package explain

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var decisions = flag.Int("decisions", 10000, "how many decisions are compared with Envoy's")

const (
	perMesh  = 60 // requests for each mesh
	perEnvoy = 25 // meshes for each process
)

// What the policies mean is what Envoy does with what is translated of them: random
// policies, and random requests that were made to talk them round.
func TestDecisionsAreAsEnvoyTakesThem(t *testing.T) {
	decide(t, false, "HTTP Allowed", "HTTP Denied", "other Allowed", "other Denied", "token Allowed", "token Denied", "ended Allowed", "ended Denied")
}

// The same, with rules that are about tokens alone.
func TestDecisionsOnTokensAreAsEnvoyTakesThem(t *testing.T) {
	decide(t, true, "token Allowed", "token Denied", "401", "403")
}

func decide(t *testing.T, tokens bool, seen ...string) {
	first := firstSeed(t, t.Name())
	l := newLab(t)
	began, n, count := time.Now(), 0, map[string]int{}
	for seed := first; n < *decisions && !t.Failed(); seed += perEnvoy {
		n += compare(t, l, seed, tokens, min(perEnvoy, (*decisions-n+perMesh-1)/perMesh), count)
	}
	t.Logf("%d decisions in %s: %v", n, time.Since(began).Round(time.Second/10), count)
	for _, what := range seen {
		least := n / 400
		if strings.HasPrefix(what, "ended") {
			least = n / 1000 // one port in some is of TLS that ends
		}
		if n >= 1000 && count[what] < least {
			t.Errorf("%d of %d decisions are %q: the test shows little", count[what], n, what)
		}
	}
}

// compare has one Envoy decide on requests for some meshes, each made from a seed.
func compare(t *testing.T, l *lab, seed uint64, tokens bool, meshes int, count map[string]int) int {
	t.Helper()
	type made struct {
		generator
		snapshot *mesh.Snapshot
		workload *mesh.Workload
		policies []*mesh.Policy
	}
	var all []made
	var listeners []*listener.Listener
	for i := range meshes {
		g := newGenerator(seed + uint64(i))
		g.tokens = tokens
		s, w, policies := g.mesh()
		all = append(all, made{g, s, w, policies})
		listeners = append(listeners, l.listener(i, s, w))
	}
	stop := l.run(listeners)
	defer stop()
	n := 0
	for i, m := range all {
		kept := connections{}
		for range perMesh {
			r := m.request()
			if r.Peer.Is6() {
				r.Port = l.port6(i)
			}
			in := translate.InboundOf(m.workload, mesh.NewView(m.snapshot))
			ends, _ := in.EndsTLS(r.Port)
			// The name that a caller's mesh mTLS asks for is nobody's business, but where
			// mesh mTLS is not taken and TLS ends: there it is a client's TLS like any, and
			// sidecars ask for none.
			name := ""
			if r.Identity != "" && m.chance(30) && (!ends || in.Mode(r.Port) != mesh.MTLSDisabled) {
				name = pick(m.generator, askedNames)
			}
			d := Decide(mesh.NewView(m.snapshot), m.workload, r)
			want := d.Verdict == Allowed
			if d.Verdict == Depends {
				want = len(d.Authorizers) == 1 && d.Authorizers[0] == "yes"
			}
			reached, answer := l.try(i, carrying(t, r, translate.TokensOf(m.workload, mesh.NewView(m.snapshot))), name, kept)
			n++
			form := "other "
			if r.HTTP != nil {
				form = "HTTP "
			}
			count[form+string(d.Verdict)]++
			if r.HTTP != nil && r.HTTP.Claims != nil {
				count["token "+string(d.Verdict)]++
			}
			if ends && r.Identity == "" && r.HTTP != nil && r.SNI != "" {
				count["ended "+string(d.Verdict)]++
			}
			if d.Status != 0 {
				count[fmt.Sprint(d.Status)]++
			}
			if reached != want || d.Status != 0 && !strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d ", d.Status)) {
				t.Errorf("seed %d (go test ./xds/explain -run %s -seed=%d -decisions=%d)\nthe request %s\nby mesh TLS for %q\nis %s (%d): %s\nbut Envoy's answer is %q, and it reached the application: %t\nrules that match: %s\npolicies: %s\nhops %d, domains %v",
					seed+uint64(i), t.Name(), seed+uint64(i), perMesh, text(r), name, d.Verdict, d.Status, d.Reason, answer, reached, text(d.Rules), text(m.policies), m.snapshot.Config().TrustedHops, m.snapshot.Config().TrustDomains())
				break
			}
		}
		kept.close()
	}
	return n
}

// try sends the request to the i-th mesh on the caller's connection, or on a new one where
// that was closed meanwhile.
func (l *lab) try(i int, r Request, name string, kept connections) (reached bool, answer string) {
	return l.tryBy(func() (*connection, error) { return l.dial(i, r, name) }, fmt.Sprint(r.Peer, r.Identity, r.Port, r.SNI, r.Unseen, name), r, kept)
}

// tryAt sends it to the address.
func (l *lab) tryAt(to string, r Request, kept connections) (reached bool, answer string) {
	return l.tryBy(func() (*connection, error) { return l.connect(to, r, "") }, to, r, kept)
}

func (l *lab) tryBy(dial func() (*connection, error), key string, r Request, kept connections) (reached bool, answer string) {
	var err error
	for range 2 {
		c, old := kept[key]
		if r.HTTP == nil {
			c, old = nil, false
		}
		if c == nil {
			if c, err = dial(); err != nil {
				var no tls.RecordHeaderError // what should be TLS is the application's answer to it
				return errors.As(err, &no) && no.RecordHeader[0] == 'T', err.Error()
			}
		}
		reached, answer, err = c.ask(l, r)
		if err != nil || r.HTTP == nil {
			c.Close()
			delete(kept, key)
			if err != nil && answer == "" {
				answer = err.Error()
				if old {
					continue
				}
			}
			return reached, answer
		}
		kept[key] = c
		return reached, answer
	}
	return reached, answer
}

func text(v any) string {
	j, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return unsaid.ReplaceAllString(string(j), "")
}

// unsaid are fields that say nothing.
var unsaid = regexp.MustCompile(`"\w+":(null|""|0|false|\{\}),?`)
