package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// captureCommand looks at every packet that is not on the loopback and counts
// those in which one of the arguments appears in the clear. It needs
// CAP_NET_RAW. It writes "capturing" to stderr once it does.
func captureCommand(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("capture", flag.ContinueOnError)
	duration := f.Duration("duration", 5*time.Second, "for how long")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		return errors.New("usage: capture [--duration D] STRING...")
	}
	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	c, err := capture(ctx, f.Args())
	if err != nil {
		return err
	}
	return writeJSON(out, c)
}

func capture(ctx context.Context, needles []string) (*packetCounter, error) {
	// ETH_P_ALL in network byte order: packet(7).
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket (CAP_NET_RAW is needed): %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<20); err != nil {
		return nil, fmt.Errorf("enlarging the packet buffer: %w", err)
	}
	// Wake up now and then to see whether ctx has ended.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return nil, fmt.Errorf("setting the packet socket's time-out: %w", err)
	}
	fmt.Fprintln(os.Stderr, "capturing")
	c := &packetCounter{report.Capture{Found: map[string]int{}, Links: map[string]int{}}}
	names := map[int]string{}
	buffer := make([]byte, 1<<17)
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading packets: %w", err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Hatype == unix.ARPHRD_LOOPBACK {
			continue
		}
		c.look(buffer[:n], linkName(names, link.Ifindex), needles)
	}
	return c, nil
}

func linkName(names map[int]string, index int) string {
	if _, ok := names[index]; !ok {
		names[index] = fmt.Sprint(index)
		if link, err := net.InterfaceByIndex(index); err == nil {
			names[index] = link.Name
		}
	}
	return names[index]
}

// packetCounter looks at packets and counts.
type packetCounter struct{ report.Capture }

func (c *packetCounter) look(packet []byte, link string, needles []string) {
	c.Packets++
	c.Bytes += int64(len(packet))
	c.Links[link]++
	for _, needle := range needles {
		if bytes.Contains(packet, []byte(needle)) {
			c.Found[needle]++
		}
	}
	if isTLS(packet) {
		c.TLS++
	}
}

// isTLS reports whether an Ethernet frame's TCP payload begins with a TLS
// record of application data (RFC 8446, section 5.1).
func isTLS(frame []byte) bool {
	const ethernet, protocolTCP = 14, 6
	if len(frame) < ethernet+20 || frame[ethernet]>>4 != 4 || frame[ethernet+9] != protocolTCP {
		return false
	}
	tcp := ethernet + int(frame[ethernet]&0x0f)*4
	if len(frame) < tcp+20 {
		return false
	}
	payload := tcp + int(frame[tcp+12]>>4)*4
	return len(frame) > payload+3 && frame[payload] == 23 && frame[payload+1] == 3
}
