package server

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

const (
	dbScope   = "10.96.0.1:80"
	dbCluster = "svc|shop/db|80"
)

func TestStartingProxyIsServed(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.start()
	for _, name := range []string{translate.ListenerEgress, translate.ListenerInbound, translate.ListenerProbes, translate.ListenerStats} {
		if !a.has(translate.Listener, name)() {
			t.Errorf("ready came without the listener %s", name)
		}
	}
	if got := string(a.got[translate.Secret][translate.SecretWorkload].Resource.Value); !strings.Contains(got, "chain of spiffe://test.mesh/ns/shop/sa/web") {
		t.Errorf("the certificate is %q", got)
	}
	a.until("the scope", a.has(translate.Scope, dbScope))
	a.subscribe(translate.Route, dbScope)
	a.until("the route", a.has(translate.Route, dbScope))
	if !a.has(translate.Cluster, dbCluster)() {
		t.Fatal("the route came before its cluster")
	}
	a.subscribe(translate.Endpoints, dbCluster)
	a.until("the endpoints", a.has(translate.Endpoints, dbCluster))
	if n := h.metric("tulle_xds_streams"); n != 1 {
		t.Errorf("%v streams are counted", n)
	}
}

func TestOneMovedEndpointSendsOneResource(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.start()
	a.subscribe(translate.Cluster, dbCluster)
	a.until("the cluster", a.has(translate.Cluster, dbCluster))
	a.subscribe(translate.Endpoints, dbCluster)
	a.until("the endpoints", a.has(translate.Endpoints, dbCluster))
	before, last := a.got[translate.Endpoints][dbCluster].Version, a.count
	h.builder.Apply(mesh.Put(slice("db", "10.244.9.2")))
	a.until("the change", func() bool { return a.got[translate.Endpoints][dbCluster].Version != before })
	if n := a.count - last; n != 1 {
		t.Errorf("%d resources were sent", n)
	}
	eventually(t, "an observation of convergence", func() bool { return h.metric("tulle_xds_convergence_seconds") == 1 })
}

func TestStreamsWithoutAGoodTokenAreRefused(t *testing.T) {
	h := newHarness(t, func(o *Options) { o.PodWait = 50 * time.Millisecond })
	c := h.api.said(peer("web"))
	c["aud"] = "https://kubernetes.default.svc"
	otherAudience := h.api.sign(c)
	c = h.api.said(peer("web"))
	c["exp"] = time.Now().Add(-time.Minute).Unix()
	expired := h.api.sign(c)
	c = h.api.said(peer("web"))
	c["kubernetes.io"].(map[string]any)["pod"] = map[string]string{"name": "web", "uid": "of an earlier pod"}
	earlier := h.api.sign(c)
	for i, test := range []struct{ name, token string }{
		{"none", ""},
		{"another audience", otherAudience},
		{"expired", expired},
		{"of a pod that is gone", earlier},
		{"of a pod that never was", h.api.token(peer("nobody"))},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := h.connect(test.token)
			a.subscribe(translate.Secret, translate.SecretWorkload)
			if err := a.ended(); status.Code(err) != codes.Unauthenticated {
				t.Errorf("the stream ended with %v", err)
			}
			if a.count != 0 {
				t.Errorf("%d resources were sent", a.count)
			}
			if n := h.metric("tulle_xds_authentication_failures_total"); n != float64(i+1) {
				t.Errorf("%v failures are counted, not %d", n, i+1)
			}
		})
	}
}

func TestNodeIDDecidesNothing(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.node = "api.shop"
	a.subscribe(translate.Secret, translate.SecretWorkload)
	a.until("the certificate", a.has(translate.Secret, translate.SecretWorkload))
	if got := string(a.got[translate.Secret][translate.SecretWorkload].Resource.Value); !strings.Contains(got, "/sa/web") || strings.Contains(got, "/sa/api") {
		t.Errorf("the certificate is %q", got)
	}
	if n := h.metric("tulle_xds_node_mismatches_total"); n != 1 {
		t.Errorf("%v mismatches are counted", n)
	}
}

