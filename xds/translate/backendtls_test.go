package translate

import (
	stdtls "crypto/tls"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// encryptedApplication speaks HTTP over TLS alone, and says what it was asked for by whom.
func encryptedApplication(t *testing.T, pair stdtls.Certificate) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-seen", fmt.Sprintf("%s over %s", r.TLS.ServerName, r.Proto))
	}))
	s.EnableHTTP2 = true
	s.TLS = &stdtls.Config{Certificates: []stdtls.Certificate{pair}, MinVersion: stdtls.VersionTLS12}
	var complaints strings.Builder // one at a time, says log
	s.Config.ErrorLog = log.New(&complaints, "", 0)
	s.StartTLS()
	t.Cleanup(func() {
		s.Close()
		if strings.Contains(complaints.String(), "HTTP request") { // "client sent an HTTP request to an HTTPS server"
			t.Errorf("the application was spoken to in the clear: %s", &complaints)
		}
	})
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// atHand is a cluster with its endpoints and what it trusts in it, instead of what the
// control plane sends.
func atHand(t *testing.T, c *cluster.Cluster, at netip.AddrPort, v *mesh.View) *cluster.Cluster {
	t.Helper()
	if c.GetType() == cluster.Cluster_STATIC {
		return c
	}
	c.ClusterDiscoveryType, c.EdsClusterConfig = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, nil
	c.LoadAssignment = assignment(c.Name, lbEndpoint(at, true))
	if c.TransportSocket == nil {
		c.TransportSocketMatches = nil
		return c
	}
	var up tls.UpstreamTlsContext
	if err := c.TransportSocket.GetTypedConfig().UnmarshalTo(&up); err != nil {
		t.Fatal(err)
	}
	name := up.CommonTlsContext.GetCombinedValidationContext().ValidationContextSdsSecretConfig.Name
	trust := secret(Key{Type: Secret, Name: name}, v).Message.(*tls.Secret).GetValidationContext()
	up.CommonTlsContext.ValidationContextType = &tls.CommonTlsContext_ValidationContext{ValidationContext: trust}
	c.TransportSocket = &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&up)}}
	return c
}

// A service whose pods speak TLS of their own is called in it by requests in the clear,
// at sidecars and at gateways, if it is whom its policy says; and not at all if not.
func TestRequestsToAServiceThatSpeaksTLS(t *testing.T) {
	if _, err := os.Stat(systemRoots); err != nil {
		t.Fatalf("the machine has no certificates that its system trusts: apt-get install ca-certificates: %v", err)
	}
	pair, chain, _ := issued(t, "web.example.org", "a.names.example.org")
	_, strangers, _ := issued(t, "web.example.org")
	at := encryptedApplication(t, pair)
	ca := []mesh.Backend{{Kind: mesh.BundleConfigMap, Name: mesh.Name{Namespace: "shop", Name: "ca"}}}
	for _, c := range []struct {
		what   string
		prefix string
		policy mesh.BackendTLS
		bundle []byte
		status int
		seen   string
	}{
		{"the name and the authority", prefixService, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca}, chain, 200, "web.example.org over HTTP/1.1"},
		{"a gateway", prefixEdge, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca}, chain, 200, "web.example.org over HTTP/1.1"},
		{"a gateway, HTTP/2", prefixEdgeH2, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca}, chain, 200, "web.example.org over HTTP/2.0"},
		{"another name of it", prefixService, mesh.BackendTLS{Hostname: "any.example.org", Authorities: ca, Names: []string{"web.example.org"}}, chain, 200, "any.example.org over HTTP/1.1"},
		{"a name of many", prefixService, mesh.BackendTLS{Hostname: "any.example.org", Authorities: ca, Names: []string{"*.names.example.org"}, URIs: []string{"spiffe://x/y"}}, chain, 200, "any.example.org over HTTP/1.1"},
		{"not the name", prefixService, mesh.BackendTLS{Hostname: "other.example.org", Authorities: ca}, chain, 503, ""},
		{"not the alternative name", prefixService, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca, Names: []string{"other.example.org"}}, chain, 503, ""},
		{"not the URI", prefixService, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca, URIs: []string{"spiffe://x/y"}}, chain, 503, ""},
		{"another authority", prefixService, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca}, strangers, 503, ""},
		{"the system's authorities", prefixService, mesh.BackendTLS{Hostname: "web.example.org"}, nil, 503, ""},
		{"an authority that is missing", prefixService, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca}, nil, 503, ""},
		{"what cannot be understood", prefixEdge, mesh.BackendTLS{Hostname: "web.example.org", Authorities: ca, Invalid: "x"}, chain, 503, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			service := mesh.Name{Namespace: "shop", Name: "web"}
			c.policy.Meta.Name, c.policy.Targets = service, []mesh.BackendTLSTarget{{Service: "web"}}
			es := []mesh.Entity{&mesh.Service{Name: service, Ports: []mesh.ServicePort{{Port: 80, Protocol: mesh.HTTP}}}, &c.policy}
			if c.bundle != nil {
				es = append(es, &mesh.Bundle{Name: ca[0].Name, PEM: c.bundle})
			}
			v := view(es...)
			name := endpointsOf{service: service, port: 80}.name(c.prefix)
			to := atHand(t, clusterFor(Key{Type: Cluster, Name: name, For: "shop"}, v).Message.(*cluster.Cluster), at, v)
			status, seen := through(t, to)
			if status != c.status || seen != c.seen {
				t.Errorf("answered with %d, and %q was seen; want %d, %q", status, seen, c.status, c.seen)
			}
		})
	}
}

// through asks a cluster by a real Envoy.
func through(t *testing.T, to *cluster.Cluster) (status int, seen string) {
	t.Helper()
	port := freePort(t)
	l := checkingListener("front", uint32(port), &mesh.Config{}, nil, &route.Route{
		Match:  prefixMatch("/"),
		Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: to.Name}}},
	})
	l.BypassOverloadManager = false
	at := fmt.Sprint("127.0.0.1:", port)
	runEnvoy(t, &bootstrap.Bootstrap{StaticResources: &bootstrap.Bootstrap_StaticResources{Clusters: []*cluster.Cluster{to}, Listeners: []*listener.Listener{l}}}, at)
	answer, err := http.Get("http://" + at + "/") //nolint:noctx // the test's own time-out holds
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode, answer.Header.Get("x-seen")
}
