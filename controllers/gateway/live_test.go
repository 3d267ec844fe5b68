package gateway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"
	ctrlmanager "sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/config/apitest"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// patience is how long a write may take on a machine that is busy.
const patience = 30 * time.Second

// builder is a Findings of the test's making.
type builder struct {
	mu         sync.Mutex
	values     map[build.Key]*build.Value
	subscribed map[build.Key]build.Subscriber
}

func (b *builder) Subscribe(s build.Subscriber, keys ...build.Key) {
	b.mu.Lock()
	for _, k := range keys {
		b.subscribed[k] = s
	}
	b.mu.Unlock()
	s.Changed(keys)
}

func (b *builder) Unsubscribe(_ build.Subscriber, keys ...build.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		delete(b.subscribed, k)
	}
}

func (b *builder) Value(k build.Key) *build.Value {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.values[k]
}

// find says what was found about a generation of the Gateway.
func (b *builder) find(gw *gatewayv1.Gateway, generation int64, found ...mesh.Finding) {
	k := findingsKey(client.ObjectKeyFromObject(gw))
	found = slices.Clone(found)
	for i := range found {
		found[i].Generation = generation
	}
	b.mu.Lock()
	b.values[k] = &build.Value{Findings: found}
	s := b.subscribed[k]
	b.mu.Unlock()
	if s != nil {
		s.Changed([]build.Key{k})
	}
}

func (b *builder) subscriptions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subscribed)
}

// live is a running controller.
type live struct {
	client.Client // without a cache
	builder       *builder
	mu            sync.Mutex
	image         string

	writes, applies atomic.Int64 // of status, and of objects
}

// counted is a client whose writes are counted.
type counted struct {
	client.Client
	l *live
}

func (c *counted) Apply(ctx context.Context, o runtime.ApplyConfiguration, options ...client.ApplyOption) error {
	c.l.applies.Add(1)
	return c.Client.Apply(ctx, o, options...)
}

func (c *counted) Status() client.SubResourceWriter {
	c.l.writes.Add(1)
	return c.Client.Status()
}

func (l *live) settings() webhook.Settings {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := settings()
	s.ProxyImage = l.image
	return s
}

func (l *live) use(image string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.image = image
}

func (l *live) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := l.Create(t.Context(), o); err != nil {
		t.Fatalf("creating %T %s: %v", o, o.GetName(), err)
	}
}

// change is an update by somebody who reads before.
func change[T client.Object](t *testing.T, l *live, o T, how func(T)) {
	t.Helper()
	eventually(t, "a change of "+o.GetName(), func(ctx context.Context) (bool, error) {
		if err := l.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
			return false, err
		}
		how(o)
		err := l.Update(ctx, o)
		return err == nil, client.IgnoreNotFound(ignoreConflict(err))
	})
}

func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// is waits until what holds of an object.
func is[T client.Object](t *testing.T, l *live, o T, what string, holds func(T) bool) {
	t.Helper()
	eventually(t, what, func(ctx context.Context) (bool, error) {
		err := l.Get(ctx, client.ObjectKeyFromObject(o), o)
		return err == nil && holds(o), client.IgnoreNotFound(err)
	})
}

