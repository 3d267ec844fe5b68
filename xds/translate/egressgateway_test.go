package translate

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Whom an object admits, and for whom it holds, as the certificates that they have.
func TestWhoIsAdmittedByAnEgressGateway(t *testing.T) {
	account := func(ns, name string) mesh.Name { return mesh.Name{Namespace: ns, Name: name} }
	for _, c := range []struct {
		what, namespace string
		callers         []mesh.Caller
		want            string
	}{
		{"a namespace's, for all", "shop", nil, "ns/shop/*"},
		{"the mesh's, for all", "tulle-system", nil, "*"},
		{"a namespace's, for itself and another", "shop", []mesh.Caller{{Namespaces: []string{"shop", "other"}}}, "ns/shop/*"},
		{"a namespace's, for another", "shop", []mesh.Caller{{Namespaces: []string{"other"}}, {ServiceAccounts: []mesh.Name{account("other", "web")}}}, ""},
		{"the mesh's, for some", "tulle-system", []mesh.Caller{{Namespaces: []string{"a"}}, {ServiceAccounts: []mesh.Name{account("b", "web")}}}, "ns/a/* ns/b/sa/web"},
		{"both at once", "tulle-system", []mesh.Caller{{Namespaces: []string{"a"}, ServiceAccounts: []mesh.Name{account("a", "web"), account("b", "web")}}}, "ns/a/sa/web"},
	} {
		e := &mesh.External{Meta: mesh.Meta{Name: mesh.Name{Namespace: c.namespace, Name: "api"}}, Callers: c.callers}
		var want []string
		for _, path := range strings.Fields(c.want) {
			want = append(want, "spiffe://new.mesh/"+path, "spiffe://old.mesh/"+path)
		}
		slices.Sort(want)
		if got := admitted(e, "tulle-system", []string{"new.mesh", "old.mesh"}); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", c.what, got, want)
		}
		if matchers := callers(e, "tulle-system", []string{"new.mesh"}); len(matchers) == 0 {
			t.Errorf("%s: no matcher, which would match everybody", c.what)
		}
	}
}

// What five hundred external services cost the proxies of the gateway that they name.
func TestSizeOfFiveHundredExternalServicesAtAGateway(t *testing.T) {
	gateway := mesh.Name{Namespace: "tulle-system", Name: "exit"}
	at := func(protocol mesh.Protocol) *mesh.View {
		es := named500(protocol, 443)
		for _, e := range es {
			e.(*mesh.External).Gateway = &gateway
		}
		return view(append(es, &mesh.Class{Name: "tulle"}, &mesh.Gateway{
			Meta: mesh.Meta{Name: gateway}, Class: "tulle", Listeners: []mesh.Listener{{Name: "out", Port: 15443, Protocol: mesh.ListenerEgress}},
		})...)
	}
	inTLS, http := at(mesh.TLS), at(mesh.HTTP)
	tls := proto.Size(gatewayListener(gateway.String(), inTLS).Message)
	listener, routes := proto.Size(gatewayListener(gateway.String(), http).Message), proto.Size(gatewayRoutes("gateway|15443|out", gateway.String(), http).Message)
	t.Logf("500 of TLS: %d bytes of listener; of HTTP: %d, and their routes %d", tls, listener, routes)
	if tls > 2<<20 || listener > 16<<10 || routes > 512<<10 {
		t.Errorf("500 of TLS are %d bytes of listener, of HTTP %d and %d of routes", tls, listener, routes)
	}
}