func TestNoOtherSecretCanBeNamed(t *testing.T) {
	h := newHarness(t, nil)
	// The other identity's certificate exists, because its own proxy is here.
	other := h.connect(h.api.token(peer("api")))
	other.subscribe(translate.Secret, translate.SecretWorkload)
	other.until("the certificate", other.has(translate.Secret, translate.SecretWorkload))

	a := h.connect(h.api.token(peer("web")))
	wanted := []string{"spiffe://test.mesh/ns/shop/sa/api", "workload/shop/api", "tulle-ca", "*", strings.Repeat("x", 600)}
	a.subscribe(translate.Secret, wanted...)
	a.send(&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.service.runtime.v3.Runtime"})
	a.subscribe(translate.Secret, translate.SecretRoots)
	a.until("what it may have", a.has(translate.Secret, translate.SecretRoots))
	if len(a.got[translate.Secret]) != 1 {
		t.Errorf("it has %d secrets", len(a.got[translate.Secret]))
	}
	if n := h.metric("tulle_xds_refused_subscriptions_total"); n != float64(len(wanted)+1) {
		t.Errorf("%v refusals are counted", n)
	}
}

func TestStateOfTheWorldIsRefusedWithTheReason(t *testing.T) {
	h := newHarness(t, nil)
	conn := h.connect(h.api.token(peer("web")))
	defer conn.close()
	err := h.server.StreamAggregatedResources(nil)
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "DELTA_GRPC") {
		t.Errorf("the error is %v", err)
	}
}

func TestPodThatIsNotKnownYetIsWaitedFor(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("late")))
	a.subscribe(translate.Secret, translate.SecretRoots)
	h.builder.Apply(mesh.Put(workload("late")))
	a.until("the roots", a.has(translate.Secret, translate.SecretRoots))
}

func TestStreamEndsWithItsPod(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.start()
	h.builder.Apply(mesh.Delete(mesh.KindWorkload, peer("web").Pod))
	if err := a.ended(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the stream ended with %v", err)
	}
	eventually(t, "the end of the subscriptions", func() bool { return h.builder.subscribers() == 0 })
}

func TestInboundFollowsThePodsLabels(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.start()
	inbound := func() string { return a.got[translate.Listener][translate.ListenerInbound].Version }
	before, last := inbound(), a.count
	w := workload("web")
	w.Labels = map[string]string{"app": "web", "tier": "front"}
	w.Ports = []mesh.ContainerPort{{Name: "http", Port: 8081}}
	h.builder.Apply(
		mesh.Put(&mesh.Policy{
			Meta:     mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "strict"}},
			Selector: &mesh.Selector{MatchLabels: map[string]string{"tier": "front"}},
			MTLS:     &mesh.MTLS{Mode: mesh.MTLSStrict},
		}),
		mesh.Put(w))
	a.until("the strict listener", func() bool { return inbound() != before })
	profile := h.builder.Snapshot().Profile(w)
	if got := h.server.all()[0].report().Profile; got != profile {
		t.Errorf("the profile is %s, not %s", got, profile)
	}
	// Not even for a moment is it sent what is built for a class without pods.
	if want := h.builder.Value(build.Key{Type: translate.Listener, Name: translate.ListenerInbound, For: profile}); inbound() != want.Version {
		t.Errorf("after %d resources the listener is %s, not %s", a.count-last, inbound(), want.Version)
	}
}

func TestEachPodIsProbedAtItsOwnAddress(t *testing.T) {
	h := newHarness(t, nil)
	const path = "/probe/app/readiness"
	name := translate.PrefixProbe + path
	listeners := map[string]string{}
	for pod, address := range map[string]string{"db-0": "10.244.0.7", "db-1": "10.244.0.8"} {
		w := workload(pod)
		w.Labels = map[string]string{"app": "db"}
		w.Probes = []mesh.Probe{{Path: path, Port: 3306, Kind: mesh.ProbeTCP}}
		w.Addresses = nil // it comes after the pod
		h.builder.Apply(mesh.Put(w))
		a := h.connect(h.api.token(peer(pod)))
		a.start()
		if !a.has(translate.Cluster, name)() {
			t.Fatal("ready came without the probe's cluster")
		}
		known := *w
		known.Addresses = []netip.Addr{netip.MustParseAddr(address)}
		h.builder.Apply(mesh.Put(&known))
		a.until("the pod's address", func() bool {
			return strings.Contains(string(a.got[translate.Cluster][name].Resource.Value), address)
		})
		listeners[pod] = string(a.got[translate.Listener][translate.ListenerProbes].Resource.Value)
	}
	if listeners["db-0"] != listeners["db-1"] {
		t.Error("pods of a workload do not share the listener")
	}
}

