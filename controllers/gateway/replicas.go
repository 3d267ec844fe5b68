package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"strconv"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Annotations of a Gateway, or of its spec.infrastructure, about how many pods it has.
const (
	// AnnotationReplicas is how many. Without it a new Gateway has two, and from then on
	// whoever scales the Deployment is not contradicted.
	AnnotationReplicas = prefix + "replicas"
	// AnnotationMaxReplicas has the Gateway be given a HorizontalPodAutoscaler, and is
	// how many pods that makes at most. It excludes AnnotationReplicas.
	AnnotationMaxReplicas = prefix + "max-replicas"
	// AnnotationMinReplicas is how many pods the autoscaler leaves; two by default, or
	// the maximum where that is one.
	AnnotationMinReplicas = prefix + "min-replicas"
	// AnnotationTargetCPU is how much CPU the pods are to use on average, in percent of
	// what they request; 80 by default.
	AnnotationTargetCPU = prefix + "target-cpu-utilization"
)

const (
	// firstReplicas is how many pods a new Gateway has: one may be lost.
	firstReplicas = 2
	maxReplicas   = 1000
	// targetCPU is what autoscalers have where nobody says
	// (https://kubernetes.io/docs/reference/kubernetes-api/autoscaling/horizontal-pod-autoscaler-v2/,
	// spec.metrics).
	targetCPU    = 80
	maxTargetCPU = 1000
)

// replicasOwner is under whose name the number of replicas is applied. It is another
// than fieldOwner, because a number that its only owner does not apply any more
// becomes 1.
const replicasOwner = "tulle-gateway-replicas"

// scaling is how many pods a Gateway is to have, and who says so.
type scaling struct {
	// Replicas are the author's where Asked, and else those of a new Gateway.
	Replicas int32
	Asked    bool
	// Auto is that an autoscaler has the last word, between Replicas and Max.
	Auto      bool
	Max       int32
	TargetCPU int32
}

// scalingOf reads the Gateway's annotations.
func scalingOf(gw *gatewayv1.Gateway) (scaling, error) {
	asks := annotations(gw)
	read := func(annotation string, least, most, otherwise int32) (int32, error) {
		text, ok := asks[annotation]
		if !ok {
			return otherwise, nil
		}
		i, err := strconv.ParseInt(text, 10, 32)
		if err != nil || i < int64(least) || i > int64(most) {
			what := "number of pods"
			if annotation == AnnotationTargetCPU {
				what = "percentage"
			}
			return 0, mistakef("the annotation %s is %q: write a %s from %d to %d", annotation, text, what, least, most)
		}
		return int32(i), nil
	}
	_, fixed := asks[AnnotationReplicas]
	_, auto := asks[AnnotationMaxReplicas]
	if fixed && auto {
		return scaling{}, mistakef("the annotations %s and %s exclude each other: leave out %s where an autoscaler is to scale", AnnotationReplicas, AnnotationMaxReplicas, AnnotationReplicas)
	}
	for _, a := range []string{AnnotationMinReplicas, AnnotationTargetCPU} {
		if _, ok := asks[a]; ok && !auto {
			return scaling{}, mistakef("the annotation %s is for an autoscaler, and there is none: write %s, or leave it out", a, AnnotationMaxReplicas)
		}
	}
	if fixed {
		n, err := read(AnnotationReplicas, 0, maxReplicas, 0)
		return scaling{Replicas: n, Asked: true}, err
	}
	if !auto {
		return scaling{Replicas: firstReplicas}, nil
	}
	most, err1 := read(AnnotationMaxReplicas, 1, maxReplicas, 0)
	least, err2 := read(AnnotationMinReplicas, 1, maxReplicas, min(firstReplicas, most))
	target, err3 := read(AnnotationTargetCPU, 1, maxTargetCPU, targetCPU)
	if err := cmp.Or(err1, err2, err3); err != nil {
		return scaling{}, err
	}
	if least > most {
		return scaling{}, mistakef("the annotation %s is %d, and %s is %d: write a maximum that is not below the minimum", AnnotationMinReplicas, least, AnnotationMaxReplicas, most)
	}
	return scaling{Replicas: least, Auto: true, Max: most, TargetCPU: target}, nil
}

// autoscalerOf is the HorizontalPodAutoscaler of the Deployment with the template.
func autoscalerOf(meta metav1.ObjectMeta, s scaling, template *corev1.PodTemplateSpec) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	r := template.Spec.Containers[0].Resources
	if r.Requests.Cpu().IsZero() && r.Limits.Cpu().IsZero() { // a limit is a request, too
		return nil, mistakef("the proxy requests no CPU, of which %s would be a part: write the annotation %sproxy-cpu", AnnotationTargetCPU, prefix)
	}
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"}, ObjectMeta: meta,
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: meta.Name},
			MinReplicas:    &s.Replicas, MaxReplicas: s.Max,
			Metrics: []autoscalingv2.MetricSpec{{
				Type: autoscalingv2.ResourceMetricSourceType,
				Resource: &autoscalingv2.ResourceMetricSource{
					Name:   corev1.ResourceCPU,
					Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &s.TargetCPU},
				},
			}},
		},
	}, nil
}

// scale says how many pods a Deployment has: as many as the Gateway's author asks
// for; and where nobody does, as a new one has, unless somebody has said a number
// before, who may be this very function, a person, or an autoscaler. So the
// Deployment is scaled once, and whoever scales it later is not contradicted. None at
// all is what an autoscaler never changes: where the author asked for that, and for an
// autoscaler now, he is done with it.
func (c *Controller) scale(ctx context.Context, is *unstructured.Unstructured, s scaling) error {
	by := replicasOwners(is.GetManagedFields())
	n, _, _ := unstructured.NestedInt64(is.Object, "spec", "replicas")
	ours := len(by) == 1 && by[0] == replicasOwner
	if len(by) > 0 && (!s.Asked || n == int64(s.Replicas)) && !(s.Auto && n == 0 && ours) {
		return nil
	}
	u := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"replicas": int64(s.Replicas)}}}
	u.SetGroupVersionKind(is.GroupVersionKind())
	u.SetNamespace(is.GetNamespace())
	u.SetName(is.GetName())
	u.SetUID(is.GetUID())
	return c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(replicasOwner), client.ForceOwnership)
}

// replicasOwners are who has said spec.replicas. The API server's default is nobody's.
func replicasOwners(fields []metav1.ManagedFieldsEntry) []string {
	var out []string
	for _, f := range fields {
		var is struct {
			Spec map[string]any `json:"f:spec"`
		}
		if f.FieldsV1 == nil || json.Unmarshal(f.FieldsV1.GetRawBytes(), &is) != nil {
			continue
		}
		if _, ok := is.Spec["f:replicas"]; ok {
			out = append(out, f.Manager)
		}
	}
	return out
}
