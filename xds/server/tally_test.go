package server

import (
	"context"
	"slices"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// deny is a policy of the generation that refuses the path to the selected.
func deny(generation int64, path string, labels map[string]string) *mesh.Policy {
	return &mesh.Policy{
		Meta:     mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "deny"}, Generation: generation},
		Selector: &mesh.Selector{MatchLabels: labels},
		Authorization: &mesh.Authorization{Rules: []mesh.Rule{{
			Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{path}}},
		}}},
	}
}

var (
	web = map[string]string{"app": "web"}
	api = map[string]string{"app": "api"}
)

// begin starts the workload and connects its proxy.
func (h *harness) begin(name string) *ads {
	h.t.Helper()
	w := workload(name)
	w.Started = true
	h.builder.Apply(mesh.Put(w))
	a := h.connect(h.api.token(peer(name)))
	a.start()
	return a
}

// rules takes changed rules for inbound traffic: they are in two resources, for
// connections and for requests.
func (a *ads) rules() {
	a.t.Helper()
	version := func(t translate.Type, name string) string { return a.got[t][name].GetVersion() }
	listener, route := version(translate.Listener, translate.ListenerInbound), version(translate.Route, translate.RouteInbound)
	a.until("the rules", func() bool {
		return version(translate.Listener, translate.ListenerInbound) != listener && version(translate.Route, translate.RouteInbound) != route
	})
}

// reported waits for a report in which the policy fulfils the condition.
func (h *harness) reported(what string, done func(*acks.Report, acks.Object) bool) *acks.Report {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	version := ""
	for {
		r, err := h.server.Report(ctx, version, nil)
		if err != nil || ctx.Err() != nil {
			h.t.Fatalf("%s was not reported, but %+v (%v)", what, r, err)
		}
		for _, o := range r.Objects {
			if o.Kind == mesh.KindPolicy && o.Name == "deny" && done(r, o) {
				return r
			}
		}
		version = r.Version
	}
}

func programmed(generation int64, of int) func(*acks.Report, acks.Object) bool {
	return func(_ *acks.Report, o acks.Object) bool {
		return o.Generation == generation && o.Concerned == of && o.Programmed == of
	}
}

func waiting(generation int64, pods ...string) func(*acks.Report, acks.Object) bool {
	return func(_ *acks.Report, o acks.Object) bool {
		return o.Generation == generation && slices.Equal(o.Waiting, pods) && o.Programmed == o.Concerned-len(pods)
	}
}

func TestAPolicyIsProgrammedWhenTheProxiesThatItSelectsHaveAcknowledgedIt(t *testing.T) {
	h := newHarness(t, nil)
	a, other := h.begin("web"), h.begin("api")
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	h.reported("that the policy waits", waiting(1, "shop/web"))
	a.rules()
	h.reported("that the policy is programmed", programmed(1, 1))

	// Who is selected no longer has to acknowledge that, too.
	h.builder.Apply(mesh.Put(deny(2, "/a", api)))
	other.rules()
	h.reported("that the former one waits", waiting(2, "shop/web"))
	a.rules()
	h.reported("that the policy is programmed at the other", programmed(2, 1))
}

func TestAPolicyWithoutEffectOnBytesIsProgrammedAtOnce(t *testing.T) {
	h := newHarness(t, nil)
	a := h.begin("web")
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	a.rules()
	h.reported("the first generation", programmed(1, 1))
	h.builder.Apply(mesh.Put(deny(2, "/a", web)))
	h.reported("the second", programmed(2, 1))
}

func TestARefusalIsReportedWithTheProxysWords(t *testing.T) {
	h := newHarness(t, nil)
	a := h.begin("web")
	a.answer = func(r *discovery.DeltaDiscoveryRequest) bool {
		r.ErrorDetail = &rpcstatus.Status{Message: "no such thing"}
		return true
	}
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	a.rules()
	h.reported("the refusal", func(_ *acks.Report, o acks.Object) bool {
		return o.Rejected == 1 && o.Concerned == 1 && o.Programmed == 0 && o.Refusal != nil &&
			*o.Refusal == acks.Refusal{Pod: "shop/web", Resource: "Listener inbound", Words: "no such thing"}
	})
	a.answer = nil
	other := deny(2, "/b", web)
	other.Authorization.Rules[0].To[0].Ports = []uint16{8080}
	h.builder.Apply(mesh.Put(other))
	a.rules()
	h.reported("that what is good again is programmed", programmed(2, 1))
}