// eventually polls the API server, which has no other way to tell a test.
func eventually(t *testing.T, what string, holds func(ctx context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, patience, true, holds); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// start has a controller that is told of the Gateway API's kinds only after it began. It
// lacks what the role of gateways says of the resources withheld.
func start(t *testing.T, config *rest.Config, withheld ...string) *live {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	direct, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := ctrlmanager.New(permitted(t, config, direct, withheld), ctrlmanager.Options{
		Scheme: scheme, Cache: observe.CacheOptions(), Metrics: server.Options{BindAddress: "0"}, Logger: testr.New(t),
		// The names of controllers are unique to a process, which may run the test twice.
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &live{Client: direct, image: "example.org/envoy:1", builder: &builder{values: map[build.Key]*build.Value{}, subscribed: map[build.Key]build.Subscriber{}}}
	c := New(Options{Findings: l.builder, Settings: l.settings})
	if err := c.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	c.client = &counted{c.client, l}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-mgr.Elected()
	crds, err := apitest.GatewayCRDs()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{crds}}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []client.Object{&gatewayv1.HTTPRoute{}, &gatewayv1.GatewayClass{}, &gatewayv1.Gateway{}} {
		if err := c.WatchKind(kind); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// permitted is the configuration of somebody who may do what the control plane may, but
// for what is withheld, and nothing else.
func permitted(t *testing.T, config *rest.Config, admin client.Client, withheld []string) *rest.Config {
	t.Helper()
	root, err := apitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	var manifest []byte
	for _, of := range []string{"base/rbac", "gateways"} {
		text, err := os.ReadFile(filepath.Join(root, "deploy", of, "role.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		manifest = append(append(manifest, text...), "\n---\n"...)
	}
	for document := range strings.SplitSeq(string(manifest), "\n---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(document), &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != "ClusterRole" {
			continue
		}
		for i := range role.Rules {
			if r := &role.Rules[i]; role.Name == "tulle-gateways" {
				r.Resources = slices.DeleteFunc(r.Resources, func(name string) bool { return slices.Contains(withheld, name) })
			}
		}
		role.Rules = slices.DeleteFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return len(r.Resources)+len(r.NonResourceURLs) == 0 })
		if err := admin.Create(t.Context(), &role); err != nil {
			t.Fatal(err)
		}
	}
	for _, role := range []string{"tulled", "tulle-gateways"} {
		if err := admin.Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: "tulled"}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	config = rest.CopyConfig(config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "tulled", Groups: []string{"system:authenticated"}}
	return config
}

// The role may be of an older version than the control plane.
func TestWhatIsNotPermittedHoldsNothingElse(t *testing.T) {
	log.SetLogger(logr.Discard())
	l := start(t, apitest.Start(t), "horizontalpodautoscalers", "gatewayclasses")
	class := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "tulle"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName}}
	l.create(t, class)
	for _, namespace := range []string{"one", "two", "three", "four", "five"} { // more than there are workers
		gw := l.gateway(t, namespace, listener("web", 80, gatewayv1.HTTPProtocolType))
		is(t, l, named(&appsv1.Deployment{}, gw), "the Deployment", func(*appsv1.Deployment) bool { return true })
		change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Spec.Listeners[0].Port = 81 })
		is(t, l, named(&corev1.Service{}, gw), "the new port", func(s *corev1.Service) bool { return portsIn(s) == "web:81>81/TCP/http" })
		change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Annotations = map[string]string{AnnotationMaxReplicas: "3"} })
		l.builder.find(gw, gw.Generation, goodFindings()...)
		is(t, l, gw, "what is not permitted", func(gw *gatewayv1.Gateway) bool {
			p := meta.FindStatusCondition(gw.Status.Conditions, "Programmed")
			return p != nil && p.Status == metav1.ConditionFalse && strings.Contains(p.Message, "apply deploy/gateways") &&
				strings.Contains(p.Message, `cannot list resource "horizontalpodautoscalers"`)
		})
	}
	is(t, l, class, "Accepted", func(c *gatewayv1.GatewayClass) bool { return words(c.Status.Conditions) == "Accepted=True/Accepted@1" })
}

func TestGatewaysOnARealAPIServer(t *testing.T) {
	log.SetLogger(logr.Discard()) // what informers say
	l := start(t, apitest.Start(t))
	t.Run("classes", l.testClasses)
	t.Run("objects", l.testObjects)
	t.Run("replicas", l.testReplicas)
	t.Run("autoscaler", l.testAutoscaler)
	t.Run("status", l.testStatus)
	t.Run("mistakes", l.testMistakes)
	t.Run("another class", l.testAnotherClass)
	t.Run("a class in use", l.testClassInUse)
	t.Run("an older Gateway API", l.testOlderCRD) // the last, since it spoils the CRD
}

func (l *live) testClasses(t *testing.T) {
	root, err := apitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(root, "deploy", "gateways", "class.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	class := &gatewayv1.GatewayClass{}
	if err := yaml.UnmarshalStrict(manifest, class); err != nil {
		t.Fatal(err)
	}
	refused := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "refused"}, Spec: gatewayv1.GatewayClassSpec{
		ControllerName: v1alpha1.ControllerName, ParametersRef: &gatewayv1.ParametersReference{Group: "", Kind: "ConfigMap", Name: "p"},
	}}
	others := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "others"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: "example.org/another"}}
	for _, c := range []*gatewayv1.GatewayClass{others, refused, class} {
		l.create(t, c)
	}
	says := func(c *gatewayv1.GatewayClass, want string) {
		t.Helper()
		is(t, l, c, c.Name+" "+want, func(c *gatewayv1.GatewayClass) bool { return words(c.Status.Conditions) == want })
	}
	says(class, "Accepted=True/Accepted@1")
	var names []string
	for _, f := range class.Status.SupportedFeatures {
		names = append(names, string(f.Name))
	}
	if len(names) != len(supported) || !slices.IsSorted(names) || !slices.Contains(names, "HTTPRouteQueryParamMatching") {
		t.Errorf("got features %v", names)
	}
	says(refused, "Accepted=False/InvalidParameters@1")
	change(t, l, refused, func(c *gatewayv1.GatewayClass) { c.Spec.ParametersRef = nil })
	says(refused, "Accepted=True/Accepted@2")
	says(others, "Accepted=Unknown/Pending@0")
}

