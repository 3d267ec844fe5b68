package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
	"github.com/tulle-mesh/tulle/controllers/trust"
	"github.com/tulle-mesh/tulle/xds/bootstrap"
)

// asProgram has the test's binary be the control plane, so that a test can
// start it, signal it and start it again like the real one, which it is.
const asProgram = "TULLED_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// asking is for questions to the control plane itself: ports are listened on a
// while before anybody answers there.
var asking = &http.Client{Timeout: 2 * time.Second}

// replica is a control plane in a process of its own.
type replica struct {
	xds, metrics, health, debug string
	webhook                     string
	log                         string // file
	process                     *exec.Cmd
	ended                       chan error
}

// spreadTime is short: what kubelets do is done by the tests themselves.
const spreadTime = 5 * time.Second

// startControlPlane starts one with the rights of the configuration, and waits
// until it says that it is ready. It ends with the test that is called whole.
func startControlPlane(t, whole *testing.T, kubeconfig, name string) *replica {
	t.Helper()
	ports := freePorts(t, 5)
	r := &replica{
		xds: ports[0], metrics: ports[1], health: ports[2], debug: ports[3], webhook: ports[4],
		log: filepath.Join(whole.TempDir(), name+".log"), ended: make(chan error, 1),
	}
	_, webhookPort, err := net.SplitHostPort(r.webhook)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.process = exec.Command(self, "--xds-address="+r.xds, "--metrics-address="+r.metrics, "--health-address="+r.health,
		"--debug-address="+r.debug, "--webhook-port="+webhookPort, "--root-spread-time="+spreadTime.String())
	r.process.Env = append(os.Environ(), asProgram+"=yes", "KUBECONFIG="+kubeconfig, "POD_NAMESPACE="+meshNamespace, "POD_NAME="+name)
	r.process.Stdout, r.process.Stderr = log, log
	// It ends with the thread that starts it, and so with a test that is killed.
	r.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := r.process.Start()
		if started <- err; err == nil {
			r.ended <- r.process.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	whole.Cleanup(func() {
		_ = r.process.Process.Kill() // it may have ended long since
		if whole.Failed() {
			whole.Logf("the log of %s:\n%s", name, tail(r.log))
		}
	})
	eventually(t, name+" to be ready", func() error {
		if r.running() != nil {
			t.Fatalf("%s ended: see its log", name)
		}
		return expectStatus(asking.Get("http://" + r.health + "/readyz"))
	})
	// What it says is to be true: proxies can connect.
	conn, err := net.Dial("tcp", r.xds)
	if err != nil {
		t.Errorf("%s is ready and serves no proxies: %v", name, err)
	} else {
		conn.Close()
	}
	return r
}

// running is the error of a process that has ended.
func (r *replica) running() error {
	select {
	case err := <-r.ended:
		r.ended <- err
		return fmt.Errorf("the control plane has ended: %v", err)
	default:
		return nil
	}
}

// end has the process end, and waits for it.
func (r *replica) end(t *testing.T, with syscall.Signal) {
	t.Helper()
	if err := r.process.Process.Signal(with); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-r.ended:
		if with == syscall.SIGTERM && err != nil {
			t.Errorf("the control plane did not end well: %v", err)
		}
		r.ended <- err
	case <-time.After(patience):
		t.Fatal("the control plane does not end")
	}
}

// sample is the value of a metric, over all labels that contain the text.
func (r *replica) sample(t *testing.T, name, label string) float64 {
	t.Helper()
	resp, err := asking.Get("http://" + r.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return sum(t, resp.Body, name, label)
}

// sum is a metric's value in what a process says of itself, over all labels that contain
// each of the texts.
func sum(t *testing.T, metrics io.Reader, name string, labels ...string) (total float64) {
	t.Helper()
	for lines := bufio.NewScanner(metrics); lines.Scan(); {
		line := lines.Text()
		rest, ok := strings.CutPrefix(line, name)
		for _, label := range labels {
			ok = ok && strings.Contains(rest, label)
		}
		if ok && strings.IndexAny(rest, "{ ") == 0 {
			v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				t.Fatal(err)
			}
			total += v
		}
	}
	return total
}

