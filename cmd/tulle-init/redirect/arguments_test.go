package redirect_test

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

func TestFlagsBecomeTheConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	content := "# comment\nnameserver 10.96.0.10\nsearch shop.svc.cluster.local\nnameserver fe80::1%eth0\nnameserver nonsense\noptions ndots:5\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := redirect.Parse([]string{
		"--service=10.96.0.0/12", "--service=fd00:10:96::/112", "--pod=10.244.3.7/16",
		"--exclude-inbound-port=22", "--exclude-outbound-port=3306,5432", "--exclude-outbound-cidr=192.0.2.0/24",
		"--exclude-outbound-uid=0", "--exclude-outbound-uid=1001", "--exclude-outbound-gid=2002",
		"--resolv-conf=" + file,
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := redirect.Config{
		Services:        []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/112")},
		Pods:            []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Resolvers:       []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fe80::1")},
		ProxyUID:        1337,
		ExcludeInbound:  []uint16{22},
		ExcludeOutbound: []uint16{3306, 5432},
		ExcludeRanges:   []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		ExcludeUIDs:     []uint32{0, 1001},
		ExcludeGIDs:     []uint32{2002},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEveryMistakeIsNamed(t *testing.T) {
	_, err := redirect.Parse([]string{
		"--service=10.96.0.0", "--exclude-inbound-port=0", "--exclude-outbound-port=70000", "--exclude-outbound-cidr=x",
		"--exclude-outbound-uid=4294967295", "--exclude-outbound-gid=root",
	}, io.Discard)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`--service: "10.96.0.0" is not an address range`, `--exclude-inbound-port: "0" is not a port`,
		`--exclude-outbound-port: "70000" is not a port`, `--exclude-outbound-cidr: "x" is not an address range`,
		`--exclude-outbound-uid: "4294967295" is not the number`, `--exclude-outbound-gid: "root" is not the number`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %s: %v", want, err)
		}
	}
}

func TestArgumentsThatAreNoFlagsAreRefused(t *testing.T) {
	_, err := redirect.Parse([]string{"--service=10.96.0.0/12", "10.244.0.0/16"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), `unexpected argument "10.244.0.0/16"`) {
		t.Errorf("the error is %v", err)
	}
}

func TestAPodWithoutResolvConfHasNoResolvers(t *testing.T) {
	got, err := redirect.Parse([]string{"--resolv-conf=" + filepath.Join(t.TempDir(), "missing")}, io.Discard)
	if err != nil || len(got.Resolvers) != 0 {
		t.Errorf("%v, %v; want none", got.Resolvers, err)
	}
}
