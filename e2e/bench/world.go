package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

const (
	namespace     = "bench"
	meshNamespace = "tulle-system"
	// istioNamespace is where istiod looks for its authority.
	istioNamespace = "istio-system"
	servicePort    = 80
	// writers is how many requests to the API server are under way at a time while
	// the world is made.
	writers = 16
)

// world is a real API server, and what there is in it.
type world struct {
	size       size
	kubeconfig string
	client     kubernetes.Interface
	dynamic    dynamic.Interface
	config     *rest.Config
	env        *envtest.Environment
	pods       []*corev1.Pod
	marks      atomic.Int64
	added      int // services, since it was filled
}

// size is how large the mesh is.
type size struct {
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"` // of each service
	Sidecars  int `json:"sidecars"`
	Workloads int `json:"workloads"` // the sidecars are of so many workloads
	Calls     int `json:"calls"`     // services that each calls; all of them in the manner all
	// Policies are there from the beginning, each for one workload.
	Policies int `json:"policies,omitempty"`
}

// startAPIServer runs etcd and kube-apiserver from a folder of programs, with the
// CRDs of deploy/crds.
func startAPIServer(binaries, root, scratch string) (*world, error) {
	env := &envtest.Environment{
		BinaryAssetsDirectory: binaries,
		CRDDirectoryPaths:     []string{filepath.Join(root, "deploy", "crds")},
		ErrorIfCRDPathMissing: true,
	}
	env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", serviceRange)
	config, err := env.Start()
	if err != nil {
		return nil, fmt.Errorf("starting an API server from %s: %w", binaries, err)
	}
	w := &world{env: env, config: rest.CopyConfig(config), kubeconfig: filepath.Join(scratch, "kubeconfig")}
	if err := os.WriteFile(w.kubeconfig, env.KubeConfig, 0o600); err != nil {
		return w, err
	}
	w.config.QPS, w.config.Burst = -1, -1
	if w.dynamic, err = dynamic.NewForConfig(w.config); err != nil {
		return w, err
	}
	binary := rest.CopyConfig(w.config)
	binary.ContentType = "application/vnd.kubernetes.protobuf"
	w.client, err = kubernetes.NewForConfig(binary)
	return w, err
}

func (w *world) stop() error { return w.env.Stop() }

// fill makes everything that there is to be: it may have been there before.
func (w *world) fill(ctx context.Context, s size) error {
	w.size = s
	for _, n := range []string{namespace, meshNamespace, istioNamespace} {
		o := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}}
		if _, err := w.client.CoreV1().Namespaces().Create(ctx, o, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating namespace %s: %w", n, err)
		}
	}
	for i := range s.Workloads {
		o := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account(i), Namespace: namespace}}
		if _, err := w.client.CoreV1().ServiceAccounts(namespace).Create(ctx, o, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating service account %s: %w", o.Name, err)
		}
	}
	w.pods = make([]*corev1.Pod, s.Sidecars)
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(writers)
	for i := range s.Services {
		all.Go(func() error { return w.addService(ctx, i, w.addresses(i)) })
	}
	for i := range s.Sidecars {
		all.Go(func() (err error) {
			w.pods[i], err = w.addPod(ctx, i)
			return err
		})
	}
	for i := range s.Policies {
		selector := map[string]any{"app": account(i % s.Workloads)}
		all.Go(func() error {
			return w.deny(ctx, fmt.Sprintf("filled-%04d", i), namespace, fmt.Sprintf("/filled-%d", i), selector)
		})
	}
	return all.Wait()
}

func serviceName(i int) string { return fmt.Sprintf("svc-%05d", i) }

func account(workload int) string { return fmt.Sprintf("workload-%04d", workload) }

// clusterIP is the address of the i-th service, in serviceRange.
func clusterIP(i int) string { return fmt.Sprintf("10.96.%d.%d", 1+i/250, i%250+1) }

const serviceRange = "10.96.0.0/16"

func (w *world) addresses(service int) (out []string) {
	for e := range w.size.Endpoints {
		n := service*w.size.Endpoints + e
		out = append(out, fmt.Sprintf("10.%d.%d.%d", 128+n/62500, n/250%250, n%250+1))
	}
	return out
}

