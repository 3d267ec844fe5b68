package redirect_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

// The pod's network, and what lies beyond it: all on one peer.
const (
	podAddress   = "10.244.1.2"
	podAddress6  = "fd00:10:244:1::2"
	peerAddress  = "10.244.1.1"
	peerAddress6 = "fd00:10:244:1::1"
	service      = "10.96.0.10"
	service6     = "fd00:10:96::10"
	external     = "203.0.113.5"
	external6    = "2001:db8::5"
	excluded     = "192.0.2.7"
	excluded6    = "2001:db8:1::7"
	resolver     = "169.254.20.10"
)

func config() redirect.Config {
	return redirect.Config{
		Services:        prefixes("10.96.0.0/12", "fd00:10:96::/112"),
		Pods:            prefixes("10.244.0.0/16", "fd00:10:244::/56"),
		Resolvers:       []netip.Addr{netip.MustParseAddr(resolver)},
		ProxyUID:        redirect.ProxyUID,
		ExcludeInbound:  []uint16{8022},
		ExcludeOutbound: []uint16{3306},
		ExcludeRanges:   prefixes("192.0.2.0/24", "2001:db8:1::/48"),
		ExcludeUIDs:     []uint32{2001},
		ExcludeGIDs:     []uint32{2002},
	}
}

// podPorts are where something listens in the pod: the sidecar and the
// application. peerPorts are where something listens beyond.
var (
	podPorts  = []uint16{redirect.PortOutbound, redirect.PortEgress, redirect.PortInbound, redirect.PortProbes, redirect.PortReady, redirect.PortStats, 8080, 8022}
	peerPorts = []uint16{53, 80, 443, 3306}
)

