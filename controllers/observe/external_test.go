package observe

import (
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// The CRD's rules and the webhook refuse it as well; what was there before them is not
// followed.
func TestAGatewayIsNotSentToItselfOrItsNode(t *testing.T) {
	for what, c := range map[string]struct{ spec, want string }{
		"a server outside":           {`{ports: [{number: 80, protocol: HTTP}], endpoints: [{address: 203.0.113.7}]}`, ""},
		"a private address":          {`{ports: [{number: 80, protocol: HTTP}], endpoints: [{address: 10.1.2.3}]}`, ""},
		"a name":                     {`{ports: [{number: 80, protocol: HTTP}], resolution: DNS}`, ""},
		"the loopback":               {`{ports: [{number: 80, protocol: HTTP}], endpoints: [{address: 127.0.0.1}]}`, "127.0.0.1 is no address"},
		"in another spelling":        {`{ports: [{number: 80, protocol: HTTP}], endpoints: [{address: "::ffff:127.0.0.1"}]}`, "is no address"},
		"its node":                   {`{ports: [{number: 80, protocol: HTTP}], endpoints: [{address: 169.254.169.254}]}`, "is no address"},
		"its admin":                  {`{ports: [{number: 15000, protocol: HTTP}], resolution: DNS}`, "15000 is a port of a gateway's own"},
		"its metrics":                {`{ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 203.0.113.7, ports: [{name: http, number: 15090}]}]}`, "15090 is a port"},
		"an address as host":         {`{hosts: ["169.254.169.254"], ports: [{number: 80, protocol: HTTP}], resolution: DNS}`, "169.254.169.254 is no host"},
		"the loopback's name":        {`{hosts: [this.localhost], ports: [{number: 80, protocol: HTTP}], resolution: None}`, "this.localhost is no host"},
		"that of a server":           {`{ports: [{number: 80, protocol: HTTP}], resolution: DNS, endpoints: [{address: localhost}]}`, "localhost is no address"},
		"a host that is only called": {`{hosts: [localhost], ports: [{number: 80, protocol: HTTP}], endpoints: [{address: 203.0.113.7}]}`, ""},
		"its admin below a wildcard": {`{hosts: ["*.example.org"], ports: [{number: 15000, protocol: HTTP, targetPort: 443}], resolution: None}`, "15000 is a port"},
		"an address as it is":        {`{ports: [{number: 80, protocol: TCP}], addresses: [192.0.2.0/24], resolution: None}`, "no way on to an address"},
	} {
		s := parse[v1alpha1.ExternalService](t, `{metadata: {namespace: shop, name: api}, spec: `+c.spec+`}`)
		s.Spec.Gateway = &v1alpha1.ExternalGateway{Name: "exit"}
		if s.Spec.Hosts == nil {
			s.Spec.Hosts = []string{"api.example.org"}
		}
		if s.Spec.Resolution == "" {
			s.Spec.Resolution = v1alpha1.ExternalStatic
		}
		got := external(s)
		if *got.Gateway != (mesh.Name{Namespace: "shop", Name: "exit"}) {
			t.Errorf("%s: the gateway is %s", what, got.Gateway)
		}
		if (got.Invalid == "") != (c.want == "") || !strings.Contains(got.Invalid, c.want) {
			t.Errorf("%s: %q, want %q", what, got.Invalid, c.want)
		}
		s.Spec.Gateway = nil
		if got := external(s); got.Invalid != "" {
			t.Errorf("%s, without a gateway: %q", what, got.Invalid)
		}
	}
}
