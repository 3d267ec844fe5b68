package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

const (
	xdsPort     = 15010
	metricsPort = 8080
	xdsName     = "tulled.tulle-system.svc"
	secretType  = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// adsClient is a client of the control plane made by hand, which does what no
// Envoy would.
type adsClient struct {
	t    *testing.T
	c    *kube.Cluster
	conn *grpc.ClientConn
	// metrics is where the same replica's metrics are.
	metrics string
}

func newADSClient(t *testing.T, s *space) *adsClient {
	t.Helper()
	var replica string
	eventually(t, time.Minute, "a ready replica of the control plane", func(ctx context.Context) error {
		pods, err := s.c.Client.CoreV1().Pods(kube.TulleNamespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if strings.HasPrefix(p.Name, "tulled-") && kube.PodReady(&p) && p.DeletionTimestamp == nil {
				replica = p.Name
				return nil
			}
		}
		return errors.New("none is ready")
	})
	address, stop, err := s.c.Forward(t.Context(), kube.TulleNamespace, replica, xdsPort)
	must(t, err)
	t.Cleanup(stop)
	metrics, stop, err := s.c.Forward(t.Context(), kube.TulleNamespace, replica, metricsPort)
	must(t, err)
	t.Cleanup(stop)
	trust, err := s.c.Client.CoreV1().ConfigMaps(s.name).Get(t.Context(), "tulle-trust", metav1.GetOptions{})
	must(t, err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(trust.Data["ca.crt"])) {
		t.Fatal("the trust bundle has no certificate")
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: xdsName, MinVersion: tls.VersionTLS13})))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &adsClient{t: t, c: s.c, conn: conn, metrics: metrics}
}

// ask opens a stream, asks for secrets by name and returns those that come
// within the time; the error is how the stream ended, nil if it did not. A replica
// that has more than its share of proxies may say so, and is asked again.
func (a *adsClient) ask(token, node string, within time.Duration, names ...string) (map[string]*secret.Secret, error) {
	a.t.Helper()
	for {
		got, err := a.askOnce(token, node, within, names...)
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "more than its share") {
			return got, err
		}
	}
}

func (a *adsClient) askOnce(token, node string, within time.Duration, names ...string) (map[string]*secret.Secret, error) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), within)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(a.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	request := &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: node}, TypeUrl: secretType, ResourceNamesSubscribe: names}
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	got := map[string]*secret.Secret{}
	for {
		response, err := stream.Recv()
		if ctx.Err() != nil {
			return got, nil // it went on to the end of our time
		}
		if err != nil {
			return got, err
		}
		for _, r := range response.GetResources() {
			var one secret.Secret
			must(a.t, r.GetResource().UnmarshalTo(&one))
			got[r.GetName()] = &one
		}
		ack := &discovery.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()}
		if err := stream.Send(ack); err != nil && !errors.Is(err, io.EOF) {
			return got, err
		}
	}
}

// The replica's counters of what it refused or found odd.
const (
	authenticationFailures = "tulle_xds_authentication_failures_total"
	refusedSubscriptions   = "tulle_xds_refused_subscriptions_total"
	nodeMismatches         = "tulle_xds_node_mismatches_total"
)

// counter is the sum of a metric of the replica over its labels.
func (a *adsClient) counter(name string) float64 {
	a.t.Helper()
	response, err := http.Get("http://" + a.metrics + "/metrics")
	must(a.t, err)
	defer response.Body.Close()
	series := regexp.MustCompile(`^` + name + `(?:\{.*\})? (\S+)$`)
	total := 0.0
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if m := series.FindStringSubmatch(lines.Text()); m != nil {
			v, err := strconv.ParseFloat(m[1], 64)
			must(a.t, err)
			total += v
		}
	}
	must(a.t, lines.Err())
	return total
}

// counts fails the test unless f makes a counter grow.
func (a *adsClient) counts(t *testing.T, name string, f func()) {
	t.Helper()
	before := a.counter(name)
	f()
	if after := a.counter(name); after <= before {
		t.Errorf("%s was %v and is %v: nothing was counted", name, before, after)
	}
}

