package translate

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// httpRoute is an HTTPRoute with the rules, of the Service web and of the Gateway.
func httpRoute(rules string) string {
	return `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}, {name: front, sectionName: open}]
  rules:` + rules
}

// hostRoute is an HTTPRoute of the Gateway, which tells its name in a header.
func hostRoute(name, hostnames string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: shop}
spec:
  parentRefs: [{name: front}]
  hostnames: [%s]
  rules:
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Route, value: %[1]s}]}}]
    backendRefs: [{name: web, port: 80}]`, name, hostnames)
}

func meshPolicy(target, traffic string) string {
	return fmt.Sprintf(`
apiVersion: mesh.tulle.dev/v1alpha1
kind: MeshPolicy
metadata: {name: %s, namespace: shop}
spec: {targetRefs: [{name: %[1]s}], traffic: {%s}}`, target, traffic)
}

// sidecarAndGateway ask the Service by a client's sidecar, and by the Gateway.
var sidecarAndGateway = []string{"web", "front"}

// What features make of one another, and of requests that are seldom but right.
func TestWhatUsersWrite(t *testing.T) {
	type call struct {
		head, body string
		status     int
		pod        string   // empty: any, or none
		has        []string // in the answer's body, or its headers as Go writes them
		tries      int      // how often a server was asked for the path; 0: it does not matter
	}
	for name, c := range map[string]struct {
		objects []string
		to      []string // the Service web by default
		calls   []call
	}{
		"a backend's headers come after its rule's": {
			to: sidecarAndGateway,
			objects: []string{httpRoute(`
  - filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: rule}, {name: X-Kept, value: 100%}], add: [{name: X-Add, value: rule}, {name: X-Gone, value: rule}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Answer, value: rule}]}}
    backendRefs:
    - name: web
      port: 80
      filters:
      - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: backend}], add: [{name: X-Add, value: backend}], remove: [x-gone]}}
      - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Answer, value: backend}]}}`)},
			calls: []call{{head: "GET /\nX-GONE: 1\nx-add: client", status: 200, has: []string{"x-set: backend\n", "x-kept: 100%\n", "x-add: client,rule,backend\n", "X-Answer:[backend]"}}},
		},
		"retries of a route are of lost connections and of attempts without an answer": {
			objects: []string{httpRoute(`
  - retry: {codes: [503, 504], attempts: 2, backoff: 10ms}
    timeouts: {request: 5s, backendRequest: 400ms}
    backendRefs: [{name: web, port: 80}]`)},
			calls: []call{
				{head: "GET /hang", status: 200, tries: 2},
				{head: "GET /drop", status: 200, tries: 2},
				{head: "POST /busy\ncontent-length: 200000", body: strings.Repeat("x", 200_000), status: 200, tries: 2, has: []string{"with 200000 bytes"}},
			},
		},
		"a backend that gets nothing has no say at a gateway": {
			to: []string{"front"},
			objects: []string{meshPolicy("v2", "timeout: 1ms, fault: {abort: {httpStatus: 418}}"), httpRoute(`
  - matches: [{path: {value: /all}}]
    backendRefs: [{name: v2, port: 80, weight: 0}, {name: web, port: 80}]
  - matches: [{path: {value: /some}}]
    backendRefs: [{name: v2, port: 80, weight: 1000000}, {name: web, port: 80, weight: 1}]`)},
			calls: []call{{head: "GET /all", status: 200}, {head: "GET /some", status: 418}},
		},
		"an abort of gRPC leaves gRPC-Web alone": {
			objects: []string{meshPolicy("web", "fault: {abort: {grpcStatus: 14}}")},
			calls: []call{
				{head: "POST /a.B/C\ncontent-length: 0\ncontent-type: application/grpc+proto", status: 200, has: []string{"Grpc-Status:[14]"}},
				{head: "POST /a.B/C\ncontent-length: 0\ncontent-type: application/grpc-web+proto", status: 200, has: []string{"POST web/a.B/C"}},
			},
		},
		"a route's own hostname decides before what a listener leaves of it": {
			to:      []string{"front"},
			objects: []string{hostRoute("all", ""), hostRoute("some", `"*.example"`), hostRoute("few", `"*.api.example"`), hostRoute("one", `"x.api.example"`)},
			calls: []call{
				{head: "GET /\nhost: x.api.example:8080", status: 200, has: []string{"X-Route:[one]"}},
				{head: "GET /\nhost: Y.API.Example.", status: 200, has: []string{"X-Route:[few]"}},
				{head: "GET /\nhost: api.example", status: 200, has: []string{"X-Route:[some]"}},
				{head: "GET /\nhost: [::1]", status: 200, has: []string{"X-Route:[all]"}},
			},
		},
		"a hostname before none": {
			to:      []string{"front"},
			objects: []string{hostRoute("all", ""), hostRoute("some", `"*.example"`)},
			calls:   []call{{head: "GET /\nhost: x.api.example", status: 200, has: []string{"X-Route:[some]"}}},
		},
		"requests that are seldom": {
			to:      sidecarAndGateway,
			objects: []string{httpRoute("\n  - backendRefs: [{name: web, port: 80}]")},
			calls: []call{
				{head: "GET / HTTP/1.0", status: 200, has: []string{"GET localhost/"}},
				{head: "GET / HTTP/1.0\nHost: web:80", status: 200, has: []string{"GET web:80/"}},
				{head: "GET http://absolute.example/x?y HTTP/1.1\nHost: web", status: 200, has: []string{"GET absolute.example/x?y"}},
				{head: "PROPFIND /" + strings.Repeat("long", 5000), status: 200},
				{head: "GET /\nX-Big: " + strings.Repeat("a", 55_000), status: 200},
				{head: "POST /\ntransfer-encoding: chunked\nTrailer: X-In", body: "5\r\nhello\r\n0\r\nX-In: last\r\n\r\n", status: 200, has: []string{"with 5 bytes", "trailer x-in: last"}},
				{head: "POST /\nexpect: 100-continue\ncontent-length: 3", status: 100},
			},
		},
		"what browsers ask before a request of a rule's method": {
			to: sidecarAndGateway,
			objects: []string{httpRoute(`
  - matches: [{method: PUT, path: {value: /cart}}]
    filters: [{type: CORS, cors: {allowOrigins: ["https://shop.example"], allowMethods: [PUT], maxAge: 60}}]
    backendRefs: [{name: web, port: 80}]
  - backendRefs: [{name: v2, port: 80}]`)},
			calls: []call{
				{head: "OPTIONS /cart\norigin: https://shop.example\naccess-control-request-method: PUT", status: 200, has: []string{"Access-Control-Allow-Methods:[PUT]", "Access-Control-Max-Age:[60]"}},
				{head: "OPTIONS /cart\norigin: https://shop.example\naccess-control-request-method: DELETE", status: 200, has: []string{"X-Pod:[v2-"}},
			},
		},
		"a route of one of a Service's ports, by the port's name": {
			objects: []string{strings.Replace(httpRoute("\n  - backendRefs: [{name: v2, port: 80}]"), "name: web}, ", "name: web, sectionName: http-admin}, ", 1)},
			calls:   []call{{head: "GET /", status: 200, has: []string{"X-Pod:[web-v"}}},
		},
		"the same, at that port": {
			to:      []string{"web:http-admin"},
			objects: []string{strings.Replace(httpRoute("\n  - backendRefs: [{name: v2, port: 80}]"), "name: web}, ", "name: web, sectionName: http-admin}, ", 1)},
			calls:   []call{{head: "GET /", status: 200, pod: "v2-0"}},
		},
		"matches": {
			to: sidecarAndGateway,
			objects: []string{httpRoute(`
  - matches: [{path: {value: /query}, queryParams: [{name: a, value: "1"}]}, {path: {value: /header}, headers: [{name: X-Up, value: One}]}, {path: {value: /header}, headers: [{name: Host, value: special.example}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: RegularExpression, value: "/re/[0-9]+(/.*)?"}}, {path: {type: Exact, value: /exact/}}, {path: {value: /a%20b}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /query}}, {path: {value: /header}}]
    backendRefs: [{name: none, port: 80, weight: 0}, {name: web, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Pod, value: web}]}}]}]
  - matches: [{path: {value: /nobody}}]`)},
			calls: []call{
				{head: "GET /query?a=1&a=2", status: 200, pod: "v2-0"},
				{head: "GET /query?a=2&a=1", status: 200, pod: "web"},
				{head: "GET /query?b&a=1", status: 200, pod: "v2-0"},
				{head: "GET /query?A=1", status: 200, pod: "web"},
				{head: "GET /Query?a=1", status: 404},
				{head: "GET /header\nx-UP: One", status: 200, pod: "v2-0"},
				{head: "GET /header\nX-Up: one", status: 200, pod: "web"},
				{head: "GET /header\nHOST: special.example", status: 200, pod: "v2-0"},
				{head: "GET /re/12/x?y", status: 200, pod: "v2-0"},
				{head: "GET /re/x", status: 404},
				{head: "GET /exact/?x", status: 200, pod: "v2-0"},
				{head: "GET /exact", status: 404},
				{head: "GET /a%20b/c", status: 200, pod: "v2-0"},
				{head: "GET /nobody", status: 500},
			},
		},
		"changes of paths": {
			to: sidecarAndGateway,
			objects: []string{httpRoute(`
  - matches: [{path: {value: /gone/}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: x.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /full}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a%20\1'}}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: n.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /100%/}, statusCode: 308}}]`)},
			calls: []call{
				{head: "GET /gone?a=/gone", status: 200, has: []string{"GET x.example/?a=/gone "}},
				{head: "GET /gone/a%20b/gone", status: 200, has: []string{"GET x.example/a%20b/gone "}},
				{head: "GET /full/x?a", status: 200, has: []string{`GET web/a%20\1?a `}},
				{head: "GET /moved/x?a", status: 308, has: []string{"Location:[https://n.example/100%/x?a]"}},
				{head: "GET /moved", status: 308, has: []string{"Location:[https://n.example/100%]"}},
			},
		},
		"a split, its backend's own policy, and a fault": {
			objects: []string{meshPolicy("v2", "timeout: 1ms, fault: {abort: {httpStatus: 418}}"), meshPolicy("web", "fault: {headers: [{name: X-FAULT, value: inject}], abort: {httpStatus: 599}}"), `
apiVersion: mesh.tulle.dev/v1alpha1
kind: TrafficSplit
metadata: {name: web, namespace: shop}
spec:
  service: web
  sessionAffinity: {header: X-User}
  rules:
  - matches: [{path: {value: /pods}, headers: [{name: HOST, value: x.example}]}, {path: {value: /label}, method: GET}]
    backends: [{matchLabels: {version: v2}}]
  - matches: [{path: {value: /nobody}}]
    backends: [{matchLabels: {version: v9}}, {service: v2, weight: 0}]
  - matches: [{path: {value: /far}}]
    backends: [{service: other, namespace: far, weight: 999}, {service: v2, weight: 0}]
    mirrors: [{service: v2}]
  backends: [{service: v2, weight: 1500}, {service: v2, weight: 500}]`},
			calls: []call{
				{head: "GET /pods\nhost: x.example", status: 200, pod: "web-v2"},
				{head: "GET /pods\nhost: y.example", status: 200, pod: "v2-0"},
				{head: "GET /label\nx-user: 1", status: 200, pod: "web-v2"},
				{head: "GET /nobody", status: 503},
				{head: "GET /far\nX-User: 1", status: 200, pod: "other-0"},
				{head: "GET /far\nx-fault: inject", status: 599},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			to := c.to
			if len(to) == 0 {
				to = []string{"web"}
			}
			m := startWritten(t, c.objects...)
			for _, to := range to {
				for _, call := range c.calls {
					got := m.ask(to, call.head, call.body)
					what := fmt.Sprintf("%s asked for %.80q", to, call.head)
					if got.status != call.status || call.pod != "" && got.pod != call.pod {
						t.Errorf("%s: %d of %q, want %d of %q", what, got.status, got.pod, call.status, call.pod)
					}
					all := fmt.Sprint(got.body, got.headers)
					for _, text := range call.has {
						if !strings.Contains(all, text) {
							t.Errorf("%s: no %q in %.1000s", what, text, all)
						}
					}
					_, path, _ := strings.Cut(strings.SplitN(call.head, "\n", 2)[0], " ")
					if n := m.count(path); call.tries > 0 && n != call.tries {
						t.Errorf("%s: servers were asked %d times, want %d", what, n, call.tries)
					}
				}
			}
		})
	}
}

