package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// maxUID is the largest uid; the one above it means "no change" to the kernel.
const maxUID = math.MaxUint32 - 1

func parseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address range such as 10.96.0.0/12", s)
	}
	return p.Masked(), nil
}

func parsePort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", s)
	}
	return uint16(p), nil
}

// resolvers reads the nameservers of a resolv.conf (resolv.conf(5)). A pod
// without the file has no resolvers.
func resolvers(file string) ([]netip.Addr, error) {
	if file == "" {
		return nil, nil
	}
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the pod's resolvers: %w", err)
	}
	var found []netip.Addr
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		// What the C library ignores, we ignore.
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			found = append(found, a.WithZone("").Unmap())
		}
	}
	return found, nil
}
