package e2e

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// certManagerDir has cert-manager's module and manifests.
const certManagerDir = "certmanager"

// authorities are what an operator prepares: two authorities of a root that
// cert-manager has made itself, one for a namespace and one for all, and an issuer
// whose requests nobody approves.
const authorities = `
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: bootstrap}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: mesh-ca, namespace: tulle-system}
spec:
  isCA: true
  commonName: The root of a namespace
  secretName: mesh-ca
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {name: bootstrap, kind: ClusterIssuer}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: mesh-ca, namespace: tulle-system}
spec: {ca: {secretName: mesh-ca}}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: withheld, namespace: tulle-system}
spec: {ca: {secretName: mesh-ca}}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: self-signed, namespace: tulle-system}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: mesh-ca, namespace: cert-manager}
spec:
  isCA: true
  commonName: The root of all namespaces
  secretName: mesh-ca
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {name: bootstrap, kind: ClusterIssuer}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: mesh-ca}
spec: {ca: {secretName: mesh-ca}}
`

// switches is a mesh whose authority is switched.
type switches struct {
	*space
	asked    *requests
	lifetime string // of a certificate
	atMost   time.Duration
	pods     []string
}

// Somebody has cert-manager sign for the mesh: an issuer with an authority in a
// Secret, one that nobody approves requests of, one that signs everything with its own
// key, one that signs each certificate, and comes back to the mesh's own. All the time
// several clients call, half of them on new connections, and over TCP with a handshake
// between the sidecars for each. Nobody fails. Roots are distributed for as long as
// kubelets take only with TULLE_E2E_LONG: half an hour in all.
func TestTheAuthorityIsSwitchedToCertManagerAndBackUnderLoadWithoutAFailure(t *testing.T) {
	w := &switches{lifetime: "3m", atMost: 2 * time.Minute}
	if os.Getenv("TULLE_E2E_LONG") != "" {
		w.lifetime, w.atMost = "1h", 12*time.Minute
	} else {
		controlPlaneFlags(t, "--root-spread-time=5s")
	}
	c := cluster(t)
	noLeftovers(t)
	w.space = newSpace(t, "cert-manager", true)
	w.deploy(app{name: "client-1"}, app{name: "client-2"}, app{name: "client-3"}, app{name: "server", replicas: 2})
	w.strict()
	w.pods = w.names()
	t.Cleanup(w.restore)
	w.signs("", w.ownRoot) // with short lives, before anything is measured

	var loads []*loading
	for _, client := range []string{"client-1", "client-2", "client-3"} {
		from := w.in(client)
		w.callUntil(from, answered(200), "http", w.url("server"))
		w.callUntil(from, works, "tcp", w.host("server")+":9001")
		loads = append(
			loads,
			w.startLoad(from, "http", w.url("server"), "--rate", "40", "--connections", "8", "--new-connection-share", "0.5", "--duration", "20m"),
			w.startLoad(from, "tcp", w.host("server")+":9001", "--rate", "10", "--new-connection-share", "1", "--duration", "20m"),
		)
	}
	begin := time.Now()

	const byNamespace = "{issuerRef: {name: mesh-ca}}"
	w.configure(byNamespace)
	w.says("Unavailable", 30*time.Second) // there is no cert-manager
	certManager(t)
	t.Cleanup(w.restore) // before cert-manager goes
	must(t, c.Apply(t.Context(), authorities))
	w.asked = watchRequests(t, c)
	w.signs("an intermediate of an issuer with a CA", w.rootIn(kube.TulleNamespace), byNamespace)
	w.cleared(20 * time.Second)
	w.denied()
	w.configure("{issuerRef: {name: self-signed}, signs: Leaves}")
	w.says("Refused", 30*time.Second)
	w.signs("an intermediate that signs itself", w.selfSignedRoot, "{issuerRef: {name: self-signed}}")
	w.cleared(20 * time.Second)
	w.signs("leaves", w.rootIn(kube.CertManagerNamespace), "{issuerRef: {name: mesh-ca, kind: ClusterIssuer}, signs: Leaves}")
	w.presentWhatWasAnswered()
	w.cutOff()
	w.signs("the mesh's own authority again", w.ownRoot)

	took, calls, p99 := time.Since(begin), 0, 0.0
	for _, l := range loads {
		r := l.stop()
		noFailure(w.space, r)
		calls, p99 = calls+r.Requests, max(p99, r.Service.P99)
	}
	figure(t, "%d calls in %.0f s in which others signed, p99 of the slowest load %.1f ms; cert-manager answered %d requests", calls, took.Seconds(), p99, w.asked.count())
	if want := int(150 * took.Seconds() * 0.8); calls < want {
		t.Errorf("%d calls, want %d at least", calls, want)
	}
	w.cleared(4 * time.Minute) // one that was on its way at the switch is deleted after 3
	w.restarts()
}

