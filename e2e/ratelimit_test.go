package e2e

import (
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// limits is the spec of a policy about what the pods of server take.
func limits(rules string) string {
	return "selector: {matchLabels: {app: server}}\nrateLimit: {rules: [" + rules + "]}"
}

// burst makes so many calls, which is what a limit for an hour lets through at once.
func (s *space) burst(app string, calls int) map[string]int {
	s.t.Helper()
	r := s.load(s.in(app), "http", s.url("server"), "--rate", "50", "--connections", "4", "--requests", strconv.Itoa(calls))
	if len(r.Failures) > 0 {
		s.t.Errorf("calls of %s failed: %v: %s", app, r.Failures, r.Example)
	}
	return r.Status
}

func (s *space) wantStatuses(what string, got, want map[string]int) {
	s.t.Helper()
	if !maps.Equal(got, want) {
		s.t.Errorf("%s: the answers are %v, want %v", what, got, want)
	}
}

func TestOneCallerIsLimitedAndAnotherIsNot(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "limit", true)
	s.deploy(app{name: "server"}, app{name: "busy"}, app{name: "calm"})
	for _, a := range []string{"busy", "calm"} {
		s.callUntil(s.in(a), answered(200), "http", s.url("server"))
	}
	s.apply("MeshPolicy", "limit", limits("{limit: {requests: 5, unit: Hour}, from: [{serviceAccounts: [busy]}]}"))
	s.wantStatuses("the caller that is limited", s.burst("busy", 12), map[string]int{"200": 5, "429": 7})
	s.wantStatuses("the other caller", s.burst("calm", 12), map[string]int{"200": 12})
	// It cannot say that it is somebody else, and is told when to come back.
	r := s.call(s.in("busy"), "http", s.url("server"), "--header", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/"+s.name+"/sa/calm")
	if r.Status != 429 || r.Headers.Get("Retry-After") == "" || r.Headers.Get("X-Ratelimit-Limit") != "5" || r.Headers.Get("X-Ratelimit-Remaining") != "0" {
		t.Errorf("over its limit a caller is answered with %d and %v", r.Status, r.Headers)
	}
	text, err := s.c.Admin(t.Context(), s.name, s.running("server").Name, "/stats/prometheus")
	must(t, err)
	if m := regexp.MustCompile(`(?m)^envoy_http_local_rate_limit_rate_limited\{[^}]*\} (\d+)$`).FindSubmatch(text); m == nil || string(m[1]) != "8" {
		t.Errorf("the metrics tell of %q requests over the limit, want 8", m)
	}
	s.remove("MeshPolicy", "limit")
	s.callUntil(s.in("busy"), answered(200), "http", s.url("server"))
	s.wantStatuses("when the limit is gone", s.burst("busy", 12), map[string]int{"200": 12})
}

func TestEachCallerHasALimitOfItsOwn(t *testing.T) {
	t.Parallel()
	s, other := newSpace(t, "each", true), newSpace(t, "caller", true)
	s.deploy(app{name: "server"}, app{name: "one"}, app{name: "two"}, app{name: "stranger"})
	other.deploy(app{name: "one"})
	for _, a := range []string{"one", "two", "stranger"} {
		s.callUntil(s.in(a), answered(200), "http", s.url("server"))
	}
	// Who is refused uses up nothing.
	s.apply("MeshPolicy", "limit", limits("{limit: {requests: 4, unit: Hour}, perCaller: true}, {limit: {requests: 7, unit: Hour}}")+
		"\nauthorization: {rules: [{action: Deny, from: [{serviceAccounts: [stranger]}]}, {action: Allow}]}")
	s.wantStatuses("who is refused", s.burst("stranger", 12), map[string]int{"403": 12})
	s.wantStatuses("one caller", s.burst("one", 6), map[string]int{"200": 4, "429": 2})
	got := s.burst("two", 6)
	figure(t, "the second caller, of whom %d were left for all: %v", 3, got)
	if got["200"] > 3 || got["200"] == 0 || got["200"]+got["429"] != 6 {
		t.Errorf("a second caller is answered with %v, want 3 of 200 for what is left of the limit of all", got)
	}
	// Another namespace's account of the same name is another caller.
	s.apply("MeshPolicy", "limit", limits("{limit: {requests: 4, unit: Hour}, perCaller: true}"))
	s.wantStatuses("one caller", s.burst("one", 6), map[string]int{"200": 4, "429": 2})
	r := s.load(other.in("one"), "http", s.url("server"), "--requests", "6")
	s.wantStatuses("its namesake", r.Status, map[string]int{"200": 4, "429": 2})
}

func TestFaultsAreForTheRequestsThatTheyName(t *testing.T) {
	t.Parallel()
	s, other := newSpace(t, "fault", true), newSpace(t, "spared", true)
	s.deploy(app{name: "server"}, app{name: "client"})
	other.deploy(app{name: "client"})
	from, spared := s.in("client"), other.in("client")
	grpc := []string{"grpc", s.host("server") + ":9000"}
	for _, args := range [][]string{{"http", s.url("server")}, grpc} {
		s.callUntil(from, works, args...)
		other.callUntil(spared, works, args...)
	}
	before := s.inbound(s.running("server").Name)
	s.apply("MeshPolicy", "fault", toServer(`
  retries: {attempts: 3, retryOn: [5xx]}
  fault:
    abort: {httpStatus: 503}
    headers: [{name: X-Fault, value: abort}]`))
	tagged := []string{"http", s.url("server"), "--header", "x-fault: abort"}
	s.callUntil(from, answered(503), tagged...)
	s.wantStatuses("with the header", s.load(from, append(tagged, "--requests", "20")...).Status, map[string]int{"503": 20})
	if n := s.inbound(s.running("server").Name) - before; n > 3 {
		t.Errorf("the server saw %d of the requests that were aborted", n)
	}
	s.wantStatuses("without it", s.load(from, "http", s.url("server"), "--requests", "20").Status, map[string]int{"200": 20})

	s.apply("MeshPolicy", "fault", toServer("{fault: {abort: {httpStatus: 503, percent: 1}}}"))
	s.callUntil(from, answered(200), tagged...)
	n, rate := 3000, 300
	if os.Getenv("TULLE_E2E_LONG") != "" {
		n, rate = 20000, 500
	}
	some := s.load(from, "http", s.url("server"), "--requests", fmt.Sprint(n), "--rate", fmt.Sprint(rate))
	figure(t, "at 1 %% %d of %d requests were aborted", some.Status["503"], n)
	if off := math.Abs(float64(some.Status["503"]) - float64(n)/100); off > 4*math.Sqrt(float64(n)*0.01*0.99) || some.Status["200"]+some.Status["503"] != n {
		t.Errorf("of %d requests 1 %% were to be aborted: %v", n, some.Status)
	}

	s.apply("MeshPolicy", "fault", toServer("{fault: {abort: {grpcStatus: 14}}}"))
	s.callUntil(from, fails("grpc-Unavailable"), grpc...)
	if err := answered(200)(s.call(from, "http", s.url("server"))); err != nil {
		t.Errorf("a fault of gRPC is about a call that is not: %v", err)
	}

	// A consumer's fault is for its own namespace.
	s.remove("MeshPolicy", "fault")
	s.apply("MeshPolicy", "none", toServer("{timeout: 5s}"))
	other.apply("MeshPolicy", "slow", fmt.Sprintf("targetRefs: [{name: server, namespace: %s}]\ntraffic: {fault: {delay: {fixedDelay: 700ms}}}", s.name))
	r := other.load(spared, "http", s.url("server"), "--rate", "5", "--requests", "10")
	figure(t, "delayed by 700 ms: p50 %.0f ms, at most %.0f ms", r.Service.P50, r.Service.Max)
	if r.Service.P50 < 700 || r.Service.P50 > 900 || r.Failed > 0 {
		t.Errorf("calls took %.0f ms, and %d of %d failed: want 700 ms", r.Service.P50, r.Failed, r.Requests)
	}
	r = s.load(from, "http", s.url("server"), "--rate", "20", "--requests", "10")
	if r.Service.P50 > 400 || r.Failed > 0 {
		t.Errorf("another namespace's calls took %.0f ms, and %d failed", r.Service.P50, r.Failed)
	}
}
