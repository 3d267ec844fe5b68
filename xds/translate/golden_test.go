package translate_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/controllers/observe"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

var update = flag.Bool("update", false, "rewrite the expected files")

// shown is how a target stands in a golden file.
type shown struct {
	Type     string         `json:"type"`
	Name     string         `json:"name"`
	For      string         `json:"for,omitempty"`
	Clusters []string       `json:"clusters,omitempty"`
	Findings []string       `json:"findings,omitempty"`
	Resource map[string]any `json:"resource,omitempty"`
}

// Each testdata/<case>/input.yaml holds Kubernetes objects; its first line says
// which targets of the mesh that they make are shown in envoy.yaml.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/input.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, input := range cases {
		dir := filepath.Dir(input)
		t.Run(filepath.Base(dir), func(t *testing.T) { golden(t, dir) })
	}
}

func golden(t *testing.T, dir string) {
	text, err := os.ReadFile(filepath.Join(dir, "input.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	show, ok := bytes.CutPrefix(first, []byte("# show:"))
	if !ok {
		t.Fatal("the first line of input.yaml must be '# show:' and the types, or type/name, to show")
	}
	snapshot, _ := mesh.New(&mesh.Config{}).Apply(observe.Changes(objects(t, text)...)...)
	var out []shown
	var (
		built    []translate.Key
		messages []proto.Message
	)
	for _, k := range keys(snapshot) {
		view := mesh.NewView(snapshot)
		r := translate.Build(k, view)
		if r.Message != nil {
			built, messages = append(built, k), append(messages, r.Message)
		}
		if wanted(strings.Fields(string(show)), k) {
			out = append(out, display(t, k, r))
		}
	}
	validate(t, built, messages)
	got, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "envoy.yaml")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s differs from what was built; read the difference after: go test ./xds/translate -update", file)
	}
}

func wanted(show []string, k translate.Key) bool {
	return slices.Contains(show, k.Type.String()) || slices.Contains(show, k.Type.String()+"/"+k.Name)
}

func objects(t *testing.T, text []byte) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Contains(text, []byte("$certificate")) {
		certificate, key := selfSigned(t)
		text = bytes.ReplaceAll(text, []byte("$certificate"), certificate)
		text = bytes.ReplaceAll(text, []byte("$key"), key)
	}
	if bytes.Contains(text, []byte("$bundle")) {
		certificate, _ := selfSigned(t)
		plain, err := base64.StdEncoding.DecodeString(string(certificate))
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("$bundle"), []byte(strconv.Quote(string(plain))))
	}
	decode := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		o, _, err := decode.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		out = append(out, o)
	}
	return out
}

// selfSigned is a certificate of example.org and its key, as a Secret has them.
func selfSigned(t *testing.T) (certificate, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"example.org"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	in := func(block string, der []byte) []byte {
		return []byte(base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})))
	}
	return in("CERTIFICATE", der), in("PRIVATE KEY", pkcs8)
}

