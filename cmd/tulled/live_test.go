package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/tulle-mesh/tulle/controllers/trust"
	"github.com/tulle-mesh/tulle/xds/explain"
)

const (
	meshNamespace = "tulle-system"
	shop          = "shop"
)

// Those that the test's API server gives Services, and those of the pods.
var (
	serviceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	podRanges     = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}
)

// The shop: web calls reviews, of which v1 is in the mesh and v2 is not. Nobody
// has ever called late.
const objects = `
apiVersion: v1
kind: Node
metadata: {name: node}
spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reviews, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: 10.0.0.20, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews-v1, namespace: shop}
spec: {clusterIP: 10.0.0.21, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews-v2, namespace: shop}
spec: {clusterIP: 10.0.0.22, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: late, namespace: shop}
spec: {clusterIP: 10.0.0.30, ports: [{name: http, port: 80, targetPort: 8080}]}
---
` + endpointSlices

const (
	endpointSlices = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews, namespace: shop, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.11], conditions: {ready: true}, targetRef: {kind: Pod, namespace: shop, name: reviews-v1}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-v1, namespace: shop, labels: {kubernetes.io/service-name: reviews-v1}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.11], conditions: {ready: true}, targetRef: {kind: Pod, namespace: shop, name: reviews-v1}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-v2, namespace: shop, labels: {kubernetes.io/service-name: reviews-v2}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.12], conditions: {ready: true}, targetRef: {kind: Pod, namespace: shop, name: reviews-v2}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: late, namespace: shop, labels: {kubernetes.io/service-name: late}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.12], conditions: {ready: true}, targetRef: {kind: Pod, namespace: shop, name: reviews-v2}}]
`
	strict = `
apiVersion: mesh.tulle.dev/v1alpha1
kind: MeshPolicy
metadata: {name: reviews, namespace: shop}
spec:
  selector: {matchLabels: {app: reviews}}
  mtls: {mode: Strict}
  authorization:
    rules: [{name: callers, action: Allow, from: [{serviceAccounts: [%s]}]}]
`
	split = `
apiVersion: mesh.tulle.dev/v1alpha1
kind: TrafficSplit
metadata: {name: reviews, namespace: shop}
spec:
  service: reviews
  backends: [{service: %s, weight: 100}]
