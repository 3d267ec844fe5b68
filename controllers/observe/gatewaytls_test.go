package observe

import (
	"context"
	"testing"

	"github.com/go-logr/logr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// What a Gateway asks of its clients is of the listeners at which TLS ends: what it says of
// their port, if that is nothing too, or else of all.
func TestCertificatesOfAGatewaysClients(t *testing.T) {
	g := gateway(parse[gatewayv1.Gateway](t, `
metadata: {name: front, namespace: edge}
spec:
  gatewayClassName: tulle
  tls:
    backend: {clientCertificateRef: {name: client, namespace: keys}}
    frontend:
      default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: all}]}}
      perPort:
      - {port: 444, tls: {validation: {mode: AllowInsecureFallback, caCertificateRefs: [{group: x.org, kind: Bundle, name: some, namespace: trust}]}}}
      - {port: 445, tls: {}}
      - {port: 446, tls: {validation: {mode: Odd, caCertificateRefs: [{group: '', kind: ConfigMap, name: all}]}}}
  listeners:
  - {name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: b, port: 444, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: c, port: 445, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: d, port: 446, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: ends, port: 443, protocol: TLS, hostname: a.example, tls: {certificateRefs: [{name: cert}]}}
  - {name: through, port: 443, protocol: TLS, hostname: b.example, tls: {mode: Passthrough}}
  - {name: clear, port: 80, protocol: HTTP}
  - {name: bytes, port: 444, protocol: TCP}
  - {name: out, port: 447, protocol: mesh.tulle.dev/Egress}
`))
	all := &mesh.ClientValidation{Authorities: []mesh.Backend{{Kind: "ConfigMap", Name: mesh.Name{Namespace: "edge", Name: "all"}}}}
	some := &mesh.ClientValidation{Insecure: true, Authorities: []mesh.Backend{{Kind: "x.org/Bundle", Name: mesh.Name{Namespace: "trust", Name: "some"}}}}
	want := map[string]*mesh.ClientValidation{"a": all, "b": some, "d": all, "ends": all}
	for _, l := range g.Listeners {
		same(t, l.Clients, want[l.Name])
	}
	same(t, g.Certificate, &mesh.Backend{Kind: "Secret", Name: mesh.Name{Namespace: "keys", Name: "client"}})
	if plain := gateway(parse[gatewayv1.Gateway](t, `{metadata: {name: g, namespace: edge}, spec: {listeners: [{name: a, port: 443, protocol: HTTPS}]}}`)); plain.Certificate != nil || plain.Listeners[0].Clients != nil {
		t.Errorf("a Gateway that says nothing: %+v", plain)
	}
}

// ConfigMaps are watched for what names some, once, and where they may be.
func TestConfigMapsAreWatchedForGatewaysToo(t *testing.T) {
	for _, c := range []struct {
		what, missing string
		may, watched  bool
	}{
		{"both kinds", "", true, true},
		{"no BackendTLSPolicy", "BackendTLSPolicy", true, true},
		{"no Gateway", "Gateway", true, true},
		{"what may not be", "", false, false},
	} {
		in := newStubInformers()
		in.missing = c.missing
		o := New(Options{
			Applier: newModel(), Log: logr.Discard(),
			May: func(_ context.Context, resource string) (bool, error) { return c.may || resource != "configmaps", nil },
		})
		if err := o.Watch(t.Context(), in, in.keys()); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, w := range o.watches {
			if w.kind == "ConfigMap" {
				n++
			}
		}
		if want := map[bool]int{false: 1, true: 2}[c.watched]; n != want { // one is of keys of issuers
			t.Errorf("%s: ConfigMaps are watched %d times, want %d", c.what, n, want)
		}
		// Again, as it is looked for kinds that are missing.
		before := in.byKind["ConfigMap"]
		if err := o.watchMissing(t.Context()); err != nil {
			t.Fatal(err)
		}
		if in.byKind["ConfigMap"] != before {
			t.Errorf("%s: ConfigMaps are watched twice", c.what)
		}
	}
}