func TestInboundIsDrainedAsThePodBeginsToEnd(t *testing.T) {
	for name, test := range map[string]struct {
		grace  time.Duration
		drains bool
	}{
		"soon":                               {30 * time.Second, true},
		"with long connections to end first": {10 * time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, nil)
			a := h.connect(h.api.token(peer("web")))
			a.start()
			a.subscribe(translate.Cluster, dbCluster)
			a.until("the cluster", a.has(translate.Cluster, dbCluster))
			inbound := func() string { return a.got[translate.Listener][translate.ListenerInbound].Version }
			before, last := inbound(), a.count
			w := workload("web")
			w.Terminating, w.Grace = true, test.grace
			h.builder.Apply(mesh.Put(w))
			if test.drains {
				a.until("another inbound listener", func() bool { return inbound() != before })
			}
			// What comes next comes after all that the end of the pod led to.
			s := service("db", "10.96.0.1")
			s.Ports = append(s.Ports, mesh.ServicePort{Name: "more", Port: 81, Protocol: mesh.HTTP})
			h.builder.Apply(mesh.Put(s))
			a.until("a new scope", a.has(translate.Scope, "10.96.0.1:81"))
			if got := inbound() != before; got != test.drains {
				t.Errorf("the inbound listener is another: %t", got)
			}
			if n, most := a.count-last, 2; n > most {
				t.Errorf("%d resources were sent, want the listener at most, and the scope", n)
			}
		})
	}
}

func TestTooManyStreamsOfAPodCloseTheOldest(t *testing.T) {
	h := newHarness(t, func(o *Options) { o.StreamsPerPod = 2 })
	var streams []*ads
	for range 3 {
		a := h.connect(h.api.token(peer("web")))
		a.subscribe(translate.Secret, translate.SecretRoots)
		a.until("the roots", a.has(translate.Secret, translate.SecretRoots))
		streams = append(streams, a)
	}
	if err := streams[0].ended(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the oldest stream ended with %v", err)
	}
	for _, a := range streams[1:] {
		a.subscribe(translate.Secret, translate.SecretWorkload)
		a.until("an answer", a.has(translate.Secret, translate.SecretWorkload))
	}
}

func TestWhatSiblingsUseIsSentAhead(t *testing.T) {
	h := newHarness(t, nil)
	first := h.connect(h.api.token(peer("web")))
	first.start()
	first.until("the scope", first.has(translate.Scope, dbScope))
	if strings.HasSuffix(first.got[translate.Scope][dbScope].Version, "~") {
		t.Fatal("a scope that nobody used yet is eager")
	}
	first.subscribe(translate.Route, dbScope)
	first.subscribe(translate.Cluster, "tcp|10.96.0.1:80")
	first.until("the route", first.has(translate.Route, dbScope))
	first.until("the cluster", first.has(translate.Cluster, "tcp|10.96.0.1:80"))

	twin := workload("web-2")
	twin.ServiceAccount, twin.Labels = "web", map[string]string{"app": "web", "pod-template-hash": "x"}
	h.builder.Apply(mesh.Put(twin))
	p := peer("web-2")
	p.ServiceAccount = "web"
	second := h.connect(h.api.token(p))
	second.start()
	second.until("the cluster ahead", second.has(translate.Cluster, "tcp|10.96.0.1:80"))
	second.until("the scope", second.has(translate.Scope, dbScope))
	if !strings.HasSuffix(second.got[translate.Scope][dbScope].Version, "~") {
		t.Error("the scope that a sibling uses is not eager")
	}
	// One that comes back keeps what it has.
	third := h.connect(h.api.token(peer("web")))
	third.send(&discovery.DeltaDiscoveryRequest{
		TypeUrl:                 translate.Scope.URL(),
		InitialResourceVersions: map[string]string{dbScope: first.got[translate.Scope][dbScope].Version},
	})
	third.subscribe(translate.Secret, translate.SecretRoots)
	third.until("the roots", third.has(translate.Secret, translate.SecretRoots))
	h.builder.Apply(mesh.Put(service("new", "10.96.0.7")))
	third.until("a new scope", third.has(translate.Scope, "10.96.0.7:80"))
	if third.has(translate.Scope, dbScope)() {
		t.Error("a scope that the proxy has was sent again in another form")
	}
}