// The younger one is refused as a whole, also for a host that is its own.
func TestHostOfAListenerIsOfOneKindOfRoutes(t *testing.T) {
	grpc := func(name, created, hosts string) string {
		return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: %s, namespace: shop, creationTimestamp: '%s'}
spec:
  parentRefs: [{name: front, sectionName: open}]
  hostnames: [%s]
  rules: [{backendRefs: [{name: v2, port: 80}]}]`, name, created, hosts)
	}
	http := strings.Replace(hostRoute("http", `"www.example"`), "namespace: shop}", "namespace: shop, creationTimestamp: '2024-01-01T00:00:00Z'}", 1)
	m := startWritten(t, http, grpc("older", "2023-01-01T00:00:00Z", `"old.example"`), grpc("younger", "2025-01-01T00:00:00Z", `"*.example", "grpc.other"`))
	for host, want := range map[string]string{"www.example": "web", "old.example": "v2-0", "grpc.example": "", "grpc.other": ""} {
		if got := m.ask("front", "GET /\nhost: "+host, ""); !strings.HasPrefix(got.pod, want) || (want == "") != (got.status == 404) {
			t.Errorf("%s: %d of %q, want %q", host, got.status, got.pod, want)
		}
	}
	for name, want := range map[string]string{"older": reasonAccepted, "younger": reasonConflicted} {
		fs := findings(FindingsKey(KindGRPCRoute, mesh.Name{Namespace: "shop", Name: name}), m.view)
		if i := slices.IndexFunc(fs, func(f mesh.Finding) bool { return f.Type == conditionAccepted }); i < 0 || fs[i].Reason != want {
			t.Errorf("the route %s: %v, want %s", name, fs, want)
		}
	}
}

func TestCallsThatAreRoutedToNobodyAreUnavailable(t *testing.T) {
	m := startWritten(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}, {name: front, sectionName: open}]
  rules:
  - matches: [{method: {service: shop.None}}]
    backendRefs: [{name: none, port: 80}, {name: v2, port: 80, weight: 0}]
  - matches: [{method: {service: shop.Some}}]
    backendRefs: [{name: none, port: 80, weight: 1000000}, {name: web, port: 80, weight: 1, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-A]}}]}]`)
	for _, to := range sidecarAndGateway {
		for service, want := range map[string]string{"None": "14", "Some": "14", "Other": "12"} {
			got := m.ask(to, "POST /shop."+service+"/Do\ncontent-type: application/grpc\ncontent-length: 0", "")
			if code := got.headers.Get("grpc-status"); got.status != 200 || code != want {
				t.Errorf("%s: a call of %s ends with %d and %q, want 200 and %s", to, service, got.status, code, want)
			}
		}
	}
}

