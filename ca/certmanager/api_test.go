package certmanager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/ca/certmanager/fake"
	"github.com/tulle-mesh/tulle/config/apitest"
)

const namespace = "tulle-system"

// house is an API server with what imitates cert-manager.
type house struct {
	config     *rest.Config // as the control plane's service account
	admin      client.WithWatch
	controller *fake.Controllers
	ca         *fake.CA
	scheme     *runtime.Scheme
}

// On a real API server, with the permissions that deploy/base gives and no others.
func TestARealAPIServer(t *testing.T) {
	h := open(t)
	t.Run("that has no cert-manager says so", h.notInstalled)
	h.install(t)
	t.Run("an issuer that is not there is named", h.noIssuer)
	h.issuers(t)
	t.Run("an intermediate and leaves are signed, and nothing is left", h.signs)
	t.Run("the key of a root that signs itself is there for the request alone", h.selfSigned)
	t.Run("no leaves are asked of an issuer that is SelfSigned", h.noSelfSignedLeaves)
	t.Run("what is refused is said, and asked for again later", h.refused)
	t.Run("that nothing can be asked is said before somebody needs it", h.tries)
	t.Run("what is not answered is waited for, and asked for once", h.pending)
	t.Run("what is deleted while it is waited for is asked for again", h.deleted)
	t.Run("what may be taken later is not asked for again", h.later)
	t.Run("what nobody waits for is deleted", h.cleared)
	t.Run("what is withdrawn is deleted at once", h.withdrawn)
	t.Run("many are signed in their turn", h.many)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T) *house {
	t.Helper()
	h := &house{scheme: runtime.NewScheme()}
	must(t, errors.Join(clientgoscheme.AddToScheme(h.scheme), AddToScheme(h.scheme)))
	config := apitest.Start(t)
	config.QPS = -1
	var err error
	h.admin, err = client.NewWithWatch(config, client.Options{Scheme: h.scheme})
	must(t, err)
	h.config = rest.CopyConfig(config)
	h.config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:tulle-system:tulled"}
	must(t, h.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}))
	root, err := apitest.Root()
	must(t, err)
	for _, file := range []string{"role.yaml", "bindings.yaml"} {
		content, err := os.ReadFile(filepath.Join(root, "deploy", "base", "rbac", file))
		must(t, err)
		for _, document := range strings.Split(string(content), "---\n") {
			var kind metav1.TypeMeta
			must(t, yaml.Unmarshal([]byte(document), &kind))
			objects := map[string]client.Object{
				"Role": &rbacv1.Role{}, "ClusterRole": &rbacv1.ClusterRole{}, "RoleBinding": &rbacv1.RoleBinding{}, "ClusterRoleBinding": &rbacv1.ClusterRoleBinding{},
			}
			if o := objects[kind.Kind]; o != nil {
				must(t, yaml.Unmarshal([]byte(document), o))
				must(t, h.admin.Create(t.Context(), o))
			}
		}
	}
	return h
}

// install installs the CRDs, and has requests answered.
func (h *house) install(t *testing.T) {
	t.Helper()
	crds, err := apitest.CertManagerCRDs()
	must(t, err)
	config := rest.CopyConfig(h.config)
	config.Impersonate = rest.ImpersonationConfig{}
	_, err = envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{crds}, ErrorIfPathMissing: true})
	must(t, err)
	h.admin, err = client.NewWithWatch(config, client.Options{Scheme: h.scheme})
	must(t, err)
	h.ca, err = fake.NewCA("company")
	must(t, err)
	h.controller = fake.New(h.admin, h.ca)
	var wg sync.WaitGroup
	wg.Go(func() { h.controller.Run(t.Context()) })
	t.Cleanup(wg.Wait) // the test's context has ended then
}

