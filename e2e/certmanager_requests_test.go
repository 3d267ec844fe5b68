package e2e

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

var certificateRequests = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificaterequests"}

// certManager has cert-manager run in the cluster until the test ends.
func certManager(t *testing.T) *kube.Cluster {
	t.Helper()
	c := cluster(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() {
			describeCertManager(ctx, t, c)
		}
		if err := c.RemoveCertManager(ctx, certManagerDir); err != nil {
			t.Errorf("removing cert-manager: %v", err)
		}
	})
	must(t, c.InstallCertManager(t.Context(), certManagerDir))
	return c
}

// describeCertManager writes the last words of both sides, and the requests that there are.
func describeCertManager(ctx context.Context, t *testing.T, c *kube.Cluster) {
	for _, in := range []string{kube.CertManagerNamespace, kube.TulleNamespace} {
		pods, err := c.Client.CoreV1().Pods(in).List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Logf("describing %s: %v", in, err)
			continue
		}
		for _, p := range pods.Items {
			log, err := c.Logs(ctx, kube.Pod{Namespace: in, Name: p.Name, Container: p.Spec.Containers[0].Name}, time.Time{})
			t.Logf("last of the log of %s (%v):\n%s", p.Name, err, lastLines(log, 15))
		}
	}
	list, err := c.Dynamic.Resource(certificateRequests).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Logf("listing requests: %v", err)
		return
	}
	for _, r := range list.Items {
		status, _ := json.Marshal(r.Object["status"])
		t.Logf("request %s/%s: %s", r.GetNamespace(), r.GetName(), status)
	}
}

// controlPlaneFlags has the control plane run with further flags until the test ends.
func controlPlaneFlags(t *testing.T, flags ...string) {
	t.Helper()
	c := cluster(t)
	deployments := c.Client.AppsV1().Deployments(kube.TulleNamespace)
	before, err := deployments.Get(t.Context(), "tulled", metav1.GetOptions{})
	must(t, err)
	set := func(ctx context.Context, args []string) error {
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{
			"containers": []corev1.Container{{Name: "tulled", Args: args}},
		}}}})
		if err != nil {
			return err
		}
		if _, err := deployments.Patch(ctx, "tulled", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("setting the control plane's flags: %w", err)
		}
		return c.Installed(ctx)
	}
	args := before.Spec.Template.Spec.Containers[0].Args
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := set(ctx, args); err != nil {
			t.Error(err)
		}
	})
	must(t, set(t.Context(), slices.Concat(args, flags)))
}

// requests is what became of the requests of the control plane to cert-manager.
type requests struct {
	mu    sync.Mutex
	there map[string]request
	past  []request // those that were deleted, the newest last
}

// request is one to cert-manager.
type request struct {
	issuer      string
	identity    string // whom it is for; empty: the mesh
	certificate []byte // PEM; empty: it is not answered
	refused     bool
}

func watchRequests(t *testing.T, c *kube.Cluster) *requests {
	t.Helper()
	q := &requests{there: map[string]request{}}
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(c.Dynamic, 0, kube.TulleNamespace, func(o *metav1.ListOptions) {
		o.LabelSelector = "app.kubernetes.io/managed-by=tulle"
	})
	informer := factory.ForResource(certificateRequests).Informer()
	see := func(o any) { q.see(o.(*unstructured.Unstructured)) }
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    see,
		UpdateFunc: func(_, now any) { see(now) },
		DeleteFunc: func(o any) {
			if last, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = last.Obj
			}
			see(o)
			q.end(o.(*unstructured.Unstructured).GetName())
		},
	})
	must(t, err)
	factory.Start(t.Context().Done())
	if !cache.WaitForCacheSync(t.Context().Done(), informer.HasSynced) {
		t.Fatal("the requests cannot be watched")
	}
	return q
}

func (q *requests) see(o *unstructured.Unstructured) {
	issuer, _, _ := unstructured.NestedString(o.Object, "spec", "issuerRef", "name")
	encoded, _, _ := unstructured.NestedString(o.Object, "status", "certificate")
	certificate, _ := base64.StdEncoding.DecodeString(encoded)
	failed, _, _ := unstructured.NestedString(o.Object, "status", "failureTime")
	q.mu.Lock()
	defer q.mu.Unlock()
	q.there[o.GetName()] = request{issuer, o.GetAnnotations()["mesh.tulle.dev/identity"], certificate, failed != ""}
}

func (q *requests) end(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.past = append(q.past, q.there[name])
	delete(q.there, name)
}

// all are those that were and those that are. The caller holds the lock.
func (q *requests) all() []request {
	out := slices.Clone(q.past)
	for _, r := range q.there {
		out = append(out, r)
	}
	return out
}

// count is how many were answered.
func (q *requests) count() (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.all() {
		if len(r.certificate) > 0 {
			n++
		}
	}
	return n
}

// answers are the certificates of an issuer.
func (q *requests) answers(issuer string) (out [][]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.all() {
		if r.issuer == issuer && len(r.certificate) > 0 {
			out = append(out, r.certificate)
		}
	}
	return out
}

// answered reports whether a certificate was an answer.
func (q *requests) answered(c *x509.Certificate) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.all(), func(r request) bool {
		got, err := first(r.certificate)
		return err == nil && got.Equal(c)
	})
}

// open is a request to an issuer that is not decided; "": none.
func (q *requests) open(issuer string) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, r := range q.there {
		if r.issuer == issuer && len(r.certificate) == 0 && !r.refused {
			return name
		}
	}
	return ""
}

// gone is an error while there are requests but those that were refused, which stay
// for a while so that people can read why.
func (q *requests) gone(context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	var left []error
	for name, r := range q.there {
		if !r.refused {
			left = append(left, fmt.Errorf("%s, to %s for %q, is still there", name, r.issuer, r.identity))
		}
	}
	return errors.Join(left...)
}

// first is the first certificate of a PEM text.
func first(text []byte) (*x509.Certificate, error) {
	all, err := kube.Certificates(text)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}