// mark is an address that nothing had before. All are of the same length, so that
// none is a part of another.
func (w *world) mark() string {
	n := int(w.marks.Add(1))
	return fmt.Sprintf("11.%d.%d.%d", 100+n/22500%150, 100+n/150%150, 100+n%150)
}

func (w *world) addService(ctx context.Context, i int, addresses []string) error {
	name := serviceName(i)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": name}},
		Spec:       corev1.ServiceSpec{ClusterIP: clusterIP(i), Ports: []corev1.ServicePort{{Name: "http", Port: servicePort, Protocol: corev1.ProtocolTCP}}},
	}
	if _, err := w.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, sliceOf(name, addresses), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the endpoints of %s: %w", name, err)
	}
	if _, err := w.client.CoreV1().Services(namespace).Create(ctx, service, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating service %s: %w", name, err)
	}
	return nil
}

func sliceOf(service string, addresses []string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service, Namespace: namespace, Labels: map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "bench"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
		})
	}
	return s
}

// addPod makes a pod with a sidecar that is bound and runs.
func (w *world) addPod(ctx context.Context, i int) (*corev1.Pod, error) {
	workload := i % w.size.Workloads
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("pod-%05d", i), Namespace: namespace,
			Labels:      map[string]string{"app": account(workload), "mesh.tulle.dev/proxy": "sidecar"},
			Annotations: map[string]string{"mesh.tulle.dev/status": `{"version":"bench"}`},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%d", i%20), ServiceAccountName: account(workload),
			InitContainers: []corev1.Container{{Name: "tulle-proxy", Image: "envoy", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)}},
			Containers:     []corev1.Container{{Name: "app", Image: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}},
		},
	}
	pod, err := w.client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("creating a pod: %w", err)
	}
	ip := fmt.Sprintf("10.%d.%d.%d", 200+i/62500, i/250%250, i%250+1)
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions:            []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		InitContainerStatuses: []corev1.ContainerStatus{{Name: "tulle-proxy", Started: ptr.To(true), Ready: true}},
		ContainerStatuses:     []corev1.ContainerStatus{{Name: "app", Started: ptr.To(true), Ready: true}},
	}
	if _, err := w.client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("having pod %s run: %w", pod.Name, err)
	}
	return pod, nil
}

// token is a pod's own service account token, as a kubelet asks for it.
func (w *world) token(ctx context.Context, pod *corev1.Pod, audience string) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{audience}, ExpirationSeconds: ptr.To[int64](24 * 3600),
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	got, err := w.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking for the token of %s: %w", pod.Name, err)
	}
	return got.Status.Token, nil
}

// move gives one endpoint of a service another address.
func (w *world) move(ctx context.Context, service string, endpoint int, address string) error {
	slices := w.client.DiscoveryV1().EndpointSlices(namespace)
	s, err := slices.Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the endpoints of %s: %w", service, err)
	}
	s.Endpoints[endpoint%len(s.Endpoints)].Addresses = []string{address}
	if _, err := slices.Update(ctx, s, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("moving an endpoint of %s: %w", service, err)
	}
	return nil
}

// policies are MeshPolicies.
var policies = schema.GroupVersionResource{Group: "mesh.tulle.dev", Version: "v1alpha1", Resource: "meshpolicies"}

// deny applies a policy of that name that refuses a path: to a workload of the namespace, or, in
// the mesh's own namespace, to everybody.
func (w *world) deny(ctx context.Context, name, in, path string, selector map[string]any) error {
	spec := map[string]any{"authorization": map[string]any{"rules": []any{
		map[string]any{"name": "refused", "action": "Deny", "to": []any{map[string]any{"paths": []any{path}}}},
	}}}
	if selector != nil {
		spec["selector"] = map[string]any{"matchLabels": selector}
	}
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": policies.GroupVersion().String(), "kind": "MeshPolicy",
		"metadata": map[string]any{"name": name, "namespace": in}, "spec": spec,
	}}
	if _, err := w.dynamic.Resource(policies).Namespace(in).Apply(ctx, name, o, metav1.ApplyOptions{FieldManager: "bench", Force: true}); err != nil {
		return fmt.Errorf("applying a policy: %w", err)
	}
	return nil
}
