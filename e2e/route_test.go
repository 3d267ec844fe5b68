package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// route applies a route of the Gateway API, and waits until proxies run it.
func (s *space) route(kind, name, spec string) {
	s.t.Helper()
	text := strings.Replace(s.object(kind, name, spec), "apiVersion: mesh.tulle.dev/v1alpha1", "apiVersion: gateway.networking.k8s.io/v1", 1)
	must(s.t, s.c.Apply(s.t.Context(), text))
	gvk := schema.GroupVersionKind{Group: "gateway.networking.k8s.io", Version: "v1", Kind: kind}
	// A replica looks every 10 s for kinds that were not there.
	eventually(s.t, 30*time.Second, kind+" "+name, func(ctx context.Context) error {
		return s.c.Condition(ctx, gvk, s.name, name, "mesh.tulle.dev/Programmed", "True")
	})
}

// parent is a parentRef to a Service of the namespace.
func parent(service string) string {
	return "parentRefs: [{group: '', kind: Service, name: " + service + "}]\n"
}

func TestRoutesOfTheGatewayAPIHoldForServices(t *testing.T) {
	t.Parallel()
	s := newSplit(t)
	s.strict()
	must(t, s.c.GatewayAPI(t.Context()))
	from := s.in("client")
	s.route("HTTPRoute", "server", parent("server")+`
rules:
- backendRefs: [{name: server-v1, port: 80}]
- matches: [{headers: [{name: x-group, value: b}]}]
  backendRefs: [{name: server-v2, port: 80}]
- matches: [{path: {value: /old}}]
  filters:
  - type: URLRewrite
    urlRewrite: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: 100%}], remove: [x-gone]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-answer, value: "42"}]}}
  backendRefs: [{name: server-v1, port: 80}]
- matches: [{path: {type: Exact, value: /elsewhere}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: example.org, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /there}}}]
- matches: [{path: {value: /nowhere}}]
  backendRefs: [{name: none, port: 80}]
- matches: [{path: {value: /half}}]
  backendRefs: [{name: none, port: 80}, {name: server-v1, port: 80}]
- matches: [{path: {value: /sleep}}]
  timeouts: {request: 300ms}
  backendRefs: [{name: server-v1, port: 80}]
- matches: [{path: {value: /apart}}]
  backendRefs:
  - {name: server-v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: one}]}}]}
`)
	s.onlyVersion(from, "v1")
	s.onlyVersion(from, "v2", "--header", "X-Group: b")

	r := s.call(from, "http", s.url("server")+"/old/path?q=1", "--header", "X-Gone: a", "--header", "X-Set: b")
	must(t, answered(200)(r))
	if got := fmt.Sprint(r.Reply.Path, " ", r.Reply.Host, " ", r.Reply.Headers["X-Set"], " ", r.Reply.Headers["X-Gone"], " ", r.Headers.Get("X-Answer")); got != "/path?q=1 new.example [100%] [] 42" {
		t.Errorf("the server saw, and the client got: %s", got)
	}
	for path, want := range map[string]string{"/old": "/", "/old/": "/", "/older": "/older"} {
		r := s.call(from, "http", s.url("server")+path)
		if err := answered(200)(r); err != nil || r.Reply.Path != want {
			t.Errorf("%s: %v: the server saw %+v, want %s", path, err, r.Reply, want)
		}
	}
	r = s.call(from, "http", s.url("server")+"/elsewhere")
	if got := r.Headers.Get("Location"); r.Status != 301 || got != "https://example.org/there" {
		t.Errorf("redirected with %d to %q", r.Status, got)
	}
	if r = s.call(from, "http", s.url("server")+"/nowhere"); r.Status != 500 {
		t.Errorf("a backend that does not exist: %d", r.Status)
	}
	load := s.load(from, "http", s.url("server")+"/half", "--requests", "200", "--rate", "200")
	if n := load.Status["500"]; n < 60 || n > 140 || load.Status["200"] != 200-n {
		t.Errorf("half of the requests should fail: %v", load.Status)
	}
	if r = s.call(from, "http", s.url("server")+"/sleep?for=2s"); r.Status != 504 || r.MS > 1500 {
		t.Errorf("a request that takes too long: %d after %.0f ms", r.Status, r.MS)
	}
	if r = s.call(from, "http", s.url("server")+"/apart"); answered(200)(r) != nil || fmt.Sprint(r.Reply.Headers["X-Backend"]) != "[one]" {
		t.Errorf("the backend's own filter: %+v", r.Reply)
	}
}

// A route of the clients' own namespace is theirs alone, and holds for them instead
// of the service's.
func TestARouteOfTheClientsNamespaceIsTheirsAlone(t *testing.T) {
	t.Parallel()
	s := newSplit(t)
	must(t, s.c.GatewayAPI(t.Context()))
	other := newSpace(t, "consumer", true)
	other.deploy(app{name: "client"})
	s.route("HTTPRoute", "server", parent("server")+"rules: [{backendRefs: [{name: server-v1, port: 80}]}]")
	other.route("HTTPRoute", "mine", fmt.Sprintf(`
parentRefs: [{group: '', kind: Service, name: server, namespace: %[1]s}]
rules:
- filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-route, value: mine}]}}]
  backendRefs: [{name: server, namespace: %[1]s, port: 80}]`, s.name))
	s.onlyVersion(s.in("client"), "v1")
	seen := map[string]bool{}
	eventually(t, 20*time.Second, "both versions, by the client's own route", func(context.Context) error {
		r := other.call(other.in("client"), "http", s.url("server"))
		if err := answered(200)(r); err != nil {
			return err
		}
		if r.Headers.Get("X-Route") != "mine" {
			return fmt.Errorf("the headers are %v", r.Headers)
		}
		seen[r.Reply.Version] = true
		if len(seen) < 2 {
			return fmt.Errorf("seen %v", seen)
		}
		return nil
	})
}

func TestAGRPCRouteMatchesMethods(t *testing.T) {
	t.Parallel()
	s := newSplit(t)
	must(t, s.c.GatewayAPI(t.Context()))
	from := s.in("client")
	version := func(want string) func(*report.Call) error {
		return func(r *report.Call) error {
			if err := works(r); err != nil {
				return err
			}
			if r.Reply == nil || r.Reply.Version != want {
				return fmt.Errorf("answered by %+v", r.Reply)
			}
			return nil
		}
	}
	methods := func(unary, others string) {
		t.Helper()
		s.route("GRPCRoute", "server", parent("server")+fmt.Sprintf(`
rules:
- matches: [{method: {service: tulle.echo.v1.Echo}}]
  backendRefs: [{name: %s, port: 9000}]
- matches: [{method: {service: tulle.echo.v1.Echo, method: Unary}}]
  backendRefs: [{name: %s, port: 9000}]`, others, unary))
	}
	for _, c := range [][2]string{{"v2", "v1"}, {"v1", "v2"}} {
		methods("server-"+c[0], "server-"+c[1])
		for range 5 {
			must(t, version(c[0])(s.call(from, "grpc", s.host("server")+":9000")))
			must(t, works(s.call(from, "grpc-bidi", s.host("server")+":9000")))
		}
	}
	s.route("GRPCRoute", "server", parent("server")+"rules: [{matches: [{method: {service: another.Service}}], backendRefs: [{name: server-v1, port: 9000}]}]")
	if r := s.call(from, "grpc", s.host("server")+":9000"); r.Failure == nil || r.Failure.Kind != "grpc-12" && !strings.Contains(strings.ToLower(r.Failure.Kind), "unimplemented") {
		t.Errorf("a method that no rule matches: %+v", r.Failure)
	}
}
