package server

import (
	"fmt"
	"maps"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// builds is how many resources of each type were built so far.
func (h *harness) builds() map[string]uint64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, f := range families {
		if f.GetName() != "tulle_build_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			out[m.GetLabel()[0].GetValue()] = m.GetHistogram().GetSampleCount()
		}
	}
	return out
}

// since is what was built since then, types of which nothing was left out.
func (h *harness) since(before map[string]uint64) map[string]uint64 {
	out := h.builds()
	for t, n := range out {
		if out[t] = n - before[t]; out[t] == 0 {
			delete(out, t)
		}
	}
	return out
}

// Six proxies of three workloads call a service. What is counted here is exact: it
// depends on no machine.
func TestAChangeCostsWhatItTouches(t *testing.T) {
	const workloads, pods = 3, 2
	h := newHarness(t, nil)
	var proxies []*ads
	for i := range workloads * pods {
		w := workload(fmt.Sprintf("pod%d", i))
		w.Labels = map[string]string{"app": fmt.Sprintf("app%d", i%workloads)}
		w.Started = true
		h.builder.Apply(mesh.Put(w))
		a := h.connect(h.api.token(peer(w.Name.Name)))
		a.start()
		a.subscribe(translate.Route, "10.96.0.1:80")
		a.until("the route", a.has(translate.Route, "10.96.0.1:80"))
		a.subscribe(translate.Endpoints, dbCluster)
		a.until("the endpoints", a.has(translate.Endpoints, dbCluster))
		proxies = append(proxies, a)
	}
	quiet := func() {
		t.Helper()
		last := -1.0
		eventually(t, "that everything is sent", func() bool {
			sent := h.metric("tulle_xds_sent_resources_total")
			defer func() { last = sent }()
			return sent == last
		})
	}
	quiet()
	change := func(what string, c mesh.Change, arrived func(*ads) func() bool, builds map[string]uint64, sent int) {
		t.Helper()
		before, resources := h.builds(), h.metric("tulle_xds_sent_resources_total")
		h.builder.Apply(c)
		for _, a := range proxies {
			if arrived != nil {
				a.until(what, arrived(a))
			}
		}
		quiet()
		if got := h.since(before); !maps.Equal(got, builds) {
			t.Errorf("%s: built %v, want %v", what, got, builds)
		}
		if got := int(h.metric("tulle_xds_sent_resources_total") - resources); got != sent {
			t.Errorf("%s: sent %d resources, want %d", what, got, sent)
		}
	}
	another := func(t translate.Type, name string) func(*ads) func() bool {
		return func(a *ads) func() bool {
			before := a.got[t][name].GetVersion()
			return func() bool { return a.got[t][name].GetVersion() != before }
		}
	}
	change("an endpoint that moves", mesh.Put(slice("db", "10.244.9.2")), another(translate.Endpoints, dbCluster),
		map[string]uint64{"Endpoints": 1}, len(proxies))

	w := workload("pod0")
	w.Labels, w.Started = map[string]string{"app": "app0"}, true
	change("the heartbeat of a pod", mesh.Put(w), nil, map[string]uint64{}, 0)

	everybody := deny(1, "/none", nil)
	everybody.Meta.Name.Namespace, everybody.Selector = "tulle-system", nil
	change("a policy for the whole mesh", mesh.Put(everybody), another(translate.Route, translate.RouteInbound),
		map[string]uint64{"Listener": workloads, "Route": workloads}, 2*len(proxies))
}