// keys are all targets that the snapshot's objects give rise to.
func keys(s *mesh.Snapshot) []translate.Key {
	var out []translate.Key
	add := func(t translate.Type, name, for_ string) {
		out = append(out, translate.Key{Type: t, Name: name, For: for_})
	}
	for _, n := range []string{"outbound", "egress", "stats", "ready"} {
		add(translate.Listener, n, "")
	}
	for _, n := range []string{"inbound", "passthrough", "blackhole", "probes", "probes-tls", "admin"} {
		add(translate.Cluster, n, "")
	}
	add(translate.Secret, "roots", "")
	namespaces := []string{}
	for w := range s.Workloads() {
		if !slices.Contains(namespaces, w.Namespace) {
			namespaces = append(namespaces, w.Namespace)
		}
		for _, a := range w.Addresses {
			for _, p := range w.Ports {
				for _, form := range []string{"http", "tcp"} {
					add(translate.Cluster, fmt.Sprintf("%s|%s:%d", form, a, p.Port), w.Namespace)
				}
			}
		}
		if w.Meshed {
			add(translate.Listener, "inbound", translate.ForInbound(s.Profile(w), w.Drains()))
			add(translate.Listener, "probes", s.Profile(w))
			add(translate.Route, "inbound", s.Profile(w))
			for p := range s.Policies() {
				if p.TLS == nil {
					continue
				}
				for _, port := range p.TLS.Ports {
					add(translate.Secret, translate.PrefixEnded+port.Certificate.String(), s.Profile(w))
					for _, route := range []string{fmt.Sprintf("inbound|%d", port.Port), fmt.Sprintf("inbound|%d|mesh", port.Port)} {
						add(translate.Route, route, s.Profile(w))
						for _, c := range translate.Build(translate.Key{Type: translate.Route, Name: route, For: s.Profile(w)}, mesh.NewView(s)).Clusters {
							if strings.HasPrefix(c, "inbound") {
								add(translate.Cluster, c, "")
							}
						}
					}
				}
			}
			for _, p := range w.Probes {
				if p.Kind != mesh.ProbeHTTP {
					add(translate.Cluster, translate.PrefixProbe+p.Path, w.Name.String())
				}
			}
		}
	}
	s.VIPs(func(vip string) {
		add(translate.Scope, vip, "")
		for _, ns := range namespaces {
			add(translate.Route, vip, ns)
		}
	})
	// cluster is a service's, with the load assignments that its clients ask for.
	cluster := func(name string, clients []string) {
		if strings.HasPrefix(name, translate.PrefixOut) {
			return // a gateway's (outs)
		}
		for _, c := range clients {
			add(translate.Cluster, name, c)
		}
		add(translate.Endpoints, name, "")
		for _, c := range clients {
			eds := translate.Build(translate.Key{Type: translate.Cluster, Name: name, For: c}, mesh.NewView(s)).EDS
			for w := range s.Workloads() {
				if w.Namespace == c && w.Meshed {
					add(translate.Endpoints, eds, translate.ForEndpoints(eds, s.Locality(w)))
				}
			}
		}
	}
	for svc := range s.Services() {
		// Clients of its own namespace, and of those that may see it otherwise.
		clients := []string{svc.Namespace}
		for p := range s.Policies() {
			if p.Traffic != nil && !slices.Contains(clients, p.Meta.Namespace) && p.Meta.Namespace != s.Config().RootNamespace {
				clients = append(clients, p.Meta.Namespace)
			}
		}
		for _, p := range svc.Ports {
			name := fmt.Sprintf("%s|%d", svc.Name, p.Port)
			add(translate.Secret, "san|"+name, "")
			if len(s.BackendTLSPolicies()) > 0 {
				add(translate.Secret, "san|"+name+"|tls", "")
			}
			for x := range s.Splits() {
				if x.Service == svc.Name.Name && x.Meta.Namespace == svc.Namespace {
					add(translate.Secret, "san|"+name+"|split", "")
				}
			}
			cluster("svc|"+name, clients)
		}
		for _, vip := range svc.VIPs() {
			cluster("tcp|"+vip, clients)
		}
	}
	// Routes may refer to some of a service's pods.
	for _, k := range out {
		if k.Type == translate.Route && k.For != "" {
			namespace, _, _ := strings.Cut(k.For, "/") // of a profile, or all of it
			for _, c := range translate.Build(k, mesh.NewView(s)).Clusters {
				if !strings.HasPrefix(c, translate.ClusterInbound) {
					cluster(c, []string{namespace})
				}
			}
		}
	}
	out = append(out, externalKeys(s)...)
	for p := range s.Policies() {
		out = append(out, translate.FindingsKey(translate.KindPolicy, p.Meta.Name))
	}
	for _, p := range s.BackendTLSPolicies() {
		out = append(out, translate.FindingsKey(translate.KindBackendTLS, p.Meta.Name))
	}
	for x := range s.Splits() {
		out = append(out, translate.FindingsKey(translate.KindSplit, x.Meta.Name))
	}
	for g := range s.Gateways() {
		gateway := g.Meta.Name.String()
		add(translate.Listener, "gateway", gateway)
		for _, c := range translate.Build(translate.Key{Type: translate.Listener, Name: "gateway", For: gateway}, mesh.NewView(s)).Clusters {
			cluster(c, []string{g.Meta.Namespace})
		}
		for _, l := range g.Listeners {
			for _, name := range []string{fmt.Sprintf("gateway|%d", l.Port), fmt.Sprintf("gateway|%d|%s", l.Port, l.Name)} {
				add(translate.Route, name, gateway)
				for _, c := range translate.Build(translate.Key{Type: translate.Route, Name: name, For: gateway}, mesh.NewView(s)).Clusters {
					cluster(c, []string{g.Meta.Namespace})
				}
			}
			for _, name := range outs(s, gateway, l) {
				add(translate.Cluster, name, gateway)
			}
			for _, c := range l.Certificates {
				add(translate.Secret, "tls|"+c.Name.String(), gateway)
			}
			if l.Clients != nil {
				add(translate.Secret, fmt.Sprintf("san|%s|%d|clients", gateway, l.Port), "")
			}
		}
		if c := g.Certificate; c != nil {
			add(translate.Secret, "tls|"+c.Name.String(), gateway)
		}
		out = append(out, translate.FindingsKey(translate.KindGateway, g.Meta.Name))
	}
	for r := range s.Routes() {
		k, _ := translate.FindingsFor(r.Ref())
		out = append(out, k)
	}
	seen := map[translate.Key]bool{}
	return slices.DeleteFunc(out, func(k translate.Key) bool { had := seen[k]; seen[k] = true; return had })
}

