package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// toServer is the spec of a policy about calls to the Service server.
func toServer(traffic string) string { return "targetRefs: [{name: server}]\ntraffic: " + traffic }

func TestACircuitBreakerBoundsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "breaker", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))
	slow := []string{"http", s.url("server") + "/sleep?for=400ms", "--rate", "40", "--connections", "20", "--duration", "4s"}
	s.apply("MeshPolicy", "breaker", toServer("{circuitBreaker: {maxRequests: 3}}"))
	r := s.load(from, slow...)
	figure(t, "with 3 requests under way at most: %v of %d", r.Status, r.Requests)
	// 3 at a time of 400 ms each are 7.5 a second.
	if ok := r.Status["200"]; ok < 15 || ok > 45 || ok+r.Status["503"] != r.Requests {
		t.Errorf("%d of %d were answered with 200, and %d with 503: want about 30, and all others", ok, r.Requests, r.Status["503"])
	}
	s.remove("MeshPolicy", "breaker")
	eventually(t, 20*time.Second, "the breaker's end", func(context.Context) error {
		if r := s.load(from, slow...); r.Failed > 0 {
			return fmt.Errorf("%d of %d failed: %v", r.Failed, r.Requests, r.Status)
		}
		return nil
	})
}

func TestAPodThatFailsIsLeftOutForAWhile(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "outlier", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 3})
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))
	s.apply("MeshPolicy", "outlier", toServer("{outlierDetection: {consecutive5xx: 3, interval: 500ms, baseEjectionTime: 4s, maxEjectionPercent: 50}}"))
	bad := s.in("server")
	s.toggle(bad, "fail", true)
	calls := []string{"http", s.url("server"), "--rate", "100", "--duration", "1500ms"}
	first, then := s.load(from, calls...), s.load(from, calls...)
	figure(t, "one of three pods fails: %d of %d calls before it is left out, %d of %d then", first.Failed, first.Requests, then.Failed, then.Requests)
	if first.Failed < 3 || first.Failed > 15 || then.Failed > 0 || then.Pods[bad.Name] > 0 {
		t.Errorf("%d of %d and then %d of %d calls failed, and %d went to the pod that fails", first.Failed, first.Requests, then.Failed, then.Requests, then.Pods[bad.Name])
	}
	s.toggle(bad, "fail", false)
	eventually(t, 20*time.Second, "the pod's return", func(context.Context) error {
		if r := s.load(from, calls...); r.Pods[bad.Name] == 0 {
			return fmt.Errorf("%v", r.Pods)
		}
		return nil
	})
}

func TestAHashKeepsACallerWithItsPod(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "hash", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 3})
	from := s.in("client")
	for _, algorithm := range []string{"Maglev", "RingHash"} {
		s.apply("MeshPolicy", "hash", toServer("{loadBalancer: {type: ConsistentHash, hash: {header: X-User, algorithm: "+algorithm+"}}}"))
		pods := map[string]bool{}
		for user := range 12 {
			var of []string
			for range 4 {
				r := s.callUntil(from, answered(200), "http", s.url("server"), "--header", fmt.Sprintf("X-User: user-%d", user))
				of = append(of, r.Reply.Pod)
			}
			slices.Sort(of)
			if of = slices.Compact(of); len(of) != 1 {
				t.Errorf("%s: user-%d was answered by %v", algorithm, user, of)
			}
			pods[of[0]] = true
		}
		if len(pods) < 2 {
			t.Errorf("%s: twelve users were answered by %d pods", algorithm, len(pods))
		}
	}
	s.apply("MeshPolicy", "hash", toServer("{loadBalancer: {type: ConsistentHash, hash: {cookie: {name: session, ttl: 1h, path: /}}}}"))
	var first string
	eventually(t, 20*time.Second, "a cookie", func(context.Context) error {
		first = s.call(from, "http", s.url("server")).Headers.Get("Set-Cookie")
		if !strings.HasPrefix(first, "session=") {
			return fmt.Errorf("Set-Cookie is %q", first)
		}
		return nil
	})
	cookie, _, _ := strings.Cut(first, ";")
	pod := s.call(from, "http", s.url("server"), "--header", "Cookie: "+cookie).Reply.Pod
	for range 8 {
		if r := s.call(from, "http", s.url("server"), "--header", "Cookie: "+cookie); r.Reply.Pod != pod {
			t.Errorf("with its cookie a caller went from %s to %s", pod, r.Reply.Pod)
		}
	}
}

