package check

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

func config() redirect.Config {
	return redirect.Config{
		Services: prefixes("10.96.0.0/12", "fd00:10:96::/112"),
		Pods:     prefixes("10.244.0.0/16", "fd00:10:244::/56"),
		ProxyUID: redirect.ProxyUID,
	}
}

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// families are the addresses of a pod, by their names in the tests below.
func families() map[string][]string {
	return map[string][]string{
		"IPv4":       {"10.244.1.2/24"},
		"IPv6":       {"fd00:10:244:1::2/64"},
		"dual stack": {"10.244.1.2/24", "fd00:10:244:1::2/64"},
	}
}

func TestARedirectedPodPasses(t *testing.T) {
	for name, addresses := range families() {
		t.Run(name, func(t *testing.T) {
			inPod(t, addresses, func() error {
				if err := redirect.Apply(config()); err != nil {
					return err
				}
				return unprivileged(config())
			})
		})
	}
}

func TestExclusionsAreNoFailure(t *testing.T) {
	c := config()
	c.ExcludeOutbound = []uint16{9, 10}
	c.ExcludeRanges = prefixes("10.96.0.0/14", "10.244.0.0/16", "192.0.2.0/24", "fd00:10:96::/112")
	everything := config()
	everything.ExcludeRanges = prefixes("0.0.0.0/0", "::/0")
	for name, c := range map[string]redirect.Config{"some": c, "everything": everything} {
		t.Run(name, func(t *testing.T) {
			inPod(t, families()["dual stack"], func() error {
				if err := redirect.Apply(c); err != nil {
					return err
				}
				return unprivileged(c)
			})
		})
	}
}

func TestAPodThatIsNotRedirectedFails(t *testing.T) {
	for name, addresses := range families() {
		t.Run(name, func(t *testing.T) {
			inPod(t, addresses, func() error {
				return wantFailure(config(), "is not redirected to the sidecar's port 15001")
			})
		})
	}
}

func TestRulesOfLessThanTheConfigurationFail(t *testing.T) {
	for name, less := range map[string]func(*redirect.Config){
		"the pods' range":   func(c *redirect.Config) { c.Pods = nil },
		"IPv6":              func(c *redirect.Config) { c.Services, c.Pods = c.Services[:1], c.Pods[:1] },
		"an excluded range": func(c *redirect.Config) { c.ExcludeRanges = prefixes("10.96.0.0/12") },
		"elsewhere":         func(c *redirect.Config) { c.ExcludeRanges = prefixes("192.0.0.0/8") },
	} {
		t.Run(name, func(t *testing.T) {
			inPod(t, families()["dual stack"], func() error {
				c := config()
				less(&c)
				if err := redirect.Apply(c); err != nil {
					return err
				}
				return wantFailure(config(), "is ")
			})
		})
	}
}

func TestAPodWithoutNetworkFails(t *testing.T) {
	inPod(t, nil, func() error {
		return wantFailure(config(), "no route to anywhere")
	})
}

func TestWaitingEndsWhenTheRulesCome(t *testing.T) {
	inPod(t, families()["IPv4"], func() error {
		reasons := 0
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := Wait(ctx, config(), func(error) {
			reasons++
			if err := redirect.Apply(config()); err != nil {
				t.Error(err)
			}
		})
		if reasons != 1 {
			t.Errorf("%d reasons were reported, want the first", reasons)
		}
		return err
	})
}

func TestWaitingEndsWithTheReason(t *testing.T) {
	inPod(t, families()["IPv4"], func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := Wait(ctx, config(), func(error) {})
		if err == nil || !strings.Contains(err.Error(), "is not redirected") {
			return fmt.Errorf("the error is %v", err)
		}
		return nil
	})
}

func TestAddressesToTryAreInTheRangeAndNotExcluded(t *testing.T) {
	for _, c := range []struct {
		within string
		not    []string
		want   string
	}{
		{"10.96.0.0/12", nil, "10.96.0.1:9"},
		{"10.96.0.0/12", []string{"10.96.0.0/24", "10.96.1.0/24"}, "10.96.2.0:9"},
		{"10.96.0.0/12", []string{"10.96.0.1/32", "10.96.0.0/16", "10.97.0.0/32"}, "10.97.0.1:9"},
		{"10.96.0.0/12", []string{"10.0.0.0/8"}, ""},
		{"10.96.0.7/32", nil, "10.96.0.7:9"},
		{"fd00::/112", []string{"fd00::/113"}, "[fd00::8000]:9"},
		{"255.255.255.255/32", []string{"255.255.255.255/32"}, ""},
	} {
		got, ok := unused(netip.MustParsePrefix(c.within), prefixes(c.not...), nil)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s without %v: %v, %v; want %q", c.within, c.not, got, ok, c.want)
		}
	}
}

func wantFailure(c redirect.Config, text string) error {
	if err := unprivileged(c); err == nil || !strings.Contains(err.Error(), text) {
		return fmt.Errorf("the check says %w, want %q", err, text)
	}
	return nil
}

// unprivileged tries once.
func unprivileged(c redirect.Config) error {
	return Redirected(context.Background(), c)
}

// inPod runs a function in a network namespace with these addresses, on a
// link that leads to nobody who answers. It needs root.
func inPod(t *testing.T, addresses []string, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	pod := fmt.Sprintf("tulle-check-%d", os.Getpid())
	ip(t, "netns", "add", pod)
	defer ip(t, "netns", "del", pod)
	ip(t, "-n", pod, "link", "set", "lo", "up")
	ip(t, "-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "beyond")
	ip(t, "-n", pod, "link", "set", "beyond", "up")
	ip(t, "-n", pod, "link", "set", "eth0", "up")
	for _, a := range addresses {
		ip(t, "-n", pod, "address", "add", a, "dev", "eth0", "nodad")
		family := "-4"
		if strings.Contains(a, ":") {
			family = "-6"
		}
		ip(t, family, "-n", pod, "route", "add", "default", "dev", "eth0")
	}
	if len(addresses) == 0 {
		ip(t, "-n", pod, "link", "del", "eth0")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the function
		done <- func() error {
			file, err := os.Open("/run/netns/" + pod)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