// namespace makes one, and a Gateway in it.
func (l *live) gateway(t *testing.T, namespace string, listeners ...gatewayv1.Listener) *gatewayv1.Gateway {
	t.Helper()
	l.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}})
	gw := edge(listeners...)
	gw.ObjectMeta = metav1.ObjectMeta{Namespace: namespace, Name: "edge"}
	l.create(t, gw)
	return gw
}

func named[T client.Object](o T, gw *gatewayv1.Gateway) T {
	o.SetNamespace(gw.Namespace)
	o.SetName(nameOf(gw))
	return o
}

func (l *live) testObjects(t *testing.T) {
	gw := l.gateway(t, "objects", listener("web", 80, gatewayv1.HTTPProtocolType))
	service, deployment := named(&corev1.Service{}, gw), named(&appsv1.Deployment{}, gw)
	for _, o := range []client.Object{service, deployment, named(&corev1.ServiceAccount{}, gw), named(&policyv1.PodDisruptionBudget{}, gw)} {
		is(t, l, o, fmt.Sprintf("%T", o), func(o client.Object) bool { return metav1.IsControlledBy(o, gw) })
	}
	if got := portsIn(service); got != "web:80>80/TCP/http" || service.Spec.Type != corev1.ServiceTypeLoadBalancer || len(service.Spec.ClusterIPs) == 0 {
		t.Errorf("got ports %s, %+v", got, service.Spec)
	}

	t.Run("its pods are admitted where the standard restricted is enforced", func(t *testing.T) {
		template := deployment.Spec.Template
		pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Namespace, pod.Name = gw.Namespace, "pod"
		if err := l.Create(t.Context(), pod, client.DryRunAll); err != nil {
			t.Error(err)
		}
		pod.Spec.SecurityContext.Sysctls[0].Name = "net.core.somaxconn"
		if err := l.Create(t.Context(), pod, client.DryRunAll); !apierrors.IsForbidden(err) {
			t.Errorf("the standard is not enforced: %v", err)
		}
	})
	t.Run("follow its listeners", func(t *testing.T) {
		change(t, l, gw, func(gw *gatewayv1.Gateway) {
			gw.Spec.Listeners = []gatewayv1.Listener{listener("web", 8080, gatewayv1.HTTPProtocolType), listener("other", 81, gatewayv1.HTTPProtocolType)}
		})
		is(t, l, service, "the ports", func(s *corev1.Service) bool { return portsIn(s) == "other:81>81/TCP/http web:8080>8080/TCP/http" })
		is(t, l, deployment, "the ports", func(d *appsv1.Deployment) bool {
			var ports []int32
			for _, p := range d.Spec.Template.Spec.Containers[0].Ports {
				ports = append(ports, p.ContainerPort)
			}
			slices.Sort(ports)
			return slices.Equal(ports, []int32{81, 8080, 15090})
		})
	})
	t.Run("are mended", func(t *testing.T) {
		change(t, l, service, func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "another"} })
		is(t, l, service, "the selector", func(s *corev1.Service) bool { return s.Spec.Selector[labelGateway] == "edge" })
		if err := l.Delete(t.Context(), deployment); err != nil {
			t.Fatal(err)
		}
		is(t, l, named(&appsv1.Deployment{}, gw), "a new Deployment", func(d *appsv1.Deployment) bool { return d.UID != deployment.UID && *d.Spec.Replicas == 2 })
	})
	t.Run("follow the settings and the revision", func(t *testing.T) {
		l.use("example.org/envoy:2")
		l.create(t, &v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
		image := func(d *appsv1.Deployment) string { return d.Spec.Template.Spec.Containers[0].Image }
		is(t, l, deployment, "the image", func(d *appsv1.Deployment) bool { return image(d) == "example.org/envoy:2" })
		change(t, l, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: gw.Namespace}}, func(n *corev1.Namespace) { n.Labels[webhook.LabelRevision] = "canary" })
		is(t, l, deployment, "the revision", func(d *appsv1.Deployment) bool {
			return d.Spec.Template.Labels[webhook.LabelRevision] == "canary" && strings.Contains(strings.Join(d.Spec.Template.Spec.Containers[0].Args, " "), "tulled-canary.tulle-system.svc")
		})
	})
}

