package server

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/bootstrap"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// ownNetwork gives the test's thread a network of its own, for an Envoy whose
// ports are fixed. Sockets that the test opens itself, and processes that it
// starts, belong to it.
func ownNetwork(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace, and needs to be run as root")
	}
	runtime.LockOSThread() // and never unlock it: the thread ends with the test
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("raising lo: %v: %s", err, out)
	}
}

// startEnvoy starts a proxy that takes itself for the pod of the token.
func (h *harness) startEnvoy(token string) {
	h.t.Helper()
	h.startAnother(token, bootstrap.Defaults())
}

// startAnother starts a proxy with options of its own. stop ends it as a node's end would.
func (h *harness) startAnother(token string, o bootstrap.Options) (stop func()) {
	h.t.Helper()
	binary := os.Getenv("ENVOY")
	if binary == "" {
		h.t.Fatal("ENVOY is not set: it names the Envoy binary that tests start (make test sets it)")
	}
	dir := h.t.TempDir()
	const form = "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n"
	for name, content := range map[string]string{
		"ca.crt":     string(h.rootPEM),
		"token":      token,
		"roots.yaml": fmt.Sprintf(form+"  name: roots\n  validation_context: {trusted_ca: {filename: %[1]s/ca.crt}, watched_directory: {path: %[1]s}}\n", dir),
		"token.yaml": fmt.Sprintf(form+"  name: token\n  generic_secret: {secret: {filename: %[1]s/token, watched_directory: {path: %[1]s}}}\n", dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	addr, err := net.ResolveTCPAddr("tcp", h.address)
	if err != nil {
		h.t.Fatal(err)
	}
	o.NodeID, o.NodeCluster, o.Address, o.Port = "web.shop", "web.shop", "127.0.0.1", uint16(addr.Port)
	o.RootsPath, o.TokenPath = filepath.Join(dir, "roots.yaml"), filepath.Join(dir, "token.yaml")
	b, err := bootstrap.New(o)
	if err != nil {
		h.t.Fatal(err)
	}
	raw, err := bootstrap.JSON(b)
	if err != nil {
		h.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(binary, "--config-yaml", string(raw), "--disable-hot-restart", "--concurrency", "1", "-l", "warn")
	if h.drain > 0 {
		cmd.Args = append(cmd.Args, "--drain-time-s", fmt.Sprint(h.drain.Seconds()))
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if h.proxyGroup != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Gid: h.proxyGroup}
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if st := h.only(); h.t.Failed() && st != nil {
			h.t.Logf("the stream: %+v", st.report())
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		said, _ := os.ReadFile(log.Name())
		if h.t.Failed() {
			h.t.Logf("Envoy said:\n%s", said)
		}
		for _, bad := range []string{"Dropping received", "non-existent subscription"} {
			if strings.Contains(string(said), bad) {
				h.t.Errorf("Envoy said %q", bad)
			}
		}
	})
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// only is the one stream that there is.
func (h *harness) only() *stream {
	if all := h.server.all(); len(all) == 1 {
		return all[0]
	}
	return nil
}

// settled reports whether the one proxy there is has taken everything, the
// named included.
func (h *harness) settled(keys ...build.Key) bool {
	st := h.only()
	if st == nil {
		return false
	}
	r := st.report()
	for _, k := range keys {
		v := h.builder.Value(k)
		st.lock.Lock()
		held, ok := st.state.Holding(k)
		st.lock.Unlock()
		if v == nil || !ok || held.Acknowledged != v.Version {
			return false
		}
	}
	return len(r.Pending) == 0 && len(r.Resources) > 0
}

// A real Envoy starts, is given ahead what its siblings use, takes a replaced
// cluster at once, and is sent nothing twice when it comes back.
func TestRealEnvoy(t *testing.T) {
	ownNetwork(t)
	h := newHarness(t, nil)
	h.genuine = true
	h.builder.Apply(mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}))
	profile := h.builder.Snapshot().Profile(workload("web"))
	h.server.siblings.learn(profile, []build.Key{
		{Type: translate.Route, Name: dbScope, For: "shop"}, {Type: translate.Cluster, Name: "tcp|10.244.9.1:8080", For: "shop"},
	})
	started := time.Now()
	h.startEnvoy(h.api.token(peer("web")))

	ready := build.Key{Type: translate.Listener, Name: translate.ListenerReady}
	cluster := build.Key{Type: translate.Cluster, Name: dbCluster, For: "shop"}
	endpoints := build.Key{Type: translate.Endpoints, Name: dbCluster}
	route := build.Key{Type: translate.Route, Name: dbScope, For: "shop"}
	secret := build.Key{Type: translate.Secret, Name: translate.SecretWorkload, For: "spiffe://test.mesh/ns/shop/sa/web"}
	eventually(t, "readiness with all that siblings use", func() bool {
		return h.settled(ready, cluster, endpoints, route, secret)
	})
	t.Logf("ready after %v; sent %v resources, %v bytes", time.Since(started), h.metric("tulle_xds_sent_resources_total"), h.metric("tulle_xds_sent_bytes_total"))

	// Certificates that live less change all clusters, which Envoy replaces:
	// they warm on endpoints that it does not ask for again.
	before, replaced := h.builder.Value(cluster).Version, time.Now()
	shorter := *h.builder.Snapshot().Config()
	shorter.CertificateLifetime = time.Hour
	h.builder.Apply(mesh.Put(&shorter))
	eventually(t, "the replaced cluster", func() bool {
		return h.builder.Value(cluster).Version != before && h.settled(cluster, endpoints)
	})
	if took := time.Since(replaced); took > late {
		t.Errorf("the replaced cluster took %v", took)
	} else {
		t.Logf("the replaced cluster was taken after %v", took)
	}

	// A service that is gone and comes back is not a missing cluster meanwhile.
	h.builder.Apply(mesh.Delete(mesh.KindService, mesh.Name{Namespace: "shop", Name: "db"}))
	eventually(t, "the empty cluster", func() bool { return h.builder.Value(cluster).EDS == "" && h.settled(cluster) })
	h.builder.Apply(mesh.Put(service("db", "10.96.0.1")))
	eventually(t, "the service's return", func() bool { return h.builder.Value(cluster).EDS != "" && h.settled(cluster, endpoints) })

	// One that asks for what is near has another load assignment, which Envoy asks for
	// by its name as it replaces the cluster, and lets go of the one before.
	nearby := service("db", "10.96.0.1")
	nearby.Distribution = mesh.SameZone
	const name = "near|zone|shop|" + dbCluster
	near := build.Key{Type: translate.Endpoints, Name: name, For: translate.ForEndpoints(name, mesh.Locality{})}
	wants := func(k build.Key) bool { return h.builder.wanted(func(o build.Key) bool { return o == k }) }
	replaced = time.Now()
	h.builder.Apply(mesh.Put(nearby))
	eventually(t, "the assignment by distance", func() bool { return h.settled(cluster, near) && !wants(endpoints) })
	h.builder.Apply(mesh.Put(service("db", "10.96.0.1")))
	eventually(t, "the one that all share", func() bool { return h.settled(cluster, endpoints) && !wants(near) })
	if took := time.Since(replaced); took > late {
		t.Errorf("two changes of the load assignment took %v", took)
	}

	// The stream breaks; the proxy comes back with what it has.
	sent := h.metric("tulle_xds_sent_resources_total")
	first := h.only()
	first.close(errStopping)
	eventually(t, "the new stream", func() bool {
		return h.only() != nil && h.only() != first && h.settled(ready, cluster, endpoints, route, secret)
	})
	if n := h.metric("tulle_xds_sent_resources_total") - sent; n != 0 {
		t.Errorf("%v resources were sent to a proxy that had them all", n)
	}
	h.builder.Apply(mesh.Put(slice("db", "10.244.9.7")))
	eventually(t, "a change on the new stream", func() bool {
		return h.settled(endpoints) && h.metric("tulle_xds_sent_resources_total")-sent == 1
	})
	if n := h.metric("tulle_xds_nacks_total"); n != 0 {
		t.Errorf("Envoy refused %v responses", n)
	}
}