// outs are the clusters by which calls leave that come to a gateway's listener, as its
// chains and routes name them.
func outs(s *mesh.Snapshot, gateway string, at mesh.Listener) []string {
	var out []string
	l := translate.Build(translate.Key{Type: translate.Listener, Name: "gateway", For: gateway}, mesh.NewView(s))
	out = append(out, l.Clusters...)
	if l, ok := l.Message.(*listener.Listener); ok {
		for _, c := range l.GetFilterChains() {
			if of, ok := strings.CutPrefix(c.GetName(), fmt.Sprintf("%d|%s|ext|", at.Port, at.Name)); ok && strings.Count(of, "|") == 1 {
				for _, id := range c.GetFilterChainMatch().GetServerNames() {
					out = append(out, translate.PrefixOut+of+"|"+id)
				}
			}
		}
	}
	for _, name := range []string{fmt.Sprintf("gateway|%d", at.Port), fmt.Sprintf("gateway|%d|%s", at.Port, at.Name)} {
		r := translate.Build(translate.Key{Type: translate.Route, Name: name, For: gateway}, mesh.NewView(s))
		out = append(out, r.Clusters...)
		if r, ok := r.Message.(*route.RouteConfiguration); ok {
			for _, h := range r.GetVirtualHosts() {
				for _, one := range h.GetRoutes() {
					out = append(out, one.GetRoute().GetCluster())
				}
			}
		}
	}
	return slices.DeleteFunc(out, func(name string) bool { return !strings.HasPrefix(name, translate.PrefixOut) })
}

// externalKeys are the targets that there are where the mesh has external services.
func externalKeys(s *mesh.Snapshot) []translate.Key {
	var out []translate.Key
	for e := range s.Externals() {
		out = append(out, translate.FindingsKey(translate.KindExternal, e.Meta.Name))
		for w := range s.Workloads() {
			account := translate.ForEgress(w.Namespace, w.ServiceAccount)
			out = append(out,
				translate.Key{Type: translate.Listener, Name: "egress", For: account},
				translate.Key{Type: translate.Route, Name: "egress", For: account},
				translate.Key{Type: translate.Route, Name: "egress-at", For: account},
				translate.Key{Type: translate.Cluster, Name: "passthrough-http"},
				translate.Key{Type: translate.Cluster, Name: "external-names"},
			)
			for _, p := range e.Ports {
				for _, h := range e.Hosts {
					out = append(out, translate.Key{Type: translate.Cluster, Name: fmt.Sprintf("ext|%s:%d", h, p.Number), For: w.Namespace})
				}
				for _, a := range e.At(p) {
					out = append(out, translate.Key{Type: translate.Cluster, Name: "ext|" + netip.AddrPortFrom(a.Addr(), p.Number).String(), For: w.Namespace})
				}
			}
		}
	}
	return out
}

func display(t *testing.T, k translate.Key, r translate.Result) shown {
	t.Helper()
	out := shown{Type: k.Type.String(), Name: k.Name, For: k.For, Clusters: r.Clusters}
	for _, f := range r.Findings {
		if f.Type == "" { // that it was looked at
			continue
		}
		checkWords(t, f)
		parent := ""
		switch kind := k.Name[:strings.IndexByte(k.Name, '/')]; {
		case kind == translate.KindBackendTLS:
			parent = map[mesh.Kind]string{mesh.KindGateway: "Gateway ", mesh.KindService: "Service "}[f.Ancestor.Kind] + f.Ancestor.Name.String() + ": "
		case strings.HasSuffix(kind, "Route"):
			parent = fmt.Sprintf("parentRefs[%d]: ", f.Parent)
		case kind == translate.KindGateway && f.Parent >= 0:
			parent = fmt.Sprintf("listeners[%d]: ", f.Parent)
		}
		if f.Type == "AttachedRoutes" {
			out.Findings = append(out.Findings, fmt.Sprintf("%s%d routes", parent, f.Count))
			continue
		}
		out.Findings = append(out.Findings, fmt.Sprintf("%s%s=%t %s: %s", parent, f.Type, f.OK, f.Reason, f.Message))
	}
	if r.Message == nil {
		return out
	}
	j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r.Message)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(j, &out.Resource); err != nil {
		t.Fatal(err)
	}
	return out
}

