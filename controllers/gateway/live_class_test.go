package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

// gone waits until there are none of the objects.
func (l *live) gone(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		eventually(t, fmt.Sprintf("no %T", o), func(ctx context.Context) (bool, error) {
			err := l.Get(ctx, client.ObjectKeyFromObject(o), o)
			return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
		})
	}
}

func (l *live) testAutoscaler(t *testing.T) {
	gw := l.gateway(t, "autoscaled", listener("web", 80, gatewayv1.HTTPProtocolType))
	deployment, scaler := named(&appsv1.Deployment{}, gw), named(&autoscalingv2.HorizontalPodAutoscaler{}, gw)
	has := func(n int32) {
		t.Helper()
		is(t, l, deployment, fmt.Sprintf("%d replicas", n), func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == n })
	}
	asks := func(annotations map[string]string) {
		t.Helper()
		change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Annotations = annotations })
	}
	has(2)
	if err := l.Get(t.Context(), client.ObjectKeyFromObject(scaler), scaler); !apierrors.IsNotFound(err) {
		t.Errorf("nobody asked for an autoscaler: %v", err)
	}
	asks(map[string]string{AnnotationMaxReplicas: "6", AnnotationMinReplicas: "3"})
	is(t, l, scaler, "the autoscaler", func(s *autoscalingv2.HorizontalPodAutoscaler) bool {
		return metav1.IsControlledBy(s, gw) && *s.Spec.MinReplicas == 3 && s.Spec.MaxReplicas == 6
	})
	// What the autoscaler's own controller does.
	scale := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 5}}
	if err := l.SubResource("scale").Update(t.Context(), deployment, client.WithSubResourceBody(scale), client.FieldOwner("autoscaler")); err != nil {
		t.Fatal(err)
	}
	asks(map[string]string{AnnotationMaxReplicas: "8", AnnotationTargetCPU: "60"})
	is(t, l, scaler, "what is asked now", func(s *autoscalingv2.HorizontalPodAutoscaler) bool {
		return *s.Spec.MinReplicas == 2 && s.Spec.MaxReplicas == 8 && *s.Spec.Metrics[0].Resource.Target.AverageUtilization == 60
	})
	has(5)

	t.Run("is mended", func(t *testing.T) {
		change(t, l, scaler, func(s *autoscalingv2.HorizontalPodAutoscaler) { s.Spec.MaxReplicas = 100 })
		is(t, l, scaler, "the maximum", func(s *autoscalingv2.HorizontalPodAutoscaler) bool { return s.Spec.MaxReplicas == 8 })
	})
	t.Run("stays as it is while a mistake is not mended, which the status tells", func(t *testing.T) {
		l.builder.find(gw, 1, goodFindings()...)
		asks(map[string]string{AnnotationMaxReplicas: "8", AnnotationReplicas: "4"})
		is(t, l, gw, "the condition", func(gw *gatewayv1.Gateway) bool {
			p := meta.FindStatusCondition(gw.Status.Conditions, "Programmed")
			return p != nil && p.Status == metav1.ConditionFalse && strings.Contains(p.Message, "exclude each other")
		})
		is(t, l, scaler, "the autoscaler", func(s *autoscalingv2.HorizontalPodAutoscaler) bool { return s.DeletionTimestamp == nil })
		has(5)
	})
	t.Run("goes when a number is asked for", func(t *testing.T) {
		asks(map[string]string{AnnotationReplicas: "0"})
		has(0)
		l.gone(t, scaler)
	})
	t.Run("is not kept from scaling by the number that was", func(t *testing.T) {
		asks(map[string]string{AnnotationMaxReplicas: "8"})
		is(t, l, named(&autoscalingv2.HorizontalPodAutoscaler{}, gw), "the autoscaler", func(*autoscalingv2.HorizontalPodAutoscaler) bool { return true })
		has(2)
	})
	t.Run("goes when nobody asks, and the pods stay", func(t *testing.T) {
		asks(nil)
		l.gone(t, named(&autoscalingv2.HorizontalPodAutoscaler{}, gw))
		has(2)
	})
}