func (l *live) testReplicas(t *testing.T) {
	gw := l.gateway(t, "replicas", listener("web", 80, gatewayv1.HTTPProtocolType))
	deployment := named(&appsv1.Deployment{}, gw)
	port := gatewayv1.PortNumber(80)
	// has waits for a number of replicas in the template that follows the Gateway's
	// present port, which is applied before or with it.
	has := func(n int32) {
		t.Helper()
		is(t, l, deployment, fmt.Sprintf("%d replicas", n), func(d *appsv1.Deployment) bool {
			ports := d.Spec.Template.Spec.Containers[0].Ports
			return *d.Spec.Replicas == n && slices.ContainsFunc(ports, func(p corev1.ContainerPort) bool { return p.ContainerPort == port })
		})
	}
	has(2)
	t.Run("an autoscaler's are left alone", func(t *testing.T) {
		scale := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 5}}
		if err := l.SubResource("scale").Update(t.Context(), deployment, client.WithSubResourceBody(scale), client.FieldOwner("autoscaler")); err != nil {
			t.Fatal(err)
		}
		has(5)
		port = 81
		change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Spec.Listeners[0].Port = port })
		has(5)
	})
	t.Run("those that the author asks for are kept", func(t *testing.T) {
		change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Annotations = map[string]string{AnnotationReplicas: "3"} })
		has(3)
		scale := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 1}}
		if err := l.SubResource("scale").Update(t.Context(), deployment, client.WithSubResourceBody(scale), client.FieldOwner("autoscaler")); err != nil {
			t.Fatal(err)
		}
		has(3)
	})
	t.Run("and stay when the author asks no more", func(t *testing.T) {
		port = 82
		change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Annotations, gw.Spec.Listeners[0].Port = nil, port })
		has(3)
	})
}