func (h *house) issuers(t *testing.T) {
	t.Helper()
	for name, spec := range map[string]cmapi.IssuerConfig{
		"company": {CA: &cmapi.CAIssuer{SecretName: "company"}}, "itself": {SelfSigned: &cmapi.SelfSignedIssuer{}},
	} {
		must(t, h.admin.Create(t.Context(), &cmapi.Issuer{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: cmapi.IssuerSpec{IssuerConfig: spec}}))
	}
	must(t, h.admin.Create(t.Context(), &cmapi.ClusterIssuer{ObjectMeta: metav1.ObjectMeta{Name: "everywhere"}, Spec: cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{CA: &cmapi.CAIssuer{SecretName: "company"}}}}))
}

// clock may be ahead.
type clock struct{ ahead time.Duration }

func (c *clock) now() time.Time { return time.Now().Add(c.ahead) }

// remote is a replica of its own.
func (h *house) remote(t *testing.T, edits ...func(*Options)) *Remote {
	t.Helper()
	c, err := client.NewWithWatch(h.config, client.Options{Scheme: h.scheme})
	must(t, err)
	o := Options{Client: c, Namespace: namespace, Replica: "tulled-1", Log: logr.Discard(), Registerer: prometheus.NewRegistry()}
	for _, edit := range edits {
		edit(&o)
	}
	r, err := New(o)
	must(t, err)
	return r
}

func by(name string, signs ca.Signs) ca.Signer {
	return ca.Signer{Name: name, Kind: "Issuer", Group: "cert-manager.io", Signs: signs}
}

// order is a new one; of a leaf, where an account is named.
func order(t *testing.T, signer ca.Signer, account string) ca.Order {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	o := ca.Order{Signer: signer, Key: key, Lifetime: time.Hour, Accept: func(ca.Answer) error { return nil }}
	if account != "" {
		o.For = ca.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: account}.String()
	}
	return again(t, o)
}

// again is the order as it is given once more: its request has another signature.
func again(t *testing.T, o ca.Order) ca.Order {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "mesh"}}
	if o.For != "" {
		id, err := url.Parse(o.For)
		must(t, err)
		template = &x509.CertificateRequest{URIs: []*url.URL{id}}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, o.Key)
	must(t, err)
	o.Request, err = x509.ParseCertificateRequest(der)
	must(t, err)
	return o
}

// refuses wants a reason and words of it.
func refuses(t *testing.T, err error, reason, words string) {
	t.Helper()
	var n *ca.NotSigned
	if !errors.As(err, &n) || n.Reason != reason || !strings.Contains(n.Message, words) {
		t.Fatalf("it says %v, and not %s: %s", err, reason, words)
	}
}

func (h *house) requests(t *testing.T) []cmapi.CertificateRequest {
	t.Helper()
	var list cmapi.CertificateRequestList
	must(t, h.admin.List(t.Context(), &list))
	return list.Items
}

func (h *house) hasKey(t *testing.T) bool {
	t.Helper()
	err := h.admin.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: KeySecret}, &corev1.Secret{})
	must(t, client.IgnoreNotFound(err))
	return err == nil
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func (h *house) notInstalled(t *testing.T) {
	r := h.remote(t)
	external := by("company", ca.SignsIntermediate)
	external.Group, external.Kind = "example.com", "Company"
	for _, o := range []ca.Order{order(t, by("company", ca.SignsIntermediate), ""), order(t, by("company", ca.SignsLeaves), "web"), order(t, external, "")} {
		_, err := r.Sign(t.Context(), o)
		refuses(t, err, ca.ReasonUnavailable, "cert-manager is not installed")
	}
	_, err := r.Look(t.Context(), nil)
	refuses(t, err, ca.ReasonUnavailable, "cert-manager is not installed")
}

func TestAnAPIServerThatIsAwayIsSaid(t *testing.T) {
	h := &house{scheme: runtime.NewScheme(), config: &rest.Config{Host: "http://127.0.0.1:1"}}
	must(t, AddToScheme(h.scheme))
	r := h.remote(t)
	_, err := r.Sign(soon(t), order(t, by("company", ca.SignsLeaves), "web"))
	refuses(t, err, ca.ReasonUnavailable, "refused")
	_, err = r.Look(soon(t), nil)
	refuses(t, err, ca.ReasonUnavailable, "list CertificateRequests")
}

