package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/controllers/replicas"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/preview"
)

// wirePreview has replicas tell each other, and the CLI and dry runs, what objects
// would change.
func (p *controlPlane) wirePreview(context.Context) error {
	p.preview = &replicas.Preview{
		Builder: p.builder, Self: p.options.pod, Peers: p.peers(),
		Service: mesh.Name{Namespace: p.options.namespace, Name: allReplicas},
		Local:   p.wouldChange,
	}
	log := p.log.WithName("preview")
	p.manager.GetWebhookServer().Register(replicas.PreviewPath, p.preview.Handler(p.ours, log))
	return nil
}

// wouldChange is what this replica says.
func (p *controlPlane) wouldChange(ctx context.Context, q preview.Question) (*preview.Part, error) {
	if !p.complete(ctx) {
		return nil, errors.New("this replica is starting")
	}
	decoder := serializer.NewCodecFactory(p.manager.GetScheme()).UniversalDeserializer()
	var changes []mesh.Change
	for _, some := range []struct {
		raw     []json.RawMessage
		deleted bool
	}{{q.Delete, true}, {q.Put, false}} {
		for _, raw := range some.raw {
			decoded, _, err := decoder.Decode(raw, nil, nil)
			if err != nil {
				return nil, fmt.Errorf("reading an object: %w", err)
			}
			object, ok := decoded.(client.Object)
			if !ok {
				return nil, fmt.Errorf("reading an object: a %T is none", decoded)
			}
			c, err := p.observer.Suppose(object, some.deleted)
			if err != nil {
				return nil, err
			}
			changes = append(changes, c)
		}
	}
	return p.server.Preview(ctx, changes, q.Details)
}

// previewed answers the CLI.
func (p *controlPlane) previewed() http.Handler {
	return forCLI(p, replicas.MaxObjects, func(ctx context.Context, q preview.Question) (any, error) { return p.preview.Ask(ctx, q) })
}

// dryRun is what a dry run of the object warns of. A preview that fails refuses
// nothing. Whoever may write in a namespace is not told of others; objects in the
// mesh's own are about all of them.
func (p *controlPlane) dryRun(ctx context.Context, namespace string, raw []byte) []string {
	if namespace == p.options.namespace {
		namespace = ""
	}
	answer, err := p.preview.DryRun(ctx, preview.Question{Put: []json.RawMessage{raw}})
	if err != nil {
		return []string{fmt.Sprintf("no preview of what this would change: %v", err)}
	}
	return answer.Sentences(namespace)
}
