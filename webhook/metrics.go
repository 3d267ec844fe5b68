package webhook

import (
	"context"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// The answers to an admission request, as the metric has them. To HTTP, and so to
// controller-runtime's own metrics, all of them are a 200.
const (
	answerAllowed = "allowed" // as it is
	answerChanged = "changed" // injected
	answerRefused = "refused" // by what is in the object
	answerFailed  = "failed"  // by what is the matter with the control plane
)

// Counted has the answers of the handlers counted, each under the path that it is
// asked at, from the beginning at zero.
//
// Errors: a metric of that name is registered.
func Counted(r prometheus.Registerer, handlers map[string]admission.Handler) (map[string]admission.Handler, error) {
	responses := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tulle_admission_responses_total",
		Help: "Answers to the API server's admission requests: allowed, changed (injected), refused, failed.",
	}, []string{"webhook", "answer"})
	if err := r.Register(responses); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	counted := make(map[string]admission.Handler, len(handlers))
	for path, h := range handlers {
		of := responses.MustCurryWith(prometheus.Labels{"webhook": path})
		for _, a := range []string{answerAllowed, answerChanged, answerRefused, answerFailed} {
			of.WithLabelValues(a)
		}
		counted[path] = admission.HandlerFunc(func(ctx context.Context, request admission.Request) admission.Response {
			response := h.Handle(ctx, request)
			of.WithLabelValues(answerOf(&response)).Inc()
			return response
		})
	}
	return counted, nil
}

func answerOf(r *admission.Response) string {
	switch {
	case r.Allowed && len(r.Patches) == 0:
		return answerAllowed
	case r.Allowed:
		return answerChanged
	case r.Result != nil && r.Result.Code >= http.StatusInternalServerError:
		return answerFailed
	default:
		return answerRefused
	}
}