func TestProxyThatDoesNotReadDelaysNobody(t *testing.T) {
	h := newHarness(t, nil)
	stuck := h.connect(h.api.token(peer("api")))
	stuck.node = ""
	stuck.subscribe(translate.Cluster)
	stuck.subscribe(translate.Endpoints, dbCluster)
	a := h.connect(h.api.token(peer("web")))
	a.subscribe(translate.Endpoints, dbCluster)
	a.until("endpoints", a.has(translate.Endpoints, dbCluster))
	many := make([]string, 500)
	for i := range 100 {
		for j := range many {
			many[j] = "10.200." + string(rune('0'+j/100)) + "." + itoa(j%100+i%7*20)
		}
		before := a.got[translate.Endpoints][dbCluster].Version
		h.builder.Apply(mesh.Put(slice("db", many...)))
		a.until("a change", func() bool { return a.got[translate.Endpoints][dbCluster].Version != before })
	}
	// And it is closed all the same when its pod ends.
	h.builder.Apply(mesh.Delete(mesh.KindWorkload, peer("api").Pod))
	eventually(t, "the end of the stream", func() bool { return h.builder.subscribers() == 1 })
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

func TestDebugTellsWhatEachProxyLacks(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.start()
	a.subscribe(translate.Cluster, dbCluster)
	r, err := a.stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	get := func() []report {
		rec := httptest.NewRecorder()
		h.server.Debug().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/debug/proxies", nil))
		var out []report
		if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	got := get()
	if len(got) != 1 || got[0].Pod != "shop/web" || got[0].Identity != "spiffe://test.mesh/ns/shop/sa/web" || got[0].Replica != "tulled-0" {
		t.Fatalf("the report is %+v", got)
	}
	pending := func(name string) bool {
		for _, p := range get()[0].Pending {
			if p.Name == name && p.Type == "Cluster" {
				return true
			}
		}
		return false
	}
	if !pending(dbCluster) {
		t.Errorf("what is not acknowledged is not pending: %+v", got[0])
	}
	nack := &discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	nack.ErrorDetail = status.New(codes.InvalidArgument, "no such thing").Proto()
	a.send(nack)
	eventually(t, "the rejection", func() bool {
		r := get()[0].Rejected
		return len(r) == 1 && r[0].Name == dbCluster && r[0].Error == "no such thing"
	})
	if n := h.metric("tulle_xds_nacks_total"); n != 1 {
		t.Errorf("%v refusals are counted", n)
	}
}

func TestStoppingServerSendsProxiesElsewhere(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.start()
	h.stop()
	if err := a.ended(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	<-h.stopped
	if n := h.metric("tulle_xds_streams"); n != 0 {
		t.Errorf("%v streams are left", n)
	}
}

func TestStreamsLeaveNothingBehind(t *testing.T) {
	h := newHarness(t, nil)
	open := func(n int) {
		var all []*ads
		for range n {
			a := h.connect(h.api.token(peer("web")))
			a.subscribe(translate.Secret, translate.SecretRoots)
			a.until("the roots", a.has(translate.Secret, translate.SecretRoots))
			all = append(all, a)
		}
		for _, a := range all {
			a.close()
		}
		eventually(t, "the end of the streams", func() bool {
			return h.metric("tulle_xds_streams") == 0 && h.builder.subscribers() == 0
		})
	}
	open(3)
	before := runtime.NumGoroutine()
	for range 10 {
		open(4)
	}
	eventually(t, "the end of the goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

func TestVerifierIsAskedWithTheStreamsContext(t *testing.T) {
	asked := make(chan context.Context, 1)
	h := newHarness(t, func(o *Options) { o.Tokens = verifier(func(ctx context.Context) { asked <- ctx; <-ctx.Done() }) })
	a := h.connect("slow")
	a.subscribe(translate.Secret, translate.SecretRoots)
	ctx := <-asked
	a.close()
	<-ctx.Done() // a peer that went away keeps nobody waiting
}

type verifier func(context.Context)

func (v verifier) Verify(ctx context.Context, _ string) (Peer, error) {
	v(ctx)
	return Peer{}, refuse(reasonSignature, ctx.Err())
}

// Envoy does not start before it was answered about scopes.
func TestAProxyStartsInAMeshWithoutServices(t *testing.T) {
	h := newHarness(t, nil)
	h.builder.Apply(mesh.Delete(mesh.KindService, mesh.Name{Namespace: "shop", Name: "db"}))
	a := h.connect(h.api.token(peer("web")))
	a.start()
	if a.count == 0 || len(a.got[translate.Scope]) != 0 || a.got[translate.Scope] == nil {
		t.Errorf("about scopes it was told %v", a.got[translate.Scope])
	}
}
