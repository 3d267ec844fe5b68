package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/preview"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// maxDetails bounds how many resources' texts an answer has.
const maxDetails = 500

// Preview says what the changes would change of what the proxies hold that are
// connected here, or were, and of what is said about objects. Nothing is
// changed. One is made after the other, so that they leave processors to proxies. It
// fails when the context ends.
func (s *Server) Preview(ctx context.Context, changes []mesh.Change, details bool) (*preview.Part, error) {
	select {
	case s.previews <- struct{}{}:
		defer func() { <-s.previews }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for other previews: %w", context.Cause(ctx))
	}
	would, err := s.options.Builder.Suppose(ctx, changes...)
	if err != nil {
		return nil, err
	}
	out := &preview.Part{}
	holders := map[build.Key][]string{}
	var sidecars []string // which have all scopes
	know := func(pod mesh.Name) {
		out.Known = append(out.Known, pod.String())
		if w, ok := would.Now.Workload(pod); ok && w.Gateway == "" {
			sidecars = append(sidecars, pod.String())
		}
	}
	streams, gone := s.pods()
	for _, st := range streams {
		pod := st.peer.Pod.String()
		know(st.peer.Pod)
		st.lock.Lock()
		for h := range st.state.Holdings() {
			if _, ok := would.Differences[h.Key]; ok {
				holders[h.Key] = append(holders[h.Key], pod)
			}
		}
		st.lock.Unlock()
	}
	for _, a := range gone {
		know(a.pod)
		for _, h := range a.held {
			if _, ok := would.Differences[h.Key]; ok {
				holders[h.Key] = append(holders[h.Key], a.pod.String())
			}
		}
	}
	texts := 0
	add := func(kind translate.Type, name string, d build.Difference, pods []string) error {
		r := preview.Resource{Type: kind.String(), Name: name, NowVersion: d.Now.Version, ThenVersion: d.Then.Version, Pods: pods}
		if details && kind != translate.Secret && texts < maxDetails {
			texts++
			var err error
			if r.Now, err = text(d.Now.Body); err != nil {
				return err
			}
			if r.Then, err = text(d.Then.Body); err != nil {
				return err
			}
		}
		out.Resources = append(out.Resources, r)
		return nil
	}
	for k, pods := range holders {
		if d := would.Differences[k]; d.Now.Version != d.Then.Version {
			if err := add(k.Type, k.Name, d, pods); err != nil {
				return nil, err
			}
		}
	}
	for name, d := range would.Scopes {
		if err := add(translate.Scope, name, d, sidecars); err != nil {
			return nil, err
		}
	}
	out.Objects = objects(would, changes)
	return out, nil
}

func text(body *anypb.Any) (json.RawMessage, error) {
	if body == nil {
		return nil, nil
	}
	m, err := body.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("reading a resource: %w", err)
	}
	j, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing a resource as JSON: %w", err)
	}
	return j, nil
}

// objects are those of the changes, and those of which something else would be
// said. Of the others only the leader is told as it goes.
func objects(would *build.Supposition, changes []mesh.Change) []preview.Object {
	said := map[build.Key][]mesh.Finding{}
	for k, d := range would.Differences {
		if k.Type == translate.Findings {
			said[k] = d.Then.Findings
		}
	}
	for _, c := range changes {
		if k, ok := translate.FindingsFor(c.Ref()); ok {
			v, _ := build.Scratch(would.Then, k)
			said[k] = v.Findings
		}
	}
	var out []preview.Object
	for _, k := range slices.SortedFunc(maps.Keys(said), func(a, b build.Key) int { return strings.Compare(a.Name, b.Name) }) {
		kind, n, ok := translate.FindingsOf(k)
		if !ok {
			continue
		}
		o := preview.Object{Kind: kind, Namespace: n.Namespace, Name: n.Name}
		for _, f := range said[k] {
			if f.Reason == "" { // a number
				continue
			}
			c := preview.Condition{Type: f.Type, OK: f.OK, Reason: f.Reason, Message: f.Message}
			if !slices.Contains(o.Conditions, c) { // several parents may say the same
				o.Conditions = append(o.Conditions, c)
			}
		}
		out = append(out, o)
	}
	return out
}
