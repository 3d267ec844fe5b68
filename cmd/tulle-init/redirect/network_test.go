package redirect_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

const (
	// patience is for what happens at once unless something is broken.
	patience = 10 * time.Second
	// silence is how long no answer counts as dropped. The kernel's first SYN
	// is answered within microseconds here.
	silence = 250 * time.Millisecond
)

// network is a pod and all that is beyond it, each in a network namespace.
type network struct {
	pod, peer namespace
}

// namespace is the file of a network namespace.
type namespace string

// newNetwork makes two network namespaces with a link between them, and
// removes them with the test. It needs root.
func newNetwork(t *testing.T) network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	name := fmt.Sprintf("tulle-test-%d-", os.Getpid())
	pod, peer := name+"pod", name+"peer"
	for _, n := range []string{pod, peer} {
		ip(t, "netns", "add", n)
		t.Cleanup(func() { ip(t, "netns", "del", n) })
		ip(t, "-n", n, "link", "set", "lo", "up")
	}
	ip(t, "-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer)
	ip(t, "-n", pod, "link", "set", "eth0", "up")
	ip(t, "-n", peer, "link", "set", "eth0", "up")
	ip(t, "-n", pod, "address", "add", podAddress+"/24", "dev", "eth0")
	ip(t, "-n", pod, "address", "add", podAddress6+"/64", "dev", "eth0", "nodad")
	ip(t, "-n", peer, "address", "add", peerAddress+"/24", "dev", "eth0")
	ip(t, "-n", peer, "address", "add", peerAddress6+"/64", "dev", "eth0", "nodad")
	for _, a := range []string{service, external, excluded, resolver} {
		ip(t, "-n", peer, "address", "add", a+"/32", "dev", "lo")
	}
	for _, a := range []string{service6, external6, excluded6} {
		ip(t, "-n", peer, "address", "add", a+"/128", "dev", "lo", "nodad")
	}
	ip(t, "-n", pod, "route", "add", "default", "via", peerAddress)
	ip(t, "-n", pod, "route", "add", "default", "via", peerAddress6)
	return network{namespace("/run/netns/" + pod), namespace("/run/netns/" + peer)}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// do runs a function on a thread of its own in the namespace. The thread ends
// with it, so that nothing that it became leaks into other goroutines.
func (n namespace) do(t *testing.T, f func() error) {
	t.Helper()
	if err := n.try(f); err != nil {
		t.Fatal(err)
	}
}

func (n namespace) try(f func() error) error {
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

func (n namespace) apply(t *testing.T, c redirect.Config) {
	t.Helper()
	n.do(t, func() error { return redirect.Apply(c) })
}

// rules counts the rules of Tulle's table.
func (n namespace) rules(t *testing.T) int {
	t.Helper()
	count := 0
	n.do(t, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if c.Table.Name != redirect.TableName {
				continue
			}
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return err
			}
			count += len(rules)
		}
		return nil
	})
	return count
}

// listen answers on every address of both families with who it is and, for a
// connection that was redirected, where that was meant to go; then it echoes.
func (n namespace) listen(t *testing.T, who string, ports []uint16) {
	t.Helper()
	n.do(t, func() error {
		for _, port := range ports {
			for _, family := range []string{"tcp4", "tcp6"} {
				l, err := net.Listen(family, fmt.Sprintf(":%d", port))
				if err != nil && family == "tcp6" {
					continue // no IPv6 here
				}
				if err != nil {
					return err
				}
				t.Cleanup(func() { l.Close() })
				go answer(l, fmt.Sprintf("%s:%d", who, port))
			}
		}
		return nil
	})
}

// answer serves until the listener is closed.
func answer(l net.Listener, who string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			said := who
			if to, ok := originalDestination(conn.(*net.TCPConn)); ok {
				said += " for " + to
			}
			fmt.Fprintln(conn, said)
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				fmt.Fprintln(conn, lines.Text())
			}
		}()
	}
}

// originalDestination is what Envoy's original_dst filter asks the kernel for:
// SO_ORIGINAL_DST of either family. Not redirected is an error or, where
// connection tracking knows the connection, its own local address.
func originalDestination(conn *net.TCPConn) (string, bool) {
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", false
	}
	var found netip.AddrPort
	err = raw.Control(func(fd uintptr) {
		if local.Addr().Unmap().Is4() {
			var a unix.RawSockaddrInet4
			if getsockopt(fd, unix.IPPROTO_IP, unsafe.Pointer(&a), unsafe.Sizeof(a)) {
				found = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), networkOrder(a.Port))
			}
			return
		}
		var a unix.RawSockaddrInet6
		if getsockopt(fd, unix.IPPROTO_IPV6, unsafe.Pointer(&a), unsafe.Sizeof(a)) {
			found = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), networkOrder(a.Port))
		}
	})
	unmapped := netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	return found.String(), err == nil && found.IsValid() && found != unmapped
}

// originalDst is SO_ORIGINAL_DST, and IP6T_SO_ORIGINAL_DST too
// (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
const originalDst = 80

func getsockopt(fd uintptr, level int, into unsafe.Pointer, size uintptr) bool {
	length := uint32(size)
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, uintptr(level), originalDst, uintptr(into), uintptr(unsafe.Pointer(&length)), 0)
	return errno == 0
}

func networkOrder(port uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, port))
}

// dialing says as whom, and how marked, a connection is opened.
type dialing struct {
	uid, gid int
	priority int
}

// dial connects, and returns the first line that the other side says.
func (n namespace) dial(t *testing.T, as dialing, to string) (string, error) {
	t.Helper()
	conn, err := n.connect(t, as, to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return readLine(conn)
}

func (n namespace) connect(t *testing.T, as dialing, to string) (conn net.Conn, err error) {
	t.Helper()
	dialer := net.Dialer{Timeout: silence, Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) {
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, as.priority)
		})
		if err != nil {
			return err
		}
		return inner
	}}
	err = n.try(func() error {
		// The uid that nftables sees is that of the thread that made the
		// socket; this one ends here.
		if _, err := unix.SetfsuidRetUid(as.uid); err != nil {
			return err
		}
		if _, err := unix.SetfsgidRetGid(as.gid); err != nil {
			return err
		}
		var err error
		conn, err = dialer.DialContext(context.Background(), "tcp", to)
		return err
	})
	return conn, err
}

func readLine(conn net.Conn) (string, error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// echoUDP sends back every datagram that comes to a port.
func (n namespace) echoUDP(t *testing.T, port int) {
	t.Helper()
	n.do(t, func() error {
		for _, a := range []string{service, service6, external} {
			conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(a), Port: port})
			if err != nil {
				return err
			}
			t.Cleanup(func() { conn.Close() })
			go func() {
				buffer := make([]byte, 1500)
				for {
					size, from, err := conn.ReadFromUDPAddrPort(buffer)
					if err != nil {
						return
					}
					_, _ = conn.WriteToUDPAddrPort(buffer[:size], from)
				}
			}()
		}
		return nil
	})
}

func (n namespace) askUDP(t *testing.T, to, question string) (answer string, err error) {
	t.Helper()
	err = n.try(func() error {
		conn, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte(question)); err != nil {
			return err
		}
		buffer := make([]byte, 1500)
		size, err := conn.Read(buffer)
		answer = string(buffer[:size])
		return err
	})
	return answer, err
}
