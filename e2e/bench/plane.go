package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// plane is a control plane, and how its sidecars speak to it.
type plane interface {
	// start starts the program on the world, and waits until it is ready.
	start(ctx context.Context, w *world, scratch string) (*process, error)
	// prepare makes what sidecars need, such as their tokens.
	prepare(ctx context.Context, w *world) error

	address() string
	dial(sidecar int) []grpc.DialOption
	credentials(ctx context.Context, sidecar int) (context.Context, error)
	node(sidecar int) *core.Node

	// begin sends a stream's first requests; follow what a response makes
	// necessary; complete says what a sidecar lacks that it did not ask for.
	begin(s *sidecar) error
	follow(s *sidecar, r *discovery.DeltaDiscoveryResponse) error
	complete(s *sidecar) error

	// endpoints is where an endpoint of a service is seen, and added where a new
	// service is, and by which mark, given that of its endpoint.
	endpoints(service int) slot
	added(service int, address string) (at slot, mark string)
	// policies says whether it has any that this program knows.
	policies() bool
	// metrics is where it tells of itself, and streams the metric of those that
	// are connected.
	metrics() (url, streams string)
}

// process is a program that runs.
type process struct {
	cmd   *exec.Cmd
	ended chan error
	// ready is how long it took from its start.
	ready time.Duration
	log   string // file
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// launch starts a program, and waits until it answers at a URL with 200.
func launch(ctx context.Context, scratch, readyURL string, env []string, program string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(scratch, filepath.Base(program)+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{cmd: exec.CommandContext(ctx, program, args...), ended: make(chan error, 1), log: log.Name()}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = append(os.Environ(), env...), log, log, scratch
	// It ends with the thread that starts it, and so with a run that is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began, started := time.Now(), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := p.cmd.Start()
		if started <- err; err == nil {
			p.ended <- p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	client := &http.Client{Timeout: time.Second}
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		select {
		case err := <-p.ended:
			return nil, fmt.Errorf("%s ended before it was ready: %w; the end of its log: %s", program, errors.Join(err), lastOf(log.Name()))
		case <-ctx.Done():
			return nil, ctx.Err()
		default:
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, readyURL, nil)
		if err != nil {
			return nil, err
		}
		if r, err := client.Do(request); err == nil {
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				p.ready = time.Since(began)
				return p, nil
			}
		}
	}
}

// gone is an error with the last that the program said, if it has ended.
func (p *process) gone() error {
	select {
	case err := <-p.ended:
		p.ended <- err
		said, _ := os.ReadFile(p.log)
		return fmt.Errorf("the control plane has ended: %w: %s", errors.Join(err), said[max(len(said)-4096, 0):])
	default:
		return nil
	}
}

// stop ends the program and waits for that.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// freePort is one that nobody listens on at the moment.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// lastOf is the end of a file, which goes with the directory of the run.
func lastOf(name string) []byte {
	content, _ := os.ReadFile(name) //nolint:gosec // a file of ours
	return content[max(0, len(content)-2000):]
}
