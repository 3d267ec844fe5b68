package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/xds/server"
)

// cluster is a real API server, and what kubelet and controllers would do.
type cluster struct {
	config *rest.Config
	client client.Client
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	return ofConfig(t, apitest.Start(t))
}

// ofConfig is the cluster with the roles of the control plane.
func ofConfig(t *testing.T, config *rest.Config) *cluster {
	t.Helper()
	c := &cluster{config: config}
	var err error
	if c.client, err = client.New(c.config, client.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"base/namespace.yaml", "base/rbac/bindings.yaml", "base/rbac/role.yaml"} {
		c.apply(t, manifest(t, file))
	}
	return c
}

// manifest is a file of deploy.
func manifest(t *testing.T, file string) string {
	t.Helper()
	root, err := apitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	return read(t, filepath.Join(root, "deploy", file))
}

// apply creates or replaces the objects of a manifest.
func (c *cluster) apply(t *testing.T, manifest string) {
	t.Helper()
	for _, document := range strings.Split(manifest, "---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			t.Fatal(err)
		}
		if len(o.Object) == 0 {
			continue
		}
		err := c.client.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(o), client.FieldOwner("test"), client.ForceOwnership)
		if err != nil {
			t.Fatalf("applying %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// token asks for a token of a service account, bound to a pod if there is one,
// as a kubelet does.
func (c *cluster) token(t *testing.T, namespace, account string, bound *pod, audiences ...string) string {
	t.Helper()
	seconds := int64(3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, ExpirationSeconds: &seconds}}
	if bound != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: bound.name, UID: bound.uid,
		}
	}
	out, err := kubernetes.NewForConfigOrDie(c.config).CoreV1().ServiceAccounts(namespace).
		CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out.Status.Token
}

// bundle is the trust bundle of a namespace.
func (c *cluster) bundle(t *testing.T, namespace, name string) map[string]string {
	t.Helper()
	var m corev1.ConfigMap
	eventually(t, "the trust bundle of "+namespace, func() error {
		return c.client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: name}, &m)
	})
	return m.Data
}

// accepted waits for an object's status to say that it holds.
func (c *cluster) accepted(t *testing.T, kind, name string) {
	t.Helper()
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("mesh.tulle.dev/v1alpha1")
	o.SetKind(kind)
	eventually(t, kind+" "+name+" to be accepted", func() error {
		if err := c.client.Get(t.Context(), types.NamespacedName{Namespace: shop, Name: name}, o); err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, condition := range conditions {
			is := condition.(map[string]any)
			if is["type"] == "Accepted" && is["status"] == "True" && is["observedGeneration"] == o.GetGeneration() {
				return nil
			}
		}
		return fmt.Errorf("its conditions are %v", conditions)
	})
}

// pod is a pod of the API server and its network.
type pod struct {
	namespace, name, account, address string
	uid                               types.UID
	network                           namespace
	log                               string // of its Envoy, a file
	roots                             string // a file, too: by which it verifies the control plane
}

// run creates the pod, and says that it runs.
func (c *cluster) run(t *testing.T, p *pod, labels map[string]string, meshed bool, ports ...int32) {
	t.Helper()
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name, Labels: labels},
		Spec: corev1.PodSpec{
			ServiceAccountName: p.account,
			Containers:         []corev1.Container{{Name: "app", Image: "app"}},
		},
	}
	for _, port := range ports {
		object.Spec.Containers[0].Ports = append(object.Spec.Containers[0].Ports, corev1.ContainerPort{ContainerPort: port})
	}
	if meshed {
		always := corev1.ContainerRestartPolicyAlways
		object.Spec.InitContainers = []corev1.Container{{Name: "tulle-proxy", Image: "envoy", RestartPolicy: &always}}
	}
	if err := c.client.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	object.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.address, PodIPs: []corev1.PodIP{{IP: p.address}}}
	if err := c.client.Status().Update(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	p.uid = object.UID
}

// started says that the startup probe of the pod's sidecar has passed: from now on
// its proxy counts.
func (c *cluster) started(t *testing.T, p *pod) {
	t.Helper()
	object := &corev1.Pod{}
	if err := c.client.Get(t.Context(), types.NamespacedName{Namespace: p.namespace, Name: p.name}, object); err != nil {
		t.Fatal(err)
	}
	yes := true
	object.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "tulle-proxy", Image: "envoy", ImageID: "envoy", Started: &yes, Ready: true}}
	if err := c.client.Status().Update(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

// proxyToken is the token that a sidecar has.
func (c *cluster) proxyToken(t *testing.T, p *pod) string {
	t.Helper()
	return c.token(t, p.namespace, p.account, p, server.Audience)
}
