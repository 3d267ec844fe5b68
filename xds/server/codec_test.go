package server

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/translate"
)

func TestResponsesAreReadAsTheyWereMeant(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	text := func(most int) string { return strings.Repeat("x", random.IntN(most)) }
	c := newCodec()
	for range 2000 {
		push := &delta.Push{Type: translate.Type(random.IntN(delta.Types)), Nonce: text(20)}
		want := &discovery.DeltaDiscoveryResponse{TypeUrl: push.Type.URL(), Nonce: push.Nonce}
		for range random.IntN(6) {
			r := delta.Resource{Name: text(200), Version: text(40)}
			if random.IntN(8) > 0 {
				value := make([]byte, random.IntN(3*shared))
				r.Body = &anypb.Any{TypeUrl: text(80), Value: value}
			}
			push.Resources = append(push.Resources, r)
			want.Resources = append(want.Resources, &discovery.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
		}
		for range random.IntN(4) {
			push.Removed = append(push.Removed, text(100))
		}
		want.RemovedResources = push.Removed
		got := &discovery.DeltaDiscoveryResponse{}
		encoded, err := c.Marshal(push)
		if err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(encoded.Materialize(), got); err != nil || !proto.Equal(want, got) {
			t.Fatalf("seed %d: %v\nwant %v\ngot  %v", seed, err, want, got)
		}
	}
}

func TestLargeResourcesAreNotCopied(t *testing.T) {
	value := bytes.Repeat([]byte("x"), shared)
	encoded, err := newCodec().Marshal(&delta.Push{Resources: []delta.Resource{{Name: "a", Body: &anypb.Any{Value: value}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range encoded {
		if s, ok := b.(mem.SliceBuffer); ok && len(s) == len(value) && &s[0] == &value[0] {
			return
		}
	}
	t.Error("the value is not among the buffers")
}
