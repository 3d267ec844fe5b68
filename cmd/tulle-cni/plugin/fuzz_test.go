package plugin

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

// Whatever a pod's annotation and its runtime's resolvers say, what is accepted can be put
// in place, and reads no file of the node.
func FuzzAnnotations(f *testing.F) {
	for _, text := range []string{
		"--service=10.96.0.0/16 --pod=10.244.0.0/16", "--resolv-conf=/etc/shadow", "--proxy-uid=0", "--proxy-uid 4294967295", "-h", "--", "--service=::ffff:10.0.0.0/100",
		"--exclude-inbound-port=1,2,65536", "--exclude-outbound-uid=1337", "", "--pod=", "x",
	} {
		f.Add(text, "10.96.0.10")
	}
	f.Fuzz(func(t *testing.T, annotation, resolver string) {
		c, err := Configuration(annotation, []string{resolver})
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%q is accepted: %v", annotation, err)
		}
		if len(c.Resolvers) > 1 {
			t.Errorf("%q has resolvers %v", annotation, c.Resolvers)
		}
		if a, err := netip.ParseAddr(resolver); (err == nil) != (len(c.Resolvers) == 1) || err == nil && c.Resolvers[0].Unmap() != a.WithZone("").Unmap() {
			t.Errorf("%q becomes %v", resolver, c.Resolvers)
		}
		for _, p := range slices.Concat(c.Services, c.Pods, c.ExcludeRanges) {
			if !p.IsValid() || p != p.Masked() {
				t.Errorf("%q has the range %v", annotation, p)
			}
		}
		if slices.Contains(c.ExcludeInbound, 0) || slices.Contains(c.ExcludeOutbound, 0) || c.ProxyUID == 0 && redirect.ProxyUID != 0 {
			t.Errorf("%q becomes %+v", annotation, c)
		}
	})
}
