package v1alpha1_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

// example is one entry of the files in testdata.
type example struct {
	Case    string         `json:"case"`
	Message string         `json:"message,omitempty"`
	Object  map[string]any `json:"object"`
	Spec    map[string]any `json:"spec,omitempty"`
}

// plurals are the resources of the kinds.
func plurals() map[string]string {
	return map[string]string{"MeshPolicy": "meshpolicies", "TrafficSplit": "trafficsplits", "ExternalService": "externalservices", "MeshConfig": "meshconfigs"}
}

// TestAPIServer asks a real API server, since nothing else knows what CRDs mean.
func TestAPIServer(t *testing.T) {
	config := apitest.Start(t)
	t.Run("refuses", func(t *testing.T) { testRefuses(t, config) })
	t.Run("accepts", func(t *testing.T) { testAccepts(t, config) })
	t.Run("keeps the trust domain", func(t *testing.T) { testTrustDomainIsKept(t, config) })
	t.Run("takes objects of Go clients", func(t *testing.T) { testTypedObjects(t, config) })
	t.Run("knows short names and columns", func(t *testing.T) { testNames(t, config) })
	t.Run("has status apart", func(t *testing.T) { testStatus(t, config) })
}

func testRefuses(t *testing.T, config *rest.Config) {
	for _, e := range examples(t, "refused.yaml") {
		t.Run(e.Object["kind"].(string)+"/"+e.Case, func(t *testing.T) {
			_, err := create(t, config, e.Object)
			switch {
			case err == nil:
				t.Fatal("the API server took it")
			case !apierrors.IsInvalid(err):
				t.Fatalf("refused for another reason than its content: %v", err)
			case e.Message == "":
				t.Fatal("the example names no message")
			case !strings.Contains(err.Error(), e.Message):
				t.Errorf("message\n  %v\nlacks\n  %s", err, e.Message)
			}
		})
	}
}

func testAccepts(t *testing.T, config *rest.Config) {
	for _, e := range examples(t, "accepted.yaml") {
		t.Run(e.Object["kind"].(string)+"/"+e.Case, func(t *testing.T) {
			created, err := create(t, config, e.Object)
			if err != nil {
				t.Fatal(err)
			}
			want := e.Spec
			if want == nil {
				want = e.Object["spec"].(map[string]any)
			}
			if diff := cmp.Diff(normal(t, want), normal(t, created.Object["spec"])); diff != "" {
				t.Errorf("spec after defaulting (-want +got):\n%s", diff)
			}
		})
	}
}

func testTrustDomainIsKept(t *testing.T, config *rest.Config) {
	api := typedClient(t, config)
	mesh := &v1alpha1.MeshConfig{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.MeshConfigName},
		Spec:       v1alpha1.MeshConfigSpec{TrustDomain: "one.example"},
	}
	if err := api.Create(t.Context(), mesh); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Delete(context.Background(), mesh); err != nil {
			t.Error(err)
		}
	})
	changed := mesh.DeepCopy()
	changed.Spec.Egress.Mode = v1alpha1.EgressRegistryOnly
	if err := api.Update(t.Context(), changed); err != nil {
		t.Errorf("changing another field: %v", err)
	}
	for _, domain := range []string{"two.example", ""} {
		moved := changed.DeepCopy()
		moved.Spec.TrustDomain = domain
		err := api.Update(t.Context(), moved)
		if err == nil || !strings.Contains(err.Error(), "the trust domain is part of every identity and cannot be changed") {
			t.Errorf("changing the trust domain to %q: %v", domain, err)
		}
	}
}

// testTypedObjects creates objects with most fields at Go's zero value, which
// must not reach the API server as values that it refuses.
func testTypedObjects(t *testing.T, config *rest.Config) {
	api := typedClient(t, config)
	objects := []client.Object{
		&v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.MeshConfigName}},
		&v1alpha1.MeshPolicy{Spec: v1alpha1.MeshPolicySpec{
			TargetRefs: []v1alpha1.TargetRef{{Name: "web"}},
			Traffic:    &v1alpha1.Traffic{Retries: &v1alpha1.Retries{}},
		}},
		&v1alpha1.MeshPolicy{Spec: v1alpha1.MeshPolicySpec{
			Authorization: &v1alpha1.Authorization{Rules: []v1alpha1.AuthorizationRule{{}}},
		}},
		&v1alpha1.TrafficSplit{Spec: v1alpha1.TrafficSplitSpec{
			Service:  "web",
			Backends: []v1alpha1.SplitBackend{{Service: "web-v1"}},
		}},
	}
	for _, object := range objects {
		if object.GetName() == "" {
			object.SetName("typed")
			object.SetNamespace(metav1.NamespaceDefault)
		}
		if err := api.Create(t.Context(), object, client.DryRunAll); err != nil {
			t.Errorf("%T: %v", object, err)
		}
	}
}

