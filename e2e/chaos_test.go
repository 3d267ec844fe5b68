package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// chaos is a run of faults at random, beside traffic of which it is known at
// every moment what has to become of it.
type chaos struct {
	s         *space
	t         *testing.T
	random    *rand.Rand
	bystander *corev1.Pod // its proxy may be frozen: nobody calls it
	faults    map[string]int
	refused   string // the path that is refused now
	converged []time.Duration
}

// TestChaos is 45 s of faults, or TULLE_E2E_CHAOS of them, in an order that
// TULLE_E2E_SEED decides.
func TestChaos(t *testing.T) {
	lasts, seed := 45*time.Second, uint64(time.Now().UnixNano())
	if text := os.Getenv("TULLE_E2E_CHAOS"); text != "" {
		d, err := time.ParseDuration(text)
		must(t, err)
		lasts = d
	}
	if text := os.Getenv("TULLE_E2E_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("to replay: make chaos CHAOS=%v SEED=%d", lasts, seed)
	noLeftovers(t)
	s, outside := newSpace(t, "chaos", true), newSpace(t, "chaos-outside", false)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 2}, app{name: "bystander"})
	outside.deploy(app{name: "client"})
	s.strict()
	s.apply("MeshPolicy", "never", denying("/never"))
	c := &chaos{s: s, t: t, random: rand.New(rand.NewPCG(seed, seed)), bystander: s.running("bystander"), faults: map[string]int{}}
	c.toggle()
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))

	const settle = 20 * time.Second // for the last fault to end, before the traffic does
	flags := []string{"--connections", "10", "--new-connection-share", "0.5", "--duration", (lasts + settle).String()}
	load := func(s *space, from kube.Pod, path, rate string) *loading {
		return s.startLoad(from, append([]string{"http", c.s.url("server") + path, "--rate", rate}, flags...)...)
	}
	allowed, denied := load(s, from, "/", "100"), load(s, from, "/never", "50")
	plain := load(outside, outside.in("client"), "/", "20")

	for end := time.Now().Add(lasts); time.Now().Before(end); {
		c.fault()
	}
	must(t, s.c.Installed(t.Context()))
	c.toggle()
	c.table(allowed, denied, plain)
}

// fault does one thing at random, and undoes it.
func (c *chaos) fault() {
	type kind struct {
		name string
		do   func()
	}
	kinds := []kind{
		{"a replica is killed", func() { c.kill(1) }},
		{"all replicas are killed", func() { c.kill(9) }},
		{"a replica is cut off from the API server", c.partition},
		{"the API server is frozen", c.freezeAPIServer},
		{"a proxy is frozen", c.freezeProxy},
		{"a bad object", c.badObject},
		{"a server is deleted", c.deleteServer},
		{"a policy is changed", c.toggle},
	}
	if clocksCanBeSet() {
		kinds = append(kinds,
			kind{"a replica's clock is wrong", func() { c.jumpClocks(1) }},
			kind{"all replicas' clocks are wrong", func() { c.jumpClocks(9) }},
		)
	}
	k := kinds[c.random.IntN(len(kinds))]
	c.faults[k.name]++
	c.t.Logf("%s: %s", time.Now().Format("15:04:05.000"), k.name)
	k.do()
	c.wait(time.Duration(c.random.IntN(1500)) * time.Millisecond)
}

// wait lets traffic see the fault.
func (c *chaos) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.t.Context().Done():
	}
}

func (c *chaos) kill(count int) {
	pods, err := replicas(c.t.Context(), c.s.c)
	must(c.t, err)
	c.random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	for _, p := range pods[:min(count, len(pods))] {
		if process, err := replicaProcess(p.Name); err == nil { // else it is just being started again
			must(c.t, process.Signal(syscall.SIGKILL))
		}
	}
}

