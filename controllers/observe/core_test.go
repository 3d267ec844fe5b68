package observe

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// parse reads an object as the API server would give it, but for defaults.
func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), out); err != nil {
		t.Fatalf("parsing %s: %v", text, err)
	}
	return out
}

// same compares entities, addresses and prefixes by value.
func same(t *testing.T, got, want any) {
	t.Helper()
	opts := cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("differs (-want +got):\n%s", diff)
	}
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func nets(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestProtocolIsWhatThePortDeclares(t *testing.T) {
	for _, c := range []struct {
		app, name string
		want      mesh.Protocol
	}{
		{"", "", mesh.Detect},
		{"", "web", mesh.Detect},
		{"", "metrics", mesh.Detect},
		{"", "httpx", mesh.Detect},
		{"", "http", mesh.HTTP},
		{"", "http-admin", mesh.HTTP},
		{"", "HTTP", mesh.HTTP},
		{"", "http2", mesh.HTTP2},
		{"", "http2-api", mesh.HTTP2},
		{"", "grpc", mesh.GRPC},
		{"", "grpc-orders", mesh.GRPC},
		{"", "grpc-web", mesh.HTTP},
		{"", "grpc-web-ui", mesh.HTTP},
		{"", "https", mesh.TLS},
		{"", "tls-x", mesh.TLS},
		{"", "tcp-http", mesh.TCP},
		{"", "mysql", mesh.TCP},
		{"", "mongo-shard", mesh.TCP},
		{"", "postgres", mesh.TCP},
		{"", "dns-tcp", mesh.TCP},
		{"http", "", mesh.HTTP},
		{"HTTP", "tcp", mesh.HTTP},
		{"http2", "", mesh.HTTP2},
		{"https", "http", mesh.TLS},
		{"grpc", "", mesh.GRPC},
		{"kubernetes.io/h2c", "", mesh.HTTP2},
		{"kubernetes.io/ws", "", mesh.HTTP},
		{"kubernetes.io/wss", "", mesh.TLS},
		{"redis", "http", mesh.TCP},
		{"nntp", "http", mesh.TCP},               // a registered service that is not HTTP
		{"example.com/own", "http", mesh.HTTP},   // says nothing to us
		{"example.com/http", "x", mesh.Detect},   // nor does this
		{"kubernetes.io/new", "grpc", mesh.GRPC}, // nor does what is newer than this
	} {
		var app *string
		if c.app != "" {
			app = &c.app
		}
		if got := protocolOf(app, c.name); got != c.want {
			t.Errorf("appProtocol %q, name %q: got %v, want %v", c.app, c.name, got, c.want)
		}
	}
}

func TestServiceOfBothFamiliesKeepsItsTCPPorts(t *testing.T) {
	got, ok := service(parse[corev1.Service](t, `
metadata: {namespace: shop, name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00::7"]
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: db, port: 3306, protocol: TCP, appProtocol: mysql, targetPort: db}
  - {name: dns, port: 53, protocol: UDP}
  - {name: x, port: 99, protocol: SCTP}
  - {name: same, port: 9000}
`))
	if !ok {
		t.Fatal("the service has no place in the mesh")
	}
	same(t, got, &mesh.Service{
		Name:      mesh.Name{Namespace: "shop", Name: "web"},
		Addresses: addrs("10.96.0.7", "fd00::7"),
		Selector:  map[string]string{"app": "web"},
		Ports: []mesh.ServicePort{
			{Name: "http", Port: 80, Protocol: mesh.HTTP, Target: 8080},
			{Name: "db", Port: 3306, Protocol: mesh.TCP, TargetName: "db"},
			{Name: "same", Port: 9000, Target: 9000},
		},
	})
}

func TestHeadlessServiceHasNoAddress(t *testing.T) {
	got, ok := service(parse[corev1.Service](t, `
metadata: {namespace: shop, name: store}
spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 6379}]}
`))
	if !ok || !got.Headless() {
		t.Errorf("got %+v, %v; want a headless service", got, ok)
	}
}

func TestSingleClusterIPIsEnough(t *testing.T) {
	got, _ := service(parse[corev1.Service](t, `{metadata: {name: a}, spec: {clusterIP: 10.96.0.1}}`))
	same(t, got.Addresses, addrs("10.96.0.1"))
}

func TestExternalNameHasNoPlaceInTheMesh(t *testing.T) {
	c, ok := change(parse[corev1.Service](t, `
metadata: {namespace: shop, name: old}
spec: {type: ExternalName, externalName: example.com}
`))
	want := mesh.Delete(mesh.KindService, mesh.Name{Namespace: "shop", Name: "old"})
	if !ok || c != want {
		t.Errorf("got %+v, want %+v: a service that was in the mesh before must leave it", c, want)
	}
}

func TestSliceIsSortedAndKeepsWhatIsUsed(t *testing.T) {
	got, ok := endpointSlice(parse[discoveryv1.EndpointSlice](t, `
metadata: {namespace: shop, name: web-abc, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports:
- {name: http, port: 8080, protocol: TCP}
- {name: "", port: 7}
- {name: dns, port: 53, protocol: UDP}
- {name: any}
endpoints:
- addresses: [10.0.0.9]
  conditions: {ready: false, serving: true, terminating: true}
  targetRef: {kind: Pod, namespace: shop, name: web-2}
- addresses: [10.0.0.10, 10.9.9.9]
  conditions: {}
  zone: b
  targetRef: {kind: Pod, name: web-1}
- addresses: [10.0.0.1]
  conditions: {ready: true}
  zone: a
  targetRef: {kind: Pod, namespace: elsewhere, name: web-0}
- addresses: [10.0.0.2]
  targetRef: {kind: Node, name: n}
- addresses: [no-address]
- addresses: []
`))
	if !ok {
		t.Fatal("the slice has no place in the mesh")
	}
	same(t, got, &mesh.Slice{
		Name:    mesh.Name{Namespace: "shop", Name: "web-abc"},
		Service: "web",
		Ports:   []mesh.SlicePort{{Name: "", Port: 7}, {Name: "http", Port: 8080}},
		Endpoints: []mesh.Endpoint{
			{Address: netip.MustParseAddr("10.0.0.1"), Ready: true, Zone: "a"},
			{Address: netip.MustParseAddr("10.0.0.2"), Ready: true},
			{Address: netip.MustParseAddr("10.0.0.9"), Workload: "web-2"},
			{Address: netip.MustParseAddr("10.0.0.10"), Workload: "web-1", Ready: true, Zone: "b"},
		},
	})
}

func TestIPv6SliceIsConverted(t *testing.T) {
	got, ok := endpointSlice(parse[discoveryv1.EndpointSlice](t, `
metadata: {namespace: a, name: b, labels: {kubernetes.io/service-name: c}}
addressType: IPv6
endpoints: [{addresses: ["fd00::1"]}]
`))
	if !ok || len(got.Endpoints) != 1 || got.Endpoints[0].Address != netip.MustParseAddr("fd00::1") {
		t.Errorf("got %+v, %v", got, ok)
	}
}

func TestSlicesWithoutServiceOrAddressesHaveNoPlaceInTheMesh(t *testing.T) {
	for name, text := range map[string]string{
		"no service": `{metadata: {namespace: a, name: b}, addressType: IPv4}`,
		"FQDN":       `{metadata: {namespace: a, name: b, labels: {kubernetes.io/service-name: c}}, addressType: FQDN}`,
	} {
		c, ok := change(parse[discoveryv1.EndpointSlice](t, text))
		if want := mesh.Delete(mesh.KindSlice, mesh.Name{Namespace: "a", Name: "b"}); !ok || c != want {
			t.Errorf("%s: got %+v, want %+v", name, c, want)
		}
	}
}

const meshedPod = `
metadata:
  namespace: shop
  name: web-1
  uid: 1234
  labels: {app: web}
  annotations:
    mesh.tulle.dev/status: |
      {"version": "v1", "probes": [
        {"Path": "/probe/app/live", "Port": 8080, "Target": "/healthz?full=1", "HTTPS": true},
        {"Path": "/probe/app/ready", "Port": 3306, "Kind": "TCP"},
        {"Path": "/probe/app/start", "Port": 9000, "Kind": "GRPC", "Service": "shop.Web", "Timeout": 5},
        {"Path": "bad", "Port": 3306, "Kind": "TCP"},
        {"Path": "/bad", "Port": 3306, "Kind": "TCP", "Timeout": -1},
        {"Path": "/bad", "Port": 3306, "Kind": "ICMP", "Target": "/"},
        {"Path": "bad", "Port": 8080, "Target": "/"},
        {"Path": "/bad", "Port": 0, "Target": "/"},
        {"Path": "/bad", "Port": 1, "Target": "http://elsewhere/"}]}
spec:
  serviceAccountName: web
  initContainers:
  - {name: tulle-init}
  - {name: tulle-proxy, restartPolicy: Always, ports: [{containerPort: 15021}]}
  - {name: helper, restartPolicy: Always, ports: [{name: help, containerPort: 7000}]}
  - {name: once, ports: [{containerPort: 7001}]}
  containers:
  - name: app
    ports:
    - {name: http, containerPort: 8080}
    - {name: dns, containerPort: 53, protocol: UDP}
    - {name: admin, containerPort: 8000, protocol: TCP}
  - name: twin
    ports: [{name: http, containerPort: 8080}]
status: {phase: Running, podIP: 10.0.0.4, podIPs: [{ip: 10.0.0.4}, {ip: "fd00::4"}]}
`

func TestMeshedPodIsAWorkloadWithItsProbes(t *testing.T) {
	same(t, workload(parse[corev1.Pod](t, meshedPod)), &mesh.Workload{
		Name:           mesh.Name{Namespace: "shop", Name: "web-1"},
		UID:            "1234",
		ServiceAccount: "web",
		Labels:         map[string]string{"app": "web"},
		Addresses:      addrs("10.0.0.4", "fd00::4"),
		Meshed:         true,
		Ports:          []mesh.ContainerPort{{Name: "help", Port: 7000}, {Name: "admin", Port: 8000}, {Name: "http", Port: 8080}},
		Probes: []mesh.Probe{
			{Path: "/probe/app/live", Port: 8080, Target: "/healthz?full=1", HTTPS: true},
			{Path: "/probe/app/ready", Port: 3306, Kind: mesh.ProbeTCP},
			{Path: "/probe/app/start", Port: 9000, Kind: mesh.ProbeGRPC, Service: "shop.Web", Timeout: 5},
		},
	})
}

func TestPodWithoutSidecarIsAWorkloadToo(t *testing.T) {
	same(t, workload(parse[corev1.Pod](t, `
metadata: {namespace: shop, name: legacy, uid: u, annotations: {mesh.tulle.dev/status: '{"probes":[{"Path":"/a","Port":1,"Target":"/"}]}'}}
spec: {containers: [{name: tulle-proxy}]}
status: {phase: Running, podIP: 10.0.0.5}
`)), &mesh.Workload{
		Name:           mesh.Name{Namespace: "shop", Name: "legacy"},
		UID:            "u",
		ServiceAccount: "default",
		Addresses:      addrs("10.0.0.5"),
	})
}

func TestProxyThatIsNoNativeSidecarMakesNoMeshedPod(t *testing.T) {
	if workload(parse[corev1.Pod](t, `{spec: {initContainers: [{name: tulle-proxy}]}}`)).Meshed {
		t.Error("an init container that ends is no sidecar")
	}
}

func TestHostNetworkPodHasNoAddressOfItsOwn(t *testing.T) {
	w := workload(parse[corev1.Pod](t, `
spec: {hostNetwork: true}
status: {podIP: 192.0.2.1, podIPs: [{ip: 192.0.2.1}]}
`))
	if len(w.Addresses) != 0 {
		t.Errorf("got addresses %v: they are the node's", w.Addresses)
	}
}

func TestEndOfAPodIsSeen(t *testing.T) {
	for phase, terminal := range map[corev1.PodPhase]bool{
		corev1.PodPending: false, corev1.PodRunning: false, corev1.PodSucceeded: true, corev1.PodFailed: true,
	} {
		if got := workload(&corev1.Pod{Status: corev1.PodStatus{Phase: phase}}); got.Terminal != terminal {
			t.Errorf("%s: got terminal %v", phase, got.Terminal)
		}
	}
	now, grace := metav1.Now(), int64(45)
	w := workload(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now, DeletionGracePeriodSeconds: &grace}})
	if !w.Terminating || w.Grace != 45*time.Second {
		t.Errorf("a pod with a deletion timestamp and 45 s is terminating %t, with %v", w.Terminating, w.Grace)
	}
}

func TestBrokenAnnotationMeansNoProbes(t *testing.T) {
	if got, _ := injected(`{"probes": [`); got != nil {
		t.Errorf("got %v", got)
	}
}

func TestPortsRoundTheSidecarAreKnown(t *testing.T) {
	if _, got := injected(`{"direct": [9002, 9001, 9002]}`); !slices.Equal(got, []uint16{9001, 9002}) {
		t.Errorf("got %v, want 9001 and 9002", got)
	}
}

func TestWhatAServiceSaysAboutDistribution(t *testing.T) {
	for word, want := range map[string]mesh.Near{
		"":                                     mesh.Anywhere,
		"trafficDistribution: PreferClose":     mesh.SameZone,
		"trafficDistribution: PreferSameZone":  mesh.SameZone,
		"trafficDistribution: PreferSameNode":  mesh.SameNode,
		"trafficDistribution: PreferSomething": mesh.Anywhere,
	} {
		s, ok := service(parse[corev1.Service](t, `{spec: {clusterIP: 10.96.0.1, `+word+`}}`))
		if !ok || s.Distribution != want {
			t.Errorf("%q is %v, want %v", word, s.Distribution, want)
		}
	}
}
