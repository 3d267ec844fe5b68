package jwks

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func keySet(t *testing.T, id string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id, Algorithm: "ES256"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func TestPublicAddressesAlone(t *testing.T) {
	for address, want := range map[string]bool{
		"8.8.8.8": true, "2600::1": true, "172.32.0.1": true,
		"127.0.0.1": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false,
		"0.0.0.0": false, "100.64.0.1": false, "198.18.0.1": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false,
		"::1": false, "::": false, "fe80::1": false, "fe80::1%eth0": false, "fd00::1": false, "ff02::1": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:8.8.8.8": true,
		"64:ff9b::a00:1": false, "2002:a00:1::": false, "::127.0.0.1": false, "2001:0:a00:1::": false,
	} {
		s := &settings{}
		if got := s.permits(netip.AddrPortFrom(netip.MustParseAddr(address), 443).String()) == nil; got != want {
			t.Errorf("%s is permitted: %t, want %t", address, got, want)
		}
	}
}

// The address counts, and not the name or what a server redirects to.
func TestRequestsGoWhereTheyMay(t *testing.T) {
	var asked atomic.Int64
	keys := keySet(t, "a")
	var inside *httptest.Server
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/keys":
			w.Header().Set("Cache-Control", "public, max-age=300")
			fmt.Fprint(w, keys)
		case "/long":
			fmt.Fprint(w, strings.Repeat(" ", maxBody), keys)
		case "/plain":
			http.Redirect(w, r, inside.URL+"/keys", http.StatusFound)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		case "/moved":
			http.Redirect(w, r, "/keys", http.StatusMovedPermanently)
		case "/none":
			fmt.Fprint(w, `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`)
		default:
			w.WriteHeader(http.StatusTeapot)
		}
	})
	inside = httptest.NewServer(handler)
	defer inside.Close()
	server := httptest.NewTLSServer(handler)
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	allowed := settings{allowed: loopback}
	for _, c := range []struct {
		name, uri string
		settings  settings
		problem   string // empty: keys
		asked     int64
	}{
		{"allowed", server.URL + "/keys", allowed, "", 1},
		{"moved", server.URL + "/moved", allowed, "", 2},
		{"not allowed", server.URL + "/keys", settings{}, "its address is not a public one", 0},
		{"by a name", strings.Replace(server.URL, "127.0.0.1", "localhost", 1) + "/keys", settings{}, "its address is not a public one", 0},
		{"in another form", strings.Replace(server.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1) + "/keys", settings{}, "its address is not a public one", 0},
		{"plain", inside.URL + "/keys", allowed, "it is asked over http", 0},
		{"plain, allowed", inside.URL + "/keys", settings{allowed: loopback, allowHTTP: true}, "", 1},
		{"redirected to plain", server.URL + "/plain", allowed, "it is asked over http", 1},
		{"redirected for ever", server.URL + "/round", allowed, "it redirects more than 3 times", 4},
		{"too long", server.URL + "/long", allowed, "more than 262144 bytes", 1},
		{"symmetric", server.URL + "/none", allowed, "it is symmetric", 1},
		{"an error", server.URL + "/", allowed, "it answers with status 418", 1},
		{"nobody there", "https://127.0.0.1:1/keys", allowed, "connection refused", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked.Store(0)
			set, maxAge, err := c.settings.fetch(t.Context(), c.uri, &tls.Config{RootCAs: roots})
			switch {
			case c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)):
				t.Errorf("the problem is %v, want %s", err, c.problem)
			case c.problem == "" && (err != nil || !strings.Contains(set.JWKS, `"kid":"a"`) || maxAge != 5*time.Minute):
				t.Errorf("got %v for %s, %v", set, maxAge, err)
			}
			if got := asked.Load(); got != c.asked {
				t.Errorf("%d requests were made, want %d", got, c.asked)
			}
		})
	}
	if _, _, err := allowed.fetch(t.Context(), server.URL+"/keys", nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server that nobody vouches for: %v", err)
	}
}

