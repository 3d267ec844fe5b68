package server

import (
	"strings"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// binding says which targets the names on the proxy's stream mean.
func (p proxy) binding() delta.Binding {
	if p.gateway != "" {
		return delta.Binding{
			Bind:      p.bind,
			Listeners: []string{translate.ListenerGateway, translate.ListenerStats},
			Ready:     translate.ListenerReady,
			Clusters:  []string{translate.ClusterAdmin, translate.ClusterBlackhole},
		}
	}
	return delta.Binding{
		Bind: p.bind,
		Listeners: []string{
			translate.ListenerOutbound, translate.ListenerEgress, translate.ListenerInbound,
			translate.ListenerProbes, translate.ListenerStats,
		},
		Ready: translate.ListenerReady,
		Needs: []translate.Type{translate.Secret, translate.Scope},
		Clusters: []string{
			translate.ClusterInbound, translate.ClusterPassthrough, translate.ClusterBlackhole,
			translate.ClusterProbes, translate.ClusterProbesTLS, translate.ClusterAdmin,
		},
	}
}

// bind is the one place that decides what a proxy may have. The certificate is
// that of the stream's own identity, whatever else a proxy may ask for.
func (p proxy) bind(t translate.Type, name string) (build.Key, bool) {
	k := build.Key{Type: t, Name: name}
	switch t {
	case translate.Secret:
		if name == translate.SecretWorkload {
			k.For = p.identity
			return k, true
		}
		if strings.HasPrefix(name, translate.PrefixCertificate) {
			k.For = p.gateway // which may have it, or gets nothing
			return k, p.gateway != ""
		}
		if strings.HasPrefix(name, translate.PrefixEnded) {
			k.For = p.profile // whose workloads' policies name it, or gets nothing
			return k, p.gateway == ""
		}
		return k, name == translate.SecretRoots || strings.HasPrefix(name, translate.PrefixSAN)
	case translate.Listener:
		switch name {
		case translate.ListenerInbound:
			k.For = translate.ForInbound(p.profile, p.drains)
			return k, true
		case translate.ListenerProbes:
			k.For = p.profile
			return k, true
		case translate.ListenerGateway:
			k.For = p.gateway
			return k, p.gateway != ""
		case translate.ListenerEgress:
			k.For = p.account
			return k, true
		case translate.ListenerOutbound, translate.ListenerStats, translate.ListenerReady:
			return k, true
		}
		return k, false
	case translate.Route:
		k.For = p.namespace
		switch {
		case inboundRoute(name):
			k.For = p.profile
		case egressRoute(name):
			k.For = p.account // whose calls they are
		case strings.HasPrefix(name, translate.PrefixGateway):
			k.For = p.gateway
		}
		return k, true
	case translate.Cluster, translate.Endpoints:
		switch {
		case strings.HasPrefix(name, translate.PrefixProbe):
			k.For = p.pod // its own application, at its own address
		case strings.HasPrefix(name, translate.PrefixOut):
			k.For = p.gateway // by which it leaves, or gets nothing
		case t == translate.Cluster && translate.OfService(name):
			k.For = p.namespace // whose policies may say how it is called
		case t == translate.Endpoints:
			k.For = translate.ForEndpoints(name, p.locality)
		}
		return k, true // a name that means nothing gets something empty
	default:
		return k, false
	}
}

func inboundRoute(name string) bool {
	return name == translate.RouteInbound || strings.HasPrefix(name, translate.RouteInbound+"|")
}

func egressRoute(name string) bool {
	return name == translate.RouteEgress || name == translate.RouteEgressAt
}

var typeNames = [...]string{
	translate.Secret: "Secret", translate.Cluster: "Cluster", translate.Endpoints: "Endpoints",
	translate.Listener: "Listener", translate.Scope: "Scope", translate.Route: "Route",
}

func typeName(t translate.Type) string { return typeNames[t] }
