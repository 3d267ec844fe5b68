package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

// supported are the features of the Gateway API that Tulle's gateways have: what
// translation does of routes on a Gateway. The names are those of the conformance
// suite.
var supported = []features.FeatureName{
	features.SupportGateway,
	features.SupportGatewayHTTPListenerIsolation,
	features.SupportGatewayHTTPSListenerDetectMisdirectedRequests,
	features.SupportGatewayInfrastructure,
	features.SupportGatewayPort8080,
	features.SupportGatewayFrontendClientCertificateValidation,
	features.SupportGatewayFrontendClientCertificateValidationInsecureFallback,
	features.SupportGatewayBackendClientCertificate,
	features.SupportReferenceGrant,
	features.SupportHTTPRoute,
	features.SupportGRPCRoute,

	features.SupportHTTPRouteBackendProtocolH2C,
	features.SupportHTTPRouteBackendProtocolWebSocket,
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRouteQueryParamMatching,
	features.SupportHTTPRouteMethodMatching,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRouteBackendRequestHeaderModification,
	features.SupportHTTPRoutePortRedirect,
	features.SupportHTTPRouteSchemeRedirect,
	features.SupportHTTPRoutePathRedirect,
	features.SupportHTTPRouteHostRewrite,
	features.SupportHTTPRoutePathRewrite,
	features.SupportHTTPRouteRequestTimeout,
	features.SupportHTTPRouteBackendTimeout,
	features.SupportHTTPRouteRequestMirror,
	features.SupportHTTPRouteRequestMultipleMirrors,
	features.SupportHTTPRouteRequestPercentageMirror,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
	features.SupportHTTPRouteNamedRouteRule,
	features.SupportGRPCRouteNamedRouteRule,
}

// supportedFeatures are sorted, as the API wants them.
func supportedFeatures() []gatewayv1.SupportedFeature {
	var out []gatewayv1.SupportedFeature
	for _, f := range supported {
		out = append(out, gatewayv1.SupportedFeature{Name: gatewayv1.FeatureName(f)})
	}
	slices.SortFunc(out, func(a, b gatewayv1.SupportedFeature) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return out
}

// ours reports whether the class's Gateways are Tulle's.
func ours(class *gatewayv1.GatewayClass) bool {
	return class.Spec.ControllerName == v1alpha1.ControllerName
}

// refusal says why Gateways of a class of ours are not cared for; "" is that they
// are.
func refusal(class *gatewayv1.GatewayClass) string {
	if p := class.Spec.ParametersRef; p != nil {
		return fmt.Sprintf("Tulle has no parameters for a GatewayClass, and spec.parametersRef names %s %s: take it out; "+
			"annotations of each Gateway say what its proxy is like", p.Kind, p.Name)
	}
	return ""
}

// classReconciler writes the status of GatewayClasses, and keeps those that have
// Gateways.
type classReconciler struct {
	client client.Client
	now    func() time.Time
}

// Reconcile writes a class's finalizer and status where they are not what they should be.
func (c *classReconciler) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	var class gatewayv1.GatewayClass
	switch err := c.client.Get(ctx, r.NamespacedName, &class); {
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("reading GatewayClass %s: %w", r.Name, err)
	}
	if !ours(&class) {
		return reconcile.Result{}, nil
	}
	user, err := c.user(ctx, &class)
	if err != nil {
		return reconcile.Result{}, err
	}
	err = c.keep(ctx, &class, user)
	if class.DeletionTimestamp != nil && user == nil {
		return reconcile.Result{}, err // it goes
	}
	return reconcile.Result{}, errors.Join(err, c.report(ctx, &class, user))
}

// report writes the status. The user is one of the class's Gateways, nil where there is none.
func (c *classReconciler) report(ctx context.Context, class *gatewayv1.GatewayClass, user *gatewayv1.Gateway) error {
	is := metav1.Condition{
		Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAccepted,
		Message: "Tulle makes a proxy of each Gateway of the class",
	}
	if class.DeletionTimestamp != nil {
		is.Message = fmt.Sprintf("it is being deleted, which waits for its Gateways, such as %s: delete them, or give them another class", client.ObjectKeyFromObject(user))
	}
	if why := refusal(class); why != "" {
		is.Status, is.Reason, is.Message = metav1.ConditionFalse, string(gatewayv1.GatewayClassReasonInvalidParameters), why
	}
	is.ObservedGeneration = class.Generation
	want := gatewayv1.GatewayClassStatus{
		Conditions:        since([]metav1.Condition{is}, class.Status.Conditions, c.now()),
		SupportedFeatures: supportedFeatures(),
	}
	have := gatewayv1.GatewayClassStatus{Conditions: owned(class.Status.Conditions), SupportedFeatures: class.Status.SupportedFeatures}
	if equality.Semantic.DeepEqual(have, want) {
		return nil
	}
	kind := schema.GroupVersion(gatewayv1.GroupVersion).WithKind("GatewayClass")
	err := applyStatus(ctx, c.client.Status(), kind, class, &want)
	if err != nil {
		// The CRD of a Gateway API older than 1.4 has no features, and refuses them.
		want.SupportedFeatures = nil
		if applyStatus(ctx, c.client.Status(), kind, class, &want) == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("writing the status of GatewayClass %s: %w", class.Name, err)
	}
	return nil
}

// keep has a class that Gateways are of go only after them, as the Gateway API wants it:
// without their class they would be out of service at once.
func (c *classReconciler) keep(ctx context.Context, class *gatewayv1.GatewayClass, user *gatewayv1.Gateway) error {
	const finalizer = gatewayv1.GatewayClassFinalizerGatewaysExist
	to := class.DeepCopy()
	var changed bool
	switch {
	case user == nil:
		changed = controllerutil.RemoveFinalizer(to, finalizer)
	case class.DeletionTimestamp == nil: // later none can be added
		changed = controllerutil.AddFinalizer(to, finalizer)
	}
	if !changed {
		return nil
	}
	// A list is replaced whole, so that another's finalizer of this moment would be lost.
	patch := client.MergeFromWithOptions(class, client.MergeFromWithOptimisticLock{})
	if err := c.client.Patch(ctx, to, patch, client.FieldOwner(fieldOwner)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("writing the finalizer of GatewayClass %s: %w", class.Name, err)
	}
	return nil
}

// user is one of the Gateways of the class, nil where there is none.
func (c *classReconciler) user(ctx context.Context, class *gatewayv1.GatewayClass) (*gatewayv1.Gateway, error) {
	var all gatewayv1.GatewayList
	if err := c.client.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("listing the Gateways of GatewayClass %s: %w", class.Name, err)
	}
	var user *gatewayv1.Gateway
	for i := range all.Items {
		gw := &all.Items[i]
		if string(gw.Spec.GatewayClassName) == class.Name && (user == nil || gw.Namespace+"/"+gw.Name < user.Namespace+"/"+user.Name) {
			user = gw
		}
	}
	return user, nil
}
