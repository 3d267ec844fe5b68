package webhook

import (
	"cmp"
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

func (c *checks) external(e *v1alpha1.ExternalService) {
	spec := field.NewPath("spec")
	for i, h := range e.Spec.Hosts {
		if len(validation.IsDNS1123Subdomain(strings.TrimPrefix(h, "*."))) > 0 {
			c.refuse(spec.Child("hosts").Index(i), h, "this is not a DNS name: write api.example.org or *.example.org")
		}
		if !strings.Contains(strings.TrimPrefix(h, "*."), ".") && strings.HasPrefix(h, "*.") {
			c.refuse(spec.Child("hosts").Index(i), h, "this is every name of a top-level domain, whoever it belongs to: name a domain below it, such as *.example.org")
		}
	}
	for i, a := range e.Spec.Addresses {
		if strings.Contains(a, "/") {
			c.prefix(spec.Child("addresses").Index(i), a, "192.0.2.0/24")
		} else if ip, err := netip.ParseAddr(a); err != nil || ip.Is4In6() || ip.Zone() != "" || ip.IsLoopback() || ip.IsUnspecified() {
			c.refuse(spec.Child("addresses").Index(i), a, "this is no address that a sidecar can be called by: write one such as 192.0.2.7")
		}
	}
	names := map[string]bool{}
	for i, p := range e.Spec.Ports {
		if p.Name != "" && names[p.Name] {
			c.refuse(spec.Child("ports").Index(i).Child("name"), p.Name, "another port has this name: give each its own")
		}
		names[p.Name] = true
	}
	for i, to := range e.Spec.Endpoints {
		for j, p := range to.Ports {
			if !names[p.Name] {
				c.refuse(spec.Child("endpoints").Index(i).Child("ports").Index(j).Child("name"), p.Name, "spec.ports has no port of this name: name one of them")
			}
		}
	}
	if e.Spec.Gateway != nil {
		c.beyondGateway(e)
	}
	if t := e.Spec.TLS; t != nil && t.CABundle != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(t.CABundle)) {
		c.refuse(spec.Child("tls", "caBundle"), "…", "there is no certificate in it: write those of the authorities, in PEM (-----BEGIN CERTIFICATE-----)")
	}
}

// beyondGateway refuses what would lead a gateway to its own proxy, or to its node.
func (c *checks) beyondGateway(e *v1alpha1.ExternalService) {
	spec := field.NewPath("spec")
	own := func(at *field.Path, value any, port int32) {
		if port >= 15000 && port <= 15021 || port == 15090 {
			c.refuse(at, value, "%d is a port of the gateway's own proxy, to which a name might lead: write another, or leave gateway out", port)
		}
	}
	for i, p := range e.Spec.Ports {
		own(spec.Child("ports").Index(i), p.Number, cmp.Or(p.TargetPort, p.Number))
		if p.TargetPort != 0 && slices.ContainsFunc(e.Spec.Hosts, func(h string) bool { return strings.HasPrefix(h, "*.") }) {
			own(spec.Child("ports").Index(i).Child("number"), p.Number, p.Number) // at which names below a wildcard are called
		}
	}
	within := func(at *field.Path, address string) {
		ip, err := netip.ParseAddr(address)
		if err == nil && !ip.Unmap().IsGlobalUnicast() || address == "localhost" || strings.HasSuffix(address, ".localhost") {
			c.refuse(at, address, "a gateway is not sent to such an address, which is its own or its node's: write that of a server outside")
		}
	}
	for i, h := range e.Spec.Hosts {
		if len(e.Spec.Endpoints) == 0 { // else it is not looked up
			within(spec.Child("hosts").Index(i), h)
		}
	}
	for i, to := range e.Spec.Endpoints {
		at := spec.Child("endpoints").Index(i)
		within(at.Child("address"), to.Address)
		for j, p := range to.Ports {
			own(at.Child("ports").Index(j).Child("number"), p.Number, p.Number)
		}
	}
}