// A time-out of the request is about its answer, and not about what becomes a WebSocket,
// which is neither tried again nor ended; a copy of it goes where it is to.
func TestWebSocketBesideTimeoutsRetriesAndMirrors(t *testing.T) {
	m := startWritten(t, httpRoute(`
  - retry: {codes: [503], attempts: 2}
    timeouts: {request: 400ms, backendRequest: 200ms}
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, fraction: {numerator: 1, denominator: 1}}}]
    backendRefs: [{name: web, port: 80}]`))
	for i, to := range sidecarAndGateway {
		c, err := net.Dial("tcp", m.at[to])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(c)
		fmt.Fprint(c, "GET /socket HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\n")
		for line := ""; line != "\r\n"; {
			if line, err = in.ReadString('\n'); err != nil {
				t.Fatalf("%s: %v", to, err)
			}
		}
		for begin := time.Now(); time.Since(begin) < time.Second; {
			said := time.Since(begin).String() + "\n"
			if _, err := io.WriteString(c, said); err != nil {
				t.Fatalf("%s after %v: %v", to, time.Since(begin), err)
			}
			if heard, err := in.ReadString('\n'); err != nil || heard != said {
				t.Fatalf("%s after %v: %q, %v", to, time.Since(begin), heard, err)
			}
		}
		if n, copies := m.count("web-v1")+m.count("web-v2"), m.count("v2-0"); n != i+1 || copies != i+1 {
			t.Errorf("%s: web was asked %d times, the mirror %d times, want %d each", to, n, copies, i+1)
		}
	}
}

