package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// A filter that routes enable (HttpFilter.disabled) is in no chain while there are no
// routes yet, and the request that has them fetched keeps its chain: of a service that
// the proxy was told nothing of ahead, the first request goes by, and no other.
func TestFaultHoldsOnceThereAreRoutes(t *testing.T) {
	ownNetwork(t)
	h := newHarness(t, nil)
	h.genuine = true
	config := *h.builder.Snapshot().Config()
	config.ServiceRanges = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	h.builder.Apply(mesh.Put(&mesh.TrustBundle{PEM: h.rootPEM}), mesh.Put(&config), mesh.Put(&mesh.Policy{
		Meta:    mesh.Meta{Name: mesh.Name{Namespace: "shop", Name: "fault"}},
		Traffic: &mesh.Traffic{Fault: &mesh.Fault{HTTPStatus: http.StatusTeapot, AbortPercent: 100}},
	}))
	requests := map[string]string{
		"127.0.0.2": "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
		"127.0.0.3": "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody",
	}
	for ip := range requests {
		// Nothing redirects here: what is called is the listener's own port.
		s := service("s"+ip[len(ip)-1:], ip)
		s.Ports[0].Port = translate.PortOutbound
		h.builder.Apply(mesh.Put(s))
	}
	h.startEnvoy(h.api.token(peer("web")))
	eventually(t, "readiness", func() bool {
		return h.settled(build.Key{Type: translate.Listener, Name: translate.ListenerReady})
	})
	for ip, request := range requests {
		c, err := net.Dial("tcp", net.JoinHostPort(ip, strconv.Itoa(translate.PortOutbound)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for _, which := range []string{"first", "second"} {
			if _, err := io.WriteString(c, request); err != nil {
				t.Fatal(err)
			}
			p, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, p.Body)
			want := http.StatusTeapot
			if which == "first" {
				want = http.StatusServiceUnavailable // there are no pods
			}
			if p.StatusCode != want {
				t.Errorf("the %s request %q is answered with %d, want %d", which, request[:4], p.StatusCode, want)
			}
		}
	}
}
