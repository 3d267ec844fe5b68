package translate

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// writtenMesh is a real Envoy as objects that users wrote have it: as the sidecar of a
// client in the namespace shop, before each of the Services, and as the Gateway front.
type writtenMesh struct {
	t      *testing.T
	at     map[string]string // where it listens: "web", "web:http-admin", "front", …
	routes map[string]*route.RouteConfiguration
	view   *mesh.View

	lock sync.Mutex
	seen map[string]int // requests by pod, and by path
}

// writtenServices are of pods that have a server each: web of web-v1 and web-v2, which
// have a label version, v2 of v2-0, and other, in another namespace, of other-0.
const writtenServices = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{name: http, port: 80, targetPort: 8080}, {name: http-admin, port: 81, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: far}
spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: shop, namespace: far}
spec: {from: [{group: mesh.tulle.dev, kind: TrafficSplit, namespace: shop}], to: [{group: "", kind: Service}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: tulle}
spec: {controllerName: mesh.tulle.dev/tulle}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: tulle
  listeners:
  - {name: open, port: $front, protocol: HTTP}
  - {name: api, port: $front, protocol: HTTP, hostname: "*.API.example"}
  - {name: apart, port: $apart, protocol: HTTP, hostname: apart.example}
`

func startWritten(t *testing.T, objects ...string) *writtenMesh {
	t.Helper()
	m := &writtenMesh{t: t, at: map[string]string{}, routes: map[string]*route.RouteConfiguration{}, seen: map[string]int{}}
	gateways := map[string]int{"front": freePort(t), "apart": freePort(t)}
	text := strings.Join(append([]string{writtenServices}, objects...), "\n---\n")
	for name, port := range gateways {
		text = strings.ReplaceAll(text, "$"+name, fmt.Sprint(port))
	}
	changes := observe.Changes(decoded(t, text)...)
	pods := map[string]string{} // by address
	for service, names := range map[mesh.Name][]string{
		{Namespace: "shop", Name: "web"}: {"web-v1", "web-v2"}, {Namespace: "shop", Name: "v2"}: {"v2-0"}, {Namespace: "far", Name: "other"}: {"other-0"},
	} {
		for _, pod := range names {
			at := m.serve(pod)
			pods[at.String()] = pod
			_, version, _ := strings.Cut(pod, "-")
			changes = append(changes,
				mesh.Put(&mesh.Workload{Name: mesh.Name{Namespace: service.Namespace, Name: pod}, Labels: map[string]string{"version": version}}),
				mesh.Put(&mesh.Slice{
					Name: mesh.Name{Namespace: service.Namespace, Name: pod}, Service: service.Name,
					Ports: []mesh.SlicePort{{Name: "http", Port: at.Port()}, {Name: "http-admin", Port: at.Port()}}, Endpoints: []mesh.Endpoint{{Address: at.Addr(), Ready: true, Workload: pod}},
				}))
		}
	}
	s, _ := mesh.New(&mesh.Config{}).Apply(changes...)
	v := mesh.NewView(s)
	m.view = v
	b := &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{}}
	had := map[string]bool{}
	listen := func(name string, port int, manager *hcm.HttpConnectionManager, r Result) {
		m.at[name], m.routes[name] = fmt.Sprint("127.0.0.1:", port), r.Message.(*route.RouteConfiguration)
		manager.AccessLog = nil
		manager.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: m.routes[name]}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, &listener.Listener{
			Name: name, Address: socketAddress("127.0.0.1", uint32(port)),
			FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{networkFilter(hcmName, manager)}}},
		})
		for _, c := range r.Clusters {
			if !had[c] {
				b.StaticResources.Clusters = append(b.StaticResources.Clusters, inFull(c, pods, v))
			}
			had[c] = true
		}
	}
	s.VIPs(func(vip string) {
		svc, port, _ := v.ServiceAt(netip.MustParseAddrPort(vip))
		name := svc.Name.Name
		if port.Port != 80 {
			name += ":" + port.Name
		}
		manager := serviceManager(v.Config())
		manager.HttpFilters = httpFilters(filterCORS, filterFault) // without the scopes, which need a control plane
		listen(name, freePort(t), manager, outboundRoutes(vip, "shop", v))
	})
	for name, port := range gateways {
		routes := fmt.Sprint(PrefixGateway, port)
		listen(name, port, gatewayManager(routes, v.Config()), gatewayRoutes(routes, "shop/front", v))
	}
	runEnvoy(t, b, m.at["apart"])
	return m
}

// inFull is a cluster with its endpoints, in the clear, and without the last resort.
func inFull(name string, pods map[string]string, v *mesh.View) *cluster.Cluster {
	r := clusterFor(Key{Type: Cluster, Name: name, For: "shop"}, v)
	c := r.Message.(*cluster.Cluster)
	c.TransportSocketMatches, c.UpstreamBindConfig = nil, nil
	if c.GetType() != cluster.Cluster_EDS {
		return c
	}
	c.ClusterDiscoveryType, c.EdsClusterConfig = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, nil
	c.LoadAssignment = assignment(name)
	for _, l := range endpoints(Key{Type: Endpoints, Name: r.EDS}, v).Endpoints {
		for _, e := range l.LbEndpoints {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			if pods[fmt.Sprintf("%s:%d", a.Address, a.GetPortValue())] != "" {
				to := c.LoadAssignment.Endpoints[0]
				to.LbEndpoints = append(to.LbEndpoints, e)
			}
		}
	}
	return c
}

func decoded(t *testing.T, text string) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decode := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for _, doc := range strings.Split(text, "\n---\n") {
		o, _, err := decode.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		out = append(out, o)
	}
	return out
}

// serve is a pod's server. It tells its name and what it was asked, and the first time
// that it or another is asked for a path it does what the path says.
func (m *writtenMesh) serve(pod string) netip.AddrPort {
	m.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: both, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.lock.Lock()
		m.seen[pod]++
		m.seen[r.URL.Path]++
		first := m.seen[r.URL.Path] == 1
		m.lock.Unlock()
		w.Header().Set("x-pod", pod)
		body, _ := io.ReadAll(r.Body)
		switch {
		case r.Header.Get("upgrade") != "":
			echo(w)
			return
		case !first:
		case r.URL.Path == "/hang":
			<-r.Context().Done()
			return
		case r.URL.Path == "/drop":
			panic(http.ErrAbortHandler)
		case r.URL.Path == "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "%s %s%s with %d bytes\n", r.Method, r.Host, r.RequestURI, len(body))
		for name, values := range r.Header {
			fmt.Fprintf(w, "%s: %s\n", strings.ToLower(name), strings.Join(values, ","))
		}
		for name, values := range r.Trailer {
			fmt.Fprintf(w, "trailer %s: %s\n", strings.ToLower(name), strings.Join(values, ","))
		}
	})}
	go func() { _ = s.Serve(l) }()
	m.t.Cleanup(func() { s.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// echo is a WebSocket that says what it hears.
func echo(w http.ResponseWriter) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
	_, _ = io.Copy(c, rw)
}

// count is how many requests came to a pod, or for a path.
func (m *writtenMesh) count(of string) int {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.seen[of]
}

type written struct {
	status  int
	pod     string
	headers http.Header
	body    string
}

// ask sends a request: its line and headers, to which HTTP/1.1 and a host are added where
// they do not say, and its body.
func (m *writtenMesh) ask(to, head, body string) written {
	m.t.Helper()
	lines := strings.Split(head, "\n")
	if !strings.Contains(lines[0], " HTTP/") {
		lines[0] += " HTTP/1.1"
		if !strings.Contains(strings.ToLower(head), "\nhost:") {
			lines = append(lines, "Host: web")
		}
	}
	c, err := net.Dial("tcp", m.at[to])
	if err != nil {
		m.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		m.t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"+body); err != nil {
		m.t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return written{body: err.Error()}
	}
	all, _ := io.ReadAll(r.Body)
	return written{r.StatusCode, r.Header.Get("x-pod"), r.Header, string(all)}
}
