package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// memoryLimit is from where on this program's garbage is collected all the same.
const memoryLimit = 6 << 30

// options are the flags.
type options struct {
	size
	kube, tulled, istiod string // programs
	root                 string
	planes, manners      string
	works                string
	changes              int
	pause                time.Duration
	out, profiles        string
	keep                 bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 4 && os.Args[1] == serveBare {
		if err := runBare(ctx, os.Args[2], os.Args[3]); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		return
	}
	// Sidecars share the machine with what is measured: collecting their garbage
	// would be waited for as though it were the control plane's work.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	ctrllog.SetLogger(logr.Discard()) // what starts the API server complains after 30 s without one
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "compare" {
		if len(args) != 3 {
			return errors.New("compare needs two files with results")
		}
		a, err := readResults(args[1])
		if err != nil {
			return err
		}
		b, err := readResults(args[2])
		if err != nil {
			return err
		}
		return compare(os.Stdout, a, b)
	}
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.Services, "services", 1000, "services")
	f.IntVar(&o.Endpoints, "endpoints", 5, "endpoints of each")
	f.IntVar(&o.Sidecars, "sidecars", 200, "simulated sidecars, each a pod's")
	f.IntVar(&o.Workloads, "workloads", 20, "workloads that the pods are of")
	f.IntVar(&o.Calls, "calls", 10, "services that each sidecar calls, in the manner called")
	f.IntVar(&o.Policies, "policies", 0, "policies that are there from the beginning, each for one workload")
	f.StringVar(&o.kube, "kube", os.Getenv("TULLE_KUBE_BIN"), "folder with etcd and kube-apiserver")
	f.StringVar(&o.tulled, "tulled", os.Getenv("TULLED"), "program of Tulle's control plane")
	f.StringVar(&o.istiod, "istiod", os.Getenv("ISTIOD"), "program of Istio's control plane (pilot-discovery)")
	f.StringVar(&o.root, "root", "..", "folder of Tulle's sources")
	f.StringVar(&o.planes, "planes", "tulle", "control planes, one after the other: tulle, istiod (debounce off), istiod-default, bare (a gRPC server over TLS that passes on what it is told, for connect, idle and move)")
	f.StringVar(&o.manners, "manners", "called,all", "what sidecars subscribe to: what they call, or everything")
	f.StringVar(&o.works, "works", "", "works to do (all): "+strings.Join(workNames(), ", "))
	f.IntVar(&o.changes, "changes", 30, "changes of the works that do one after the other")
	f.DurationVar(&o.pause, "pause", 200*time.Millisecond, "between the changes of these works, as people make them, each alone; 0 for a profile of nothing else")
	f.StringVar(&o.out, "out", "", "file to write the results to, as JSON")
	f.StringVar(&o.profiles, "profiles", "", "folder for profiles of Tulle's control plane: of the CPU in the first 8 s of each work, of the heap after it")
	f.BoolVar(&o.keep, "keep", false, "leave the logs of the programs, and say where")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	return bench(ctx, o)
}

func workNames() (names []string) {
	for _, w := range works() {
		names = append(names, w.name)
	}
	return names
}

func bench(ctx context.Context, o options) (err error) {
	scratch, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "logs:", scratch)
	} else {
		defer os.RemoveAll(scratch)
	}
	all := &results{When: time.Now().UTC(), Size: o.size, CPUs: runtime.NumCPU()}
	for _, name := range strings.Split(o.planes, ",") {
		for _, manner := range strings.Split(o.manners, ",") {
			if strings.HasPrefix(name, "istiod") && manner == "called" {
				continue // it knows no such manner
			}
			found, err := one(ctx, o, name, manner, filepath.Join(scratch, name+"-"+manner))
			all.Results = append(all.Results, found...)
			if err != nil {
				return errors.Join(fmt.Errorf("%s, %s: %w", name, manner, err), all.show(o.out))
			}
		}
	}
	return all.show(o.out)
}

// planeOf makes a control plane by its name.
func planeOf(o options, name string, t *traffic) (plane, error) {
	switch name {
	case "tulle":
		if o.tulled == "" {
			return nil, errors.New("--tulled names no program; run: make bench")
		}
		return &tulle{program: o.tulled, traffic: t}, nil
	case "istiod", "istiod-default":
		if o.istiod == "" {
			return nil, errors.New("--istiod (or ISTIOD) names no program")
		}
		return &istiod{program: o.istiod, debounce: name == "istiod-default", traffic: t}, nil
	case "bare":
		return &bare{traffic: t}, nil
	}
	return nil, fmt.Errorf("no control plane %q: there are tulle, istiod, istiod-default and bare", name)
}