// settled is nil when so many proxies are connected and have all of what they
// ought to.
func (r *replica) settled(proxies int) error {
	resp, err := asking.Get("http://" + r.debug + "/debug/proxies")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var streams []struct {
		Pod       string
		Resources map[string]int
		Pending   []json.RawMessage
		Rejected  []json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&streams); err != nil {
		return err
	}
	if len(streams) != proxies {
		return fmt.Errorf("%d proxies are connected", len(streams))
	}
	for _, s := range streams {
		if len(s.Pending)+len(s.Rejected) > 0 || s.Resources["Listener"] < 6 || s.Resources["Secret"] < 2 || s.Resources["Scope"] == 0 {
			return fmt.Errorf("%s has %v; pending %s, rejected %s", s.Pod, s.Resources, s.Pending, s.Rejected)
		}
	}
	return nil
}

// startEnvoy runs stock Envoy as the pod's sidecar: as its user, in its
// network, with its token and the trust bundle of its namespace, whose files lie
// where the kubelet would put them but for the folder.
func (p *pod) startEnvoy(t *testing.T, envoy, token string, bundle map[string]string) {
	t.Helper()
	err := p.network.within(func() error {
		return redirect.Apply(redirect.Config{Services: serviceRanges, Pods: podRanges, ProxyUID: redirect.ProxyUID})
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	folders := strings.NewReplacer(trust.TrustPath, filepath.Join(dir, "trust"), trust.TokenPath, filepath.Join(dir, "token"))
	files := map[string]string{"token/token": token}
	for name, content := range bundle {
		files["trust/"+name] = folders.Replace(content)
	}
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.roots = filepath.Join(dir, "trust", trust.RootsPEM)
	o := bootstrap.Defaults()
	o.NodeID, o.NodeCluster = p.name+"."+p.namespace, p.name+"."+p.namespace
	o.Address = nodeAddress
	o.RootsPath, o.TokenPath = filepath.Join(dir, "trust", trust.RootsSDS), filepath.Join(dir, "trust", trust.TokenSDS)
	b, err := bootstrap.New(o)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := bootstrap.JSON(b)
	if err != nil {
		t.Fatal(err)
	}
	p.log = filepath.Join(dir, "log")
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.Open(envoy)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	cmd := exec.Command("/proc/self/fd/3", "--config-yaml", string(raw), "--disable-hot-restart", "--concurrency", "1", "-l", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{binary} // its folder may be one that the user cannot enter
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: redirect.ProxyUID, Gid: redirect.ProxyUID},
		// For the files, which lie in a folder of root.
		AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH},
		Pdeathsig:   syscall.SIGKILL,
	}
	p.network.run(t, cmd)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of %s:\n%s", p.name, tail(p.log))
		}
	})
}

// writeKubeconfig writes a configuration by which a service account's token
// reaches the API server at the address.
func writeKubeconfig(t *testing.T, config *rest.Config, address, token string) string {
	t.Helper()
	c := api.NewConfig()
	c.Clusters["test"] = &api.Cluster{Server: "https://" + address, CertificateAuthorityData: config.CAData}
	c.AuthInfos["test"] = &api.AuthInfo{Token: token}
	c.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: "test"}
	c.CurrentContext = "test"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func tail(file string) []byte {
	content, err := os.ReadFile(file)
	if err != nil {
		return []byte(err.Error())
	}
	const lines = 40
	content = regexp.MustCompile(`(?m)^.*healthz check failed.*\n`).ReplaceAll(content, nil)
	all := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}

func expectStatus(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

// patience is for what takes a moment unless something is broken, on a machine
// that is busy with other packages' tests.
const patience = 30 * time.Second

// eventually waits until there is no error.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s: %v", what, err)
		case <-tick.C:
		}
	}
}