// restore has the mesh sign for itself again.
func (w *switches) restore() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.c.Delete(ctx, "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\n"); err != nil {
		w.t.Errorf("deleting the MeshConfig: %v", err)
	}
}

// signs has cert-manager sign as the field says, or nobody but the mesh, and waits
// until every proxy presents a certificate that leads to the root and trusts nothing
// else.
func (w *switches) signs(what string, root func(context.Context) (*x509.Certificate, error), certManager ...string) {
	w.t.Helper()
	begin := time.Now()
	w.configure(certManager...)
	eventually(w.t, w.atMost, "certificates signed by "+what, func(ctx context.Context) error {
		if err := w.lead(ctx, root); err != nil {
			return errors.Join(err, w.current(ctx))
		}
		return w.current(ctx)
	})
	if what != "" {
		figure(w.t, "%s: after %.0f s", what, time.Since(begin).Seconds())
	}
}

// cleared waits until no request is left, and no key where cert-manager reads it.
func (w *switches) cleared(atMost time.Duration) {
	w.t.Helper()
	eventually(w.t, atMost, "the end of all requests that were answered", w.asked.gone)
	_, err := w.c.Client.CoreV1().Secrets(kube.TulleNamespace).Get(w.t.Context(), "tulle-ca-request", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		w.t.Errorf("the Secret with a key of the authority is still there: %v", err)
	}
}

// configure writes the MeshConfig.
func (w *switches) configure(certManager ...string) {
	w.t.Helper()
	spec := fmt.Sprintf("{certificates: {lifetime: %s}}", w.lifetime)
	if len(certManager) > 0 {
		spec = fmt.Sprintf("{certificates: {lifetime: %s}, ca: {certManager: %s}}", w.lifetime, certManager[0])
	}
	must(w.t, w.c.Apply(w.t.Context(), "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: "+spec))
}

// current is an error while the MeshConfig says that something is amiss.
func (w *switches) current(ctx context.Context) error {
	return w.c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "AuthorityCurrent", "True")
}

// says waits until the MeshConfig says why the authority is not current.
func (w *switches) says(reason string, atMost time.Duration) {
	w.t.Helper()
	eventually(w.t, atMost, "the MeshConfig to say "+reason, func(ctx context.Context) error {
		err := w.c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "AuthorityCurrent", "True")
		if err == nil {
			return errors.New("it says that the authority is current")
		}
		if !strings.Contains(err.Error(), ": "+reason+": ") {
			return err
		}
		w.t.Logf("said: %v", err)
		return nil
	})
}

// lead is an error until the proxies' certificates lead to the root, and the proxies
// trust no other.
func (w *switches) lead(ctx context.Context, root func(context.Context) (*x509.Certificate, error)) error {
	want, err := root(ctx)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(want)
	for _, pod := range w.pods {
		got, err := w.c.WorkloadChain(ctx, w.name, pod)
		if err != nil {
			return err
		}
		between := x509.NewCertPool()
		for _, c := range got.Chain[1:] {
			between.AddCert(c)
		}
		// As a peer would that trusts this root alone.
		_, err = got.Chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			return fmt.Errorf("what %s presents, by %v: %w", pod, got.Chain[0].Issuer, err)
		}
		if len(got.Roots) != 1 || !got.Roots[0].Equal(want) {
			return fmt.Errorf("%s trusts %d roots, not %v alone", pod, len(got.Roots), want.Subject)
		}
	}
	return nil
}