// one does the works to one control plane, on an API server of its own.
func one(ctx context.Context, o options, name, manner, scratch string) (found []*result, err error) {
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return nil, err
	}
	counted := &traffic{}
	p, err := planeOf(o, name, counted)
	if err != nil {
		return nil, err
	}
	w, err := startAPIServer(o.kube, o.root, scratch)
	if w != nil {
		defer func() { err = errors.Join(err, w.stop()) }()
	}
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s, %s: filling the API server\n", name, manner)
	if err := w.fill(ctx, o.size); err != nil {
		return nil, err
	}
	process, err := p.start(ctx, w, scratch)
	if err != nil {
		return nil, err
	}
	defer process.stop()
	if err := p.prepare(ctx, w); err != nil {
		return nil, err
	}
	running, end := context.WithCancel(ctx)
	r := &run{
		world: w, plane: p, process: process, board: newBoard(o.Sidecars), changes: o.changes, pause: o.pause,
		callers: make([][]int, o.Services), random: rand.New(rand.NewPCG(1, 1)), ctx: running, group: &sync.WaitGroup{},
	}
	defer func() { end(); r.group.Wait() }()
	for i := range o.Sidecars {
		r.sidecars = append(r.sidecars, newSidecar(i, p, r.board, r.callsOf(i, manner)))
	}
	ready := &result{Plane: name, Manner: manner, Work: "start", Seconds: process.ready.Seconds(), CPU: cpu(process.pid())}
	ready.Resident, ready.Peak = memory(process.pid())
	found = append(found, ready)
	for _, work := range works() {
		if o.works != "" && !slices.Contains(strings.Split(o.works, ","), work.name) || name == "bare" && !slices.Contains(bareWorks, work.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s, %s: %s: %s\n", name, manner, work.name, work.what)
		result := &result{Plane: name, Manner: manner, Work: work.name}
		found = append(found, result)
		profiled := r.profile(ctx, o.profiles, name+"-"+manner+"-"+work.name)
		err := r.watch(ctx, work, counted, result)
		result.PerSidecar = 1024 * (result.Resident - ready.Resident) / float64(o.Sidecars)
		profiled()
		if gone := process.gone(); gone != nil {
			err = errors.Join(gone, err)
		}
		if err != nil {
			return found, fmt.Errorf("%s: %w", work.name, err)
		}
		fmt.Fprintln(os.Stderr, strings.ReplaceAll(result.row(), "\t", " "))
	}
	return found, nil
}

// callsOf chooses the services that a sidecar calls: its workload's, the same for
// all sidecars of it.
func (r *run) callsOf(i int, manner string) (calls []int) {
	if manner == "all" {
		for s := range r.world.size.Services {
			calls = append(calls, s)
		}
	} else {
		calls = rand.New(rand.NewPCG(2, uint64(i%r.world.size.Workloads))).Perm(r.world.size.Services)[:min(r.world.size.Calls, r.world.size.Services)]
	}
	for _, s := range calls {
		r.callers[s] = append(r.callers[s], i)
	}
	return calls
}

// watch does a work and takes note of what it cost.
func (r *run) watch(ctx context.Context, w work, t *traffic, out *result) error {
	pid := r.process.pid()
	forgetPeak(pid)
	ours := append([]int{os.Getpid()}, children()...)
	began, total, own, sidecars := time.Now(), busy(), cpu(pid), cpu(os.Getpid())
	known := 0.0
	for _, p := range ours {
		known -= cpu(p)
	}
	messages, resources, bytes := t.messages.Load(), t.resources.Load(), t.bytes.Load()
	err := w.do(ctx, r, out)
	out.Seconds, out.CPU = time.Since(began).Seconds(), cpu(pid)-own
	for _, p := range ours {
		known += cpu(p)
	}
	out.Sidecars = cpu(os.Getpid()) - sidecars
	out.Foreign = busy() - total - known
	out.Messages, out.Resources, out.Bytes = t.messages.Load()-messages, t.resources.Load()-resources, t.bytes.Load()-bytes
	out.Resident, out.Peak = memory(pid)
	if out.delays != nil {
		out.Delay, out.Slowest = spreadOf(out.delays), spreadOf(out.slowest)
	}
	url, _ := r.plane.metrics()
	if heap, err := scrape(ctx, url, "go_memstats_heap_inuse_bytes"); err == nil {
		out.Heap = heap / (1 << 20)
	}
	return err
}

// profile takes a CPU profile of the control plane, where it offers one and that is
// wanted, and returns how to wait for it.
func (r *run) profile(ctx context.Context, folder, name string) (wait func()) {
	t, ok := r.plane.(*tulle)
	if folder == "" || !ok {
		return func() {}
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "taking a profile:", err)
	}
	done := make(chan error, 1)
	go func() {
		done <- download(ctx, "http://"+t.debug+"/debug/pprof/profile?seconds=8", filepath.Join(folder, name+".pprof"))
	}()
	return func() {
		// Of the heap one at the end.
		err := errors.Join(<-done, download(ctx, "http://"+t.debug+"/debug/pprof/heap?gc=1", filepath.Join(folder, name+".heap.pprof")))
		if err != nil {
			fmt.Fprintln(os.Stderr, "taking a profile:", err)
		}
	}
}

func download(ctx context.Context, url, file string) error {
	response, err := ask(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o600)
}

// children are the processes that this one has started: the control plane, etcd and
// the API server.
func children() (pids []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid())) // the pattern is a good one
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, text := range strings.Fields(string(raw)) {
			pids = append(pids, int(number(text)))
		}
	}
	return pids
}
