package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// replicas are the control plane's pods that run.
func replicas(ctx context.Context, c *kube.Cluster) ([]corev1.Pod, error) {
	list, err := c.Client.CoreV1().Pods(kube.TulleNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=tulled"})
	if err != nil {
		return nil, err
	}
	var out []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			out = append(out, p)
		}
	}
	return out, nil
}

// replicaProcess finds the process of a replica by the pod's name in its
// environment.
func replicaProcess(pod string) (*os.Process, error) {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		environment, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(environment, []byte("POD_NAME="+pod+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			return nil, err
		}
		return os.FindProcess(pid)
	}
	return nil, fmt.Errorf("no process on this machine is %s", pod)
}

// numbers are a replica's metrics that are of use here, by name and label.
func numbers(ctx context.Context, c *kube.Cluster, pod string) (map[string]float64, error) {
	address, stop, err := c.Forward(ctx, kube.TulleNamespace, pod, 8080)
	if err != nil {
		return nil, err
	}
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	out := map[string]float64{}
	lines := bufio.NewScanner(io.LimitReader(response.Body, 16<<20))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || !strings.HasPrefix(name, "tulle_") {
			continue
		}
		if out[name], err = strconv.ParseFloat(value, 64); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
	}
	return out, lines.Err()
}

// streams is how many proxies are connected, by replica.
func streams(ctx context.Context, c *kube.Cluster) (map[string]int, error) {
	pods, err := replicas(ctx, c)
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, p := range pods {
		n, err := numbers(ctx, c, p.Name)
		if err != nil {
			return nil, err
		}
		out[p.Name] = int(n["tulle_xds_streams"])
	}
	return out, nil
}

// connected is an error until so many proxies are connected.
func connected(c *kube.Cluster, want int) func(context.Context) error {
	return func(ctx context.Context) error {
		by, err := streams(ctx, c)
		if err != nil {
			return err
		}
		sum := 0
		for _, n := range by {
			sum += n
		}
		if sum != want {
			return fmt.Errorf("%d proxies are connected, not %d: %v", sum, want, by)
		}
		return nil
	}
}

// resent is what the control plane has sent since its processes began, secrets
// aside, by type. Whoever was just restarted should have sent nothing.
func resent(t *testing.T, c *kube.Cluster) map[string]float64 {
	t.Helper()
	pods, err := replicas(t.Context(), c)
	must(t, err)
	out := map[string]float64{}
	for _, p := range pods {
		all, err := numbers(t.Context(), c, p.Name)
		must(t, err)
		for name, n := range all {
			kind, ok := strings.CutPrefix(name, "tulle_xds_sent_resources_total")
			if ok && n > 0 && !strings.Contains(kind, "Secret") {
				out[kind] += n
			}
		}
	}
	return out
}

// steady is a load of 200 calls a second, half of them on new connections.
func (s *space) steady(lasts time.Duration) *loading {
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))
	return s.startLoad(from, "http", s.url("server"), "--rate", "200", "--connections", "20", "--new-connection-share", "0.5", "--duration", lasts.String())
}

func (l *loading) endsWithoutFailure(what string) {
	l.s.t.Helper()
	r := l.wait()
	noFailure(l.s, r)
	figure(l.s.t, "%s: %d requests, %d failed, p99 %.1f ms", what, r.Requests, r.Failed, r.Service.P99)
}

func TestKilledReplicasCostNoCallAndResendNothing(t *testing.T) {
	noLeftovers(t)
	s := newSpace(t, "killed", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 2})
	s.strict()
	load := s.steady(25 * time.Second)
	kill := func(count int) {
		pods, err := replicas(t.Context(), s.c)
		must(t, err)
		for _, p := range pods[:min(count, len(pods))] {
			process, err := replicaProcess(p.Name)
			must(t, err)
			must(t, process.Signal(syscall.SIGKILL))
		}
	}
	kill(1)
	eventually(t, 30*time.Second, "proxies at the other replica", connected(s.c, 3))
	must(t, s.c.Installed(t.Context()))
	kill(2)
	begin := time.Now()
	eventually(t, time.Minute, "proxies at the new processes", connected(s.c, 3))
	took := time.Since(begin)
	sent := resent(t, s.c)
	figure(t, "all replicas killed: all proxies connected again after %.1f s; sent again, secrets aside: %v", took.Seconds(), sent)
	if len(sent) > 0 {
		t.Errorf("it was sent again: %v", sent)
	}
	load.endsWithoutFailure("kill -9 of one and of all replicas")
	must(t, s.c.Installed(t.Context()))
	s.apply("MeshPolicy", "shut", "authorization: {default: Deny}")
	if err := answered(403)(s.call(s.in("client"), "http", s.url("server"))); err != nil {
		t.Errorf("a policy after that: %v", err)
	}
}