// checkWords holds findings to the API's types and reasons of conditions, which
// the translator does not import.
func checkWords(t *testing.T, f mesh.Finding) {
	t.Helper()
	words := map[string][]string{
		v1alpha1.ConditionAccepted: {v1alpha1.ReasonAccepted, v1alpha1.ReasonInvalid, v1alpha1.ReasonConflicted, v1alpha1.ReasonClientUnknown, v1alpha1.ReasonTokensUnknown, v1alpha1.ReasonNotHTTP},
		v1alpha1.ConditionResolvedRefs: {
			v1alpha1.ReasonResolvedRefs, v1alpha1.ReasonServiceNotFound, v1alpha1.ReasonPortNotFound, v1alpha1.ReasonRefNotPermitted,
			v1alpha1.ReasonTargetNotFound, v1alpha1.ReasonAuthorizerNotFound, v1alpha1.ReasonKeysNotFound, v1alpha1.ReasonKeysIncomplete,
			v1alpha1.ReasonGatewayNotFound, v1alpha1.ReasonInvalidCertificateRef,
		},
	}
	if f.Kind == mesh.KindHTTPRoute || f.Kind == mesh.KindGRPCRoute || f.Kind == mesh.KindTLSRoute || f.Kind == mesh.KindTCPRoute {
		words = map[string][]string{
			string(gatewayv1.RouteConditionAccepted): {
				string(gatewayv1.RouteReasonAccepted), string(gatewayv1.RouteReasonNoMatchingParent),
				string(gatewayv1.RouteReasonUnsupportedValue), v1alpha1.ReasonConflicted, // GEP-1294
				string(gatewayv1.RouteReasonNotAllowedByListeners), string(gatewayv1.RouteReasonNoMatchingListenerHostname),
			},
			string(gatewayv1.RouteConditionResolvedRefs): {
				string(gatewayv1.RouteReasonResolvedRefs), string(gatewayv1.RouteReasonBackendNotFound),
				string(gatewayv1.RouteReasonRefNotPermitted), string(gatewayv1.RouteReasonInvalidKind), string(gatewayv1.RouteReasonUnsupportedProtocol),
			},
		}
	}
	if f.Kind == mesh.KindBackendTLS {
		words = map[string][]string{
			string(gatewayv1.PolicyConditionAccepted): {
				string(gatewayv1.PolicyReasonAccepted), string(gatewayv1.PolicyReasonConflicted), string(gatewayv1.PolicyReasonInvalid),
				string(gatewayv1.PolicyReasonTargetNotFound), string(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate),
			},
			string(gatewayv1.BackendTLSPolicyConditionResolvedRefs): {
				string(gatewayv1.BackendTLSPolicyReasonResolvedRefs), string(gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef), string(gatewayv1.BackendTLSPolicyReasonInvalidKind),
			},
		}
	}
	if f.Kind == mesh.KindGateway {
		words = map[string][]string{
			"Accepted": {
				string(gatewayv1.GatewayReasonAccepted), string(gatewayv1.GatewayReasonListenersNotValid), string(gatewayv1.ListenerReasonUnsupportedProtocol),
				string(gatewayv1.ListenerReasonPortUnavailable), string(gatewayv1.ListenerReasonHostnameConflict), string(gatewayv1.ListenerReasonProtocolConflict), string(gatewayv1.ListenerReasonUnsupportedValue), string(gatewayv1.ListenerReasonNoValidCACertificate),
			},
			"Programmed": {string(gatewayv1.ListenerReasonProgrammed), string(gatewayv1.ListenerReasonInvalid)},
			"Conflicted": {string(gatewayv1.ListenerReasonNoConflicts), string(gatewayv1.ListenerReasonHostnameConflict), string(gatewayv1.ListenerReasonProtocolConflict)},
			"ResolvedRefs": {
				string(gatewayv1.ListenerReasonResolvedRefs), string(gatewayv1.ListenerReasonInvalidCertificateRef), string(gatewayv1.ListenerReasonRefNotPermitted), string(gatewayv1.ListenerReasonInvalidRouteKinds),
				string(gatewayv1.ListenerReasonInvalidCACertificateRef), string(gatewayv1.ListenerReasonInvalidCACertificateKind),
				string(gatewayv1.GatewayReasonInvalidClientCertificateRef), string(gatewayv1.GatewayReasonListenersNotResolved),
			},
			"AttachedRoutes": {""},

			string(gatewayv1.GatewayConditionInsecureFrontendValidationMode): {string(gatewayv1.GatewayReasonConfigurationChanged)},
		}
	}
	if !slices.Contains(words[f.Type], f.Reason) {
		t.Errorf("%s=%t for the reason %s is not in the API's words", f.Type, f.OK, f.Reason)
	}
}