func (c *chaos) partition() {
	pods, err := replicas(c.t.Context(), c.s.c)
	must(c.t, err)
	if len(pods) == 0 {
		return
	}
	pod := pods[c.random.IntN(len(pods))].Name
	if _, err := replicaProcess(pod); err != nil {
		return
	}
	heal := cutOff(c.t, c.s.c, pod)
	c.wait(time.Duration(2+c.random.IntN(6)) * time.Second)
	heal()
}

// freezeAPIServer stops the cluster's API server for a moment.
func (c *chaos) freezeAPIServer() {
	name := os.Getenv("TULLE_CLUSTER")
	if name == "" {
		name = "dev"
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(c.t, err)
	for _, file := range files {
		arguments, err := os.ReadFile(file)
		program, _, _ := bytes.Cut(arguments, []byte{0})
		if err != nil || filepath.Base(string(program)) != "kube-apiserver" || !bytes.Contains(arguments, []byte("/cluster/"+name+"/")) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		must(c.t, err)
		must(c.t, syscall.Kill(pid, syscall.SIGSTOP))
		c.wait(time.Duration(1+c.random.IntN(4)) * time.Second)
		must(c.t, syscall.Kill(pid, syscall.SIGCONT))
		// Its parent, which brought it into the node, stops when its child does,
		// and goes on only when it is told.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(c.t, err)
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		parent, err := strconv.Atoi(fields[1])
		must(c.t, err)
		must(c.t, syscall.Kill(parent, syscall.SIGCONT))
		return
	}
	c.t.Fatalf("no process on this machine is the API server of the cluster %s", name)
}

func (c *chaos) freezeProxy() {
	thaw := freeze(c.t, c.bystander)
	c.wait(time.Duration(1+c.random.IntN(5)) * time.Second)
	thaw()
}

// jumpClocks sets the clocks of some replicas forwards or back, by less or more than a
// certificate's life. Meanwhile a policy changes and a server is replaced, or time goes
// by; then the clocks are right again.
func (c *chaos) jumpClocks(count int) {
	pods, err := replicas(c.t.Context(), c.s.c)
	must(c.t, err)
	c.random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	offset := time.Hour + time.Duration(c.random.Int64N(int64(29*time.Hour)))
	if c.random.IntN(2) == 0 {
		offset = -offset
	}
	c.t.Logf("by %v", offset.Round(time.Minute))
	var jumped []*os.Process
	right := func() {
		for _, process := range jumped {
			must(c.t, setClock(process, 0))
		}
		jumped = nil
	}
	c.t.Cleanup(right) // if the run ends before
	for _, p := range pods[:min(count, len(pods))] {
		if process, err := replicaProcess(p.Name); err == nil { // else it is just being started again
			must(c.t, setClock(process, offset))
			jumped = append(jumped, process)
		}
	}
	if c.random.IntN(2) == 0 {
		c.deleteServer()
	} else {
		c.wait(time.Duration(1+c.random.IntN(8)) * time.Second)
	}
	right()
}

// badObject applies what cannot hold, and takes it away again.
func (c *chaos) badObject() {
	bad := [...][2]string{
		{"TrafficSplit", "service: server\nbackends: [{service: nowhere, weight: 1}]"},
		{"MeshPolicy", "targetRefs: [{kind: Service, name: nowhere}]\ntraffic: {timeout: 1s}"},
		{"MeshPolicy", "selector: {matchLabels: {app: nobody}}\nauthorization: {default: Deny}"},
	}[c.random.IntN(3)]
	object := c.s.object(bad[0], "bad", bad[1])
	c.patiently("applying a bad object", func(ctx context.Context) error { return c.s.c.Apply(ctx, object) })
	c.wait(time.Second)
	c.patiently("deleting it", func(ctx context.Context) error { return c.s.c.Delete(ctx, object) })
}

// deleteServer first changes a policy, which is programmed when every proxy hears from
// a control plane that is up to date: without, callers find out about a pod that ends
// by its connections, which costs the calls on them.
func (c *chaos) deleteServer() {
	c.toggle()
	var deleted string
	c.patiently("deleting a server", func(ctx context.Context) error {
		p, err := c.s.c.RunningPod(ctx, c.s.name, "server")
		if err != nil {
			return err
		}
		deleted = p.Name
		return c.s.c.Client.CoreV1().Pods(c.s.name).Delete(ctx, p.Name, metav1.DeleteOptions{})
	})
	// What the Deployment says may be from before: without a successor the next to be
	// deleted would be the last.
	c.patiently("its successor", func(ctx context.Context) error {
		pods, err := c.s.c.Client.CoreV1().Pods(c.s.name).List(ctx, metav1.ListOptions{LabelSelector: "app=server"})
		if err != nil {
			return err
		}
		ready := 0
		for i := range pods.Items {
			if p := &pods.Items[i]; p.Name != deleted && p.DeletionTimestamp == nil && kube.PodReady(p) {
				ready++
			}
		}
		if ready < 2 {
			return fmt.Errorf("%d servers are ready", ready)
		}
		return nil
	})
}

// toggle refuses another path than before, waits until that is programmed, and
// sees what becomes of the next call of each.
func (c *chaos) toggle() {
	now, before := "/a", "/b"
	if c.refused == now {
		now, before = before, now
	}
	object := c.s.object("MeshPolicy", "toggled", denying(now))
	begin := time.Now()
	c.patiently("changing a policy", func(ctx context.Context) error { return c.s.c.Apply(ctx, object) })
	c.patiently("its programming", c.s.programmed("MeshPolicy", "toggled", "True"))
	c.converged = append(c.converged, time.Since(begin))
	c.refused = now
	if err := answered(403)(c.s.call(c.s.in("client"), "http", c.s.url("server")+now)); err != nil {
		c.t.Errorf("a call that a programmed policy refuses: %v", err)
	}
	if err := answered(200)(c.s.call(c.s.in("client"), "http", c.s.url("server")+before)); err != nil {
		c.t.Errorf("a call that a programmed policy refuses no longer: %v", err)
	}
}

// patiently repeats what fails while the API server or the webhook is away.
func (c *chaos) patiently(what string, do func(context.Context) error) {
	c.t.Helper()
	eventually(c.t, 2*time.Minute, what, do)
}

// table ends the run: what became of all traffic.
func (c *chaos) table(allowed, denied, plain *loading) {
	a, d, p := allowed.wait(), denied.wait(), plain.wait()
	wrong, passed := a.Requests-a.Status["200"], d.Status["200"]
	otherwise := d.Requests - passed - d.Status["403"]
	slices.Sort(c.converged)
	at := func(part float64) time.Duration {
		return c.converged[int(part*float64(len(c.converged)-1))].Round(time.Millisecond)
	}
	total := 0
	for name, n := range c.faults {
		figure(c.t, "chaos: %d times: %s", n, name)
		total += n
	}
	figure(c.t, "chaos: %d faults; %d requests: allowed %d, wrongly failed %d %v; denied %d, wrongly passed %d, failed otherwise %d %v; in plaintext %d, wrongly passed %d",
		total, a.Requests+d.Requests+p.Requests, a.Requests, wrong, a.Failures, d.Requests, passed, otherwise, d.Failures, p.Requests, p.Requests-p.Failed)
	figure(c.t, "chaos: %d policies changed, from apply to programmed: p50 %v, p99 %v, at most %v", len(c.converged), at(.5), at(.99), at(1))
	if wrong > 0 || a.Requests == 0 {
		c.t.Errorf("%d of %d allowed requests failed: %v %v; the first at %v: %s", wrong, a.Requests, a.Status, a.Failures, a.FailedAt, a.Example)
	}
	if passed+otherwise > 0 || d.Requests == 0 {
		c.t.Errorf("of %d denied requests %d passed, and %d failed otherwise: %v %v", d.Requests, passed, otherwise, d.Status, d.Failures)
	}
	if p.Failed != p.Requests || p.Requests == 0 {
		c.t.Errorf("%d of %d requests in plaintext passed", p.Requests-p.Failed, p.Requests)
	}
}
