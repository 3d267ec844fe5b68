package gateway

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// testInsecure has the Gateway, of generation 3, come to let in anybody, and not any more.
func (l *live) testInsecure(t *testing.T, gw *gatewayv1.Gateway) {
	t.Run("says that anybody is let in as long as that is so", func(t *testing.T) {
		insecure := func(gw *gatewayv1.Gateway) bool {
			return meta.IsStatusConditionTrue(gw.Status.Conditions, string(gatewayv1.GatewayConditionInsecureFrontendValidationMode))
		}
		l.builder.find(gw, 3, append(goodFindings(), finding(itself, "InsecureFrontendValidationMode", true, "ConfigurationChanged"), finding(itself, "ResolvedRefs", true, "ResolvedRefs"))...)
		is(t, l, gw, "the condition", insecure)
		l.builder.find(gw, 3, goodFindings()...)
		is(t, l, gw, "its end", func(gw *gatewayv1.Gateway) bool {
			return !insecure(gw) && meta.FindStatusCondition(gw.Status.Conditions, "ResolvedRefs") == nil
		})
	})
}
