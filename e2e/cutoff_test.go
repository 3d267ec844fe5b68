package e2e

import (
	"fmt"
	"testing"
	"time"
)

// A pod neither answers nor refuses, as when its node is lost: packets to and from it
// are dropped. What is under way to it then is lost; what comes after goes elsewhere,
// also where it shares a connection of HTTP/2 with that.
func TestAPodThatIsCutOffIsLeftOut(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "cutoff", true)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 3})
	s.strict()
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))
	lost := s.running("server")
	loads, calls := map[string]*loading{}, map[string][]string{
		"HTTP": {"http", s.url("server"), "--connections", "32", "--new-connection-share", "0.2"},
		"gRPC": {"grpc", s.host("server") + ":9000", "--connections", "100"},
	}
	for what, args := range calls {
		loads[what] = s.startLoad(from, append(args, "--rate", "100", "--duration", "20s")...)
	}
	time.Sleep(3 * time.Second)
	inNode(t, fmt.Sprintf(`set -e
for n in $(ip netns list | cut -d' ' -f1); do
  if ip netns exec $n ip -o addr | grep -qF ' %s/'; then
    for hook in input output; do
      ip netns exec $n nft add table inet lost
      ip netns exec $n nft "add chain inet lost $hook { type filter hook $hook priority -400; policy drop; }"
    done
    exit
  fi
done
exit 1`, lost.Status.PodIP))
	for what, load := range loads {
		r := load.wait()
		figure(t, "one of three pods cut off at 100 rps of %s: %d of %d calls failed, %v; p50 %.1f, p99 %.0f ms", what, r.Failed, r.Requests, r.Failures, r.Service.P50, r.Service.P99)
		if r.Failed > 100 { // no more than can be under way
			t.Errorf("%d of %d calls of %s failed", r.Failed, r.Requests, what)
		}
	}
	for what, args := range calls {
		r := s.load(from, append(args, "--rate", "100", "--duration", "3s")...)
		if r.Failed > 0 || r.Pods[lost.Name] > 0 {
			t.Errorf("then %d of %d calls of %s failed: %v; answered by %v", r.Failed, r.Requests, what, r.Failures, r.Pods)
		}
	}
}
