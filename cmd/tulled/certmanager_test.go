package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/ca/certmanager"
	"github.com/tulle-mesh/tulle/ca/certmanager/fake"
	"github.com/tulle-mesh/tulle/config/apitest"
)

const signing = "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default, annotations: {mesh.tulle.dev/rotate-ca: %q}}\nspec: {certificates: {lifetime: 1m}, ca: {certManager: {issuerRef: {name: %s}, signs: %s}}}\n"

// The mesh goes from its own authority to cert-manager's intermediate, to
// cert-manager's leaves, and back. Two stock Envoys open a connection to each other
// all the time; none fails.
func TestNoHandshakeFailsWhileCertManagerComesAndGoes(t *testing.T) {
	m := startOpening(t)
	stop := m.keepOpening(t)
	first := m.authority(t)

	m.apply(t, fmt.Sprintf(signing, "", "company", ca.SignsIntermediate))
	m.says(t, ca.ReasonUnavailable, "cert-manager is not installed")
	signers := m.installCertManager(t)
	m.reach(t, ca.PhaseDistribute)
	m.rootsOf(t, 2)
	m.kubelets(t)
	m.rotated(t, 1)
	m.kubelets(t)
	m.reconnect(t)
	m.current(t)
	second := m.authority(t)
	if second.RootKey || len(second.Roots) != 1 || second.Record.Signer == nil || second.Issuer.KeyID == first.Issuer.KeyID {
		t.Errorf("from %+v to %+v", first, second)
	}

	m.apply(t, fmt.Sprintf(signing, "", "company", ca.SignsLeaves))
	m.reach(t, ca.PhaseDistribute)
	m.kubelets(t)
	m.control.end(t, syscall.SIGKILL)
	m.control = startControlPlane(t, m.whole, m.kubeconfig, "tulled-2")
	m.toXDS.redirect(m.control.xds)
	m.rotated(t, 2)
	m.kubelets(t)
	m.reconnect(t)
	m.current(t)
	third := m.authority(t)
	if third.Record.Delegation == nil || len(third.Roots) != 1 || third.Roots[0].KeyID != second.Roots[0].KeyID || len(third.Servers) != 1 {
		t.Errorf("from %+v to %+v", second, third)
	}
	m.rootsOf(t, 1)

	// All leaves are signed anew, by an issuer that takes its time.
	signers.Behave(fake.Hold)
	m.apply(t, fmt.Sprintf(signing, ca.Ask{Scope: ca.ScopeIssuer, At: time.Now()}, "company", ca.SignsLeaves))
	m.says(t, ca.ReasonPending, "waits for Issuer company (cert-manager.io)")
	signers.Behave(fake.Sign)
	m.rotated(t, 3)
	m.kubelets(t)

	// The issuer is given another root: what that signs is handed out when everybody
	// trusts it.
	other, err := fake.NewCA("another")
	if err != nil {
		t.Fatal(err)
	}
	signers.Replace(other, true)
	m.reach(t, ca.PhaseDistribute)
	m.kubelets(t)
	m.rotated(t, 4)
	m.kubelets(t)
	if now := m.authority(t); now.Record.History[0].Why != ca.WhyReplaced || now.Roots[0].KeyID != ca.KeyID(other.Root) {
		t.Errorf("it is signed by %+v", now)
	}

	// An intermediate that is its own root.
	m.apply(t, fmt.Sprintf(signing, "", "itself", ca.SignsIntermediate))
	m.reach(t, ca.PhaseDistribute)
	m.rootsOf(t, 2)
	m.kubelets(t)
	m.rotated(t, 5)
	m.kubelets(t)
	m.reconnect(t)
	if now := m.authority(t); now.Roots[0].KeyID != now.Issuer.KeyID || len(now.Roots) != 1 || len(now.Servers) != 0 {
		t.Errorf("it is signed by %+v", now)
	}
	var key corev1.Secret
	if err := signers.Client.Get(t.Context(), types.NamespacedName{Namespace: meshNamespace, Name: certmanager.KeySecret}, &key); !apierrors.IsNotFound(err) {
		t.Errorf("the key of a root stays: %v", err)
	}

	m.apply(t, fmt.Sprintf(rotating, ""))
	m.reach(t, ca.PhaseDistribute)
	m.rootsOf(t, 2)
	m.kubelets(t)
	m.rotated(t, 6)
	m.kubelets(t)
	m.reconnect(t)
	m.current(t)
	if last := m.authority(t); !last.RootKey || len(last.Roots) != 1 || len(last.Servers) != 0 || last.Record.Signer != nil {
		t.Errorf("it ends with %+v", last)
	}
	stop()
	t.Logf("cert-manager signed %d requests", signers.Signed())
	if signers.Signed() < 8 { // an intermediate, and those of two proxies three times at least
		t.Error("leaves were signed by somebody else")
	}
	m.audited(t, m.control.log)
	var left cmapi.CertificateRequestList
	eventually(t, "nothing to be left of the requests", func() error {
		if err := signers.Client.List(t.Context(), &left); err != nil {
			return err
		}
		for _, cr := range left.Items {
			if !strings.Contains(fmt.Sprint(cr.Status.Conditions), "Issued") { // one that was not taken is kept for people to read
				return fmt.Errorf("there is %s: %v", cr.Name, cr.Status.Conditions)
			}
		}
		return nil
	})
}

// installCertManager installs cert-manager's CRDs and an issuer, and has requests
// answered.
func (c *cluster) installCertManager(t *testing.T) *fake.Controllers {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	crds, err := apitest.CertManagerCRDs()
	must(err)
	config := rest.CopyConfig(c.config)
	config.QPS = -1
	_, err = envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{crds}, ErrorIfPathMissing: true})
	must(err)
	scheme := runtime.NewScheme()
	must(errors.Join(clientgoscheme.AddToScheme(scheme), certmanager.AddToScheme(scheme)))
	all, err := client.New(config, client.Options{Scheme: scheme})
	must(err)
	authority, err := fake.NewCA("company")
	must(err)
	signers := fake.New(all, authority)
	var wg sync.WaitGroup
	wg.Go(func() { signers.Run(t.Context()) })
	t.Cleanup(wg.Wait)
	for name, config := range map[string]cmapi.IssuerConfig{"company": {CA: &cmapi.CAIssuer{SecretName: "company"}}, "itself": {SelfSigned: &cmapi.SelfSignedIssuer{}}} {
		must(all.Create(t.Context(), &cmapi.Issuer{ObjectMeta: metav1.ObjectMeta{Namespace: meshNamespace, Name: name}, Spec: cmapi.IssuerSpec{IssuerConfig: config}}))
	}
	return signers
}
