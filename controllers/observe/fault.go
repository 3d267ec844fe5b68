package observe

import (
	"fmt"
	"strings"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func fault(field string, f *v1alpha1.Fault, bad *problems) *mesh.Fault {
	if f == nil {
		return nil
	}
	out := &mesh.Fault{}
	if d := f.Delay; d != nil {
		out.Delay = bad.time(field+".delay.fixedDelay", &d.FixedDelay, 0)
		out.DelayPercent = bad.percent(field+".delay.percent", d.Percent, 100)
		if out.Delay == 0 {
			bad.add("%s.delay.fixedDelay: a delay is above zero: write 500ms or 2s", field)
		}
	}
	if a := f.Abort; a != nil {
		out.HTTPStatus = bad.count(field+".abort.httpStatus", a.HTTPStatus, 0)
		out.GRPCStatus = bad.count(field+".abort.grpcStatus", a.GRPCStatus, 0)
		out.AbortPercent = bad.percent(field+".abort.percent", a.Percent, 100)
		// Envoy refuses all routes that come with another status.
		if a.HTTPStatus != nil && (out.HTTPStatus < 200 || out.HTTPStatus > 599) {
			bad.add("%s.abort.httpStatus: %d is no status: write 200 to 599", field, out.HTTPStatus)
		}
		if (out.HTTPStatus == 0) == (out.GRPCStatus == 0) {
			bad.add("%s.abort: write one of httpStatus and grpcStatus", field)
		}
	}
	if f.Delay == nil && f.Abort == nil {
		bad.add("%s: it says nothing: write delay, abort or both", field)
	}
	for i, h := range f.Headers {
		out.Headers = append(out.Headers, mesh.HeaderMatch{
			Name:  strings.ToLower(h.Name),
			Type:  valueMatchType(fmt.Sprintf("%s.headers[%d]", field, i), h.Type, h.Value, bad),
			Value: h.Value,
		})
	}
	return out
}