// validate has a real Envoy read everything that was built.
func validate(t *testing.T, keys []translate.Key, messages []proto.Message) {
	t.Helper()
	envoy := os.Getenv("ENVOY")
	if envoy == "" {
		t.Fatal("ENVOY does not name the Envoy binary; run: make test")
	}
	b := &bootstrap.Bootstrap{
		Node:            &core.Node{Id: "golden", Cluster: "golden"},
		StaticResources: &bootstrap.Bootstrap_StaticResources{},
		DynamicResources: &bootstrap.Bootstrap_DynamicResources{AdsConfig: &core.ApiConfigSource{
			ApiType: core.ApiConfigSource_DELTA_GRPC, TransportApiVersion: core.ApiVersion_V3,
			GrpcServices: []*core.GrpcService{{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: "ads"}}}},
		}},
	}
	r := b.StaticResources
	r.Clusters = append(r.Clusters, &cluster.Cluster{Name: "ads", ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}})
	port := uint32(20000)
	for i, m := range messages {
		switch m := m.(type) {
		case *cluster.Cluster:
			c := proto.CloneOf(inFile(m))
			if slices.ContainsFunc(r.Clusters, func(o *cluster.Cluster) bool { return o.Name == c.Name }) {
				c.Name += "|" + keys[i].For // another pod's, or namespace's, of the name
			}
			r.Clusters = append(r.Clusters, c)
		case *listener.Listener:
			l := proto.CloneOf(m)
			port++
			l.Name = fmt.Sprint(l.Name, port)
			l.GetAddress().GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: port}
			for _, a := range l.GetAdditionalAddresses() {
				a.GetAddress().GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: port}
			}
			r.Listeners = append(r.Listeners, l)
		case *route.RouteConfiguration:
			port++
			r.Listeners = append(r.Listeners, carrier(port, m))
		case *tls.Secret:
			r.Secrets = append(r.Secrets, m)
		}
	}
	j, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, j, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(envoy, "--mode", "validate", "-c", file, "-l", "error", "--use-dynamic-base-id").CombinedOutput(); err != nil {
		t.Errorf("Envoy refuses what was built: %v\n%s", err, out)
	}
}

// inFile is the cluster as a file can have it: a STATIC one whose secrets come
// over ADS is read before there is ADS, and Envoy 1.40 crashes.
func inFile(c *cluster.Cluster) *cluster.Cluster {
	if c.GetType() != cluster.Cluster_STATIC || c.TransportSocket == nil {
		return c
	}
	c = proto.CloneOf(c)
	c.LoadAssignment = nil
	c.ClusterDiscoveryType = &cluster.Cluster_Type{Type: cluster.Cluster_EDS}
	c.EdsClusterConfig = &cluster.Cluster_EdsClusterConfig{EdsConfig: &core.ConfigSource{
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}, ResourceApiVersion: core.ApiVersion_V3,
	}}
	return c
}

// carrier is a listener that has the routes in it.
func carrier(port uint32, rc *route.RouteConfiguration) *listener.Listener {
	m := &hcm.HttpConnectionManager{
		StatPrefix:     "carrier",
		RouteSpecifier: &hcm.HttpConnectionManager_RouteConfig{RouteConfig: rc},
		HttpFilters: []*hcm.HttpFilter{{Name: "router", ConfigType: &hcm.HttpFilter_TypedConfig{
			TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
		}}},
	}
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return &listener.Listener{
		Name:    fmt.Sprint("carrier", port),
		Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: "127.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}},
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
			Name: "envoy.filters.network.http_connection_manager", ConfigType: &listener.Filter_TypedConfig{TypedConfig: a},
		}}}},
	}
}
