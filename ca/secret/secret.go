// Package secret keeps the certificate authority in a Kubernetes Secret, where
// all replicas of the control plane find it.
//
// In: a client that reads from the API server, not from a cache. Out: a
// [ca.Store]. Next: ca.Open.
package secret

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/ca"
)

// The keys of the Secret, all in PEM.
const (
	RootKey            = "root.crt"
	RootPrivateKey     = "root.key"
	IssuerKey          = "issuer.crt"
	IssuerPrivateKey   = "issuer.key"
	NextRootKey        = "next-root.crt"
	NextRootPrivate    = "next-root.key"
	NextIssuerKey      = "next-issuer.crt"
	NextIssuerPrivate  = "next-issuer.key"
	ServersKey         = "servers.crt"
	ServersPrivate     = "servers.key"
	NextServersKey     = "next-servers.crt"
	NextServersPrivate = "next-servers.key"
	RecordKey          = "rotation.json" // not in PEM, and not secret
	managedBy          = "app.kubernetes.io/managed-by"
	managedByTulle     = "tulle"
	componentLabel     = "app.kubernetes.io/component"
	componentIdentity  = "certificate-authority"
)

const (
	// requestTime bounds one request. An answer that takes longer than ten seconds would say
	// too little of what time it is, by which certificates are made.
	requestTime = 5 * time.Second
	// watchTime is how long a watch lasts at least, and half of how long at most, as those of
	// caches do. After each the Secret is read anew.
	watchTime = 5 * time.Minute
)

// A watch of the one object by its name is allowed by its name; creating cannot
// be restricted so.
//
// +kubebuilder:rbac:groups="",namespace=tulle-system,resources=secrets,resourceNames=tulle-ca,verbs=get;watch;update
// +kubebuilder:rbac:groups="",namespace=tulle-system,resources=secrets,verbs=create

// Store is a [ca.Store].
type Store struct {
	client client.WithWatch
	name   types.NamespacedName
}

var _ ca.Store = (*Store)(nil)

// New returns the store in the named Secret.
func New(c client.WithWatch, name types.NamespacedName) *Store {
	return &Store{client: c, name: name}
}

// Load reads the Secret.
func (s *Store) Load(ctx context.Context) (ca.Stored, error) {
	secret, err := s.get(ctx)
	if err != nil {
		return ca.Stored{}, err
	}
	return stored(secret), nil
}

// Create creates the Secret.
func (s *Store) Create(ctx context.Context, content ca.Stored) (ca.Stored, error) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.name.Namespace, Name: s.name.Name,
			Labels: map[string]string{managedBy: managedByTulle, componentLabel: componentIdentity},
		},
		Type: corev1.SecretTypeOpaque,
	}
	fill(secret, content)
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	if err := s.client.Create(ctx, secret); err != nil {
		return ca.Stored{}, s.wrap("create", err)
	}
	return stored(secret), nil
}

// Update replaces the authority's keys in the Secret, and leaves what else
// somebody has put into it.
func (s *Store) Update(ctx context.Context, content ca.Stored) (ca.Stored, error) {
	secret, err := s.get(ctx)
	if err != nil {
		return ca.Stored{}, err
	}
	if secret.ResourceVersion != content.Revision {
		return ca.Stored{}, s.wrap("update", ca.ErrConflict)
	}
	fill(secret, content)
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	if err := s.client.Update(ctx, secret); err != nil {
		return ca.Stored{}, s.wrap("update", err)
	}
	return stored(secret), nil
}

// Watch tells about changes of the Secret.
func (s *Store) Watch(ctx context.Context) (<-chan struct{}, error) {
	lasts := int64(wait.Jitter(watchTime, 1).Seconds())
	events, err := s.client.Watch(ctx, &corev1.SecretList{}, &client.ListOptions{Raw: &metav1.ListOptions{TimeoutSeconds: &lasts}},
		client.InNamespace(s.name.Namespace), client.MatchingFields{metav1.ObjectNameField: s.name.Name})
	if err != nil {
		return nil, s.wrap("watch", err)
	}
	changes := make(chan struct{}, 1)
	go func() {
		defer close(changes)
		defer events.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case e, ok := <-events.ResultChan():
				if !ok || e.Type == watch.Error {
					return
				}
				select {
				case changes <- struct{}{}:
				default: // one that has not been taken yet says the same
				}
			}
		}
	}()
	return changes, nil
}

func (s *Store) get(ctx context.Context) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	secret := &corev1.Secret{}
	if err := s.client.Get(ctx, s.name, secret); err != nil {
		return nil, s.wrap("get", err)
	}
	return secret, nil
}

// wrap says what failed, in the errors that a store promises.
func (s *Store) wrap(verb string, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		err = fmt.Errorf("%w: %w", ca.ErrNotFound, err)
	case apierrors.IsAlreadyExists(err):
		err = fmt.Errorf("%w: %w", ca.ErrExists, err)
	case apierrors.IsConflict(err):
		err = fmt.Errorf("%w: %w", ca.ErrConflict, err)
	}
	return fmt.Errorf("%s secret %s: %w", verb, s.name, err)
}

func stored(secret *corev1.Secret) ca.Stored {
	return ca.Stored{
		Root: secret.Data[RootKey], RootKey: secret.Data[RootPrivateKey],
		Issuer: secret.Data[IssuerKey], IssuerKey: secret.Data[IssuerPrivateKey],
		NextRoot: secret.Data[NextRootKey], NextRootKey: secret.Data[NextRootPrivate],
		NextIssuer: secret.Data[NextIssuerKey], NextIssuerKey: secret.Data[NextIssuerPrivate],
		Servers: secret.Data[ServersKey], ServersKey: secret.Data[ServersPrivate],
		NextServers: secret.Data[NextServersKey], NextServersKey: secret.Data[NextServersPrivate],
		Record: secret.Data[RecordKey], Revision: secret.ResourceVersion,
	}
}

func fill(secret *corev1.Secret, content ca.Stored) {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	for key, value := range map[string][]byte{
		RootKey: content.Root, RootPrivateKey: content.RootKey, IssuerKey: content.Issuer, IssuerPrivateKey: content.IssuerKey,
		NextRootKey: content.NextRoot, NextRootPrivate: content.NextRootKey,
		NextIssuerKey: content.NextIssuer, NextIssuerPrivate: content.NextIssuerKey,
		ServersKey: content.Servers, ServersPrivate: content.ServersKey,
		NextServersKey: content.NextServers, NextServersPrivate: content.NextServersKey, RecordKey: content.Record,
	} {
		if len(value) > 0 {
			secret.Data[key] = value
		} else {
			delete(secret.Data, key)
		}
	}
}
