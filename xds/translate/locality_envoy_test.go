package translate

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// zones is a service with pods in three zones, each a server on an address of its
// own that can be closed and opened, and a real Envoy whose client is in zone a.
type zones struct {
	t       *testing.T
	at      string // the client's sidecar
	service *mesh.Service
	port    uint16 // the pods'
	file    string // of the load assignment
	extra   []mesh.Entity
	client  http.Client
	servers map[string]*http.Server
	failing sync.Map // names of those that answer with 500
}

const vip = "vip" // what kube-proxy would choose

// pods are named by their zone, which says where they are.
func addressOf(name string) netip.Addr {
	if name == vip {
		return netip.MustParseAddr("127.9.0.1")
	}
	return netip.AddrFrom4([4]byte{127, 9, name[0] - 'a' + 1, name[1] - '0'})
}

func startZones(t *testing.T, service mesh.Service, extra ...mesh.Entity) *zones {
	t.Helper()
	z := &zones{t: t, service: &service, port: uint16(freePort(t)), servers: map[string]*http.Server{}, extra: extra}
	service.Name = mesh.Name{Namespace: "shop", Name: "web"}
	service.Addresses = []netip.Addr{addressOf(vip)}
	if len(service.Ports) == 0 {
		service.Ports = []mesh.ServicePort{{Name: "http", Protocol: mesh.HTTP}}
	}
	service.Ports[0].Port = z.port
	dir := t.TempDir()
	z.file = filepath.Join(dir, "endpoints.json")
	z.open(vip)

	v := z.view()
	at := netip.AddrPortFrom(addressOf(vip), z.port).String()
	name := ClusterName(service.Name, z.port)
	if !service.Ports[0].Protocol.IsHTTP() {
		name = prefixTCP + at
	}
	r := clusterFor(Key{Type: Cluster, Name: name, For: "shop"}, v)
	c := r.Message.(*cluster.Cluster)
	c.TransportSocketMatches, c.UpstreamBindConfig = nil, nil
	c.EdsClusterConfig.EdsConfig = &core.ConfigSource{
		ResourceApiVersion: core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_PathConfigSource{PathConfigSource: &core.PathConfigSource{
			Path: z.file, WatchedDirectory: &core.WatchedDirectory{Path: dir},
		}},
	}
	var filter *listener.Filter
	if service.Ports[0].Protocol.IsHTTP() {
		m := connectionManager("outbound", 0)
		m.HttpFilters = httpFilters()
		routes := outboundRoutes(at, "shop", v).Message.(*route.RouteConfiguration)
		m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: routes}
		filter = networkFilter(hcmName, m)
	} else {
		z.client.Transport = &http.Transport{DisableKeepAlives: true}
		proxy := tcpProxyConfig("outbound", name, v.Config(), outboundLog)
		connectAgain(proxy)
		filter = networkFilter(tcpProxyName, proxy)
	}
	port := freePort(t)
	z.at = fmt.Sprint("127.0.0.1:", port)
	z.tell(r.EDS)
	runEnvoy(t, &bootstrap.Bootstrap{
		Node: &core.Node{Id: "zones", Cluster: "zones"},
		StaticResources: &bootstrap.Bootstrap_StaticResources{
			Clusters: []*cluster.Cluster{c},
			Listeners: []*listener.Listener{{
				Name: "outbound", Address: socketAddress("127.0.0.1", uint32(port)),
				FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{filter}}},
			}},
		},
	}, z.at)
	return z
}

// view is of the mesh with the pods in it.
func (z *zones) view(pods ...string) *mesh.View {
	es := append([]mesh.Entity{
		z.service,
		&mesh.Node{Name: "a", Region: "r1", Zone: "a"}, &mesh.Node{Name: "b", Region: "r1", Zone: "b"}, &mesh.Node{Name: "c", Region: "r2", Zone: "c"},
	}, z.extra...)
	s := &mesh.Slice{
		Name: mesh.Name{Namespace: "shop", Name: "web-1"}, Service: "web", Ports: []mesh.SlicePort{{Name: "http", Port: z.port}},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, mesh.Endpoint{Address: addressOf(p), Ready: true, Zone: p[:1], Node: p[:1]})
	}
	return view(append(es, s)...)
}

