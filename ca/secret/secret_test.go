package secret

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/tulle-mesh/tulle/ca"
)

var name = types.NamespacedName{Namespace: "tulle-system", Name: "tulle-ca"}

func sample(issuer string) ca.Stored {
	return ca.Stored{Root: []byte("root"), RootKey: []byte("rk"), Issuer: []byte(issuer), IssuerKey: []byte("ik")}
}

func read(t *testing.T, c client.Client) *corev1.Secret {
	t.Helper()
	s := &corev1.Secret{}
	if err := c.Get(t.Context(), name, s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryPartOfTheMaterialIsStored(t *testing.T) {
	var all ca.Stored
	for i, v := 0, reflect.ValueOf(&all).Elem(); i < v.NumField(); i++ {
		if v.Field(i).Kind() == reflect.Slice {
			v.Field(i).SetBytes([]byte(v.Type().Field(i).Name))
		}
	}
	store := New(fake.NewClientBuilder().Build(), name)
	stored, err := store.Create(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	if all.Revision = stored.Revision; !reflect.DeepEqual(stored, all) {
		t.Error("not all of it is created")
	}
	if stored, err = store.Update(t.Context(), ca.Stored{Root: all.Root, Revision: all.Revision}); err != nil {
		t.Fatal(err)
	}
	if want := (ca.Stored{Root: all.Root, Revision: stored.Revision}); !reflect.DeepEqual(stored, want) {
		t.Error("what is gone stays")
	}
}

func TestReplicasThatRaceCreateOneAuthority(t *testing.T) {
	cluster := fake.NewClientBuilder().Build()
	authorities := make([]*ca.Authority, 4)
	var wg sync.WaitGroup
	for i := range authorities {
		wg.Go(func() {
			var err error
			if authorities[i], err = ca.Open(t.Context(), ca.AuthorityOptions{Store: New(cluster, name), Log: logr.Discard()}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := read(t, cluster)
	if s.Type != corev1.SecretTypeOpaque || len(s.Data) != 4 {
		t.Errorf("a Secret of type %s with %d keys", s.Type, len(s.Data))
	}
	for _, key := range []string{"root.crt", "root.key", "issuer.crt", "issuer.key"} {
		if !bytes.HasPrefix(s.Data[key], []byte("-----BEGIN ")) {
			t.Errorf("%s is not PEM", key)
		}
	}
	for _, a := range authorities {
		if !bytes.Equal(a.Roots(), s.Data["root.crt"]) {
			t.Error("a replica has another root than the Secret")
		}
	}
}

func TestOnlyTheFirstOfTwoUpdatesWins(t *testing.T) {
	cluster := fake.NewClientBuilder().Build()
	a, b := New(cluster, name), New(cluster, name)
	if _, err := a.Load(t.Context()); !errors.Is(err, ca.ErrNotFound) {
		t.Errorf("an absent Secret is %v", err)
	}
	if _, err := a.Update(t.Context(), sample("one")); !errors.Is(err, ca.ErrNotFound) {
		t.Errorf("updating an absent Secret is %v", err)
	}
	first, err := a.Create(t.Context(), sample("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), sample("two")); !errors.Is(err, ca.ErrExists) {
		t.Errorf("creating it again is %v", err)
	}
	mine, theirs := first, first
	mine.Issuer, theirs.Issuer = []byte("mine"), []byte("theirs")
	second, err := a.Update(t.Context(), mine)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Update(t.Context(), theirs); !errors.Is(err, ca.ErrConflict) {
		t.Errorf("updating an old revision is %v", err)
	}
	got, err := b.Load(t.Context())
	if err != nil || string(got.Issuer) != "mine" || got.Revision != second.Revision || got.Revision == first.Revision {
		t.Errorf("stored is %q at %s: %v", got.Issuer, got.Revision, err)
	}
}

func TestUpdateLeavesForeignKeysAlone(t *testing.T) {
	cluster := fake.NewClientBuilder().Build()
	store := New(cluster, name)
	if _, err := store.Create(t.Context(), sample("one")); err != nil {
		t.Fatal(err)
	}
	s := read(t, cluster)
	s.Data["note"] = []byte("do not touch")
	if err := cluster.Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	current, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Update(t.Context(), current); err != nil {
		t.Fatal(err)
	}
	if got := string(read(t, cluster).Data["note"]); got != "do not touch" {
		t.Errorf("the note is %q", got)
	}
}

func TestWatchTellsOfChangesAndOfDeletionUntilTheContextEnds(t *testing.T) {
	cluster := fake.NewClientBuilder().Build()
	store := New(cluster, name)
	created, err := store.Create(t.Context(), sample("one"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := store.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(what string, open bool) {
		t.Helper()
		select {
		case _, ok := <-changes:
			if ok != open {
				t.Errorf("%s: the channel is open: %t", what, ok)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not told", what)
		}
	}
	if _, err := store.Update(t.Context(), created); err != nil {
		t.Fatal(err)
	}
	expect("update", true)
	if err := cluster.Delete(t.Context(), read(t, cluster)); err != nil {
		t.Fatal(err)
	}
	expect("deletion", true)
	cancel()
	expect("end", false)
}