// token asks the API server for a token of a pod, as a kubelet does.
func (s *space) token(pod *corev1.Pod, audience string) (string, time.Time) {
	s.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences:         []string{audience},
		ExpirationSeconds: ptr.To[int64](600), // the API server's least
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	got, err := s.c.Client.CoreV1().ServiceAccounts(s.name).CreateToken(s.t.Context(), pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	must(s.t, err)
	return got.Status.Token, got.Status.ExpirationTimestamp.Time
}

// identity is the SPIFFE ID in a secret's certificate.
func identity(t *testing.T, s *secret.Secret) string {
	t.Helper()
	block, _ := pem.Decode(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	if block == nil {
		t.Fatalf("secret %s has no certificate", s.GetName())
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	if len(certificate.URIs) != 1 {
		t.Fatalf("secret %s has %d URIs", s.GetName(), len(certificate.URIs))
	}
	return certificate.URIs[0].String()
}

func TestAClientMadeByHandGetsNoIdentityButItsOwn(t *testing.T) {
	s := newSpace(t, "ads", true)
	s.deploy(app{name: "mallory"}, app{name: "victim"})
	mallory, victim := s.running("mallory"), s.running("victim")
	a := newADSClient(t, s)
	own := "spiffe://cluster.local/ns/" + s.name + "/sa/mallory"
	good, expires := s.token(mallory, "tulle")
	wrongAudience, _ := s.token(mallory, "somebody-else")

	node := mallory.Name + "." + s.name
	got, err := a.ask(good, node, 3*time.Second, "workload")
	must(t, err)
	if got["workload"] == nil || identity(t, got["workload"]) != own {
		t.Fatalf("with its own token mallory got %v, want the identity %s", got, own)
	}

	for name, token := range map[string]string{"no token": "", "a token of another audience": wrongAudience, "a token that is none": "a.b.c"} {
		t.Run(name, func(t *testing.T) { a.mustRefuse(t, token) })
	}
	t.Run("another pod's node id", func(t *testing.T) {
		a.counts(t, nodeMismatches, func() {
			got, err := a.ask(good, victim.Name+"."+s.name, 3*time.Second, "workload")
			if err != nil || got["workload"] == nil || identity(t, got["workload"]) != own {
				t.Errorf("got %v and %v, want the identity of the token, %s", got, err, own)
			}
		})
	})
	t.Run("another identity's secret by name", func(t *testing.T) {
		names := []string{
			"spiffe://cluster.local/ns/" + s.name + "/sa/victim",
			"workload|spiffe://cluster.local/ns/" + s.name + "/sa/victim",
			s.name + "/victim", "victim", "workload|" + victim.Name,
		}
		a.counts(t, refusedSubscriptions, func() {
			got, err := a.ask(good, node, 3*time.Second, append(names, "workload")...)
			if err == nil && (got["workload"] == nil || identity(t, got["workload"]) != own) {
				t.Errorf("the stream went on, but its own identity did not come: %v", got)
			}
			for name, one := range got {
				if one.GetTlsCertificate() != nil && identity(t, one) != own {
					t.Errorf("secret %q brought the identity %s", name, identity(t, one))
				}
			}
		})
	})
	// The API server gives no token for less than ten minutes; the server's own
	// tests have expired ones, signed with keys of theirs.
	if os.Getenv("TULLE_E2E_EXPIRED") == "" {
		return
	}
	t.Run("an expired token", func(t *testing.T) {
		select {
		case <-time.After(time.Until(expires) + 15*time.Second): // clocks may differ by ten
		case <-t.Context().Done():
		}
		a.mustRefuse(t, good)
	})
}

// mustRefuse fails the test unless the token gets nothing, and is counted.
func (a *adsClient) mustRefuse(t *testing.T, token string) {
	t.Helper()
	a.counts(t, authenticationFailures, func() {
		got, err := a.ask(token, "mallory", 3*time.Second, "workload")
		if code := status.Code(err); err == nil || (code != codes.Unauthenticated && code != codes.PermissionDenied) {
			t.Errorf("the stream ended with %v, want it refused as unauthenticated", err)
		}
		if len(got) > 0 {
			t.Errorf("got %d secrets", len(got))
		}
	})
}