// A class that is deleted stays, and its Gateways are served, until the last of them is
// gone.
func (l *live) testClassInUse(t *testing.T) {
	class := &gatewayv1.GatewayClass{
		ObjectMeta: metav1.ObjectMeta{Name: "used", Finalizers: []string{"example.org/another"}},
		Spec:       gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName},
	}
	l.create(t, class)
	kept := func(c *gatewayv1.GatewayClass) bool {
		return slices.Contains(c.Finalizers, gatewayv1.GatewayClassFinalizerGatewaysExist)
	}
	is(t, l, class, "Accepted", func(c *gatewayv1.GatewayClass) bool { return words(c.Status.Conditions) == "Accepted=True/Accepted@1" })
	if kept(class) {
		t.Error("a class without Gateways cannot be deleted")
	}
	l.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "users"}})
	var users []*gatewayv1.Gateway
	for _, name := range []string{"one", "other"} {
		gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType))
		gw.ObjectMeta = metav1.ObjectMeta{Namespace: "users", Name: name}
		gw.Spec.GatewayClassName = "used"
		l.create(t, gw)
		users = append(users, gw)
	}
	is(t, l, class, "a finalizer", kept)
	change(t, l, class, func(c *gatewayv1.GatewayClass) { c.Finalizers = c.Finalizers[:0] })
	is(t, l, class, "the finalizer again", kept)

	if err := l.Delete(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	is(t, l, class, "what it waits for", func(c *gatewayv1.GatewayClass) bool {
		a := meta.FindStatusCondition(c.Status.Conditions, "Accepted")
		return a != nil && a.Status == metav1.ConditionTrue && strings.Contains(a.Message, "such as users/one")
	})
	// Its Gateways go on being served.
	change(t, l, users[0], func(gw *gatewayv1.Gateway) { gw.Spec.Listeners[0].Port = 81 })
	is(t, l, named(&corev1.Service{}, users[0]), "the new port", func(s *corev1.Service) bool { return portsIn(s) == "web:81>81/TCP/http" })
	if err := l.Delete(t.Context(), users[0]); err != nil {
		t.Fatal(err)
	}
	is(t, l, class, "that it waits for the other", func(c *gatewayv1.GatewayClass) bool {
		return kept(c) && strings.Contains(meta.FindStatusCondition(c.Status.Conditions, "Accepted").Message, "such as users/other")
	})
	change(t, l, users[1], func(gw *gatewayv1.Gateway) { gw.Spec.GatewayClassName = "tulle" })
	l.gone(t, class)
}

func (l *live) testAnotherClass(t *testing.T) {
	gw := l.gateway(t, "classes", listener("web", 80, gatewayv1.HTTPProtocolType))
	is(t, l, named(&corev1.Service{}, gw), "the Service", func(*corev1.Service) bool { return true })
	old := []client.Object{named(&corev1.Service{}, gw), named(&appsv1.Deployment{}, gw), named(&corev1.ServiceAccount{}, gw)}
	change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Spec.GatewayClassName = "refused" }) // is accepted by now
	is(t, l, named(&corev1.Service{}, gw), "the Service of the new class", func(*corev1.Service) bool { return true })
	l.gone(t, old...)
	old = []client.Object{named(&corev1.Service{}, gw), named(&appsv1.Deployment{}, gw), named(&corev1.ServiceAccount{}, gw)}
	change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Spec.GatewayClassName = "others" })
	l.gone(t, old...)
}

func (l *live) testOlderCRD(t *testing.T) {
	crd := &unstructured.Unstructured{}
	crd.SetAPIVersion("apiextensions.k8s.io/v1")
	crd.SetKind("CustomResourceDefinition")
	crd.SetName("gatewayclasses.gateway.networking.k8s.io")
	change(t, l, crd, func(crd *unstructured.Unstructured) {
		versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
		for _, v := range versions {
			unstructured.RemoveNestedField(v.(map[string]any), "schema", "openAPIV3Schema", "properties", "status", "properties", "supportedFeatures")
		}
		if err := unstructured.SetNestedSlice(crd.Object, versions, "spec", "versions"); err != nil {
			t.Fatal(err)
		}
	})
	// The API server takes the new schema up some time after.
	n := 0
	eventually(t, "a class without features is accepted", func(ctx context.Context) (bool, error) {
		n++
		class := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("old-%d", n)}, Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName}}
		l.create(t, class)
		is(t, l, class, "Accepted", func(c *gatewayv1.GatewayClass) bool { return words(c.Status.Conditions) == "Accepted=True/Accepted@1" })
		return len(class.Status.SupportedFeatures) == 0, nil
	})
}
