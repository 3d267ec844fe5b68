package gateway

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/tulle-mesh/tulle/webhook"
)

func scaledBy(annotations map[string]string) *gatewayv1.Gateway {
	gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType))
	gw.Annotations = annotations
	return gw
}

func TestAnAutoscalerIsGivenToWhoAsksForOne(t *testing.T) {
	if g := give(t, scaledBy(nil)); g.scaler != nil {
		t.Errorf("nobody asked for %+v", g.scaler)
	}
	for name, c := range map[string]struct {
		annotations       map[string]string
		least, most, part int32
	}{
		"a maximum alone":         {map[string]string{AnnotationMaxReplicas: "10"}, 2, 10, 80},
		"a maximum of one":        {map[string]string{AnnotationMaxReplicas: "1"}, 1, 1, 80},
		"all that there is":       {map[string]string{AnnotationMaxReplicas: "9", AnnotationMinReplicas: "3", AnnotationTargetCPU: "65"}, 3, 9, 65},
		"above what is requested": {map[string]string{AnnotationMaxReplicas: "9", AnnotationTargetCPU: "300"}, 2, 9, 300},
	} {
		t.Run(name, func(t *testing.T) {
			gw := scaledBy(c.annotations)
			g := give(t, gw)
			if g.scaler == nil {
				t.Fatal("there is none")
			}
			s := g.scaler.Spec
			if *s.MinReplicas != c.least || s.MaxReplicas != c.most || *s.Metrics[0].Resource.Target.AverageUtilization != c.part || s.Metrics[0].Resource.Name != corev1.ResourceCPU {
				t.Errorf("got %+v", s)
			}
			if r := s.ScaleTargetRef; r.Kind != "Deployment" || r.Name != g.deployment.Name || r.APIVersion != g.deployment.APIVersion {
				t.Errorf("it scales %+v", r)
			}
			if m := g.scaler.ObjectMeta; m.Name != "edge-tulle" || len(m.OwnerReferences) != 1 || m.OwnerReferences[0].UID != "u" || m.Labels[labelManager] != manager {
				t.Errorf("got %+v", m)
			}
			// Whoever comes first, the Deployment begins with what the autoscaler would leave.
			if first, err := scalingOf(gw); err != nil || first.Replicas != c.least || first.Asked {
				t.Errorf("got %+v, %v", first, err)
			}
		})
	}
}

func TestAutoscalersThatCannotBeAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		annotations map[string]string
		says        string
	}{
		"beside a number":        {map[string]string{AnnotationReplicas: "3", AnnotationMaxReplicas: "5"}, "leave out " + AnnotationReplicas},
		"a minimum alone":        {map[string]string{AnnotationMinReplicas: "3"}, "write " + AnnotationMaxReplicas},
		"a target alone":         {map[string]string{AnnotationTargetCPU: "50"}, "write " + AnnotationMaxReplicas},
		"a target beside number": {map[string]string{AnnotationTargetCPU: "50", AnnotationReplicas: "3"}, "write " + AnnotationMaxReplicas},
		"no number":              {map[string]string{AnnotationMaxReplicas: "many"}, "write a number of pods from 1 to 1000"},
		"nobody":                 {map[string]string{AnnotationMaxReplicas: "0"}, "write a number of pods from 1 to 1000"},
		"too many":               {map[string]string{AnnotationMaxReplicas: "1001"}, "write a number of pods from 1 to 1000"},
		"more than a number":     {map[string]string{AnnotationMaxReplicas: "99999999999999999999"}, "write a number of pods from 1 to 1000"},
		"down to nobody":         {map[string]string{AnnotationMaxReplicas: "3", AnnotationMinReplicas: "0"}, "write a number of pods from 1 to 1000"},
		"the wrong way round":    {map[string]string{AnnotationMaxReplicas: "3", AnnotationMinReplicas: "4"}, "write a maximum that is not below the minimum"},
		"no share":               {map[string]string{AnnotationMaxReplicas: "3", AnnotationTargetCPU: "80%"}, "write a percentage from 1 to 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Objects(scaledBy(c.annotations), settings())
			if m := mistake(""); !errors.As(err, &m) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want: %s", err, c.says)
			}
		})
	}
}

// A utilisation is a part of what pods request: without a request there is none, and the
// autoscaler would never scale.
func TestAnAutoscalerNeedsARequest(t *testing.T) {
	s := settings()
	delete(s.Resources.Requests, corev1.ResourceCPU)
	gw := scaledBy(map[string]string{AnnotationMaxReplicas: "3"})
	if _, err := Objects(gw, s); err == nil || !strings.Contains(err.Error(), webhook.AnnotationProxyCPU) {
		t.Errorf("got %v", err)
	}
	for _, annotation := range []string{webhook.AnnotationProxyCPU, webhook.AnnotationProxyCPULimit} {
		gw.Annotations = map[string]string{AnnotationMaxReplicas: "3", annotation: "500m"}
		if _, err := Objects(gw, s); err != nil {
			t.Errorf("with %s: %v", annotation, err)
		}
	}
}
