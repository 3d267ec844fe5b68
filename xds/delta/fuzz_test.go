package delta_test

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	status "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// conversation writes requests one after the other, each with its length before it.
func conversation(requests ...*discovery.DeltaDiscoveryRequest) []byte {
	var out []byte
	for _, r := range requests {
		raw, err := proto.Marshal(r)
		if err != nil {
			panic(err)
		}
		out = protowire.AppendBytes(out, raw)
	}
	return out
}

// Whatever a proxy says, and in whatever order: what it holds of a type is bounded, every
// response is about what it may have, and a stream that ends gives back exactly what it
// had subscribed to.
func FuzzRequestsOfProxies(f *testing.F) {
	cluster, route := translate.Cluster.URL(), translate.Route.URL()
	f.Add(conversation(&discovery.DeltaDiscoveryRequest{TypeUrl: cluster, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: map[string]string{"c": "1", "gone": "2"}}))
	f.Add(conversation(
		&discovery.DeltaDiscoveryRequest{TypeUrl: route, ResourceNamesSubscribe: []string{"r", "", "*", "r"}},
		&discovery.DeltaDiscoveryRequest{TypeUrl: route, ResponseNonce: "1", ErrorDetail: &status.Status{Message: "no"}},
		&discovery.DeltaDiscoveryRequest{TypeUrl: route, ResourceNamesUnsubscribe: []string{"r", "*", "never"}},
	))
	f.Add(conversation(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Scope.URL()}, &discovery.DeltaDiscoveryRequest{TypeUrl: translate.Scope.URL(), ResourceNamesUnsubscribe: []string{"*"}}))
	f.Add(conversation(&discovery.DeltaDiscoveryRequest{TypeUrl: "none"}, &discovery.DeltaDiscoveryRequest{TypeUrl: translate.Endpoints.URL(), ResourceNamesSubscribe: []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}}))
	const names = 4
	f.Fuzz(func(t *testing.T, in []byte) {
		src := fixed{}
		binding := bindingOf("here")
		bind := binding.Bind
		binding.Bind = func(typ translate.Type, name string) (build.Key, bool) {
			k, _ := bind(typ, name)
			return k, len(name) == 0 || name[0] != '!' // of which there is none
		}
		s := delta.New(binding, delta.Limits{Names: names})
		held := map[build.Key]bool{}
		follow := func(e delta.Effects) {
			for _, k := range e.Unsubscribe {
				if !held[k] {
					t.Fatalf("%v is let go of, and was not held", k)
				}
				delete(held, k)
			}
			for _, k := range e.Subscribe {
				if held[k] {
					t.Fatalf("%v is subscribed to twice", k)
				}
				held[k] = true
				if k != delta.AllScopes {
					src[k] = value(k.Type, body{serial: 1, eds: noEDS})
				}
			}
			// Names that it asks for, and those that it said that it had, of each type.
			if len(held) > delta.Types*(3*names+4) {
				t.Fatalf("%d names are held", len(held))
			}
		}
		for len(in) > 0 {
			raw, n := protowire.ConsumeBytes(in)
			if n < 0 {
				break
			}
			in = in[n:]
			var r discovery.DeltaDiscoveryRequest
			if proto.Unmarshal(raw, &r) != nil {
				continue
			}
			follow(s.Request(&r))
			for range 100 {
				p, e := s.Next(src)
				follow(e)
				if p == nil {
					break
				}
				for _, one := range p.Resources {
					if one.Name == "" || one.Name[0] == '!' || len(one.Name) > delta.MaxName {
						t.Fatalf("%q is sent", one.Name)
					}
				}
			}
		}
		for _, k := range s.Close() {
			if !held[k] {
				t.Errorf("%v is given back, and was not held", k)
			}
			delete(held, k)
		}
		for k := range held {
			t.Errorf("%v is never given back", k)
		}
	})
}
