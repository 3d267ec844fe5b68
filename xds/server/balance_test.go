package server

import (
	"fmt"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

func TestAStreamsAgeIsSpread(t *testing.T) {
	lowest, highest := time.Hour, time.Duration(0)
	for range 1000 {
		l := lifetime(30 * time.Minute)
		lowest, highest = min(lowest, l), max(highest, l)
	}
	if lowest < 24*time.Minute || lowest > 26*time.Minute || highest > 36*time.Minute || highest < 34*time.Minute {
		t.Errorf("from %v to %v", lowest, highest)
	}
}

func TestAStreamEndsAtItsAgeAndItsProxyIsSentNothingAgain(t *testing.T) {
	h := newHarness(t, func(o *Options) { o.MaxStreamAge = 300 * time.Millisecond })
	a := h.connect(h.api.token(peer("web")))
	a.start()
	if err := a.ended(); status.Code(err) != codes.Unavailable {
		t.Fatalf("it ended with %v", err)
	}
	held := map[translate.Type]map[string]string{}
	for typ, resources := range a.got {
		held[typ] = map[string]string{}
		for name, r := range resources {
			held[typ][name] = r.Version
		}
	}
	back := h.connect(h.api.token(peer("web")))
	for _, typ := range []translate.Type{translate.Cluster, translate.Listener, translate.Scope} {
		back.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typ.URL(), InitialResourceVersions: held[typ]})
	}
	back.send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: translate.Secret.URL(), InitialResourceVersions: held[translate.Secret],
		ResourceNamesSubscribe: []string{translate.SecretWorkload, translate.SecretRoots},
	})
	back.send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: translate.Route.URL(), InitialResourceVersions: held[translate.Route], ResourceNamesSubscribe: []string{translate.RouteInbound},
	})
	if err := back.ended(); status.Code(err) != codes.Unavailable || back.count != 0 {
		t.Errorf("%d resources were sent again before it ended with %v", back.count, err)
	}
	if n := h.metric("tulle_xds_ended_streams_total"); n != 2 {
		t.Errorf("%v ended streams are counted", n)
	}
}

func TestAStreamThatHasNotAcknowledgedIsNotEndedByItsAge(t *testing.T) {
	h := newHarness(t, func(o *Options) { o.MaxStreamAge = 50 * time.Millisecond })
	a := h.connect(h.api.token(peer("web")))
	a.answer = func(*discovery.DeltaDiscoveryRequest) bool { return false }
	a.subscribe(translate.Cluster)
	a.until("clusters", a.has(translate.Cluster, translate.ClusterAdmin))
	ended := make(chan error, 1)
	go func() { ended <- a.ended() }()
	select {
	case err := <-ended:
		t.Errorf("it ended with %v", err)
	case <-time.After(time.Second): // many times its age
	}
}

func TestWhoHasMoreThanItsShareSheds(t *testing.T) {
	for _, c := range []struct {
		streams, proxies, replicas int
		excess                     int // in streams
	}{
		{100, 100, 2, 50},
		{60, 100, 2, 0}, // within the tolerance
		{61, 100, 2, 11},
		{50, 100, 2, 0},
		{0, 100, 2, 0},
		{1, 1, 2, 0}, // less than one
		{2, 2, 2, 1},
		{120, 100, 2, 60}, // others may have left
		{30, 100, 3, 0},
	} {
		const cost = 7
		if got := excessCost(c.streams*cost, c.streams, c.proxies, c.replicas) / cost; got != c.excess {
			t.Errorf("%d of %d streams on one of %d: it has %d too many, want %d", c.streams, c.proxies, c.replicas, got, c.excess)
		}
	}
}

func TestAReplicaShedsUntilItHasItsShare(t *testing.T) {
	h := newHarness(t, nil)
	const proxies = 20
	for i := range proxies {
		name := fmt.Sprintf("w%d", i)
		w := workload(name)
		w.Started = true
		h.builder.Apply(mesh.Put(w))
		a := h.connect(h.api.token(peer(name)))
		a.node = ""
		a.start()
		go func() { _ = a.ended() }()
	}
	h.server.shed(1)
	if n := h.metric("tulle_xds_streams"); n != proxies {
		t.Fatalf("alone it has %v streams", n)
	}
	h.server.shed(2)
	eventually(t, "a fifth of what is too much", func() bool { return h.metric("tulle_xds_streams") == proxies-2 })
	for range 20 {
		h.server.shed(2)
		eventually(t, "an end of shedding", func() bool {
			return h.metric("tulle_xds_streams") == proxies-h.metric("tulle_xds_ended_streams_total")
		})
	}
	if n := h.metric("tulle_xds_streams"); n < 10 || n > 12 {
		t.Errorf("it kept %v streams", n)
	}
}
