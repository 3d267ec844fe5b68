package kube

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestEventuallySaysWhatItWaitedForAndWhyItDidNotCome(t *testing.T) {
	err := Eventually(t.Context(), 10*time.Millisecond, "the moon", func(context.Context) error { return errors.New("it is day") })
	if err == nil || !strings.Contains(err.Error(), "the moon") || !strings.Contains(err.Error(), "it is day") {
		t.Errorf("error %v, want one that names the moon and the day", err)
	}
	calls := 0
	err = Eventually(t.Context(), 10*time.Second, "the third call", func(context.Context) error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls, error %v", calls, err)
	}
}

func TestAWaitThatIsCutShortKeepsTheLastReason(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := Eventually(ctx, time.Minute, "an answer", func(ctx context.Context) error {
		if calls++; calls == 1 {
			return errors.New("answered with 200")
		}
		cancel()
		return ctx.Err()
	})
	if err == nil || !strings.Contains(err.Error(), "answered with 200") {
		t.Errorf("error %v, want the last answer", err)
	}
}

func TestNamespacesAndDefinitionsAreAppliedFirstAndWebhooksLast(t *testing.T) {
	objects, err := Parse(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
---
# nothing but a comment
---
apiVersion: mesh.tulle.dev/v1alpha1
kind: MeshPolicy
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
---
apiVersion: v1
kind: Namespace
`)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	var kinds []string
	for _, o := range objects {
		kinds = append(kinds, o.GetKind())
	}
	if got := strings.Join(kinds, " "); got != "Namespace CustomResourceDefinition MeshPolicy MutatingWebhookConfiguration" {
		t.Errorf("order %q", got)
	}
}
