package webhook_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tulle-mesh/tulle/webhook"
)

func TestAnswersAreCountedFromZero(t *testing.T) {
	var next admission.Response
	handler := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { return next })
	r := prometheus.NewRegistry()
	counted, err := webhook.Counted(r, map[string]admission.Handler{"/inject": handler, "/validate": handler})
	if err != nil {
		t.Fatal(err)
	}
	for _, next = range []admission.Response{
		admission.Allowed(""),
		admission.Denied("no"),
		admission.Denied("no"),
		admission.Errored(http.StatusBadRequest, errors.New("not an object")),
		admission.Errored(http.StatusServiceUnavailable, errors.New("starting")),
		admission.PatchResponseFromRaw([]byte(`{}`), []byte(`{"a":1}`)),
	} {
		if got := counted["/inject"].Handle(t.Context(), admission.Request{}); got.Allowed != next.Allowed {
			t.Errorf("%+v is answered by %+v", next, got)
		}
	}
	want := `
# HELP tulle_admission_responses_total Answers to the API server's admission requests: allowed, changed (injected), refused, failed.
# TYPE tulle_admission_responses_total counter
tulle_admission_responses_total{answer="allowed",webhook="/inject"} 1
tulle_admission_responses_total{answer="changed",webhook="/inject"} 1
tulle_admission_responses_total{answer="failed",webhook="/inject"} 1
tulle_admission_responses_total{answer="refused",webhook="/inject"} 3
tulle_admission_responses_total{answer="allowed",webhook="/validate"} 0
tulle_admission_responses_total{answer="changed",webhook="/validate"} 0
tulle_admission_responses_total{answer="failed",webhook="/validate"} 0
tulle_admission_responses_total{answer="refused",webhook="/validate"} 0
`
	if err := testutil.GatherAndCompare(r, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
