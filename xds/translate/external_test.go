package translate

import (
	"fmt"
	"slices"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func named500(protocol mesh.Protocol, port uint16) []mesh.Entity {
	var out []mesh.Entity
	for i := range 500 {
		out = append(out, &mesh.External{
			Meta:  mesh.Meta{Name: mesh.Name{Namespace: "tulle-system", Name: fmt.Sprint("service-", i)}},
			Hosts: []string{fmt.Sprintf("service-%d.example.org", i)}, Ports: []mesh.ExternalPort{{Number: port, Protocol: protocol}},
			Resolution: mesh.ResolveDNS,
		})
	}
	return out
}

// Five hundred external services cost a proxy that calls none of them some tens of kB.
func TestSizeOfFiveHundredExternalServices(t *testing.T) {
	none := proto.Size(egressListener("shop/web", view()))
	inTLS := proto.Size(egressListener("shop/web", view(named500(mesh.TLS, 443)...)))
	v := view(named500(mesh.HTTP, 80)...)
	http, routes := proto.Size(egressListener("shop/web", v)), proto.Size(egressRoutes("shop/web", v))
	t.Logf("the listener without: %d bytes; 500 of TLS: %d; 500 of HTTP: %d, and their routes %d", none, inTLS, http, routes)
	if inTLS > 32<<10 || http > 16<<10 || routes > 256<<10 {
		t.Errorf("500 of TLS are %d bytes of listener, of HTTP %d and %d of routes", inTLS, http, routes)
	}
}

// Where objects are about the same, the most specific host, then the client's own
// namespace, then the older one decides.
func TestWhichExternalServiceIsMeant(t *testing.T) {
	at := func(namespace, name, host string, age int, change ...func(*mesh.External)) *mesh.External {
		e := &mesh.External{
			Meta:  mesh.Meta{Name: mesh.Name{Namespace: namespace, Name: name}, Created: time.Unix(int64(age), 0)},
			Hosts: []string{host}, Ports: []mesh.ExternalPort{{Number: 80, Protocol: mesh.HTTP}},
		}
		for _, c := range change {
			c(e)
		}
		return e
	}
	v := view(
		at("tulle-system", "all", "*.org", 1), at("tulle-system", "wide", "*.example.org", 2), at("shop", "own-wide", "*.example.org", 3),
		at("shop", "older", "a.example.org", 4), at("shop", "aaa", "a.example.org", 5), at("other", "theirs", "b.example.org", 1),
		at("shop", "tls", "t.example.org", 1, func(e *mesh.External) { e.Ports[0].Protocol = mesh.TLS }), at("shop", "younger", "t.example.org", 2),
		at("tulle-system", "exact", "c.example.org", 9), at("shop", "bad", "bad.example.org", 1, func(e *mesh.External) { e.Invalid = "no" }),
	)
	table := named(externals("shop", v, every), mesh.Protocol.IsHTTP)
	for host, want := range map[string]string{
		"a.example.org": "shop/older", "b.example.org": "shop/own-wide", "x.y.example.org": "shop/own-wide", "c.example.org": "tulle-system/exact",
		"d.org": "tulle-system/all", "t.example.org": "shop/own-wide", // over TLS it is shop/tls, alone
		"org": "", "a.example.com": "",
	} {
		got := ""
		if e, ok := table.find(80, host); ok {
			got = e.Meta.Name.String()
		}
		if got != want {
			t.Errorf("%s is %q, want %q", host, got, want)
		}
	}
	for _, name := range []string{"bad.example.org:80", "*.example.org:80", "b.example.org:80", "nobody.example:80", "a.example.org:81", "a.example.org", "", ":", "192.0.2.1:80"} {
		if c := externalCluster(Key{Name: "ext|" + name, For: "shop"}, name, v).Message.(*cluster.Cluster); len(c.GetLoadAssignment().GetEndpoints()) > 0 || c.GetLoadAssignment() == nil {
			t.Errorf("%q has endpoints", name)
		}
	}
}

// What cannot be understood is refused to everybody, and what names its callers to others.
func TestRefusedExternalServices(t *testing.T) {
	e := &mesh.External{
		Meta:  mesh.Meta{Name: mesh.Name{Namespace: "tulle-system", Name: "api"}},
		Hosts: []string{"api.example.org"}, Ports: []mesh.ExternalPort{{Number: 80, Protocol: mesh.HTTP}, {Number: 443, Protocol: mesh.TLS}},
		Callers: []mesh.Caller{{Namespaces: []string{"pay"}}, {ServiceAccounts: []mesh.Name{{Namespace: "shop", Name: "web"}}}},
	}
	invalid := *e
	invalid.Invalid = "it makes no sense"
	for _, c := range []struct {
		account string
		of      *mesh.External
		status  uint32
	}{{"pay/any", e, 0}, {"shop/web", e, 0}, {"shop/other", e, 403}, {"web/shop", e, 403}, {"shop/web", &invalid, 502}} {
		v := view(c.of)
		vh := egressRoutes(c.account, v).GetVirtualHosts()
		i := slices.IndexFunc(vh, func(h *route.VirtualHost) bool { return h.GetName() == "api.example.org" })
		if got := vh[i].GetRoutes()[0].GetDirectResponse().GetStatus(); got != c.status {
			t.Errorf("%s is answered with %d, want %d", c.account, got, c.status)
		}
		x := &egress{view: v, account: egressFor(c.account), otherwise: ClusterPassthrough, ports: map[uint16]*egressPort{}, chains: map[string]bool{}}
		x.add([]*mesh.External{c.of})
		if refused := len(x.ports[443].names[ClusterBlackhole]) > 0; refused != (c.status != 0) {
			t.Errorf("%s, in TLS: refused is %t", c.account, refused)
		}
	}
}