// tell gives Envoy the load assignment of a client in zone a.
func (z *zones) tell(name string, pods ...string) {
	z.t.Helper()
	k := Key{Type: Endpoints, Name: name, For: ForEndpoints(name, mesh.Locality{Region: "r1", Zone: "a", Node: "a"})}
	a, err := anypb.New(endpoints(k, z.view(pods...)))
	must(z.t, err)
	j, err := protojson.Marshal(&discovery.DiscoveryResponse{VersionInfo: fmt.Sprint(time.Now().UnixNano()), Resources: []*anypb.Any{a}})
	must(z.t, err)
	must(z.t, os.WriteFile(z.file+".new", j, 0o600))
	must(z.t, os.Rename(z.file+".new", z.file))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (z *zones) open(names ...string) {
	z.t.Helper()
	for _, name := range names {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addressOf(name), z.port).String())
		must(z.t, err)
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if _, ok := z.failing.Load(name); ok {
				w.WriteHeader(http.StatusInternalServerError)
			}
			_, _ = io.WriteString(w, name)
		})}
		go func() { _ = s.Serve(l) }()
		z.servers[name] = s
		z.t.Cleanup(func() { s.Close() })
	}
}

func (z *zones) fail(name string, on bool) {
	if on {
		z.failing.Store(name, nil)
	} else {
		z.failing.Delete(name)
	}
}

func (z *zones) close(names ...string) {
	for _, name := range names {
		z.servers[name].Close()
	}
}

// shares are the percentages of n requests that each zone answered; "503" and the
// like for those that failed, "0" without an answer.
func (z *zones) shares(n int) map[string]int {
	z.t.Helper()
	out := map[string]int{}
	for range n {
		q, err := http.NewRequestWithContext(z.t.Context(), http.MethodGet, "http://"+z.at, nil)
		must(z.t, err)
		p, err := z.client.Do(q)
		if err != nil { // a connection that was reset
			out["0"]++
			continue
		}
		b, err := io.ReadAll(p.Body)
		must(z.t, err)
		p.Body.Close()
		who := strings.TrimRight(string(b), "0123456789")
		if p.StatusCode != http.StatusOK {
			who = fmt.Sprint(p.StatusCode)
		}
		out[who]++
	}
	for k := range out {
		out[k] = (out[k]*100 + n/2) / n
	}
	return out
}

// expect waits until shares are as said, within a few percent.
func (z *zones) expect(what string, want map[string]int) {
	z.t.Helper()
	var got map[string]int
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		got = z.shares(200)
		if alike(got, want) {
			z.t.Logf("%s: %v", what, got)
			return
		}
	}
	z.t.Errorf("%s: %v, want %v", what, got, want)
}

// none fails of the very next requests.
func (z *zones) none(what string) {
	z.t.Helper()
	got := z.shares(20)
	z.t.Logf("%s: %v", what, got)
	for k := range got {
		if _, err := strconv.Atoi(k); err == nil {
			z.t.Errorf("%s: some requests were answered with %s", what, k)
		}
	}
}

// alike is within what chance makes of a share; all and none are exact.
func alike(got, want map[string]int) bool {
	for k := range got {
		if _, ok := want[k]; !ok {
			return false
		}
	}
	for k, n := range want {
		const off = 10
		if d := got[k] - n; d > off || d < -off || (n == 100 && d != 0) {
			return false
		}
	}
	return true
}

// The service asks for the client's zone by itself. What is farther takes over by
// and by, no request fails meanwhile, and the service's own address gets nothing
// until no pod at all can be called.
func TestWhatIsNearIsCalledFirst(t *testing.T) {
	t.Parallel()
	z := startZones(t, mesh.Service{Distribution: mesh.SameZone})
	eds := "near|zone|shop|" + ClusterName(z.service.Name, z.port)
	pods := []string{"a1", "a2", "b1", "b2"}
	z.open(pods...)
	z.tell(eds, pods...)
	z.expect("all are well", map[string]int{"a": 100})
	z.close("a1")
	z.none("one of two of the zone is gone: the first requests")
	z.expect("one of two of the zone is left out", map[string]int{"a": 70, "b": 30})
	z.close("a2")
	z.none("both are gone: the first requests")
	z.expect("both are left out", map[string]int{"b": 100})
	z.open("a1", "a2")
	z.expect("they are back", map[string]int{"a": 100})
	z.tell(eds, "b1", "b2")
	z.expect("the zone has no pods", map[string]int{"b": 100})
	z.tell(eds, pods...)
	z.expect("it has some again", map[string]int{"a": 100})
	z.close(pods...)
	z.none("none can be called: the first requests")
	z.expect("none can be called", map[string]int{vip: 100})
	z.open(pods...)
	z.expect("all are back", map[string]int{"a": 100})
}