func TestARequestThatIsIdleEnds(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "idle", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))
	s.apply("MeshPolicy", "idle", toServer("{idleTimeout: 700ms, retries: {attempts: 0}}"))
	r := s.callUntil(from, answered(504), "http", s.url("server")+"/sleep?for=3s")
	figure(t, "a request on which nothing is sent ended after %.0f ms", r.MS)
	if r.MS < 600 || r.MS > 2000 {
		t.Errorf("it ended after %.0f ms, want 700", r.MS)
	}
}

// When everything fails, what is sent does not multiply.
func TestABudgetKeepsRetriesFromBecomingAStorm(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "budget", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	from, server := s.in("client"), s.running("server")
	s.callUntil(from, answered(200), "http", s.url("server"))
	s.toggle(kube.Pod{Namespace: s.name, Name: server.Name, Container: "app"}, "fail", true)
	retries := func(policy string) (tried, calls int) {
		s.apply("MeshPolicy", "budget", toServer(policy))
		before := s.inbound(server.Name)
		r := s.load(from, "http", s.url("server"), "--rate", "200", "--connections", "50", "--duration", "3s")
		return s.inbound(server.Name) - before, r.Requests
	}
	const storm = "{retries: {attempts: 3, retryOn: [5xx], backOff: {base: 1ms, max: 2ms}, budget: {percent: 100, minConcurrent: 1000}}}"
	const bounded = "{retries: {attempts: 3, retryOn: [5xx], backOff: {base: 1ms, max: 2ms}, budget: {percent: 10, minConcurrent: 0}}}"
	tried, calls := retries(storm)
	figure(t, "without a budget to speak of %d calls became %d requests", calls, tried)
	if tried < 3*calls {
		t.Errorf("%d calls became %d requests, want some four times as many: it shows nothing", calls, tried)
	}
	tried, calls = retries(bounded)
	figure(t, "with a budget of 10 %% %d calls became %d requests", calls, tried)
	if tried > calls*13/10 {
		t.Errorf("with a budget of 10 %% %d calls became %d requests", calls, tried)
	}
}

// inbound is the number of requests that a pod's proxy has let in.
func (s *space) inbound(pod string) int {
	s.t.Helper()
	out, err := s.c.Admin(s.t.Context(), s.name, pod, "/stats?filter=^http.inbound.downstream_rq_total$")
	must(s.t, err)
	_, n, _ := strings.Cut(strings.TrimSpace(string(out)), ": ")
	total, err := strconv.Atoi(n)
	must(s.t, err)
	return total
}

// A producer's policy holds for all clients, and a consumer's for its own.
func TestEachNamespaceCallsAsItsOwnPolicySays(t *testing.T) {
	t.Parallel()
	s, other := newSpace(t, "producer", true), newSpace(t, "consumer", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	other.deploy(app{name: "client"})
	slow := s.url("server") + "/sleep?for=1s"
	for _, x := range []*space{s, other} {
		x.callUntil(x.in("client"), answered(200), "http", slow)
	}
	other.apply("MeshPolicy", "impatient", "targetRefs: [{name: server, namespace: "+s.name+"}]\ntraffic: {circuitBreaker: {maxRequests: 1}, retries: {attempts: 0}}")
	busy := []string{"http", s.url("server") + "/sleep?for=300ms", "--rate", "20", "--connections", "8", "--duration", "2s"}
	if r := other.load(other.in("client"), busy...); r.Status["503"] == 0 {
		t.Errorf("the consumer's own bound did not hold: %v", r.Status)
	}
	if r := s.load(s.in("client"), busy...); r.Failed > 0 {
		t.Errorf("the consumer's bound held for the producer's clients: %v", r.Status)
	}
}