func TestKeysHoldAsLongAsTheirServerSaysWithinBounds(t *testing.T) {
	s := settings{interval: 10 * time.Minute}
	for header, want := range map[string]time.Duration{
		"": 10 * time.Minute, "no-store": 10 * time.Minute, "max-age=0": 10 * time.Minute, "max-age=5": time.Minute, "private, Max-Age=1200": 20 * time.Minute,
		"max-age=99999999": time.Hour, "max-age=x": 10 * time.Minute,
	} {
		if got := s.pause(age(header)); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

// cluster is what a fetcher reads and writes.
func cluster(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
}

func named(name string, uris ...string) *v1alpha1.MeshPolicy {
	p := &v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: v1alpha1.MeshPolicySpec{JWT: &v1alpha1.JWT{}}}
	for _, u := range uris {
		p.Spec.JWT.Issuers = append(p.Spec.JWT.Issuers, v1alpha1.JWTIssuer{Issuer: u, JWKS: v1alpha1.JWKS{URI: u}})
	}
	return p
}

// Keys are kept when their server fails, are followed when they change, and go with the
// last policy that names them; what somebody else keeps in the ConfigMap stays.
func TestKeysOutliveTheirServersAbsence(t *testing.T) {
	var answer atomic.Value
	answer.Store(keySet(t, "one"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if text := answer.Load().(string); text != "" {
			fmt.Fprint(w, text)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	uri := server.URL + "/keys"
	policy := named("a", uri, "https://127.0.0.1:1/refused")
	config := &v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshConfigSpec{JWKS: v1alpha1.JWKSFetching{AllowedRanges: []string{"127.0.0.0/8"}, AllowHTTP: true}}}
	c := cluster(t, policy, config)
	f := New(Options{Reader: c, Keys: c, Writer: c, Namespace: "tulle-system", Log: logr.Discard(), Registerer: prometheus.NewRegistry()})
	data := func() map[string]string {
		t.Helper()
		var m corev1.ConfigMap
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "tulle-system", Name: "tulle-jwks"}, &m); err != nil {
			t.Fatal(err)
		}
		return m.Data
	}
	round := func() time.Duration {
		t.Helper()
		wait, err := f.tryRound(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return wait
	}
	kept := func() *mesh.KeySet {
		t.Helper()
		got, set, err := mesh.ReadFetched(data()[mesh.FetchedKey(uri)])
		if err != nil || got != uri {
			t.Fatalf("kept for %q: %v", got, err)
		}
		return set
	}
	soon := func() {
		for _, s := range f.due {
			s.next = time.Time{}
		}
	}
	if wait := round(); wait > firstRetry {
		t.Errorf("what failed is tried again after %s, want %s at most", wait, firstRetry)
	}
	if set := kept(); !strings.Contains(set.JWKS, `"one"`) || set.Problem != "" {
		t.Errorf("kept is %+v", set)
	}
	if text := data()[mesh.FetchedKey("https://127.0.0.1:1/refused")]; !strings.Contains(text, "connection refused") {
		t.Errorf("of one that nobody serves is kept %s", text)
	}
	answer.Store("")
	soon()
	round()
	if set := kept(); !strings.Contains(set.JWKS, `"one"`) || !strings.Contains(set.Problem, "those from before hold: it answers with status 503") {
		t.Errorf("when it failed, kept is %+v", set)
	}
	answer.Store(keySet(t, "two"))
	soon()
	round()
	if set := kept(); !strings.Contains(set.JWKS, `"two"`) || strings.Contains(set.JWKS, `"one"`) || set.Problem != "" {
		t.Errorf("of other keys is kept %+v", set)
	}
	var m corev1.ConfigMap
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "tulle-system", Name: "tulle-jwks"}, &m); err != nil {
		t.Fatal(err)
	}
	m.Data["mine.json"] = "{}"
	if err := c.Update(t.Context(), &m); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	round()
	if got := data(); len(got) != 1 || got["mine.json"] == "" {
		t.Errorf("with no policy left is kept %v", got)
	}
}

func TestNoMoreURIsThanAreBearable(t *testing.T) {
	old := named("old")
	for i := range 2 * MaxURIs {
		old.Spec.JWT.Issuers = append(old.Spec.JWT.Issuers, named("", fmt.Sprint("https://a.example/", i)).Spec.JWT.Issuers...)
	}
	old.CreationTimestamp = metav1.NewTime(time.Unix(1, 0))
	young := named("a-young", "https://young.example")
	young.CreationTimestamp = metav1.NewTime(time.Unix(2, 0))
	c := cluster(t, young, old)
	f := New(Options{Reader: c, Keys: c, Writer: c, Namespace: "tulle-system", Log: logr.Discard(), Registerer: prometheus.NewRegistry()})
	uris, s, err := f.wanted(t.Context())
	if err != nil || len(uris) != MaxURIs || uris[0] != "https://a.example/0" || s.interval != defaultInterval {
		t.Errorf("wanted are %d, the first %s, every %s: %v", len(uris), uris[0], s.interval, err)
	}
}
