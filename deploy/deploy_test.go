// Package deploy_test applies what this folder has to a real API server: in come
// the default overlay and the samples, as kubectl apply -k would build them, and
// out comes what the API server, its admission and its authorizer make of them.
package deploy_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/config/apitest"
)

// TestDeploy shares one API server among its parts, whose order matters: once
// the webhooks are there, no object of the mesh can be created without them.
func TestDeploy(t *testing.T) {
	config := apitest.Start(t)
	t.Run("samples are valid", func(t *testing.T) { testSamples(t, config) })
	t.Run("overlays apply", func(t *testing.T) { testOverlays(t, config) })
	t.Run("deployment passes admission", func(t *testing.T) { testDeployment(t, config) })
	t.Run("control plane may do what it must", func(t *testing.T) { testPermissions(t, config) })
	t.Run("webhooks see what they must", func(t *testing.T) { testWebhooks(t, config) })
}

// A kind whose definition is not applied keeps the control plane from starting.
func TestEveryDefinitionIsApplied(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("crds", "mesh.tulle.dev_*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no definitions: %v", err)
	}
	text, err := os.ReadFile(filepath.Join("crds", "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.Contains(string(text), "- "+filepath.Base(f)+"\n") {
			t.Errorf("kustomization.yaml has no %s", filepath.Base(f))
		}
	}
}

func testSamples(t *testing.T, config *rest.Config) {
	files, err := filepath.Glob(filepath.Join("samples", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	createNamespace(t, config, "shop", nil)
	crds, err := apitest.GatewayCRDs()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{crds}}); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, document := range strings.Split(string(content), "\n---\n") {
				object := &unstructured.Unstructured{}
				if err := yaml.UnmarshalStrict([]byte(document), &object.Object); err != nil {
					t.Fatal(err)
				}
				// A create, since only that refuses unknown fields of a CRD.
				options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
				if _, err := resourceFor(t, config, object).Create(t.Context(), object, options); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// testOverlays applies the default and a revision beside it, and then all once
// more, which must change nothing: what the API server fills in or turns round
// would be fought over for ever.
func testOverlays(t *testing.T, config *rest.Config) {
	objects := append(buildOverlay(t, "default"), buildOverlay(t, "revision")...)
	seen := map[string]bool{}
	for _, object := range objects {
		if seen[key(object)] {
			t.Errorf("%s is in both overlays: applying one would change what the other's is", key(object))
		}
		seen[key(object)] = true
	}
	first := map[string]int64{}
	for _, object := range objects {
		first[key(object)] = apply(t, config, object).GetGeneration()
	}
	for _, object := range objects {
		if again := apply(t, config, object).GetGeneration(); again != first[key(object)] {
			t.Errorf("applying %s again made generation %d of %d", key(object), again, first[key(object)])
		}
		if object.GetKind() == "CustomResourceDefinition" {
			continue // one has a field of that name
		}
		if content, err := object.MarshalJSON(); err != nil || strings.Contains(string(content), "caBundle") {
			t.Errorf("%s carries a caBundle, which is the control plane's to fill in (%v)", key(object), err)
		}
	}
}

// testDeployment creates a pod of the control plane as its ReplicaSet would, in
// a namespace where pod security is enforced.
func testDeployment(t *testing.T, config *rest.Config) {
	clients := kubernetes.NewForConfigOrDie(config)
	deployment, err := clients.AppsV1().Deployments("tulle-system").Get(t.Context(), "tulled", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := podOf(deployment)
	created, err := clients.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatalf("a pod of the control plane: %v", err)
	}
	container := created.Spec.Containers[0]
	for _, port := range []int32{15010, 9443, 8080, 8081} {
		if !hasPort(container, port) {
			t.Errorf("the container does not name port %d", port)
		}
	}
	// The API server goes on sending pods to admit until it hears that the
	// endpoint is gone.
	if l := container.Lifecycle; l == nil || l.PreStop == nil || l.PreStop.Sleep == nil || l.PreStop.Sleep.Seconds < 5 {
		t.Error("a replica that is deleted stops at once, while it is still being called")
	} else if *created.Spec.TerminationGracePeriodSeconds < l.PreStop.Sleep.Seconds+10 {
		t.Error("there is too little time to stop in")
	}
	privileged := true
	pod.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = &privileged
	_, err = clients.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:latest"`) {
		t.Errorf("the namespace takes pods that are not restricted: %v", err)
	}

	service, err := clients.CoreV1().Services("tulle-system").Get(t.Context(), "tulled", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range service.Spec.Selector {
		if deployment.Spec.Template.Labels[name] != value {
			t.Errorf("the Service selects %s=%s, which the pods do not have", name, value)
		}
	}
	got := map[int32]int32{}
	for _, port := range service.Spec.Ports {
		got[port.Port] = containerPort(container, port.TargetPort.String())
	}
	if len(got) != 2 || got[15010] != 15010 || got[443] != 9443 {
		t.Errorf("the Service's ports lead to %v", got)
	}
}

func podOf(deployment *appsv1.Deployment) *corev1.Pod {
	template := deployment.Spec.Template.DeepCopy()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name, pod.Namespace = "tulled-0", deployment.Namespace
	return pod
}

func hasPort(container corev1.Container, number int32) bool {
	for _, port := range container.Ports {
		if port.ContainerPort == number {
			return true
		}
	}
	return false
}

func containerPort(container corev1.Container, name string) int32 {
	for _, port := range container.Ports {
		if port.Name == name {
			return port.ContainerPort
		}
	}
	return 0
}

// buildOverlay returns the objects of an overlay in the order in which kubectl
// applies them.
func buildOverlay(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), filepath.Join("overlays", name))
	if err != nil {
		t.Fatalf("building the overlay %s: %v", name, err)
	}
	var objects []*unstructured.Unstructured
	for _, resource := range resources.Resources() {
		content, err := resource.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(content); err != nil {
			t.Fatalf("reading %s: %v", resource.CurId(), err)
		}
		objects = append(objects, object)
	}
	return objects
}

func apply(t *testing.T, config *rest.Config, object *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	applied, err := resourceFor(t, config, object).Apply(t.Context(), object.GetName(), object, metav1.ApplyOptions{FieldManager: "deploy-test", Force: true})
	if err != nil {
		t.Fatalf("applying %s: %v", key(object), err)
	}
	return applied
}

// resourceFor returns the client for an object's kind and namespace.
func resourceFor(t *testing.T, config *rest.Config, object *unstructured.Unstructured) dynamic.ResourceInterface {
	t.Helper()
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery.NewDiscoveryClientForConfigOrDie(config)))
	kind := object.GroupVersionKind()
	mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		t.Fatalf("the API server does not know %s: %v", kind, err)
	}
	resource := dynamic.NewForConfigOrDie(config).Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return resource.Namespace(object.GetNamespace())
	}
	return resource
}

func createNamespace(t *testing.T, config *rest.Config, name string, labels map[string]string) {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := kubernetes.NewForConfigOrDie(config).CoreV1().Namespaces().Create(context.Background(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func key(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + strings.TrimPrefix(object.GetNamespace()+"/"+object.GetName(), "/")
}