// What a policy or a route says may take longer than a gateway's own bound on silence.
func TestLongTimeoutAtAGatewayLiftsItsBoundOnSilence(t *testing.T) {
	const rule = "\n  - timeouts: {request: %s}\n    backendRefs: [{name: web, port: 80}]"
	for _, c := range []struct {
		what    string
		objects []string
		want    time.Duration // 0: none
		own     bool          // the gateway's own
	}{
		{"nothing is said", []string{httpRoute(fmt.Sprintf(rule, "0s"))}, 0, true},
		{"a time-out that is shorter", []string{httpRoute(fmt.Sprintf(rule, "1m"))}, 0, true},
		{"a time-out that is longer", []string{httpRoute(fmt.Sprintf(rule, "10m"))}, 10 * time.Minute, false},
		{"a policy's time-out that is longer", []string{httpRoute("\n  - backendRefs: [{name: web, port: 80}]"), meshPolicy("web", "timeout: 1h")}, time.Hour, false},
		{"a policy that bounds silence", []string{httpRoute(fmt.Sprintf(rule, "10m")), meshPolicy("web", "idleTimeout: 7m")}, 7 * time.Minute, false},
		{"a policy that does not", []string{httpRoute(fmt.Sprintf(rule, "1m")), meshPolicy("web", "idleTimeout: 0s")}, 0, false},
	} {
		m := startWritten(t, c.objects...)
		for _, h := range m.routes["front"].VirtualHosts {
			for _, r := range h.Routes {
				if idle := r.GetRoute().GetIdleTimeout(); (idle == nil) != c.own || idle.AsDuration() != c.want {
					t.Errorf("%s: %v, want %v", c.what, idle, c.want)
				}
			}
		}
		if got := m.ask("front", "GET /", ""); got.status != 200 {
			t.Errorf("%s: %d", c.what, got.status)
		}
	}
}