func TestEachConnectionEndsWhereItShould(t *testing.T) {
	n := newNetwork(t)
	n.pod.apply(t, config())
	n.pod.listen(t, "pod", podPorts)
	n.peer.listen(t, "peer", peerPorts)

	proxy := dialing{uid: redirect.ProxyUID, gid: redirect.ProxyUID}
	hairpin := dialing{uid: redirect.ProxyUID, gid: redirect.ProxyUID, priority: redirect.Hairpin}
	app := dialing{uid: 1000}
	const dropped = "dropped"

	cases := []struct {
		name string
		from namespace
		as   dialing
		to   string
		want string // who answered, and the original destination that it saw
	}{
		{"service", n.pod, app, at(service, 80), "pod:15001 for 10.96.0.10:80"},
		{"service, IPv6", n.pod, app, at(service6, 80), "pod:15001 for [fd00:10:96::10]:80"},
		{"another pod", n.pod, app, at(peerAddress, 80), "pod:15001 for 10.244.1.1:80"},
		{"another pod, IPv6", n.pod, app, at(peerAddress6, 80), "pod:15001 for [fd00:10:244:1::1]:80"},
		{"elsewhere", n.pod, app, at(external, 443), "pod:15002 for 203.0.113.5:443"},
		{"elsewhere, IPv6", n.pod, app, at(external6, 443), "pod:15002 for [2001:db8::5]:443"},
		{"root is no exception", n.pod, dialing{}, at(service, 80), "pod:15001 for 10.96.0.10:80"},
		{"a mark without the proxy's uid means nothing", n.pod, dialing{uid: 1000, priority: redirect.Hairpin}, at(service, 80), "pod:15001 for 10.96.0.10:80"},

		{"excluded port within", n.pod, app, at(service, 3306), "peer:3306"},
		{"excluded port elsewhere", n.pod, app, at(external, 3306), "peer:3306"},
		{"excluded range", n.pod, app, at(excluded, 443), "peer:443"},
		{"excluded range, IPv6", n.pod, app, at(excluded6, 443), "peer:443"},
		{"excluded user", n.pod, dialing{uid: 2001}, at(service, 80), "peer:80"},
		{"excluded user, IPv6, elsewhere", n.pod, dialing{uid: 2001, gid: 7}, at(external6, 443), "peer:443"},
		{"excluded group", n.pod, dialing{uid: 1000, gid: 2002}, at(service6, 80), "peer:80"},
		{"a user with an excluded group's number", n.pod, dialing{uid: 2002}, at(service, 80), "pod:15001 for 10.96.0.10:80"},
		{"excluded user to the egress listener", n.pod, dialing{uid: 2001}, at(podAddress, redirect.PortEgress), dropped},
		{"the proxy's user in another group", n.pod, dialing{uid: redirect.ProxyUID}, at(service, 80), "pod:15001 for 10.96.0.10:80"},
		{"the proxy's group, another user", n.pod, dialing{uid: 1000, gid: redirect.ProxyUID}, at(external, 443), "pod:15002 for 203.0.113.5:443"},
		{"resolver, port 53", n.pod, app, at(resolver, 53), "peer:53"},
		{"resolver, another port", n.pod, app, at(resolver, 80), "pod:15002 for 169.254.20.10:80"},
		{"port 53 of a service that is no resolver", n.pod, app, at(service, 53), "pod:15001 for 10.96.0.10:53"},

		{"loopback", n.pod, app, at("127.0.0.1", 8080), "pod:8080"},
		{"loopback, another address", n.pod, app, at("127.1.2.3", 8080), "pod:8080"},
		{"loopback, IPv6", n.pod, app, at("::1", 8080), "pod:8080"},
		{"own address", n.pod, app, at(podAddress, 8080), "pod:8080"},
		{"own address, IPv6", n.pod, app, at(podAddress6, 8080), "pod:8080"},

		{"proxy to a service", n.pod, proxy, at(service, 80), "peer:80"},
		{"proxy to elsewhere", n.pod, proxy, at(external6, 443), "peer:443"},
		{"proxy to the application", n.pod, proxy, at(podAddress, 8080), "pod:8080"},
		{"proxy to the application, IPv6", n.pod, proxy, at(podAddress6, 8080), "pod:8080"},
		{"proxy for its own application to another pod", n.pod, hairpin, at(peerAddress, 80), "peer:80"},
		{"proxy for its own application to the same pod", n.pod, hairpin, at(podAddress, 8080), "pod:15006 for 10.244.1.2:8080"},
		{"proxy for its own application to the same pod, IPv6", n.pod, hairpin, at(podAddress6, 8080), "pod:15006 for [fd00:10:244:1::2]:8080"},
		{"proxy for its own application to the same pod, an excluded port", n.pod, hairpin, at(podAddress, 8022), "pod:8022"},
		{"a mark on loopback means nothing", n.pod, hairpin, at("127.0.0.1", 8080), "pod:8080"},

		{"into the pod", n.peer, app, at(podAddress, 8080), "pod:15006 for 10.244.1.2:8080"},
		{"into the pod, IPv6", n.peer, app, at(podAddress6, 8080), "pod:15006 for [fd00:10:244:1::2]:8080"},
		{"into the pod, a port where nobody listens", n.peer, app, at(podAddress, 9), "pod:15006 for 10.244.1.2:9"},
		{"excluded inbound port", n.peer, app, at(podAddress, 8022), "pod:8022"},
		{"probes", n.peer, app, at(podAddress, redirect.PortProbes), "pod:15020"},
		{"readiness", n.peer, app, at(podAddress6, redirect.PortReady), "pod:15021"},
		{"metrics", n.peer, app, at(podAddress, redirect.PortStats), "pod:15090"},

		{"outside to the outbound listener", n.peer, app, at(podAddress, redirect.PortOutbound), dropped},
		{"outside to the egress listener", n.peer, app, at(podAddress6, redirect.PortEgress), dropped},
		{"outside to the inbound listener", n.peer, app, at(podAddress, redirect.PortInbound), dropped},
		{"outside to the admin port", n.peer, app, at(podAddress, redirect.PortAdmin), dropped},
		{"application to the outbound listener", n.pod, app, at(podAddress, redirect.PortOutbound), dropped},
		{"application to the egress listener on loopback", n.pod, app, at("127.0.0.1", redirect.PortEgress), dropped},
		{"proxy to the outbound listener", n.pod, proxy, at(podAddress6, redirect.PortOutbound), dropped},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.from.dial(t, c.as, c.to)
			if c.want == dropped {
				var timeout net.Error
				if !errors.As(err, &timeout) || !timeout.Timeout() {
					t.Errorf("%s answered %q (%v), want no answer at all", c.to, got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("%s was answered by %q, want %q", c.to, got, c.want)
			}
		})
	}
}

