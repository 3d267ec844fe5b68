package main

import (
	"slices"
	"strings"
	"testing"
)

func TestTheOverlaysAreThoseOfTheSources(t *testing.T) {
	for _, overlay := range overlays() {
		i := installation{overlay: overlay, revision: "default", images: images{tulled: "registry/tulled:1", proxy: "registry/envoy:1"}, replicas: 3}
		all, err := i.render()
		if err != nil {
			t.Fatalf("%s: %v", overlay, err)
		}
		text, err := manifest(all)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"image: registry/tulled:1", "--proxy-image=registry/envoy:1", "replicas: 3", "kind: CustomResourceDefinition"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %q", overlay, want)
			}
		}
		if first, last := all[0].GetKind(), all[len(all)-1].GetKind(); first != "Namespace" || !strings.HasSuffix(last, "WebhookConfiguration") {
			t.Errorf("%s begins with a %s and ends with a %s", overlay, first, last)
		}
	}
	if _, err := (installation{overlay: "nonsense", revision: "default"}).render(); err == nil || !strings.Contains(err.Error(), "want one of cni, default") {
		t.Errorf("an unknown overlay: %v", err)
	}
}

func TestARevisionIsAnotherControlPlaneBesideTheDefaultOne(t *testing.T) {
	i := installation{overlay: "cni", revision: "v2", images: images{tulled: "registry/tulled:2", proxy: "registry/envoy:2"}, replicas: 3}
	all, err := i.render()
	if err != nil {
		t.Fatal(err)
	}
	var own, shared []string
	for _, o := range all {
		if i.ofControlPlane(o) {
			own = append(own, describe(o))
		} else {
			shared = append(shared, describe(o))
		}
	}
	slices.Sort(own)
	want := []string{
		"ClusterRole tulled-injection-v2", "ClusterRoleBinding tulled-injection-v2", "Deployment tulle-system/tulled-v2",
		"MutatingWebhookConfiguration tulle-v2", "PodDisruptionBudget tulle-system/tulled-v2", "Service tulle-system/tulled-v2",
	}
	if !slices.Equal(own, want) {
		t.Errorf("the revision's own objects are %q, want %q", own, want)
	}
	for _, o := range []string{"Deployment tulle-system/tulled", "Service tulle-system/tulled", "MutatingWebhookConfiguration tulle"} {
		if slices.Contains(shared, o) {
			t.Errorf("installing a revision changes the default control plane's %s", o)
		}
	}
	for _, o := range []string{"CustomResourceDefinition meshpolicies.mesh.tulle.dev", "ValidatingWebhookConfiguration tulle", "DaemonSet tulle-system/tulle-cni"} {
		if !slices.Contains(shared, o) {
			t.Errorf("%s is missing", o)
		}
	}
	text, err := manifest(all)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), revisionInFiles) {
		t.Errorf("the name %q of the files is left", revisionInFiles)
	}
	for _, want := range []string{"image: registry/tulled:2", "--proxy-image=registry/envoy:2", "replicas: 3", "--redirection=cni", "mesh.tulle.dev/revision: v2"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("there is no %q", want)
		}
	}
	for _, bad := range []string{"", "A", "a.b", strings.Repeat("x", 60)} {
		if _, err := (installation{overlay: "default", revision: bad}).render(); err == nil || !strings.Contains(err.Error(), "--revision") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
