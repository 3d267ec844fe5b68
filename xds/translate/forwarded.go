package translate

import (
	"fmt"
	"net/netip"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// hopsBefore is how many of the trusted hops are in X-Forwarded-For before the client
// (Envoy's xff_num_trusted_hops): all but the one that wrote it.
func hopsBefore(c *mesh.Config) uint32 { return max(c.TrustedHops, 1) - 1 }

// client matches the client before the gateways. Where X-Forwarded-For does not tell of
// one, Envoy takes the connection's peer instead, which is somebody else: then an Allow
// rule does not match, and any other does.
func (k known) client(s mesh.Source, strict bool) *rbacconfig.Principal {
	var is []*rbacconfig.Principal
	if blocks := each(s.RemoteIPBlocks, clientAddress); len(blocks) > 0 {
		is = append(is, oneOf(blocks))
	}
	if blocks := each(s.NotRemoteIPBlocks, clientAddress); len(blocks) > 0 {
		is = append(is, noPrincipal(oneOf(blocks)))
	}
	told := toldOfClient(k.hops)
	if strict {
		return allPrincipals(append(is, told))
	}
	match := is[0]
	if len(is) > 1 {
		match = allPrincipals(is)
	}
	return oneOf([]*rbacconfig.Principal{match, noPrincipal(told)})
}

// clientAddress matches the address of the client, or that of the peer where
// X-Forwarded-For does not tell. Proxies that listen for both families at once write an
// IPv4 client in IPv6 (RFC 4291, section 2.5.5.2), and Envoy does not take it for the same.
func clientAddress(b netip.Prefix) *rbacconfig.Principal {
	same := []*rbacconfig.Principal{remoteAddress(b)}
	if b.Addr().Is4() {
		same = append(same, remoteAddress(netip.PrefixFrom(netip.AddrFrom16(b.Addr().As16()), 96+b.Bits())))
	}
	return oneOf(same)
}

func remoteAddress(b netip.Prefix) *rbacconfig.Principal {
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_RemoteIp{RemoteIp: cidr(b)}}
}

// octet is a number of an IPv4 address as Envoy reads it, and ipAddress is one of either
// family: of IPv6 it tells what is meant for one, and not whether it has too many groups,
// which no trusted proxy writes.
const (
	octet     = `(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])`
	ipAddress = `(` + octet + `\.` + octet + `\.` + octet + `\.` + octet + `|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)`
)

// toldOfClient matches requests whose X-Forwarded-For has as many entries as trusted
// proxies write, and an address where the first of those wrote it.
func toldOfClient(hops uint32) *rbacconfig.Principal {
	text := `(?s)(.*,)?[ \t]*` + ipAddress + `[ \t]*`
	if hops > 1 {
		text += fmt.Sprintf(`(,[^,]*){%d}`, hops-1)
	}
	return &rbacconfig.Principal{Identifier: &rbacconfig.Principal_Header{Header: &route.HeaderMatcher{
		Name: "x-forwarded-for", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: regex(text)},
	}}}
}
