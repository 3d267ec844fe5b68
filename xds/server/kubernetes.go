package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authentication "k8s.io/api/authentication/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// NewVerifier verifies tokens of the cluster behind the client. It needs
// to get the non-resource URLs /openid/v1/jwks and
// /.well-known/openid-configuration (ClusterRole
// system:service-account-issuer-discovery) and to create TokenReviews
// (ClusterRole system:auth-delegator). A token has expired by the given clock.
func NewVerifier(client kubernetes.Interface, now func() time.Time) *Tokens {
	get := func(path string) func(context.Context) ([]byte, error) {
		return func(ctx context.Context) ([]byte, error) {
			return client.Discovery().RESTClient().Get().AbsPath(path).DoRaw(ctx)
		}
	}
	return NewTokens(TokenOptions{
		Keys:   get("/openid/v1/jwks"),
		Issuer: get("/.well-known/openid-configuration"),
		Review: func(ctx context.Context, token string) (Peer, error) { return review(ctx, client, token) },
		Now:    now,
	})
}

// Extra fields of a service account's user, see
// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens.
const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

func review(ctx context.Context, client kubernetes.Interface, token string) (Peer, error) {
	r, err := client.AuthenticationV1().TokenReviews().Create(ctx, &authentication.TokenReview{
		Spec: authentication.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, meta.CreateOptions{})
	if err != nil {
		return Peer{}, &AuthError{Reason: reasonNoKeys, Temporary: true, Err: fmt.Errorf("asking the API server about the token: %w", err)}
	}
	s := r.Status
	if !s.Authenticated || !slices.Contains(s.Audiences, Audience) {
		return Peer{}, refuse(reasonReview, fmt.Errorf("the API server does not know the token: %s", s.Error))
	}
	rest, ok := strings.CutPrefix(s.User.Username, "system:serviceaccount:")
	namespace, account, ok2 := strings.Cut(rest, ":")
	pod, uid := s.User.Extra[extraPodName], s.User.Extra[extraPodUID]
	if !ok || !ok2 || len(pod) != 1 || len(uid) != 1 {
		return Peer{}, refuse(reasonUnbound, errors.New("the token is not bound to a pod: use a projected service account token"))
	}
	return Peer{Pod: mesh.Name{Namespace: namespace, Name: pod[0]}, UID: uid[0], ServiceAccount: account}, nil
}