func (l *live) testStatus(t *testing.T) {
	gw := l.gateway(t, "status", listener("web", 80, gatewayv1.HTTPProtocolType))
	service, deployment := named(&corev1.Service{}, gw), named(&appsv1.Deployment{}, gw)
	is(t, l, deployment, "the Deployment", func(*appsv1.Deployment) bool { return true })
	says := func(t *testing.T, want string) {
		t.Helper()
		is(t, l, gw, want, func(gw *gatewayv1.Gateway) bool { return words(gw.Status.Conditions) == want })
	}
	address := func(t *testing.T, want string) {
		t.Helper()
		is(t, l, gw, want, func(gw *gatewayv1.Gateway) bool {
			return len(gw.Status.Addresses) == 1 && gw.Status.Addresses[0].Value == want
		})
	}
	if got := words(gw.Status.Conditions); got != "" && got != "Accepted=Unknown/Pending@0 Programmed=Unknown/Pending@0" {
		t.Errorf("nothing was found yet, and the status says %s", got)
	}
	l.builder.find(gw, 1, goodFindings()...)
	says(t, "Accepted=True/Accepted@1 Programmed=False/Pending@1")
	is(t, l, service, "the Service", func(*corev1.Service) bool { return true })
	address(t, service.Spec.ClusterIPs[0])
	if ls := gw.Status.Listeners; len(ls) != 1 || ls[0].Name != "web" || ls[0].AttachedRoutes != 3 || len(ls[0].SupportedKinds) != 2 ||
		words(ls[0].Conditions) != "Accepted=True/Accepted@1 Conflicted=False/NoConflicts@1 Programmed=True/Programmed@1 ResolvedRefs=True/ResolvedRefs@1" {
		t.Errorf("got listeners %+v", ls)
	}

	is(t, l, deployment, "the Deployment", func(*appsv1.Deployment) bool { return true })
	deployment.Status.Replicas, deployment.Status.ReadyReplicas = 1, 1
	if err := l.Status().Update(t.Context(), deployment); err != nil {
		t.Fatal(err)
	}
	says(t, "Accepted=True/Accepted@1 Programmed=True/Programmed@1")
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}}
	if err := l.Status().Update(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	address(t, "192.0.2.7")

	t.Run("is about the present generation, and leaves others' conditions alone", func(t *testing.T) {
		gw.Status.Conditions = append(gw.Status.Conditions, metav1.Condition{Type: "Example", Status: "True", Reason: "Example", LastTransitionTime: metav1.Now()})
		if err := l.Status().Update(t.Context(), gw, client.FieldOwner("another")); err != nil {
			t.Fatal(err)
		}
		before := meta.FindStatusCondition(gw.Status.Conditions, "Accepted").LastTransitionTime
		change(t, l, gw, func(gw *gatewayv1.Gateway) {
			gw.Spec.Listeners = append(gw.Spec.Listeners, listener("other", 81, gatewayv1.HTTPProtocolType))
		})
		l.builder.find(gw, 2, append(goodFindings(), finding(1, "Accepted", true, "Accepted"), attached(1, 0))...)
		is(t, l, gw, "generation 2", func(gw *gatewayv1.Gateway) bool {
			return meta.FindStatusCondition(gw.Status.Conditions, "Accepted").ObservedGeneration == 2 && len(gw.Status.Listeners) == 2
		})
		if meta.FindStatusCondition(gw.Status.Conditions, "Example") == nil {
			t.Errorf("got %s, want Example too", words(gw.Status.Conditions))
		}
		if got := meta.FindStatusCondition(gw.Status.Conditions, "Accepted").LastTransitionTime; !got.Equal(&before) {
			t.Errorf("Accepted is what it was, and says that it changed at %s rather than %s", got, before)
		}
	})
	t.Run("forgets a listener that is gone, and is not written again for nothing", func(t *testing.T) {
		change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Spec.Listeners = gw.Spec.Listeners[:1] })
		l.builder.find(gw, 3, goodFindings()...)
		is(t, l, gw, "one listener", func(gw *gatewayv1.Gateway) bool { return len(gw.Status.Listeners) == 1 })
		// What was read before that write was seen may be written once more.
		last := l.writes.Load()
		eventually(t, "no further write", func(context.Context) (bool, error) {
			before := last
			time.Sleep(300 * time.Millisecond)
			last = l.writes.Load()
			return last == before, nil
		})
		writes, applies := l.writes.Load(), l.applies.Load()
		for range 20 {
			l.builder.find(gw, 3, goodFindings()...)
		}
		// What follows in the same queue is written after all of those.
		is(t, l, service, "the Service", func(*corev1.Service) bool { return true })
		service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.8"}}
		if err := l.Status().Update(t.Context(), service); err != nil {
			t.Fatal(err)
		}
		address(t, "192.0.2.8")
		// A write is counted before it is seen.
		if w, a := l.writes.Load()-writes, l.applies.Load()-applies; w != 1 || a > 4 {
			t.Errorf("%d writes of the status, want 1; %d objects applied, want 4 at most", w, a)
		}
	})
	l.testInsecure(t, gw)
	t.Run("of a deleted Gateway is forgotten", func(t *testing.T) {
		n := l.builder.subscriptions()
		if err := l.Delete(t.Context(), gw); err != nil {
			t.Fatal(err)
		}
		eventually(t, "one subscription less", func(context.Context) (bool, error) { return l.builder.subscriptions() == n-1, nil })
	})
}

func (l *live) testMistakes(t *testing.T) {
	l.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mistakes"}})
	others := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "mistakes", Name: "edge-tulle"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}}
	l.create(t, others)
	gw := edge(listener("web", 80, gatewayv1.HTTPProtocolType))
	gw.ObjectMeta = metav1.ObjectMeta{Namespace: "mistakes", Name: "edge"}
	l.builder.find(gw, 1, goodFindings()...)
	l.create(t, gw)
	says := func(words string) {
		t.Helper()
		is(t, l, gw, words, func(gw *gatewayv1.Gateway) bool {
			p := meta.FindStatusCondition(gw.Status.Conditions, "Programmed")
			return p != nil && p.Status == metav1.ConditionFalse && strings.Contains(p.Message, words)
		})
	}
	says("there is a Service edge-tulle already")
	is(t, l, others, "the other's Service", func(s *corev1.Service) bool { return s.Spec.Ports[0].Port == 1 && len(s.OwnerReferences) == 0 })
	change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Annotations = map[string]string{AnnotationServiceType: "Postal"} })
	says("write ClusterIP, NodePort or LoadBalancer")
	if err := l.Delete(t.Context(), others); err != nil {
		t.Fatal(err)
	}
	change(t, l, gw, func(gw *gatewayv1.Gateway) { gw.Annotations[AnnotationServiceType] = "ClusterIP" })
	is(t, l, named(&corev1.Service{}, gw), "the Service", func(s *corev1.Service) bool { return s.Spec.Type == corev1.ServiceTypeClusterIP })
	says("no pod of the Deployment")
}