func TestAPodWhoseStreamEndedStaysConcernedByWhatItHolds(t *testing.T) {
	h := newHarness(t, nil)
	a := h.begin("web")
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	a.rules()
	h.reported("that the policy is programmed", programmed(1, 1))
	held := map[string]string{}
	for name, r := range a.got[translate.Listener] {
		held[name] = r.Version
	}
	a.close()

	places := func(in []int, r *acks.Report, generation int64) bool {
		return len(in) > 0 && slices.ContainsFunc(in, func(i int) bool {
			return r.Objects[i].Name == "deny" && r.Objects[i].Generation == generation
		})
	}
	h.reported("that it goes on running the policy", func(r *acks.Report, o acks.Object) bool {
		return o.Concerned == 0 && len(r.Connected) == 0 && len(r.Absent) == 1 && r.Absent[0].Pod == "shop/web" && places(r.Absent[0].Programmed, r, 1)
	})
	h.builder.Apply(mesh.Put(deny(2, "/b", web)))
	h.reported("that it does not run the next generation", func(r *acks.Report, _ acks.Object) bool {
		return len(r.Absent) == 1 && places(r.Absent[0].Waiting, r, 2)
	})

	back := h.connect(h.api.token(peer("web")))
	back.send(&discovery.DeltaDiscoveryRequest{TypeUrl: translate.Listener.URL(), InitialResourceVersions: held})
	back.subscribe(translate.Cluster)
	back.subscribe(translate.Secret, translate.SecretWorkload, translate.SecretRoots)
	back.subscribe(translate.Scope)
	back.subscribe(translate.Route, translate.RouteInbound)
	back.until("the next generation", func() bool {
		return back.has(translate.Route, translate.RouteInbound)() && back.has(translate.Secret, translate.SecretRoots)()
	})
	r := h.reported("that it is back", programmed(2, 1))
	if len(r.Absent) != 0 {
		t.Errorf("%+v is still absent", r.Absent)
	}
}

func TestWhatAProxyHeldIsNotSubscribedToAnewWhenItsStreamEnds(t *testing.T) {
	h := newHarness(t, nil)
	h.builder.Apply(mesh.Put(endsTLS()), mesh.Put(operatorsCertificate(t, 1)))
	a := h.begin("web")
	const secret = translate.PrefixEnded + "shop/web"
	a.subscribe(translate.Secret, secret)
	a.until("the operator's certificate", a.has(translate.Secret, secret))
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	a.rules()
	h.reported("that the policy is programmed", programmed(1, 1))
	calls := h.builder.calls()
	a.close()
	h.reported("that it is absent", func(r *acks.Report, _ acks.Object) bool { return len(r.Absent) == 1 })
	eventually(t, "the end of what is only the stream's", func() bool {
		return !h.builder.wanted(func(k build.Key) bool { return k == build.AllScopes || ownCertificate(k) || operators(k) })
	})
	if got := h.builder.calls(); got != calls {
		t.Errorf("it was subscribed %d times", got-calls)
	}
	if !h.builder.wanted(func(k build.Key) bool { return k.Type == translate.Route && k.Name == translate.RouteInbound }) {
		t.Error("its routes are not subscribed to any more")
	}
	if _, err := h.server.Report(t.Context(), "", []string{"uid-web"}); err != nil {
		t.Fatal(err)
	}
	if n := h.builder.subscribers(); n > 0 {
		t.Errorf("%d subscribe still, after it was forgotten", n)
	}
}

func TestAPodThatOtherReplicasHaveIsForgotten(t *testing.T) {
	h := newHarness(t, nil)
	a := h.begin("web")
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	a.close()
	h.reported("that it is absent", func(r *acks.Report, _ acks.Object) bool { return len(r.Absent) == 1 })
	if _, err := h.server.Report(t.Context(), "", []string{"uid-web"}); err != nil {
		t.Fatal(err)
	}
	h.reported("that it is not", func(r *acks.Report, _ acks.Object) bool { return len(r.Absent) == 0 })
}

func TestAPodWhoseProxyHasNotStartedIsNotConcerned(t *testing.T) {
	h := newHarness(t, nil)
	a := h.connect(h.api.token(peer("web")))
	a.start()
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	h.reported("nobody", programmed(1, 0))
	w := workload("web")
	w.Started = true
	h.builder.Apply(mesh.Put(w))
	h.reported("that it counts once it has", func(_ *acks.Report, o acks.Object) bool { return o.Concerned == 1 })
}

func TestWhoRunsAPolicyRunsItThoughItRefusesAnother(t *testing.T) {
	h := newHarness(t, nil)
	a := h.begin("web")
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	a.rules()
	h.reported("that the policy is programmed", programmed(1, 1))
	a.answer = func(r *discovery.DeltaDiscoveryRequest) bool {
		r.ErrorDetail = &rpcstatus.Status{Message: "no such thing"}
		return true
	}
	bad := deny(1, "/bad", web)
	bad.Meta.Name.Name = "bad"
	bad.Authorization.Rules[0].To[0].Ports = []uint16{8080}
	h.builder.Apply(mesh.Put(bad))
	a.rules()
	h.reported("the other's refusal", func(r *acks.Report, o acks.Object) bool {
		i := slices.IndexFunc(r.Objects, func(o acks.Object) bool { return o.Name == "bad" })
		return i >= 0 && r.Objects[i].Rejected == 1 && o.Programmed == 1 && o.Rejected == 0
	})
}
