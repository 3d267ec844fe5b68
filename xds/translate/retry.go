package translate

import (
	"cmp"
	"slices"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previouspriorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// reselections is how often another pod is chosen while the choice falls on one that has
// failed already. With few pods the choice is as good as a coin's, or worse, since one that
// fails fast has the fewest requests under way; a choice costs nothing.
const reselections = 100

// retryPolicy is of clients who prefer endpoints that are near.
func retryPolicy(r mesh.Retries, prefer mesh.Near) *route.RetryPolicy {
	if r.Attempts == 0 {
		if r.PerTryTimeout > 0 { // of the one that there is
			return &route.RetryPolicy{NumRetries: wrapperspb.UInt32(0), PerTryTimeout: durationpb.New(r.PerTryTimeout)}
		}
		return nil
	}
	p := &route.RetryPolicy{
		RetryOn:              strings.Join(r.On, ","),
		NumRetries:           wrapperspb.UInt32(r.Attempts),
		RetriableStatusCodes: r.Codes,
		// Another host than the one that failed, if there is another.
		RetryHostPredicate: []*route.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: typed(&previoushosts.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: reselections,
	}
	if len(r.Codes) > 0 {
		p.RetryOn += ",retriable-status-codes"
	} else if !slices.ContainsFunc(r.On, func(c string) bool { return !slices.Contains(defaultRetries.On, c) }) {
		// No server has seen it: after two attempts the last resort (endpoints), or,
		// where what is near is preferred, after one what is farther.
		update := int32(2)
		if prefer != mesh.Anywhere {
			update = 1
		}
		p.RetryPriority = &route.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &route.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: typed(&previouspriorities.PreviousPrioritiesConfig{UpdateFrequency: update}),
			},
		}
	}
	if slices.Contains(r.On, connectFailure) {
		// A connection to the application that its sidecar did not get.
		p.RetryOn += ",retriable-headers"
		p.RetriableHeaders = []*route.HeaderMatcher{{
			Name: unreachedHeader, HeaderMatchSpecifier: &route.HeaderMatcher_PresentMatch{PresentMatch: true},
		}}
	}
	if r.PerTryTimeout > 0 {
		p.PerTryTimeout = durationpb.New(r.PerTryTimeout)
	}
	base := min(cmp.Or(r.Base, defaultBackOff), maxBackOff)
	p.RetryBackOff = &route.RetryPolicy_RetryBackOff{
		BaseInterval: durationpb.New(base), MaxInterval: durationpb.New(max(cmp.Or(r.Max, backOffGrowth*base), base)),
	}
	return p
}
