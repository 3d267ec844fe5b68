package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/preview"
)

func TestAPreviewNamesTheProxiesThatWouldBeSentSomething(t *testing.T) {
	h := newHarness(t, nil)
	h.begin("web")
	gone := h.begin("api")
	ask := func(c mesh.Change) *preview.Part {
		t.Helper()
		p, err := h.server.Preview(t.Context(), []mesh.Change{c}, true)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(p.Known)
		slices.SortFunc(p.Resources, func(a, b preview.Resource) int { return strings.Compare(a.Type, b.Type) })
		return p
	}
	p := ask(mesh.Put(deny(1, "/a", web)))
	if !slices.Equal(p.Known, []string{"shop/api", "shop/web"}) {
		t.Errorf("known are %v", p.Known)
	}
	if len(p.Resources) != 2 || p.Resources[0].Type != "Listener" || p.Resources[1].Type != "Route" {
		t.Fatalf("the rules are in two resources, not %+v", p.Resources)
	}
	for _, r := range p.Resources {
		if !slices.Equal(r.Pods, []string{"shop/web"}) || r.NowVersion == r.ThenVersion {
			t.Errorf("%s %s would change at %v from %s to %s", r.Type, r.Name, r.Pods, r.NowVersion, r.ThenVersion)
		}
	}
	if r := p.Resources[1]; strings.Contains(string(r.Now), "\"/a\"") || !strings.Contains(string(r.Then), "\"/a\"") {
		t.Errorf("the texts do not show the rule: %s and %s", r.Now, r.Then)
	}
	if len(p.Objects) != 1 || p.Objects[0].Name != "deny" || !p.Objects[0].Conditions[0].OK {
		t.Errorf("of the policy is said %+v", p.Objects)
	}

	// A proxy that is cut off still runs what it has.
	h.builder.Apply(mesh.Put(deny(1, "/a", web)))
	gone.close()
	h.reported("that its stream has ended", func(r *acks.Report, _ acks.Object) bool { return len(r.Absent) == 1 })
	touched := map[string]bool{}
	for _, r := range ask(mesh.Put(deny(2, "/a", api))).Resources {
		for _, pod := range r.Pods {
			touched[pod] = true
		}
	}
	if !touched["shop/api"] || !touched["shop/web"] {
		t.Errorf("a rule that moves from one workload to another would change %v", touched)
	}
}

func TestPreviewsAreMadeOneAfterTheOther(t *testing.T) {
	h := newHarness(t, nil)
	h.server.previews <- struct{}{} // one that takes its time
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := h.server.Preview(ctx, []mesh.Change{mesh.Put(deny(1, "/a", web))}, false)
		failed <- err
	}()
	select {
	case err := <-failed:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("who gives up is told %v", err)
	}
	<-h.server.previews
	if _, err := h.server.Preview(t.Context(), []mesh.Change{mesh.Put(deny(1, "/a", web))}, false); err != nil {
		t.Error(err)
	}
}
