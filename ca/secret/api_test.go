package secret

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/config/apitest"
)

// follows has all proxies follow at once.
type follows struct{}

func (follows) Trust(int64) ca.Progress { return ca.Progress{Done: true} }

func (follows) Issuer(int64) ca.Progress { return ca.Progress{Done: true} }

func restrictedClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// On a real API server, as a user who may do what the rbac markers of this
// package say and nothing else.
func TestReplicasShareTheSecretOfARealAPIServer(t *testing.T) {
	config := apitest.Start(t)
	admin, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{Namespace: name.Namespace, Name: "tulled-ca"}
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name.Namespace}},
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{name.Name}, Verbs: []string{"get", "watch", "update"}},
			{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"tulle-ca-issuer"}, Verbs: []string{"get"}},
			{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create"}},
		}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "tulled"}},
		},
	} {
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	restricted := rest.CopyConfig(config)
	restricted.Impersonate = rest.ImpersonationConfig{UserName: "tulled"}

	authorities := make([]*ca.Authority, 4)
	var ahead atomic.Int64 // of every other replica's clock
	var wg sync.WaitGroup
	for i := range authorities {
		cluster, err := client.NewWithWatch(restricted, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		log := logr.Discard()
		if i == 0 {
			log = testr.New(t)
		}
		wg.Go(func() {
			authorities[i], err = ca.Open(t.Context(), ca.AuthorityOptions{
				Store: New(cluster, name), Log: log,
				Now: func() time.Time { return time.Now().Add(time.Duration(i%2) * time.Duration(ahead.Load())) },
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	first := authorities[0].Epoch()
	ahead.Store(int64(250 * 24 * time.Hour)) // the issuer is to be rotated
	changed := make([]chan struct{}, len(authorities))
	for i, a := range authorities {
		if a.Epoch() != first {
			t.Fatal("replicas have different authorities")
		}
		changed[i] = make(chan struct{}, 8)
		a.Notify(func() { changed[i] <- struct{}{} })
		wg.Go(func() {
			if err := a.Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(wg.Wait) // the test's context has ended then
	leader := ca.NewRotator(ca.RotatorOptions{
		Authority: authorities[1], Live: follows{}, Log: logr.Discard(),
		Settings: func() ca.Settings {
			return ca.Settings{TrustDomain: "cluster.local", Issuer: ca.Terms{Lifetime: ca.DefaultIssuerLifetime, Before: ca.DefaultBefore}}
		},
		Brought: NewSource(restrictedClient(t, restricted), types.NamespacedName{Namespace: name.Namespace, Name: "tulle-ca-issuer"}),
	})
	wg.Go(func() { _ = leader.Run(t.Context()) })
	for i, a := range authorities {
		if a.Epoch() != first {
			continue
		}
		select {
		case <-changed[i]:
		case <-time.After(30 * time.Second):
			t.Fatalf("replica %d was not told of the new issuer", i)
		}
	}
	current := authorities[0].Epoch()
	for i, a := range authorities {
		if e := a.Epoch(); e != current || e == first || e.Root != first.Root {
			t.Errorf("replica %d signs as %v, replica 0 as %v, at first %v", i, e, current, first)
		}
	}

	// Somebody deletes it.
	secret := read(t, admin)
	if err := admin.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	again := &corev1.Secret{}
	for admin.Get(t.Context(), name, again) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the Secret is not put back")
		}
	}
	if again.UID == secret.UID || !bytes.Equal(again.Data[RootKey], secret.Data[RootKey]) || !bytes.Equal(again.Data[IssuerPrivateKey], secret.Data[IssuerPrivateKey]) {
		t.Error("what is put back is not what was deleted")
	}
}
