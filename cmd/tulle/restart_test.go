package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/tulle-mesh/tulle/webhook"
)

func TestWhatIsStaleSaysWhy(t *testing.T) {
	pod := func(labels map[string]string, revision, image string) *corev1.Pod {
		p := &corev1.Pod{}
		p.Labels = labels
		p.Annotations = map[string]string{webhook.AnnotationStatus: `{"version":"1","revision":"` + revision + `"}`}
		if image != "" {
			p.Spec.InitContainers = []corev1.Container{{Name: containerProxy, Image: image}}
		}
		return p
	}
	model := pod(nil, "default", "envoy:2")
	in, out := map[string]string{labelInject: "enabled"}, map[string]string{}
	for _, c := range []struct {
		pod       *corev1.Pod
		namespace map[string]string
		want      string
	}{
		{pod(nil, "default", "envoy:2"), in, ""},
		{pod(nil, "", "envoy:2"), in, ""},
		{pod(nil, "default", "envoy:1"), in, whyOld},
		{pod(nil, "canary", "envoy:2"), in, whyRevision},
		{pod(nil, "", ""), in, whyWithout},
		{pod(nil, "", ""), out, ""},
		{pod(map[string]string{labelInject: "enabled"}, "", ""), out, whyWithout},
		{pod(map[string]string{labelInject: "disabled"}, "", ""), in, ""},
	} {
		if got := staleness(c.pod, model, c.namespace); got != c.want {
			t.Errorf("%v in %v: %q, want %q", c.pod, c.namespace, got, c.want)
		}
	}
}
