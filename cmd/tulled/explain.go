package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/tulle-mesh/tulle/xds/explain"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// maxQuestion is ample for a request's headers, in bytes.
const maxQuestion = 1 << 20

// explained tells the CLI what becomes of a request. Every replica knows all of the
// mesh, so that any can tell.
func (p *controlPlane) explained() http.Handler {
	return forCLI(p, maxQuestion, func(ctx context.Context, q explain.Question) (any, error) {
		if !p.complete(ctx) {
			return nil, errStarting
		}
		return explain.Explain(mesh.NewView(p.builder.Snapshot()), q)
	})
}

// errStarting is no fault of the question's.
var errStarting = errors.New("this replica is starting")