// Envoy has one factor for all priorities, so that where pods are in more than one
// place the last resort gets what they all together are not good for; where they are in
// one, it gets nothing, as without a preference.
func TestTheLastResortFillsUpWhatNoPlaceIsGoodFor(t *testing.T) {
	t.Parallel()
	z := startZones(t, mesh.Service{Distribution: mesh.SameZone})
	eds := "near|zone|shop|" + ClusterName(z.service.Name, z.port)
	pods := []string{"a1", "a2", "b1", "b2", "b3"}
	z.open(pods...)
	z.tell(eds, "a1", "a2")
	z.expect("all are well", map[string]int{"a": 100})
	z.close("a1")
	z.none("all pods are in the zone, and one of two is gone: the first requests")
	z.expect("it is left out", map[string]int{"a": 100})
	z.tell(eds, pods...)
	z.expect("others farther", map[string]int{"a": 70, "b": 30})
	z.close("b1", "b2")
	z.expect("two of three of those are gone", map[string]int{"a": 70, "b": 30})
	z.close("b3")
	z.expect("all of those are", map[string]int{"a": 70, vip: 30})
	z.close(vip)
	z.none("the last resort is gone, too: the first requests")
	z.expect("a pod is left", map[string]int{"a": 100})
}

// Connections fail over as requests do, each that is tried again past one that is left out.
func TestAConnectionIsTriedAgainPastPodsThatAreGone(t *testing.T) {
	t.Parallel()
	z := startZones(t, mesh.Service{Ports: []mesh.ServicePort{{Name: "http", Protocol: mesh.TCP}}})
	eds := prefixTCP + netip.AddrPortFrom(addressOf(vip), z.port).String()
	pods := []string{"a1", "b1", "b2"}
	z.open(pods...)
	z.tell(eds, pods...)
	z.expect("all are well", map[string]int{"a": 33, "b": 67})
	z.close("b1", "b2")
	z.none("two of three are gone: the first connections")
	z.expect("they are left out", map[string]int{"a": 100})
	z.close("a1")
	z.none("none can be called: the first connections")
	z.expect("none can be called", map[string]int{vip: 100})
	z.open(pods...)
	z.expect("all are back", map[string]int{"a": 33, "b": 67})
}

// A policy has clients of the region r1 turn to r3 before r2, and trusts what is near
// with no more than its share. A pod that answers with 500 is left out like one that
// cannot be called.
func TestRegionsFollowInTheOrderThatAPolicySays(t *testing.T) {
	t.Parallel()
	z := startZones(t, mesh.Service{}, &mesh.Node{Name: "d", Region: "r3", Zone: "d"}, &mesh.Policy{
		Meta: mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "p"}},
		Traffic: &mesh.Traffic{
			Locality: &mesh.LocalityPreference{Prefer: mesh.SameRegion, Overprovisioning: 100, Failover: []mesh.RegionFailover{{From: "r1", To: "r3"}}},
			OutlierDetection: &mesh.OutlierDetection{
				Consecutive5xx: 3, Interval: 100 * time.Millisecond, BaseEjectionTime: 2 * time.Second, MaxEjectionTime: 2 * time.Second, MaxEjectionPercent: 100,
			},
		},
	})
	eds := "near|region|shop|" + ClusterName(z.service.Name, z.port)
	pods := []string{"a1", "b1", "c1", "d1"}
	z.open(pods...)
	z.tell(eds, pods...)
	z.expect("all are well", map[string]int{"a": 50, "b": 50})
	z.fail("a1", true)
	z.expect("one of two of the region fails", map[string]int{"b": 50, "d": 50})
	z.fail("b1", true)
	z.expect("the region fails", map[string]int{"d": 100})
	z.close("d1")
	z.none("the next is gone: the first requests")
	z.expect("the next is gone, too", map[string]int{"c": 100})
	z.close("c1")
	z.expect("no region is left", map[string]int{vip: 100})
	// Pods that fail are let in every two seconds, both at once: each time they are left
	// out again after three answers.
	failed := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		failed += z.shares(100)["500"]
	}
	z.t.Logf("of some 3000 requests while pods that fail are let in again, %d failed", failed)
	if failed > 100 {
		t.Errorf("%d requests went to pods that were to be left out", failed)
	}
	z.fail("a1", false)
	z.fail("b1", false)
	z.expect("the region is back", map[string]int{"a": 50, "b": 50})
}
