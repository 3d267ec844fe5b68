package apitest_test

import (
	"context"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

func TestStartServesTheKindsOfTulle(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	api, err := client.New(apitest.Start(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range []client.ObjectList{&v1alpha1.MeshPolicyList{}, &v1alpha1.TrafficSplitList{}, &v1alpha1.MeshConfigList{}} {
		if err := api.List(context.Background(), list); err != nil {
			t.Errorf("listing %T: %v", list, err)
		}
	}
}