// testStatus sees that a writer of spec cannot set a status, nor the other way
// round, and that conditions merge by type.
func testStatus(t *testing.T, config *rest.Config) {
	api := typedClient(t, config)
	policy := &v1alpha1.MeshPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "status", Namespace: metav1.NamespaceDefault},
		Spec:       v1alpha1.MeshPolicySpec{MTLS: &v1alpha1.MTLS{Mode: v1alpha1.MTLSStrict}},
		Status:     v1alpha1.MeshPolicyStatus{Conditions: []metav1.Condition{condition(metav1.ConditionTrue)}},
	}
	if err := api.Create(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	if len(policy.Status.Conditions) != 0 {
		t.Errorf("a create set the status: %v", policy.Status)
	}
	policy.Status.Conditions = []metav1.Condition{condition(metav1.ConditionFalse)}
	policy.Spec.MTLS.Mode = v1alpha1.MTLSDisabled
	if err := api.Status().Update(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	if got := policy.Spec.MTLS.Mode; got != v1alpha1.MTLSStrict {
		t.Errorf("a status update changed the spec's mode to %s", got)
	}
	if len(policy.Status.Conditions) != 1 || policy.Status.Conditions[0].Status != metav1.ConditionFalse {
		t.Errorf("status after its update: %v", policy.Status)
	}
	policy.Status.Conditions = append(policy.Status.Conditions, condition(metav1.ConditionTrue))
	if err := api.Status().Update(t.Context(), policy); err == nil || !strings.Contains(err.Error(), "Duplicate value") {
		t.Errorf("two conditions of one type: %v", err)
	}
}

// testNames sees what kubectl makes of the kinds: `kubectl get mesh`, short
// names, and the columns of its tables.
func testNames(t *testing.T, config *rest.Config) {
	discoveryClient, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	resources, err := discoveryClient.ServerResourcesForGroupVersion(v1alpha1.GroupVersion().String())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, resource := range resources.APIResources {
		if strings.Contains(resource.Name, "/") {
			continue
		}
		got[resource.Kind] = append(resource.ShortNames, resource.Categories...)
		table := &metav1.Table{}
		err := discoveryClient.RESTClient().Get().
			AbsPath("/apis", v1alpha1.Group, v1alpha1.Version, resource.Name).
			SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").
			Do(t.Context()).Into(table)
		if err != nil {
			t.Fatalf("the table of %s: %v", resource.Name, err)
		}
		for _, column := range table.ColumnDefinitions {
			got[resource.Kind] = append(got[resource.Kind], column.Name)
		}
	}
	want := map[string][]string{
		"MeshPolicy":      {"mpol", "mesh", "Name", "mTLS", "Default", "Timeout", "Accepted", "Programmed", "Proxies", "Reason", "Age"},
		"TrafficSplit":    {"tsplit", "mesh", "Name", "Service", "Backends", "Accepted", "Refs", "Programmed", "Proxies", "Reason", "Age"},
		"ExternalService": {"extsvc", "mesh", "Name", "Hosts", "Ports", "Resolution", "TLS", "Gateway", "Accepted", "Programmed", "Proxies", "Reason", "Age"},
		"MeshConfig":      {"mcfg", "mesh", "Name", "Trust-Domain", "mTLS", "Egress", "Lifetime", "Accepted", "Programmed", "Proxies", "Reason", "Age"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("short names, categories and columns (-want +got):\n%s", diff)
	}
}

func condition(status metav1.ConditionStatus) metav1.Condition {
	return metav1.Condition{
		Type: v1alpha1.ConditionAccepted, Status: status, ObservedGeneration: 1,
		Reason: v1alpha1.ReasonAccepted, LastTransitionTime: metav1.Now(),
	}
}

// create sends an object to the API server, which does everything but keep it.
// Unknown fields are errors, so that no example is refused or taken because of
// a slip of the pen.
func create(t *testing.T, config *rest.Config, content map[string]any) (*unstructured.Unstructured, error) {
	t.Helper()
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(content)}
	plural := plurals()[object.GetKind()]
	if plural == "" {
		t.Fatalf("the example is of an unknown kind %q", object.GetKind())
	}
	object.SetAPIVersion(v1alpha1.GroupVersion().String())
	if object.GetName() == "" {
		object.SetName("example")
	}
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
	resource := dynamicClient.Resource(v1alpha1.GroupVersion().WithResource(plural))
	if object.GetKind() == "MeshConfig" {
		return resource.Create(t.Context(), object, options)
	}
	return resource.Namespace(metav1.NamespaceDefault).Create(t.Context(), object, options)
}

func typedClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func examples(t *testing.T, file string) []example {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var list []example
	if err := yaml.UnmarshalStrict(content, &list); err != nil {
		t.Fatalf("reading %s: %v", file, err)
	}
	if len(list) == 0 {
		t.Fatalf("%s has no examples", file)
	}
	return list
}

// normal passes a value through JSON, so that numbers compare whatever decoded
// them.
func normal(t *testing.T, value any) any {
	t.Helper()
	content, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var result any
	if err := yaml.Unmarshal(content, &result); err != nil {
		t.Fatal(err)
	}
	return result
}
