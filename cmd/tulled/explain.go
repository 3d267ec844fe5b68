package main

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/tulle-mesh/tulle/xds/explain"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// maxQuestion is ample for a request's headers.
const maxQuestion = 1 << 20

// explained tells the CLI what becomes of a request. Every replica knows all of the
// mesh, so that any can tell.
func (p *controlPlane) explained() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q explain.Question
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&q); err != nil {
			http.Error(w, fmt.Sprintf("reading the question: %v", err), http.StatusBadRequest)
			return
		}
		if !p.complete(r.Context()) {
			http.Error(w, "this replica is starting", http.StatusServiceUnavailable)
			return
		}
		answer, err := explain.Explain(mesh.NewView(p.builder.Snapshot()), q)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			p.log.V(1).Info("the reader of an explanation went away", "error", err.Error())
		}
	})
}