func (h *house) noIssuer(t *testing.T) {
	_, err := h.remote(t).Sign(t.Context(), order(t, by("company", ca.SignsIntermediate), ""))
	refuses(t, err, ca.ReasonUnavailable, "there is no Issuer company (cert-manager.io) in the namespace tulle-system: create it")
	everywhere := by("nowhere", ca.SignsIntermediate)
	everywhere.Kind = "ClusterIssuer"
	_, err = h.remote(t).Sign(t.Context(), order(t, everywhere, ""))
	refuses(t, err, ca.ReasonUnavailable, "there is no ClusterIssuer nowhere (cert-manager.io) in the cluster")
}

func (h *house) signs(t *testing.T) {
	r := h.remote(t)
	everywhere := by("everywhere", ca.SignsIntermediate)
	everywhere.Kind = "ClusterIssuer"
	external := by("company", ca.SignsLeaves)
	external.Group, external.Kind = "example.com", "Company"
	for _, o := range []ca.Order{
		order(t, by("company", ca.SignsIntermediate), ""), order(t, by("company", ca.SignsLeaves), "web"), order(t, everywhere, ""), order(t, external, "web"),
	} {
		answer, err := r.Sign(t.Context(), o)
		must(t, err)
		leaf := answer.Chain[0]
		if leaf.IsCA != (o.For == "") || len(answer.Roots) != 1 || !answer.Roots[0].Equal(h.ca.Root) {
			t.Errorf("the answer for %q is %+v", o.For, leaf)
		}
		if o.For != "" && (leaf.URIs[0].String() != o.For || len(leaf.ExtKeyUsage) != 2 || leaf.KeyUsage != x509.KeyUsageDigitalSignature) {
			t.Errorf("the leaf is for %v, %v", leaf.URIs, leaf.ExtKeyUsage)
		}
	}
	if left := h.requests(t); len(left) > 0 || len(r.asked) > 0 {
		t.Errorf("%d requests are left", len(left))
	}
}

func (h *house) selfSigned(t *testing.T) {
	r := h.remote(t)
	h.controller.Behave(fake.Hold)
	o := order(t, by("itself", ca.SignsIntermediate), "")
	_, err := r.Sign(soon(t), o)
	refuses(t, err, ca.ReasonPending, "nobody has approved it yet")
	if !h.hasKey(t) {
		t.Fatal("the key is not there, by which it signs itself")
	}
	// The process is killed; the next leader has a key of its own.
	next := h.remote(t, func(o *Options) { o.Replica = "tulled-2" })
	_, err = next.Look(t.Context(), nil)
	must(t, err)
	if h.hasKey(t) {
		t.Error("the key of a leader that was killed stays")
	}
	h.controller.Behave(fake.Sign)
	o = order(t, by("itself", ca.SignsIntermediate), "")
	answer, err := next.Sign(t.Context(), o)
	must(t, err)
	if !answer.Chain[0].Equal(answer.Roots[0]) || !o.Key.(*ecdsa.PrivateKey).PublicKey.Equal(answer.Chain[0].PublicKey) {
		t.Error("it is no root with that key")
	}
	if h.hasKey(t) {
		t.Error("the key stays")
	}
	// Nor does it stay for one that was refused, or given up.
	h.controller.Behave(fake.Deny)
	_, err = next.Sign(t.Context(), order(t, by("itself", ca.SignsIntermediate), ""))
	refuses(t, err, ca.ReasonDenied, "no policy allows it")
	if h.hasKey(t) {
		t.Error("the key of a refused request stays")
	}
	h.controller.Behave(fake.Hold)
	given := &clock{}
	last := h.remote(t, func(o *Options) { o.Now = given.now })
	_, err = last.Sign(soon(t), order(t, by("itself", ca.SignsIntermediate), ""))
	refuses(t, err, ca.ReasonPending, "")
	given.ahead = abandonedKey + time.Second
	last.prune(t.Context())
	if h.hasKey(t) {
		t.Error("the key of a request stays that nobody asks for any more")
	}
	h.controller.Behave(fake.Sign)
	h.clear(t)
}