// rootIn is the root of cert-manager's authority in a namespace.
func (w *switches) rootIn(namespace string) func(context.Context) (*x509.Certificate, error) {
	return func(ctx context.Context) (*x509.Certificate, error) {
		secret, err := w.c.Client.CoreV1().Secrets(namespace).Get(ctx, "mesh-ca", metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return first(secret.Data["tls.crt"])
	}
}

// selfSignedRoot is the mesh's root, which has to be what cert-manager has answered to a
// request for one that signs itself.
func (w *switches) selfSignedRoot(ctx context.Context) (*x509.Certificate, error) {
	secret, err := w.c.Client.CoreV1().Secrets(kube.TulleNamespace).Get(ctx, "tulle-ca", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	root, err := first(secret.Data["root.crt"])
	if err != nil {
		return nil, err
	}
	answers := w.asked.answers("self-signed")
	for _, text := range answers {
		if answer, err := first(text); err == nil && answer.Equal(root) {
			return root, nil
		}
	}
	return nil, fmt.Errorf("the root, of %v, is none of %d answers", root.Subject, len(answers))
}

// ownRoot is the root whose key the mesh has.
func (w *switches) ownRoot(ctx context.Context) (*x509.Certificate, error) {
	secret, err := w.c.Client.CoreV1().Secrets(kube.TulleNamespace).Get(ctx, "tulle-ca", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	root, err := first(secret.Data["root.crt"])
	if err == nil && len(secret.Data["root.key"]) == 0 {
		err = errors.New("the mesh has no key of the root")
	}
	return root, err
}

// presentWhatWasAnswered fails the test unless it is cert-manager's own answers that
// proxies present.
func (w *switches) presentWhatWasAnswered() {
	w.t.Helper()
	for _, pod := range w.pods {
		eventually(w.t, 20*time.Second, pod+" to present an answer of cert-manager", func(ctx context.Context) error {
			got, err := w.c.WorkloadChain(ctx, w.name, pod)
			if err != nil {
				return err
			}
			if !w.asked.answered(got.Chain[0]) {
				return fmt.Errorf("what it presents, serial %v, is none", got.Chain[0].SerialNumber)
			}
			return nil
		})
	}
}

// denied has an issuer sign whose requests nobody approves, and denies the first. All
// goes on with what signed before.
func (w *switches) denied() {
	w.t.Helper()
	w.configure("{issuerRef: {name: withheld}}")
	w.says("Pending", 30*time.Second)
	var name string
	eventually(w.t, 30*time.Second, "a request that nobody approves", func(context.Context) error {
		name = w.asked.open("withheld")
		if name == "" {
			return errors.New("there is none")
		}
		return nil
	})
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{map[string]any{
		"type": "Denied", "status": "True", "reason": "Test", "message": "not this one",
	}}}})
	must(w.t, err)
	_, err = w.c.Dynamic.Resource(certificateRequests).Namespace(kube.TulleNamespace).
		Patch(w.t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	must(w.t, err)
	w.says("Denied", 30*time.Second)
	must(w.t, w.lead(w.t.Context(), w.rootIn(kube.TulleNamespace)))
}

// cutOff has cert-manager away for a while. Pods that have a certificate go on, one
// that has none waits.
func (w *switches) cutOff() {
	w.t.Helper()
	scale := func(replicas int) {
		w.t.Helper()
		patch := fmt.Appendf(nil, `{"spec": {"replicas": %d}}`, replicas)
		_, err := w.c.Client.AppsV1().Deployments(kube.CertManagerNamespace).
			Patch(w.t.Context(), "cert-manager", types.MergePatchType, patch, metav1.PatchOptions{})
		must(w.t, err)
	}
	scale(0)
	must(w.t, w.c.Deployed(w.t.Context(), kube.CertManagerNamespace, time.Minute))
	begin := time.Now()
	w.create(app{name: "late"})
	w.says("Pending", time.Minute)
	figure(w.t, "that certificates are not signed is said after %.0f s", time.Since(begin).Seconds())
	if err := w.c.Deployed(w.t.Context(), w.name, time.Second); err == nil {
		w.t.Error("a workload is ready that nobody has signed a certificate for")
	}
	scale(1)
	begin = time.Now()
	must(w.t, w.c.Deployed(w.t.Context(), w.name, time.Minute))
	figure(w.t, "a workload that waited is ready %.1f s after cert-manager is back", time.Since(begin).Seconds())
	w.callUntil(w.in("late"), answered(200), "http", w.url("server"))
	eventually(w.t, time.Minute, "the MeshConfig to say that the authority is current", w.current)
	w.cleared(45 * time.Second) // they are asked for again before that
	w.pods = w.names()
	w.presentWhatWasAnswered()
}

// names are the namespace's pods.
func (w *switches) names() (out []string) {
	w.t.Helper()
	pods, err := w.c.Client.CoreV1().Pods(w.name).List(w.t.Context(), metav1.ListOptions{})
	must(w.t, err)
	for _, p := range pods.Items {
		out = append(out, p.Name)
	}
	return out
}

// restarts fails the test if a container has died.
func (w *switches) restarts() {
	w.t.Helper()
	pods, err := w.c.Client.CoreV1().Pods(w.name).List(w.t.Context(), metav1.ListOptions{})
	must(w.t, err)
	for _, p := range pods.Items {
		for _, status := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if status.RestartCount > 0 {
				w.t.Errorf("%s of %s was restarted %d times", status.Name, p.Name, status.RestartCount)
			}
		}
	}
}