// cutOff drops what the replica says to the API server, until heal.
func cutOff(t *testing.T, c *kube.Cluster, pod string) (heal func()) {
	t.Helper()
	process, err := replicaProcess(pod)
	must(t, err)
	service, err := c.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	must(t, err)
	var drop []string
	for _, ip := range service.Spec.ClusterIPs {
		family := "ip"
		if strings.Contains(ip, ":") {
			family = "ip6"
		}
		drop = append(drop, family+" daddr "+ip)
	}
	return dropping(t, process, drop...)
}

// dropping drops what a process's pod sends that a rule matches, until heal.
func dropping(t *testing.T, process *os.Process, rules ...string) (heal func()) {
	t.Helper()
	nft := func(script string) error {
		// The test's own context may be over when it is healed.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(process.Pid), "-n", "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("changing what process %d may send: %w: %s", process.Pid, err, out)
		}
		return nil
	}
	must(t, nft("table inet away {\nchain out {\ntype filter hook output priority 0\n"+strings.Join(rules, " drop\n")+" drop\n}\n}\n"))
	done := false
	heal = func() {
		if !done {
			done = true
			if err := nft("delete table inet away\n"); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(heal)
	return heal
}

// Certificates live for a minute, and the API server cannot be reached for
// longer than that.
func TestReplicasThatCannotReachTheAPIServerServeOn(t *testing.T) {
	const away = 75 * time.Second
	c := cluster(t)
	shortLives(t, c)
	s := newSpace(t, "partition", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	s.strict()
	from := s.in("client")
	eventually(t, 30*time.Second, "a certificate of a minute", func(ctx context.Context) error {
		certificate, err := c.WorkloadCertificate(ctx, s.name, from.Name)
		if err != nil {
			return err
		}
		expires, err := time.Parse(time.RFC3339, certificate.Expires)
		if err == nil && time.Until(expires) > 2*time.Minute {
			err = fmt.Errorf("it ends at %v", expires)
		}
		return err
	})
	load := s.steady(away + 15*time.Second)
	pods, err := replicas(t.Context(), c)
	must(t, err)
	var heals []func()
	before := map[string]int{}
	for _, p := range pods {
		process, err := replicaProcess(p.Name)
		must(t, err)
		before[p.Name] = process.Pid
		heals = append(heals, cutOff(t, c, p.Name))
	}
	cut := time.Now()
	select {
	case <-time.After(away): // a certificate's life, and a quarter
	case <-t.Context().Done():
	}
	certificate, err := c.WorkloadCertificate(t.Context(), s.name, from.Name)
	must(t, err)
	if expires, err := time.Parse(time.RFC3339, certificate.Expires); err != nil || !expires.After(time.Now()) {
		t.Errorf("the certificate ended at %v (%v)", expires, err)
	}
	for _, heal := range heals {
		heal()
	}
	for _, p := range pods {
		if process, err := replicaProcess(p.Name); err != nil || process.Pid != before[p.Name] {
			t.Errorf("%s ended meanwhile (%v)", p.Name, err)
		}
	}
	figure(t, "no replica reached the API server for %.0f s, with certificates of a minute", time.Since(cut).Seconds())
	load.endsWithoutFailure("meanwhile")
	healed := time.Now()
	s.apply("MeshPolicy", "shut", "authorization: {default: Deny}")
	figure(t, "a policy was programmed %.1f s after", time.Since(healed).Seconds())
}

func TestProxiesSpreadOverReplicasThatAreAdded(t *testing.T) {
	noLeftovers(t)
	s := newSpace(t, "spread", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 11})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := scaleControlPlane(ctx, s.c, 2); err != nil {
			t.Error(err)
		}
	})
	must(t, scaleControlPlane(t.Context(), s.c, 1))
	eventually(t, time.Minute, "all proxies at one replica", connected(s.c, 12))
	load := s.steady(40 * time.Second)
	begin := time.Now()
	must(t, scaleControlPlane(t.Context(), s.c, 3))
	var by map[string]int
	eventually(t, time.Minute, "proxies at all replicas", func(ctx context.Context) error {
		var err error
		if by, err = streams(ctx, s.c); err != nil {
			return err
		}
		sum := 0
		for _, n := range by {
			sum += n
			if n > 5 { // a share of four, and what is tolerated
				return fmt.Errorf("uneven: %v", by)
			}
		}
		if len(by) != 3 || sum != 12 {
			return fmt.Errorf("not all are connected: %v", by)
		}
		return nil
	})
	figure(t, "from one replica to three: 12 proxies are spread as %v after %.1f s", by, time.Since(begin).Seconds())
	load.endsWithoutFailure("meanwhile")
}
