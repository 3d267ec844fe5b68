package replicas

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"

	"github.com/tulle-mesh/tulle/xds/acks"
)

// Path is where a replica answers.
const Path = "/acknowledgements"

// wait is how long a poll waits for something new.
const wait = 2 * time.Second

// maxQuestion bounds a poll's body, in bytes: it names pods by UID.
const maxQuestion = 4 << 20

// Source makes reports: a *server.Server of xds/server.
type Source interface {
	// Report waits until there is a report of another version, or the context
	// ends; then it is the last one. A report is never changed.
	Report(ctx context.Context, version string, released []string) (*acks.Report, error)
}

// question is the body of a poll.
type question struct {
	// Version is that of the report that the leader has.
	Version string `json:"version"`
	// Released are the UIDs of pods that are connected to other replicas.
	Released []string `json:"released,omitempty"`
}

// Handler answers the polls of whoever is allowed: allow looks at a bearer
// token, and its error is not passed on.
func Handler(source Source, allow func(ctx context.Context, token string) error, log logr.Logger) http.Handler {
	return forPeers(allow, log, maxQuestion, func(ctx context.Context, q question) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		report, err := source.Report(ctx, q.Version, q.Released)
		if err != nil || report.Version == q.Version {
			return nil, err
		}
		return report, nil
	})
}

// forPeers answers questions of other replicas, of so many bytes at most: 204
// where the answer is nil.
func forPeers[Q any](allow func(ctx context.Context, token string) error, log logr.Logger, most int64, answer func(context.Context, Q) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		if err := allow(r.Context(), token); err != nil {
			log.Info("refused to answer a peer", "path", r.URL.Path, "peer", r.RemoteAddr, "error", err.Error())
			http.Error(w, "this is for the control plane's own replicas", http.StatusForbidden)
			return
		}
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "questions are POST requests", http.StatusMethodNotAllowed)
			return
		}
		var q Q
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, most)).Decode(&q); err != nil {
			http.Error(w, fmt.Sprintf("reading the question: %v", err), http.StatusBadRequest)
			return
		}
		said, err := answer(r.Context(), q)
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case said == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(said); err != nil {
				log.V(1).Info("the reader of an answer went away", "path", r.URL.Path, "error", err.Error())
			}
		}
	})
}
