package observe

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

func kept(t *testing.T, obj client.Object) client.Object {
	t.Helper()
	out, err := CacheOptions().DefaultTransform(obj)
	if err != nil {
		t.Fatal(err)
	}
	return out.(client.Object)
}

// full objects, with what the mesh uses and what it does not.
func fullObjects(t *testing.T) []client.Object {
	t.Helper()
	pod := parse[corev1.Pod](t, meshedPod)
	pod.Spec.NodeName = "n"
	pod.Annotations["other"] = "x"
	objs := []client.Object{
		parse[corev1.ConfigMap](t, `{metadata: {namespace: shop, name: authority}, data: {ca.crt: none, other: x}}`),
		pod,
		parse[corev1.Service](t, `
metadata: {namespace: shop, name: web}
spec: {trafficDistribution: PreferSameZone, type: LoadBalancer, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], selector: {a: b}, sessionAffinity: None,
  ports: [{name: http, port: 80, targetPort: web, appProtocol: http2}]}
`),
		parse[discoveryv1.EndpointSlice](t, `
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web, other: x}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: false, serving: true}, zone: a, nodeName: n, targetRef: {kind: Pod, namespace: shop, name: web-1, uid: x}}]
`),
		parse[corev1.Node](t, `{metadata: {name: n, labels: {a: b, topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}, spec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.0.0/24]}, status: {phase: Running}}`),
		parse[networkingv1.ServiceCIDR](t, `{metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16]}}`),
		parse[v1alpha1.MeshPolicy](t, `{metadata: {namespace: a, name: b, generation: 4}, spec: {mtls: {mode: Strict}}}`),
		parse[v1alpha1.TrafficSplit](t, `{metadata: {namespace: a, name: b, generation: 4}, spec: {service: a, backends: [{service: b}]}}`),
		parse[v1alpha1.MeshConfig](t, `{metadata: {name: default}, spec: {trustDomain: a}}`),
	}
	for _, o := range objs {
		o.SetResourceVersion("7")
		o.SetUID("u")
		o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "kubectl"}})
	}
	return objs
}

func TestCutObjectsMeanTheSame(t *testing.T) {
	gateway := parse[corev1.Pod](t, `
metadata: {namespace: shop, name: front-1, labels: {gateway.networking.k8s.io/gateway-name: front}}
spec: {serviceAccountName: front, containers: [{name: tulle-proxy, ports: [{containerPort: 15021}]}]}
status: {podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.9}], containerStatuses: [{name: other, started: false}, {name: tulle-proxy, started: true}]}
`)
	for _, obj := range append(fullObjects(t), gateway) {
		want := Changes(obj.DeepCopyObject())
		same := reflect.DeepEqual(Changes(runtime.Object(kept(t, obj))), want)
		if !same {
			t.Errorf("%T means something else once it is cut down", obj)
		}
	}
}

func TestCutObjectsKeepWhatInformersNeed(t *testing.T) {
	for _, obj := range fullObjects(t) {
		name := obj.GetName()
		got := kept(t, obj)
		if got.GetResourceVersion() != "7" || got.GetUID() != "u" || got.GetName() != name {
			t.Errorf("%T lost its resource version, uid or name: an informer would take every update for a resync", obj)
		}
		if len(got.GetManagedFields()) != 0 {
			t.Errorf("%T kept its managed fields", obj)
		}
	}
}

func TestCutObjectsDropWhatIsNotUsed(t *testing.T) {
	for _, obj := range fullObjects(t) {
		switch o := kept(t, obj).(type) {
		case *corev1.ConfigMap:
			if len(o.Data) != 1 {
				t.Errorf("kept too much of a ConfigMap: %+v", o)
			}
		case *corev1.Pod:
			if len(o.Annotations) != 1 || len(o.Spec.InitContainers) != 3 {
				t.Errorf("kept too much of a pod: %+v", o)
			}
		case *corev1.Node:
			if len(o.Labels) != 2 || o.Status.Phase != "" {
				t.Errorf("kept too much of a node: %+v", o)
			}
		case *discoveryv1.EndpointSlice:
			if len(o.Labels) != 1 || o.Endpoints[0].Conditions.Serving != nil {
				t.Errorf("kept too much of a slice: %+v", o)
			}
		}
	}
}

func TestNamesOfPlacesAreHeldOnce(t *testing.T) {
	var c cutter
	slice := func() *discoveryv1.Endpoint {
		zone, node := strings.Clone("zone"), strings.Clone("node")
		return &c.slice(&discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{{Zone: &zone, NodeName: &node}}}).Endpoints[0]
	}
	a, b := slice(), slice()
	if a.Zone != b.Zone || a.NodeName != b.NodeName {
		t.Error("two endpoints have their zone and node twice in memory")
	}
	for i := range 2 * maxNames {
		name := fmt.Sprint(i)
		c.places.same(&name)
	}
	if n := len(c.places.held); n > maxNames {
		t.Errorf("%d names are remembered", n)
	}
}

func TestKubectlsAnnotationIsKeptWhereOthersMayWriteTheObject(t *testing.T) {
	last := map[string]string{corev1.LastAppliedConfigAnnotation: "{}"}
	if got := kept(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Annotations: last}}); len(got.GetAnnotations()) != 1 {
		t.Error("an update of the cached ServiceAccount would take the annotation away")
	}
	if got := kept(t, &v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{Annotations: last}}); len(got.GetAnnotations()) != 0 {
		t.Error("the annotation is as large as the object, and nobody reads it")
	}
}

func TestTombstonesPassTheTransform(t *testing.T) {
	in := toolscache.DeletedFinalStateUnknown{Key: "a/b"}
	if got, err := CacheOptions().DefaultTransform(in); err != nil || got != any(in) {
		t.Errorf("got %v, %v", got, err)
	}
}