// clear deletes all requests.
func (h *house) clear(t *testing.T) {
	t.Helper()
	must(t, h.admin.DeleteAllOf(t.Context(), &cmapi.CertificateRequest{}, client.InNamespace(namespace)))
}

func (h *house) noSelfSignedLeaves(t *testing.T) {
	_, err := h.remote(t).Sign(t.Context(), order(t, by("itself", ca.SignsLeaves), "web"))
	refuses(t, err, ca.ReasonRefused, "write signs: Intermediate, or name another issuer")
	if n := len(h.requests(t)); n > 0 {
		t.Errorf("%d requests were made", n)
	}
}

func (h *house) refused(t *testing.T) {
	defer h.controller.Behave(fake.Sign)
	strict := func(o ca.Order) ca.Order {
		o.Accept = func(a ca.Answer) error {
			if len(a.Chain[0].DNSNames) > 0 {
				return errors.New("more names")
			}
			return nil
		}
		return o
	}
	for _, c := range []struct {
		behaves       fake.Behaviour
		reason, words string
	}{
		{fake.Deny, ca.ReasonDenied, "was denied: no policy allows it"},
		{fake.Fail, ca.ReasonFailed, "has failed: the signer is broken"},
		{fake.AnotherName, ca.ReasonInvalid, "is not taken: more names"},
		{fake.Garbage, ca.ReasonInvalid, "cannot be read"},
	} {
		now := &clock{}
		r := h.remote(t, func(o *Options) { o.Now = now.now })
		h.controller.Behave(c.behaves)
		for range 3 { // it is not asked for again and again
			_, err := r.Sign(t.Context(), strict(order(t, by("company", ca.SignsLeaves), "web")))
			refuses(t, err, c.reason, c.words)
		}
		if n := len(h.requests(t)); n != 1 {
			t.Fatalf("there are %d requests", n)
		}
		now.ahead = takenTime + minPause
		outlook, err := r.Look(t.Context(), nil)
		must(t, err)
		if outlook.Refused.Reason != c.reason || !strings.Contains(outlook.Refused.Message, "spiffe://cluster.local/ns/shop/sa/web") {
			t.Errorf("the outlook is %+v", outlook)
		}
		_, err = r.Sign(t.Context(), strict(order(t, by("company", ca.SignsLeaves), "web")))
		refuses(t, err, c.reason, c.words)
		if n := len(h.requests(t)); n != 1 {
			t.Errorf("%d requests are kept of one identity", n)
		}
		h.controller.Behave(fake.Sign)
		now.ahead += 3 * minPause
		_, err = r.Sign(t.Context(), strict(order(t, by("company", ca.SignsLeaves), "web")))
		must(t, err)
		if n := len(h.requests(t)); n != 0 {
			t.Errorf("%d requests are left", n)
		}
	}
}

// A webhook stands for cert-manager's, which is away.
func (h *house) tries(t *testing.T) {
	leaves := by("company", ca.SignsLeaves)
	_, err := h.remote(t).Look(t.Context(), &leaves)
	must(t, err)
	missing := by("missing", ca.SignsLeaves)
	_, err = h.remote(t).Look(t.Context(), &missing)
	refuses(t, err, ca.ReasonUnavailable, "there is no Issuer missing")
	if n := len(h.requests(t)); n > 0 {
		t.Errorf("%d requests were made", n)
	}
	path, fail, none := "/", admissionv1.Fail, admissionv1.SideEffectClassNone
	hook := &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "cert-manager-webhook"},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "webhook.cert-manager.io", FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "cert-manager", Name: "cert-manager-webhook", Path: &path}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{"cert-manager.io"}, APIVersions: []string{"v1"}, Resources: []string{"certificaterequests"}},
			}},
		}},
	}
	must(t, h.admin.Create(t.Context(), hook))
	r := h.remote(t)
	for deadline := time.Now().Add(30 * time.Second); ; { // the API server takes it up in a moment
		if _, err = r.Look(t.Context(), &leaves); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody misses the webhook")
		}
	}
	refuses(t, err, ca.ReasonUnavailable, "failed calling webhook")
	_, err = r.Sign(t.Context(), order(t, leaves, "web"))
	refuses(t, err, ca.ReasonUnavailable, "failed calling webhook")
	must(t, h.admin.Delete(t.Context(), hook))
	for deadline := time.Now().Add(30 * time.Second); ; {
		if _, err = r.Look(t.Context(), &leaves); err == nil || time.Now().After(deadline) {
			break
		}
	}
	must(t, err)
}

