package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// The world outside of the cluster is a pod that is not in the mesh, called by names and
// addresses that nobody else has (RFC 5737): what an ExternalService names is reached by
// those who may, and nothing else is.
func TestNothingButExternalServicesIsLetOut(t *testing.T) {
	noLeftovers(t)
	s := newSpace(t, "external", true)
	outside := newSpace(t, "internet", false)
	s.deploy(app{name: "client"}, app{name: "other"})
	outside.deploy(app{name: "server"}, app{name: "stranger"})
	const config = "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {egress: {mode: RegistryOnly}}\n"
	must(t, s.c.Apply(t.Context(), config))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, s.c.Delete(ctx, config))
	})
	eventually(t, 20*time.Second, "RegistryOnly", func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "Programmed", "True")
	})

	ip := outside.running("server").Status.PodIP
	// Each server has made a certificate for itself, and is its own authority.
	authority := func(app string) string {
		t.Helper()
		r := outside.callUntil(outside.in("server"), works, "tls", outside.host(app)+":8443")
		if !strings.Contains(r.Certificate, "BEGIN CERTIFICATE") {
			t.Fatalf("%s shows no certificate: %q", app, r.Certificate)
		}
		return r.Certificate
	}
	service := func(name, host, ports, more string) {
		t.Helper()
		s.apply("ExternalService", name, fmt.Sprintf("hosts: [%s]\nports: %s\nresolution: Static\nendpoints: [{address: %q}]\n%s", host, ports, ip, more))
	}
	service("api", "api.outside.test", "[{number: 80, protocol: HTTP, targetPort: 8080}, {number: 8443, protocol: TLS}]", "")
	service("database", "db.outside.test", "[{number: 3306, protocol: TCP}]", "addresses: [192.0.2.2]")
	service("mine", "mine.outside.test", "[{number: 80, protocol: HTTP, targetPort: 8080}, {number: 8443, protocol: TLS}]", "from: [{serviceAccounts: [client]}]")
	tls := "tls: {sni: echo.application.test, caBundle: %q}"
	service("secure", "secure.outside.test", "[{number: 80, protocol: HTTP, targetPort: 8443}]", fmt.Sprintf(tls, authority("server")))
	service("wrong-ca", "wrong.outside.test", "[{number: 80, protocol: HTTP, targetPort: 8443}]", fmt.Sprintf(tls, authority("stranger")))

	from, other := s.in("client"), s.in("other")
	http := func(host string) []string { return []string{"http", "http://192.0.2.1", "--host", host} }
	for _, c := range []struct {
		what  string
		from  kube.Pod
		judge func(*report.Call) error
		args  []string
	}{
		{"HTTP by its name", from, answered(200), http("api.outside.test")},
		{"another name", from, answered(502), http("nobody.outside.test")},
		{"another port", from, fails("reset", "eof"), []string{"tcp", "192.0.2.1:9001"}},
		{"TLS by its name", from, works, []string{"tls", "192.0.2.1:8443", "--host", "api.outside.test"}},
		{"TLS by another name", from, fails("reset", "eof"), []string{"tls", "192.0.2.1:8443", "--host", "nobody.outside.test"}},
		{"a server that speaks first, by its address", from, works, []string{"greet", "192.0.2.2:3306"}},
		{"that server by another address", from, fails("reset", "eof"), []string{"greet", "192.0.2.3:3306"}},
		{"TLS by the sidecar", from, answered(200), http("secure.outside.test")},
		{"TLS by the sidecar, of another authority", from, answered(503), http("wrong.outside.test")},
		{"who may", from, answered(200), http("mine.outside.test")},
		{"who may not", other, answered(403), http("mine.outside.test")},
		{"who may not, in TLS", other, fails("reset", "eof"), []string{"tls", "192.0.2.1:8443", "--host", "mine.outside.test"}},
	} {
		if err := c.judge(s.call(c.from, c.args...)); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}

	// Of two for the same the older holds, and the younger says so.
	must(t, s.c.Apply(t.Context(), s.object("ExternalService", "younger", "hosts: [api.outside.test]\nports: [{number: 80, protocol: HTTP}]\nresolution: DNS")))
	eventually(t, 20*time.Second, "the conflict", func(ctx context.Context) error {
		return s.c.Condition(ctx, kube.MeshKind("ExternalService"), s.name, "younger", "Accepted", "False")
	})
	if err := works(s.call(from, http("api.outside.test")...)); err != nil {
		t.Errorf("the older: %v", err)
	}
	s.remove("ExternalService", "api")
	s.remove("ExternalService", "younger")
	s.callUntil(from, answered(502), http("api.outside.test")...)
}
