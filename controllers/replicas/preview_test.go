package replicas

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/go-logr/logr/testr"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/preview"
)

// previewing is tulled-0 of two replicas, which say so.
func previewing(t *testing.T, local, other func(context.Context, preview.Question) (*preview.Part, error)) *Preview {
	t.Helper()
	service := mesh.Name{Namespace: "tulle-system", Name: "tulled"}
	p := &Preview{Self: "tulled-0", Service: service, Local: local}
	far := &Preview{Local: other}
	server := httptest.NewTLSServer(far.Handler(func(_ context.Context, token string) error {
		if token != "ours" {
			return errors.New("not ours")
		}
		return nil
	}, testr.New(t)))
	t.Cleanup(server.Close)
	snapshot, peers := twoReplicas(t, server)
	p.Builder, p.Peers = fixedMesh{snapshot}, peers
	return p
}

func says(resource string, known []string, pods ...string) func(context.Context, preview.Question) (*preview.Part, error) {
	return func(_ context.Context, q preview.Question) (*preview.Part, error) {
		if len(q.Put) != 1 || string(q.Put[0]) != `{"a":1}` {
			return nil, errors.New("another question")
		}
		return &preview.Part{Known: known, Resources: []preview.Resource{{Type: "Route", Name: resource, NowVersion: "1", ThenVersion: "2", Pods: pods}}}, nil
	}
}

var question1 = preview.Question{Put: []json.RawMessage{json.RawMessage(`{"a":1}`)}}

func TestAPreviewAddsUpWhatAllReplicasSay(t *testing.T) {
	p := previewing(t, says("inbound", []string{"shop/a"}, "shop/a"), says("inbound", []string{"shop/b"}, "shop/b"))
	a, err := p.Ask(t.Context(), question1)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Missing) > 0 || a.Proxies != 2 || len(a.Unknown) > 0 || !slices.Equal(a.Changed, []string{"shop/a", "shop/b"}) ||
		len(a.Resources) != 1 || !slices.Equal(a.Resources[0].Pods, a.Changed) {
		t.Errorf("it says %+v", a)
	}
}

func TestAPreviewSaysWhatItDoesNotKnow(t *testing.T) {
	p := previewing(t, says("inbound", []string{"shop/a"}, "shop/a"), func(context.Context, preview.Question) (*preview.Part, error) {
		return nil, errors.New("not today")
	})
	a, err := p.Ask(t.Context(), question1)
	if err != nil {
		t.Fatal(err)
	}
	if a.Missing["tulled-1"] == "" || !slices.Equal(a.Unknown, []string{"shop/b"}) {
		t.Errorf("of a replica that does not answer is said %+v", a)
	}
}

func TestDryRunsThatAreTooManyHaveNoPreviewAndDoNotWait(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	p := previewing(t, func(context.Context, preview.Question) (*preview.Part, error) {
		entered <- struct{}{}
		<-leave
		return &preview.Part{}, nil
	}, says("inbound", nil))
	done := make(chan error, maxDryRuns)
	for range maxDryRuns {
		go func() {
			_, err := p.DryRun(t.Context(), question1)
			done <- err
		}()
		<-entered
	}
	if _, err := p.DryRun(t.Context(), question1); err == nil {
		t.Error("one more is answered")
	}
	close(leave)
	for range maxDryRuns {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	go func() { <-entered }()
	if _, err := p.DryRun(t.Context(), question1); err != nil {
		t.Errorf("after the others: %v", err)
	}
}
