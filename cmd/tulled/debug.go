package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// debugServer answers the CLI, which reaches the pod's loopback by
// port-forward: whoever may forward ports to the control plane may ask.
func debugServer(address string, profile bool, handlers map[string]http.Handler) runnable {
	mux := http.NewServeMux()
	for pattern, handler := range handlers {
		mux.Handle(pattern, handler)
	}
	if profile {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return func(ctx context.Context) error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("listening for debugging: %w", err)
		}
		s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
		stop := context.AfterFunc(ctx, func() { _ = s.Close() })
		defer stop()
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving debugging: %w", err)
		}
		return nil
	}
}

// forCLI answers questions of the CLI, of so many bytes at most: 422 says what is
// wrong with one.
func forCLI[Q any](p *controlPlane, most int64, answer func(context.Context, Q) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, most)).Decode(&q); err != nil {
			http.Error(w, fmt.Sprintf("reading the question: %v", err), http.StatusBadRequest)
			return
		}
		said, err := answer(r.Context(), q)
		switch {
		case errors.Is(err, errStarting):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(said); err != nil {
			p.log.V(1).Info("the reader of an answer went away", "path", r.URL.Path, "error", err.Error())
		}
	})
}

// leading runs on the leader until its context ends.
type leading func(ctx context.Context) error

// Start runs it.
func (l leading) Start(ctx context.Context) error { return l(ctx) }

// NeedLeaderElection says that it does.
func (leading) NeedLeaderElection() bool { return true }

// runnable runs on every replica, leader or not, until its context ends.
type runnable func(ctx context.Context) error

// Start runs it.
func (r runnable) Start(ctx context.Context) error { return r(ctx) }

// NeedLeaderElection says that it does not.
func (runnable) NeedLeaderElection() bool { return false }
