package secret

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/ca"
)

// caKey is the key of a Secret of the type kubernetes.io/tls that has the roots,
// as cert-manager writes it, too.
const caKey = "ca.crt"

// The one that is read is named, and is not watched: it is looked at now and
// then.
//
// +kubebuilder:rbac:groups="",namespace=tulle-system,resources=secrets,resourceNames=tulle-ca-issuer,verbs=get

// Source is a [ca.Source]: a Secret with the keys tls.crt, tls.key and ca.crt.
type Source struct {
	reader client.Reader
	name   types.NamespacedName
}

var _ ca.Source = (*Source)(nil)

// NewSource returns the source in the named Secret. The reader asks the API
// server and no cache, which would have to watch.
func NewSource(r client.Reader, name types.NamespacedName) *Source { return &Source{r, name} }

// String names the Secret.
func (s *Source) String() string { return "Secret " + s.name.String() }

// Brought reads the Secret.
func (s *Source) Brought(ctx context.Context) (ca.Brought, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	secret := &corev1.Secret{}
	switch err := s.reader.Get(ctx, s.name, secret); {
	case apierrors.IsNotFound(err):
		return ca.Brought{}, nil
	case err != nil:
		return ca.Brought{}, fmt.Errorf("get secret %s: %w", s.name, err)
	}
	return ca.Brought{
		Chain: secret.Data[corev1.TLSCertKey], Key: secret.Data[corev1.TLSPrivateKeyKey], Roots: secret.Data[caKey],
	}, nil
}