`
	reviews = "http://10.0.0.20/"
	late    = "http://10.0.0.30/"
	nobody  = "http://10.0.0.99/"
)

// lab is everything that the test has started.
type lab struct {
	*cluster
	whole        *testing.T
	network      *network
	web, reviews *pod
	toXDS, toAPI *relay
	kubeconfig   string
	control      *replica
}

// The whole of it on a real API server and two stock Envoys behind real
// redirects: what an object says is what traffic does.
func TestLive(t *testing.T) {
	envoy := os.Getenv("ENVOY")
	if envoy == "" {
		t.Fatal("ENVOY is not set: it names the Envoy binary that tests start; run `make test`, which fetches it and sets it")
	}
	m := startMesh(t, envoy)
	t.Run("calls are mTLS, and the server is told who calls", m.testIdentity)
	t.Run("an address that nobody has answers at once", m.testUnknown)
	t.Run("a service that was never called answers", m.testLate)
	t.Run("a policy refuses plaintext and other identities", m.testPolicy)
	t.Run("a split moves traffic", m.testSplit)
	t.Run("watches last", m.testWatches)
	t.Run("a leader without its API server goes on serving proxies", m.testAway)
	t.Run("a killed control plane resends nothing unchanged", func(t *testing.T) { m.testRestart(t, syscall.SIGKILL) })
	t.Run("a stopped control plane ends well and resends nothing unchanged", func(t *testing.T) { m.testRestart(t, syscall.SIGTERM) })
}

func startMesh(t *testing.T, envoy string) *lab {
	t.Helper()
	m := &lab{whole: t, network: newNetwork(t), cluster: startCluster(t)}
	m.apply(t, objects)
	m.web = m.newPod(t, "web", "web", "10.244.0.10", true, map[string]string{"app": "web"})
	m.reviews = m.newPod(t, "reviews-v1", "reviews", "10.244.0.11", true, map[string]string{"app": "reviews"})
	v2 := m.newPod(t, "reviews-v2", "reviews", "10.244.0.12", false, map[string]string{"app": "reviews-v2"})
	for _, p := range []*pod{m.reviews, v2} {
		l := p.network.listen(t, ":8080")
		go func() { _ = http.Serve(l, application(p.name)) }()
	}

	api := listenLoopback(t)
	server, err := url.Parse(m.config.Host)
	if err != nil {
		t.Fatal(err)
	}
	m.toAPI = startRelay(api, server.Host)
	m.kubeconfig = writeKubeconfig(t, m.config, api.Addr().String(), m.token(t, meshNamespace, "tulled", nil))
	m.control = startControlPlane(t, t, m.kubeconfig, "tulled-1")
	m.toXDS = startRelay(m.network.node.listen(t, nodeAddress+":15010"), m.control.xds)

	bundle := m.bundle(t, shop, trust.ConfigMapName)
	for _, p := range []*pod{m.web, m.reviews} {
		p.startEnvoy(t, envoy, m.proxyToken(t, p), bundle)
	}
	for _, p := range []*pod{m.web, m.reviews} {
		eventually(t, p.name+"'s sidecar to be ready", func() error {
			return expectStatus(m.clientIn(m.network.node).Get("http://" + p.address + ":15021/ready"))
		})
		m.started(t, p)
	}
	return m
}

func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (m *lab) newPod(t *testing.T, name, account, address string, meshed bool, labels map[string]string) *pod {
	t.Helper()
	p := &pod{namespace: shop, name: name, account: account, address: address}
	p.network = m.network.pod(t, name, address)
	m.run(t, p, labels, meshed, 8080)
	return p
}

// application says who answers, and who called as far as it was told.
func application(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s called by %q", name, r.Header.Get("X-Forwarded-Client-Cert"))
	})
}

// clientIn makes calls like an application in the namespace, each on a
// connection of its own.
func (m *lab) clientIn(n namespace) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DialContext: n.dial, DisableKeepAlives: true},
		Timeout:   10 * time.Second,
	}
}

// call is one of web's, and what came back.
func (m *lab) call(url string) (status int, body string, err error) {
	resp, err := m.clientIn(m.web.network).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(content), err
}

// answers is nil when a call of web's is answered by the pod.
func (m *lab) answers(url, by string) error {
	status, body, err := m.call(url)
	if err == nil && (status != http.StatusOK || !strings.HasPrefix(body, by+" ")) {
		err = fmt.Errorf("%d %q", status, body)
	}
	return err
}

func (m *lab) testIdentity(t *testing.T) {
	status, body, err := m.call(reviews) // the first ever: nothing to wait for
	if err != nil || status != http.StatusOK {
		t.Fatalf("the first call: %d %q %v", status, body, err)
	}
	if !strings.HasPrefix(body, "reviews-v1 ") || !strings.Contains(body, "URI=spiffe://cluster.local/ns/shop/sa/web") {
		t.Errorf("the server saw %q", body)
	}
}

func (m *lab) testUnknown(t *testing.T) {
	started := time.Now()
	status, body, err := m.call(nobody)
	if err != nil || status < 400 {
		t.Errorf("a call to nobody: %d %q %v", status, body, err)
	}
	if took := time.Since(started); took > time.Second {
		t.Errorf("a call to nobody took %v", took)
	}
}

func (m *lab) testLate(t *testing.T) {
	if err := m.answers(late, "reviews-v2"); err != nil {
		t.Error(err)
	}
}

func (m *lab) testPolicy(t *testing.T) {
	direct := "http://" + m.reviews.address + ":8080/"
	plaintext := func() error {
		resp, err := m.clientIn(m.network.node).Get(direct)
		if err == nil {
			resp.Body.Close()
			return fmt.Errorf("a call in the clear was answered: %s", resp.Status)
		}
		return nil
	}
	if plaintext() == nil {
		t.Error("a call in the clear was refused before there was a policy")
	}
	m.apply(t, fmt.Sprintf(strict, "somebody-else"))
	eventually(t, "the wrong identity to be refused", func() error {
		status, body, err := m.call(reviews)
		if err == nil && status != http.StatusForbidden {
			err = fmt.Errorf("%d %q", status, body)
		}
		return err
	})
	if err := plaintext(); err != nil {
		t.Error(err)
	}
	m.explained(t, explain.Denied, "the workload has Allow rules, and no Allow rule matches", true)
	m.accepted(t, "MeshPolicy", "reviews")
	m.apply(t, fmt.Sprintf(strict, "web"))
	eventually(t, "the right identity to be let in", func() error { return m.answers(reviews, "reviews-v1") })
	if err := plaintext(); err != nil {
		t.Error(err)
	}
	m.explained(t, explain.Allowed, "rule callers of MeshPolicy shop/reviews allows it", true)
	m.explained(t, explain.Denied, "port 8080 takes mesh mTLS alone (Strict), and the caller has none", false)
}

// testWatches sees that what is watched is watched by one request for as long as that may
// last, some minutes: each new one is work for all concerned, and a change that falls in
// between comes later.
func (m *lab) testWatches(t *testing.T) {
	time.Sleep(leaseTimeout + time.Second) // the shortest time-out that there is
	content, err := kubernetes.NewForConfigOrDie(m.config).RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const policies, watches = `resource="meshpolicies"`, `verb="WATCH"`
	if n := sum(t, bytes.NewReader(content), "apiserver_longrunning_requests", policies, watches); n != 1 {
		t.Errorf("the API server says that policies are watched by %v requests", n)
	}
	// They are counted as they end; one that comes early is refused.
	if n := sum(t, bytes.NewReader(content), "apiserver_request_total", policies, watches, `code="200"`); n != 0 {
		t.Errorf("%v watches have ended", n)
	}
}

// explained asks what becomes of a call of web's to reviews, or of one from outside of
// the mesh.
func (m *lab) explained(t *testing.T, verdict explain.Verdict, why string, web bool) {
	t.Helper()
	q := explain.Question{Service: shop + "/reviews"}
	if web {
		q.Pod = shop + "/web"
	}
	body, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := asking.Post("http://"+m.control.debug+"/debug/explain", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var a explain.Answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	if a.Verdict != verdict || len(a.Backends) != 1 || len(a.Backends[0].Pods) != 1 || a.Backends[0].Pods[0].Reason != why {
		t.Errorf("the call is explained by %+v, want %s: %s", a, verdict, why)
	}
}

func (m *lab) testSplit(t *testing.T) {
	for _, version := range []string{"reviews-v2", "reviews-v1"} {
		m.apply(t, fmt.Sprintf(split, version))
		eventually(t, "calls to go to "+version, func() error { return m.answers(reviews, version) })
		for range 20 {
			if err := m.answers(reviews, version); err != nil {
				t.Error(err)
			}
		}
	}
	m.accepted(t, "TrafficSplit", "reviews")
}

// testRestart ends the control plane and starts another, while calls go on.
func (m *lab) testRestart(t *testing.T, with syscall.Signal) {
	eventually(t, "the mesh to be quiet", func() error { return m.control.settled(2) })
	stopCalls := m.keepCalling(t)
	m.control.end(t, with)
	m.control = startControlPlane(t, m.whole, m.kubeconfig, "tulled-after-"+with.String())
	m.toXDS.redirect(m.control.xds)
	eventually(t, "the proxies to come back", func() error { return m.control.settled(2) })
	stopCalls()

	// A change that has arrived tells that all that the proxies hold was compared.
	m.apply(t, fmt.Sprintf(split, "reviews-v2"))
	eventually(t, "calls to go to reviews-v2", func() error { return m.answers(reviews, "reviews-v2") })
	defer func() {
		m.apply(t, fmt.Sprintf(split, "reviews-v1"))
		eventually(t, "calls to go to reviews-v1", func() error { return m.answers(reviews, "reviews-v1") })
	}()
	sent := func(typ string) float64 {
		return m.control.sample(t, "tulle_xds_sent_resources_total", `type="`+typ)
	}
	if n := sent("Route"); n != 1 {
		t.Errorf("%v routes were sent, not the one that changed", n)
	}
	// Keys are never kept, so each proxy may be sent a certificate, which is one
	// that ends later: within the same second it is as good as the one it has.
	if n := sent("Secret"); n > 2 {
		t.Errorf("%v secrets were sent to two proxies", n)
	}
	if n := sent("") - sent("Secret") - sent("Route"); n != 0 {
		t.Errorf("%v resources were sent to proxies that had them all", n)
	}
	if n := m.control.sample(t, "tulle_xds_nacks_total", ""); n != 0 {
		t.Errorf("%v responses were refused", n)
	}
}

