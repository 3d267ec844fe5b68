package main

import (
	"context"
	"net/http"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/xds/build"
)

// What a pod is injected with it keeps, so none is injected from a mesh that is
// not known yet.
func TestNoPodIsInjectedBeforeTheMeshIsKnown(t *testing.T) {
	b := build.New(build.Options{})
	p := &controlPlane{builder: b, observer: observe.New(observe.Options{Applier: b})}
	asked := false
	h := p.whenComplete(admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		asked = true
		return admission.Allowed("")
	}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the API server gives up
	r := h.Handle(ctx, admission.Request{})
	if asked || r.Allowed || r.Result.Code != http.StatusServiceUnavailable {
		t.Errorf("asked: %t; answered %+v", asked, r.Result)
	}
}
