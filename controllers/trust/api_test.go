package trust

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/tulle-mesh/tulle/config/apitest"
)

// permissions are what the rbac markers of this package say.
func permissions() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list", "watch"}},
		{
			APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{ConfigMapName},
			Verbs: []string{"list", "watch", "update", "delete"},
		},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"create"}},
		{
			APIGroups: []string{"admissionregistration.k8s.io"},
			Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"},
			Verbs:     []string{"list", "watch"},
		},
		{
			APIGroups:     []string{"admissionregistration.k8s.io"},
			Resources:     []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"},
			ResourceNames: []string{"tulle", "tulle-canary"}, Verbs: []string{"update"},
		},
	}
}

// asControlPlane is a configuration of a user who may do what the markers say.
func asControlPlane(t *testing.T, admin client.Client, config *rest.Config) *rest.Config {
	t.Helper()
	const user = "tulled"
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "tulled-trust"}, Rules: permissions()}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: role.ObjectMeta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}},
	}
	for _, o := range []client.Object{role, binding} {
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	restricted := rest.CopyConfig(config)
	restricted.Impersonate = rest.ImpersonationConfig{UserName: user}
	return restricted
}

// run runs the controllers until the test ends.
func run(t *testing.T, config *rest.Config, roots Roots) {
	t.Helper()
	mgr, err := manager.New(config, manager.Options{
		Logger: testr.New(t), Metrics: metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SetupWithManager(mgr, Options{Roots: roots, Applier: &model{}, Namespace: service.Namespace}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// eventually polls until the check has nothing to say.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal(err)
		}
	}
}

type api struct {
	client.Client
	roots *testRoots
}

func (a api) get(t *testing.T, namespace string) (*corev1.ConfigMap, error) {
	c := &corev1.ConfigMap{}
	return c, a.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: ConfigMapName}, c)
}

// asItOughtToBe waits for the namespace's bundle to be right.
func (a api) asItOughtToBe(t *testing.T, namespace string) *corev1.ConfigMap {
	t.Helper()
	var c *corev1.ConfigMap
	eventually(t, func() (err error) {
		if c, err = a.get(t, namespace); err != nil {
			return err
		}
		if want := Data(a.roots.Roots()); !maps.Equal(c.Data, want) || c.Immutable != nil {
			return fmt.Errorf("%s has the bundle %v, want %v", namespace, c.Data, want)
		}
		return nil
	})
	return c
}

func (a api) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := a.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// change makes a change that others' writes do not hinder.
func (a api) change(t *testing.T, namespace string, change func(*corev1.ConfigMap)) {
	t.Helper()
	eventually(t, func() error {
		c, err := a.get(t, namespace)
		if err != nil {
			return err
		}
		change(c)
		return a.Update(t.Context(), c)
	})
}

func webhooks() []client.Object {
	none := admissionv1.SideEffectClassNone
	labels := map[string]string{"app.kubernetes.io/part-of": "tulle"}
	meta := metav1.ObjectMeta{Name: "tulle", Labels: labels}
	return []client.Object{
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "tulle-canary", Labels: labels}, Webhooks: []admissionv1.MutatingWebhook{{
			Name: "inject.mesh.tulle.dev", SideEffects: &none, AdmissionReviewVersions: []string{"v1"}, ClientConfig: webhookOf("tulled-canary", ""),
		}}},
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionv1.MutatingWebhook{{
			Name: "inject.mesh.tulle.dev", SideEffects: &none, AdmissionReviewVersions: []string{"v1"}, ClientConfig: webhookOf("tulled", ""),
		}}},
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "validate.mesh.tulle.dev", SideEffects: &none, AdmissionReviewVersions: []string{"v1"}, ClientConfig: webhookOf("tulled", ""),
		}}},
	}
}

// caBundles waits for all configurations to hold the roots.
func (a api) caBundles(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		m, canary, v := &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}
		for name, objects := range map[string][]client.Object{"tulle": {m, v}, "tulle-canary": {canary}} {
			for _, o := range objects {
				if err := a.Get(t.Context(), types.NamespacedName{Name: name}, o); err != nil {
					return err
				}
			}
		}
		want := string(a.roots.Roots())
		for _, c := range slices.Concat(mutatingConfigs(m), mutatingConfigs(canary), validatingConfigs(v)) {
			if string(c.CABundle) != want {
				return fmt.Errorf("a caBundle is %q, want %q", c.CABundle, want)
			}
		}
		return nil
	})
}

// pem is a certificate that the API server takes in a caBundle.
func pem(t *testing.T) string {
	t.Helper()
	_, roots := servingTLS(t)
	return string(roots)
}

func TestControllersOnARealAPIServer(t *testing.T) {
	config := apitest.Start(t)
	admin, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a := api{Client: admin, roots: &testRoots{pem: pem(t)}}
	a.create(t, namespace("before"))
	run(t, asControlPlane(t, admin, config), a.roots)

	t.Run("every namespace has the bundle", func(t *testing.T) {
		for _, n := range []string{"default", "kube-system", "before"} {
			a.asItOughtToBe(t, n)
		}
	})
	t.Run("a new namespace gets it", func(t *testing.T) {
		a.create(t, namespace("after"))
		begun := time.Now()
		a.asItOughtToBe(t, "after")
		t.Logf("after %s", time.Since(begun))
	})
	t.Run("what somebody edits is repaired", func(t *testing.T) {
		a.change(t, "before", func(c *corev1.ConfigMap) { c.Data[RootsPEM] = "theirs" })
		a.asItOughtToBe(t, "before")
	})
	t.Run("what somebody deletes is put back", func(t *testing.T) {
		old := a.asItOughtToBe(t, "before")
		if err := a.Delete(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		if again := a.asItOughtToBe(t, "before"); again.UID == old.UID {
			t.Error("it is the old one")
		}
	})
	t.Run("what somebody makes immutable is replaced", func(t *testing.T) {
		yes := true
		a.change(t, "before", func(c *corev1.ConfigMap) { c.Data[RootsPEM], c.Immutable = "theirs", &yes })
		a.asItOughtToBe(t, "before")
	})
	t.Run("webhooks that are installed later get the roots", func(t *testing.T) {
		for _, o := range webhooks() {
			a.create(t, o)
		}
		a.caBundles(t)
	})
	t.Run("a namespace that is going is left alone", func(t *testing.T) {
		going := namespace("going")
		a.create(t, going)
		c := a.asItOughtToBe(t, "going")
		if err := a.Delete(t.Context(), going); err != nil {
			t.Fatal(err)
		}
		if err := a.Delete(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		// Whatever follows has gone through the same queue later.
		a.create(t, namespace("later"))
		a.asItOughtToBe(t, "later")
		if _, err := a.get(t, "going"); !apierrors.IsNotFound(err) {
			t.Errorf("reading its bundle says %v", err)
		}
	})
	t.Run("new roots go everywhere, and then nothing is written", func(t *testing.T) {
		a.roots.set(pem(t) + a.roots.pem)
		versions := map[string]string{}
		for _, n := range []string{"default", "before", "after", "later"} {
			versions[n] = a.asItOughtToBe(t, n).ResourceVersion
		}
		a.caBundles(t)
		// All are looked at again, a new namespace last.
		for _, f := range a.roots.notify {
			f()
		}
		a.create(t, namespace("last"))
		a.asItOughtToBe(t, "last")
		for n, version := range versions {
			if c := a.asItOughtToBe(t, n); c.ResourceVersion != version {
				t.Errorf("%s was written again", n)
			}
		}
	})
}