func (h *house) pending(t *testing.T) {
	defer h.controller.Behave(fake.Sign)
	h.controller.Behave(fake.Hold)
	r := h.remote(t)
	o := order(t, by("company", ca.SignsLeaves), "web")
	for range 2 {
		_, err := r.Sign(soon(t), again(t, o))
		refuses(t, err, ca.ReasonPending, "waits for Issuer company (cert-manager.io) since")
	}
	if n := len(h.requests(t)); n != 1 {
		t.Errorf("there are %d requests", n)
	}
	outlook, err := r.Look(t.Context(), nil)
	must(t, err)
	if outlook.Waiting != 1 || outlook.For != o.For || time.Since(outlook.Since) > time.Minute || r.oldest() <= 0 {
		t.Errorf("the outlook is %+v", outlook)
	}
	h.controller.Behave(fake.Sign)
	_, err = r.Sign(t.Context(), again(t, o))
	must(t, err)
	if n := len(h.requests(t)); n != 0 || r.oldest() != 0 {
		t.Errorf("%d requests are left", n)
	}
}

func (h *house) deleted(t *testing.T) {
	defer h.controller.Behave(fake.Sign)
	h.controller.Behave(fake.Hold)
	r, o := h.remote(t), order(t, by("company", ca.SignsLeaves), "web")
	done := make(chan error, 1)
	go func() {
		_, err := r.Sign(t.Context(), o)
		done <- err
	}()
	for len(h.requests(t)) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	h.clear(t)
	h.controller.Behave(fake.Sign)
	must(t, <-done)
}

func (h *house) later(t *testing.T) {
	r, o := h.remote(t), order(t, by("company", ca.SignsLeaves), "web")
	o.Accept = func(ca.Answer) error { return &ca.NotSigned{Reason: ca.ReasonPending, Message: "not yet"} }
	_, err := r.Sign(t.Context(), o)
	refuses(t, err, ca.ReasonPending, "not yet")
	before := h.requests(t)
	var first *x509.Certificate
	o.Accept = func(a ca.Answer) error { first = a.Chain[0]; return nil }
	_, err = r.Sign(t.Context(), o)
	must(t, err)
	signed, err := read(&before[0])
	must(t, err)
	if len(before) != 1 || !first.Equal(signed.Chain[0]) || len(h.requests(t)) > 0 {
		t.Errorf("%d requests before, %d afterwards, or another certificate", len(before), len(h.requests(t)))
	}
}

func (h *house) many(t *testing.T) {
	const identities = 100
	r := h.remote(t)
	var wg sync.WaitGroup
	begun := h.controller.Signed()
	for i := range identities {
		o := order(t, by("company", ca.SignsLeaves), fmt.Sprint("a", i))
		wg.Go(func() {
			for {
				_, err := r.Sign(t.Context(), o)
				if err == nil {
					return
				}
				var n *ca.NotSigned
				if !errors.As(err, &n) || n.Reason != ca.ReasonPending {
					t.Error(err)
					return
				}
			}
		})
	}
	most := 0
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for open := true; open; {
		select {
		case <-done:
			open = false
		case <-time.After(50 * time.Millisecond):
			var list cmapi.CertificateRequestList
			if err := h.admin.List(t.Context(), &list); err != nil && !apierrors.IsTimeout(err) {
				t.Error(err)
			}
			most = max(most, len(list.Items))
		}
	}
	if n := h.controller.Signed() - begun; n != identities || most > maxWaiting || len(h.requests(t)) > 0 {
		t.Errorf("%d were signed, %d at a time at most, %d are left", n, most, len(h.requests(t)))
	}
}
