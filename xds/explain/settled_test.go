package explain

import (
	"bytes"
	"flag"
	"slices"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var seedFlag = flag.Uint64("seed", 0, "replay the random meshes that begin with this seed")

// firstSeed is that of the first random mesh. Run is the test's name, or enough of it.
func firstSeed(t *testing.T, run string) uint64 {
	t.Helper()
	first := *seedFlag
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; to replay: go test ./xds/explain -run %s -seed=%d", first, run, first)
	return first
}

// built is what is translated for proxies of the class.
func built[M proto.Message](v *mesh.View, typ translate.Type, name, class string) M {
	return proto.CloneOf(translate.Build(translate.Key{Type: typ, Name: name, For: class}, v).Message.(M))
}

// absent are filters that ask a control plane, or a resolver.
var absent = []string{
	"envoy.filters.http.on_demand", "tulle.forward", "tulle.outside",
	"envoy.filters.network.sni_dynamic_forward_proxy",
}

// settled is a translated listener that needs no control plane: it listens at the addresses,
// whoever connects is taken to have meant these, routes are in it, and its own certificate
// is the secret of the name. Answers say which route they came by.
func (l *lab) settled(out *listener.Listener, name, own string, routes func(name string) *route.RouteConfiguration, at ...*core.Address) *listener.Listener {
	l.t.Helper()
	out.Name, out.Address, out.AdditionalAddresses = name, at[0], nil
	for _, a := range at[1:] {
		out.AdditionalAddresses = append(out.AdditionalAddresses, &listener.AdditionalAddress{Address: a})
	}
	out.ListenerFilters = slices.DeleteFunc(out.ListenerFilters, func(f *listener.ListenerFilter) bool { return f.GetName() == "envoy.filters.listener.original_dst" })
	for _, c := range out.FilterChains {
		l.settleTLS(c.TransportSocket, own)
		c.Filters = slices.DeleteFunc(c.Filters, func(f *listener.Filter) bool {
			// One is about the address that a resolver found.
			return slices.Contains(absent, f.GetName()) || bytes.Contains(f.GetTypedConfig().GetValue(), []byte("upstream_ip_port"))
		})
		for _, f := range c.Filters {
			manager, proxy := &hcm.HttpConnectionManager{}, &tcpproxy.TcpProxy{}
			switch {
			case f.GetTypedConfig().MessageIs(manager):
				l.unmarshal(f.GetTypedConfig(), manager)
				r := routes(manager.GetRds().GetRouteConfigName())
				r.ValidateClusters = wrapperspb.Bool(false) // some are fetched when first used
				for _, h := range r.VirtualHosts {
					h.ResponseHeadersToAdd = append(h.ResponseHeadersToAdd, &core.HeaderValueOption{Header: &core.HeaderValue{Key: "x-route", Value: "%ROUTE_NAME%"}})
				}
				manager.RouteSpecifier, manager.AccessLog = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: r}, nil
				manager.HttpFilters = slices.DeleteFunc(manager.HttpFilters, func(f *hcm.HttpFilter) bool { return slices.Contains(absent, f.GetName()) })
				f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: any1(l.t, manager)}
			case f.GetTypedConfig().MessageIs(proxy):
				l.unmarshal(f.GetTypedConfig(), proxy)
				proxy.AccessLog, proxy.OnDemand = nil, nil
				f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: any1(l.t, proxy)}
			}
		}
	}
	return out
}

// settleTLS has a transport socket take its secrets from the bootstrap.
func (l *lab) settleTLS(s *core.TransportSocket, own string) {
	l.t.Helper()
	if s == nil {
		return
	}
	settle := func(c *envoytls.CommonTlsContext) {
		for _, s := range c.TlsCertificateSdsSecretConfigs {
			if s.SdsConfig = nil; s.Name == translate.SecretWorkload {
				s.Name = own
			}
		}
		if s := c.GetCombinedValidationContext().GetValidationContextSdsSecretConfig(); s != nil {
			s.SdsConfig = nil
		}
	}
	server, client := &envoytls.DownstreamTlsContext{}, &envoytls.UpstreamTlsContext{}
	if s.GetTypedConfig().MessageIs(server) {
		l.unmarshal(s.GetTypedConfig(), server)
		settle(server.CommonTlsContext)
		s.ConfigType = &core.TransportSocket_TypedConfig{TypedConfig: any1(l.t, server)}
		return
	}
	l.unmarshal(s.GetTypedConfig(), client)
	settle(client.CommonTlsContext)
	s.ConfigType = &core.TransportSocket_TypedConfig{TypedConfig: any1(l.t, client)}
}
