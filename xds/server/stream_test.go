package server

import (
	"fmt"
	"slices"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// A proxy that reads nothing holds up who writes to it, and may go on asking: for one
// name after the other, each of which the builder tells of.
func TestWhoReadsNothingHasNothingPileUp(t *testing.T) {
	h := newHarness(t, nil)
	st := newStream(h.server, nil, peer("web"), workload("web"), "spiffe://cluster.local/ns/shop/sa/web", func(error) {})
	const times = 10_000
	for i := range times {
		name := []string{fmt.Sprintf("svc|shop/x%d|80", i)}
		st.request(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Cluster.URL(), ResourceNamesSubscribe: name})
		st.changed([]build.Key{{Type: translate.Cluster, Name: name[0], For: "shop"}})
		st.request(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Cluster.URL(), ResourceNamesUnsubscribe: name})
	}
	st.in.Lock()
	if n := len(st.dirty); n > 1000 {
		t.Errorf("of %d names that the proxy has no more, %d are still to be looked at", times, n)
	}
	st.in.Unlock()

	const held = 300
	for i := range times { // they change again and again
		st.changed([]build.Key{{Type: translate.Cluster, Name: fmt.Sprint(i % held)}})
	}
	st.in.Lock()
	defer st.in.Unlock()
	if n := len(st.dirty); n > 2*severalKeys+2*held {
		t.Errorf("%d keys are to be looked at, of %d that there are", n, held)
	}
	for i := range held {
		if k := (build.Key{Type: translate.Cluster, Name: fmt.Sprint(i)}); !slices.Contains(st.dirty, k) {
			t.Fatalf("%v is not to be looked at", k)
		}
	}
}
