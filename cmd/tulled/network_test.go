package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// network is a node with pods on its bridge, each in a network namespace of its
// own. Nothing of it is in the namespace of the machine.
type network struct {
	prefix string
	node   namespace
}

// namespace is the file of a network namespace.
type namespace string

// nodeAddress is the bridge's.
const nodeAddress = "10.244.0.1"

// newNetwork makes the node, and removes it and its pods with the test.
func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces, and needs to be run as root")
	}
	n := &network{prefix: fmt.Sprintf("tulle-live-%d-", os.Getpid())}
	n.node = n.add(t, "node")
	ip(t, "-n", n.prefix+"node", "link", "add", "bridge0", "type", "bridge")
	ip(t, "-n", n.prefix+"node", "address", "add", nodeAddress+"/24", "dev", "bridge0")
	ip(t, "-n", n.prefix+"node", "link", "set", "bridge0", "up")
	return n
}

func (n *network) add(t *testing.T, name string) namespace {
	t.Helper()
	ip(t, "netns", "add", n.prefix+name)
	t.Cleanup(func() { ip(t, "netns", "del", n.prefix+name) })
	ip(t, "-n", n.prefix+name, "link", "set", "lo", "up")
	return namespace("/run/netns/" + n.prefix + name)
}

// pod adds a pod's network.
func (n *network) pod(t *testing.T, name, address string) namespace {
	t.Helper()
	ns := n.add(t, name)
	ip(t, "-n", n.prefix+name, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", n.prefix+"node")
	ip(t, "-n", n.prefix+"node", "link", "set", name, "master", "bridge0", "up")
	ip(t, "-n", n.prefix+name, "address", "add", address+"/24", "dev", "eth0")
	ip(t, "-n", n.prefix+name, "link", "set", "eth0", "up")
	ip(t, "-n", n.prefix+name, "route", "add", "default", "via", nodeAddress)
	return ns
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// within runs a function on a thread of its own in the namespace. Sockets that
// it makes and processes that it starts stay there. The thread ends with it, so
// that nothing that it became leaks into other goroutines.
func (n namespace) within(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not used again
		done <- func() error {
			file, err := os.Open(string(n))
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("entering %s: %w", n, err)
			}
			return f()
		}()
	}()
	return <-done
}

// listen listens in the namespace until the test ends.
func (n namespace) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := n.within(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects from within the namespace, as its root: as an application does,
// whose connections are redirected.
func (n namespace) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.within(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// relay hands connections on to an address in the namespace of the machine, but
// while it is down. It ends with its listener.
type relay struct {
	to    string
	lock  sync.Mutex
	down  bool
	conns map[net.Conn]struct{}
}

func startRelay(l net.Listener, to string) *relay {
	r := &relay{to: to, conns: map[net.Conn]struct{}{}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(conn)
		}
	}()
	return r
}

func (r *relay) serve(from net.Conn) {
	defer from.Close()
	r.lock.Lock()
	down, to := r.down, r.to
	r.conns[from] = struct{}{}
	r.lock.Unlock()
	defer func() {
		r.lock.Lock()
		delete(r.conns, from)
		r.lock.Unlock()
	}()
	if down {
		return
	}
	onward, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer onward.Close()
	ended := make(chan error, 2)
	for _, way := range [][2]net.Conn{{from, onward}, {onward, from}} {
		go func() {
			_, err := io.Copy(way[0], way[1])
			ended <- err
		}()
	}
	<-ended
}

// setDown breaks all connections and takes no further, or takes them again.
func (r *relay) setDown(down bool) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.down = down
	if down {
		for conn := range r.conns {
			conn.Close()
		}
	}
}

// redirect has further connections go to another address.
func (r *relay) redirect(to string) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.to = to
}

// freePorts gives those from the first on, in turn.
var (
	firstPort = rand.IntN(8000)
	lastPort  atomic.Int32
)

// freePorts are addresses on the loopback whose ports nobody has, at any address, and that no
// other call gives. They are below those that connections are given
// (net.ipv4.ip_local_port_range begins at 32768) and above those that the tests of
// xds/translate take: packages are tested side by side.
func freePorts(t *testing.T, count int) []string {
	t.Helper()
	var out []string
	for range 8000 {
		port := 24000 + (firstPort+int(lastPort.Add(1)))%8000
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err != nil {
			continue
		}
		l.Close()
		if out = append(out, fmt.Sprint("127.0.0.1:", port)); len(out) == count {
			return out
		}
	}
	t.Fatal("no ports are free")
	return nil
}

// run runs a program in the namespace until the test ends. An end of its own is
// an error.
func (n namespace) run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		ended <- n.within(func() error {
			err := cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			return cmd.Wait() // on this thread: the program is to end with it
		})
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case err := <-ended:
			t.Errorf("%s ended by itself: %v", cmd.Path, err)
		default:
			_ = cmd.Process.Kill()
			<-ended
		}
	})
}