// keepCalling has web call reviews all the time; each call is to succeed.
func (m *lab) keepCalling(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	calls := 0
	go func() {
		var failed error
		for tick := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; calls++ {
			failed = errors.Join(failed, m.answers(reviews, "reviews-v1"))
			select {
			case <-ctx.Done():
				tick.Stop()
			case <-tick.C:
			}
		}
		done <- failed
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("of %d calls meanwhile some failed: %v", calls, err)
		}
	}
}

// testAway takes the API server away for longer than a leader waits for it. The
// process goes on; a proxy comes back; issuing goes on.
func (m *lab) testAway(t *testing.T) {
	eventually(t, "the replica to lead", func() error {
		if m.control.sample(t, "leader_election_master_status", "") != 1 {
			return errors.New("it does not")
		}
		return nil
	})
	const longerThanDeadline = 13 * time.Second // of the lease's renewal: 10 s and a retry
	m.toAPI.setDown(true)
	defer m.toAPI.setDown(false)
	stopCalls := m.keepCalling(t)
	defer stopCalls()
	m.toXDS.setDown(true)
	m.toXDS.setDown(false)
	eventually(t, "the proxies to come back", func() error { return m.control.settled(2) })
	for end := time.After(longerThanDeadline); ; {
		select {
		case <-end:
			if err := m.control.settled(2); err != nil {
				t.Error(err)
			}
			if m.control.sample(t, "leader_election_master_status", "") != 1 {
				t.Error("the replica gave up its lease, and is about to end")
			}
			return
		case err := <-m.control.ended:
			m.control.ended <- err
			t.Fatalf("the control plane ended while the API server was away: %v", err)
		}
	}
}