func TestUDPIsLeftAlone(t *testing.T) {
	n := newNetwork(t)
	n.pod.apply(t, config())
	n.peer.echoUDP(t, 53)
	for _, to := range []string{at(service, 53), at(service6, 53), at(external, 53)} {
		if got, err := n.pod.askUDP(t, to, "question"); err != nil || got != "question" {
			t.Errorf("%s answered %q, %v; want the question back", to, got, err)
		}
	}
}

func TestApplyingAgainReplacesTheRulesAndLeavesOtherTablesAlone(t *testing.T) {
	n := newNetwork(t)
	n.pod.listen(t, "pod", podPorts)
	n.peer.listen(t, "peer", peerPorts)
	other := &nftables.Table{Family: nftables.TableFamilyINet, Name: "other"}
	n.pod.do(t, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.AddTable(other)
		return conn.Flush()
	})

	c := config()
	n.pod.apply(t, c)
	first := n.pod.rules(t)
	n.pod.apply(t, c)
	if again := n.pod.rules(t); again != first || first == 0 {
		t.Errorf("%d rules after the first time, %d after the second", first, again)
	}

	c.ExcludeOutbound = []uint16{80}
	n.pod.apply(t, c)
	if got, err := n.pod.dial(t, dialing{uid: 1000}, at(service, 80)); err != nil || got != "peer:80" {
		t.Errorf("a port that is excluded now: %q, %v; want peer:80", got, err)
	}
	if got, err := n.pod.dial(t, dialing{uid: 1000}, at(service, 3306)); err != nil || !strings.HasPrefix(got, "pod:15001") {
		t.Errorf("a port that is excluded no longer: %q, %v; want pod:15001", got, err)
	}
	n.pod.do(t, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		_, err = conn.ListTableOfFamily(other.Name, other.Family)
		return err
	})
}

func TestHalfOfTheRulesIsNotApplied(t *testing.T) {
	n := newNetwork(t)
	if err := n.pod.try(redirect.Applied); err == nil || !strings.Contains(err.Error(), "no chain outbound") {
		t.Errorf("without rules the error is %v", err)
	}
	n.pod.apply(t, config())
	n.pod.do(t, redirect.Applied)
	for _, chain := range []string{"outbound", "inbound"} {
		n.pod.apply(t, config())
		n.pod.do(t, func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			table := &nftables.Table{Family: nftables.TableFamilyINet, Name: redirect.TableName}
			conn.FlushChain(&nftables.Chain{Table: table, Name: chain})
			return conn.Flush()
		})
		if err := n.pod.try(redirect.Applied); err == nil || !strings.Contains(err.Error(), "chain "+chain) {
			t.Errorf("without the rules of %s the error is %v", chain, err)
		}
	}
}

func TestAPodWithoutIPv6IsRedirectedAllTheSame(t *testing.T) {
	n := newNetwork(t)
	n.pod.do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o644)
	})
	n.pod.apply(t, config())
	n.pod.listen(t, "pod", podPorts)
	if got, err := n.pod.dial(t, dialing{uid: 1000}, at(service, 80)); err != nil || got != "pod:15001 for 10.96.0.10:80" {
		t.Errorf("%q, %v; want pod:15001 for 10.96.0.10:80", got, err)
	}
}

func TestOpenConnectionsSurviveAnotherApply(t *testing.T) {
	n := newNetwork(t)
	n.pod.apply(t, config())
	n.pod.listen(t, "pod", podPorts)
	conn, err := n.pod.connect(t, dialing{uid: 1000}, at(service, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := readLine(conn); err != nil {
		t.Fatal(err)
	}
	n.pod.apply(t, config())
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("still there?\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := readLine(conn); err != nil || got != "still there?" {
		t.Errorf("the connection says %q, %v; want an echo", got, err)
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for want, c := range map[string]redirect.Config{
		"no service range":   {ProxyUID: 1},
		"uid is 0":           {Services: prefixes("10.96.0.0/12")},
		"no port 0":          {Services: prefixes("10.96.0.0/12"), ProxyUID: 1, ExcludeInbound: []uint16{0}},
		"not an address ran": {Services: []netip.Prefix{{}}, ProxyUID: 1},
	} {
		if err := redirect.Apply(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one that says %q", err, want)
		}
	}
}

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func at(address string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(address), port).String()
}
