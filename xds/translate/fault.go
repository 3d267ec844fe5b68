package translate

import (
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	common "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// faults enables Envoy's fault filter for a virtual host. The filter stands before the
// router: what it answers is not tried again, no pod and no time-out has a part in it.
// https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/fault_filter
func (t *traffic) faults() map[string]*anypb.Any {
	f := t.fault
	if f == nil {
		return nil
	}
	// Callers name no statistics of ours (x-envoy-downstream-service-cluster).
	out := &faultfilter.HTTPFault{DisableDownstreamClusterStats: true}
	if f.Delay > 0 {
		out.Delay = &common.FaultDelay{
			FaultDelaySecifier: &common.FaultDelay_FixedDelay{FixedDelay: durationpb.New(f.Delay)}, // sic
			Percentage:         percentOf(f.DelayPercent),
		}
	}
	switch {
	case f.HTTPStatus > 0:
		out.Abort = &faultfilter.FaultAbort{
			ErrorType:  &faultfilter.FaultAbort_HttpStatus{HttpStatus: f.HTTPStatus},
			Percentage: percentOf(f.AbortPercent),
		}
	case f.GRPCStatus > 0:
		out.Abort = &faultfilter.FaultAbort{
			ErrorType:  &faultfilter.FaultAbort_GrpcStatus{GrpcStatus: f.GRPCStatus},
			Percentage: percentOf(f.AbortPercent),
		}
		// Anything else would be answered with 200, gRPC-Web (application/grpc-web) too.
		out.Headers = append(out.Headers, &route.HeaderMatcher{
			Name: "content-type", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: regex(`application/grpc(\+.*)?`)},
		})
	}
	out.Headers = append(out.Headers, headerMatchers(f.Headers)...)
	return map[string]*anypb.Any{faultName: typed(out)}
}

func headerMatchers(hs []mesh.HeaderMatch) []*route.HeaderMatcher {
	var out []*route.HeaderMatcher
	for _, h := range hs {
		out = append(out, &route.HeaderMatcher{
			Name: h.Name, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: valueMatch(h)},
		})
	}
	return out
}

func percentOf(n uint32) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: n, Denominator: typev3.FractionalPercent_HUNDRED}
}
