package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Peer is the pod that a token belongs to.
type Peer struct {
	Pod            mesh.Name
	UID            string // of the pod
	ServiceAccount string // in the pod's namespace
}

func (p Peer) identity(trustDomain string) (string, error) {
	id := ca.ID{TrustDomain: trustDomain, Namespace: p.Pod.Namespace, ServiceAccount: p.ServiceAccount}
	return id.String(), id.Validate()
}

// AuthError says why a token is not accepted.
type AuthError struct {
	// Reason is for a metric: one of few words.
	Reason string
	// Temporary says that the token was not found wanting: it could not be
	// looked at.
	Temporary bool
	Err       error
}

func (e *AuthError) Error() string { return e.Reason + ": " + e.Err.Error() }
func (e *AuthError) Unwrap() error { return e.Err }

// Reasons for which a stream is refused.
const (
	reasonNoToken   = "no_token"
	reasonMalformed = "malformed"
	reasonSignature = "signature"
	reasonAudience  = "audience"
	reasonExpired   = "expired"
	reasonEarly     = "not_yet_valid"
	reasonUnbound   = "not_bound_to_a_pod"
	reasonReview    = "token_review"
	reasonNoKeys    = "keys_unavailable"
	reasonPod       = "unknown_pod"
	reasonUnknown   = "unknown"
)

// authReasons are all of them.
func authReasons() []string {
	return []string{
		reasonNoToken, reasonMalformed, reasonSignature, reasonAudience, reasonExpired, reasonEarly,
		reasonUnbound, reasonReview, reasonNoKeys, reasonPod, reasonUnknown,
	}
}

func refuse(reason string, err error) *AuthError { return &AuthError{Reason: reason, Err: err} }

// authenticate tells whose stream it is, by the token alone.
func (s *Server) authenticate(ctx context.Context) (Peer, *mesh.Workload, error) {
	peer, workload, err := s.verify(ctx)
	if err == nil {
		return peer, workload, nil
	}
	code, reason := codes.Unauthenticated, reasonUnknown
	var a *AuthError
	if errors.As(err, &a) {
		reason = a.Reason
		if a.Temporary {
			code = codes.Unavailable
		}
	}
	s.metrics.failures.WithLabelValues(reason).Inc()
	s.options.Log.Info("refused a stream", "reason", reason, "error", err.Error())
	return Peer{}, nil, status.Error(code, err.Error())
}

func (s *Server) verify(ctx context.Context) (Peer, *mesh.Workload, error) {
	token, err := bearer(ctx)
	if err != nil {
		return Peer{}, nil, err
	}
	peer, err := s.options.Tokens.Verify(ctx, token)
	if err != nil {
		return Peer{}, nil, err
	}
	workload, err := s.awaitPod(ctx, peer)
	return peer, workload, err
}

func bearer(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return "", refuse(reasonNoToken, errors.New("exactly one authorization header with the pod's service account token is needed"))
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", refuse(reasonNoToken, errors.New("the authorization header is not of the form: Bearer <token>"))
	}
	return token, nil
}

// awaitPod waits until the pod is known here: a pod's proxy may be faster than
// the news of the pod.
func (s *Server) awaitPod(ctx context.Context, p Peer) (*mesh.Workload, error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.PodWait)
	defer cancel()
	const interval = 50 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		snapshot := s.options.Builder.Snapshot()
		w, ok := snapshot.Workload(p.Pod)
		if ok && w.UID == p.UID {
			switch {
			case w.Terminal:
				return nil, refuse(reasonPod, errors.New("the pod has ended"))
			case w.ServiceAccount != p.ServiceAccount:
				return nil, refuse(reasonPod, errors.New("the pod runs as another service account"))
			case snapshot.Config().TrustDomain != "":
				return w, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, refuse(reasonPod, errors.New("no pod of this name and UID is known"))
		}
	}
}
